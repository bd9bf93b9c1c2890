"""What a SAM is: configs, encoders, the batched decoder, quantized layers, checkpoints, known names."""
