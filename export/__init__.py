"""Imported as `sam_edge.export`: ONNX and TensorRT, parity with torch, and the runtimes that run what was exported."""
