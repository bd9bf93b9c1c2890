"""Post-training quantization: calibration and scales. The layers themselves are in `sam_edge.models.quantized`."""

from sam_edge.verbs import make_callable

make_callable(__name__)
