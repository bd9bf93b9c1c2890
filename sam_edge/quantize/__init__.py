"""Post-training quantization: calibration and scales. The layers themselves are in `sam_edge.models.quantized`."""
