"""A runtime that draws, by NumPy alone: of a box its ellipse, of points discs. What it should answer is plain."""

import numpy as np

from sam_edge.segment.config import ModelConfig, Thresholds, uniform_blocks
from sam_edge.segment.prompts import BOX_END, BOX_START, FOREGROUND, Prompts
from sam_edge.segment.runtime import Prediction

CONFIG = ModelConfig(
    "vit", 64, uniform_blocks(1, 32, 2, (0,), window=0), patch_size=8, thresholds=Thresholds(0.5, 0.5, tau=4.0)
)
RADIUS_PX = 10.0


class DrawingRuntime:
    """Logits are pixels from the outline, positive inside; of three masks the second is the best."""

    name = "drawing"

    def __init__(self, config: ModelConfig = CONFIG) -> None:
        self.config = config
        self.encoded = 0

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        assert pixels.dtype == np.float32
        assert pixels.shape[1:] == (3, self.config.image_size, self.config.image_size)
        self.encoded += 1
        return pixels

    def host(self, embeddings: np.ndarray) -> np.ndarray:
        return embeddings

    def decode(self, embeddings: np.ndarray, prompts: Prompts) -> tuple[np.ndarray, np.ndarray]:
        sets = [
            self._logits(coords, labels) for coords, labels in zip(prompts.coords[0], prompts.labels[0], strict=True)
        ]
        logits = np.stack(sets)[None, :, None] - np.array([0.0, 2.0, 0.0, 4.0], np.float32)[:, None, None]
        iou = np.broadcast_to(np.array([0.8, 0.7, 0.9, 0.6], np.float32), (1, len(sets), 4))
        return logits, iou.copy()

    def prepare(self, embeddings: np.ndarray) -> np.ndarray:
        return embeddings

    def predict(self, state: np.ndarray, prompts: Prompts) -> Prediction:
        logits, iou = self.decode(state, prompts)
        return Prediction(iou[0], logits[0])

    def upscale(self, prediction: Prediction, sets: np.ndarray, masks: np.ndarray) -> np.ndarray:
        return prediction.handle[sets, masks]

    def _logits(self, coords: np.ndarray, labels: np.ndarray) -> np.ndarray:
        cell = self.config.image_size / self.config.mask_size
        centres = (np.arange(self.config.mask_size, dtype=np.float32) + 0.5) * cell
        if (labels == BOX_START).any():
            start, end = coords[labels == BOX_START][0], coords[labels == BOX_END][0]
            middle, half = (start + end) / 2, np.maximum((end - start) / 2, 1)
            away = ((centres[None] - middle[0]) / half[0]) ** 2 + ((centres[:, None] - middle[1]) / half[1]) ** 2
            return ((1 - np.sqrt(away)) * half.min()).astype(np.float32)
        found = np.full((self.config.mask_size,) * 2, -RADIUS_PX, np.float32)
        for x, y in coords[labels == FOREGROUND]:
            away = np.sqrt((centres[None] - x) ** 2 + (centres[:, None] - y) ** 2)
            found = np.maximum(found, RADIUS_PX - away)
        return found
