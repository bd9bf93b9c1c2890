"""What a model costs, as numbers that travel with it; `sam_edge.models.cost` counts them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Size and work of a model; one MAC is one multiplication and one addition."""

    parameters: int
    """Of the whole model."""
    encoder_parameters: int
    """Of the image encoder."""
    encoder_macs: int
    """Of one image's linear and convolutional layers alone, as papers count."""
    encoder_macs_with_attention: int
    """Of one image, attention's products and relative positions included."""
    decoder_macs: int
    """Of one prompt of a single point, everything included."""
