"""Imported as `sam_edge.kernels`: the place of CUDA kernels, each beside a plain reference. So far none is needed."""
