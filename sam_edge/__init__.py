"""sam-edge: compress, quantize, export and measure Segment Anything models."""

__version__ = "0.1.0"
