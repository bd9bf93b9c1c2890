"""Measuring what a model costs: latency, memory, size, the machine it ran on, and the report of `sam-edge run`."""
