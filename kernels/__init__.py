"""Imported as `sam_edge.kernels`: operators in C++ (csrc), each beside the same in NumPy."""
