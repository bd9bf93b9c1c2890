"""Imported as `sam_edge.export`: ONNX and TensorRT, parity with torch, and the runtimes that run what was exported."""

from sam_edge.verbs import make_callable

make_callable(__name__)
