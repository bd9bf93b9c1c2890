"""How a model is used: the runtime contract, the predictor, everything mode, overlays."""
