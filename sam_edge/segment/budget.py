"""How much of everything mode happens at once, so that memory beyond the model stays under a bound."""

from dataclasses import dataclass

from sam_edge.errors import EverythingError
from sam_edge.segment.config import ModelConfig

FLOAT_BYTES = 4
PREDICT_COPIES = 8
"""Image tokens alive at a time for each prompt set while the decoder's attention runs, in copies of them all."""
UPSCALE_COPIES = 3
"""Feature maps alive at a time while a convolution, a norm and an activation follow one another."""
POINT_TAPS = 64
"""Bytes gathered for a mask's logit at one point."""


@dataclass(frozen=True)
class Budget:
    """Numbers of things at once."""

    points: int
    """Prompt sets to a decoder call."""
    masks: int
    """Masks brought to the picture's size together."""
    stored: int
    """Masks whose low-resolution logits are kept until duplicates are suppressed; others are decoded again."""

    @classmethod
    def of(cls, config: ModelConfig, points: int, points_per_batch: int, max_memory_bytes: int) -> "Budget":
        """Half of the memory for the decoder, a quarter for logits kept, an eighth for logits in work.

        The last eighth is left for the picture, its masks as run lengths, and one mask at full size.

        Raises:
            EverythingError: not even one prompt at a time fits.
        """
        decode = prompt_bytes(config)
        mask = config.mask_size**2 * FLOAT_BYTES
        if 2 * decode > max_memory_bytes or 8 * (mask + points * POINT_TAPS) > max_memory_bytes:
            needed = max(2 * decode, 8 * (mask + points * POINT_TAPS))
            raise EverythingError(
                f"max_memory_bytes must be at least {needed} for this model and {points} points, "
                f"got {max_memory_bytes}."
            )
        return cls(
            points=min(points_per_batch, max_memory_bytes // 2 // decode),
            masks=max_memory_bytes // 8 // (mask + points * POINT_TAPS),
            stored=max_memory_bytes // 4 // mask,
        )


def prompt_bytes(config: ModelConfig) -> int:
    """Bytes that decoding takes for each prompt set, all four masks up-scaled; an estimate from above."""
    dim, tokens = config.decoder.dim, config.grid**2
    predict = PREDICT_COPIES * tokens * dim
    # up-scaling: dim / 4 channels at twice the grid, then dim / 8 at four times, then four masks
    upscale = UPSCALE_COPIES * (4 * tokens * dim // 4 + 16 * tokens * dim // 8) + 4 * 16 * tokens
    return FLOAT_BYTES * (predict + upscale)
