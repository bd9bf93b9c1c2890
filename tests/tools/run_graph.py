"""Run in the environment of an older ONNX Runtime: `python run_graph.py GRAPH.onnx IN.npz OUT.npz`, names to arrays."""

import sys

import numpy as np
import onnxruntime

graph, given, out = sys.argv[1:]
session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
names = [value.name for value in session.get_outputs()]
np.savez(out, **dict(zip(names, session.run(names, dict(np.load(given))), strict=True)))
