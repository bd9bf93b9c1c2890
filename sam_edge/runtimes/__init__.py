"""Runtimes that run exported graphs on a device, behind the contract of `sam_edge.segment.runtime`."""
