"""The README's picture of nano, from the sample photo: `python docs/picture.py docs/nano.png`."""

import sys

import numpy as np
from PIL import Image

from sam_edge.runtimes.folder import shipped_graphs
from sam_edge.runtimes.open import open_runtime
from sam_edge.segment.known import shipped_folder
from sam_edge.segment.overlay import overlay
from sam_edge.segment.predictor import SamPredictor

BOXES = ((165, 15, 420, 290), (76, 55, 485, 392))
"""The cup, and the saucer with what stands on it."""
WIDTH = 450


def picture() -> Image.Image:
    """Both boxes' masks by the graphs that ship, side by side."""
    graphs = shipped_graphs("nano")
    assert graphs is not None
    photo = np.array(Image.open(shipped_folder("sample") / "photo.jpg").convert("RGB"))
    size = WIDTH, WIDTH * photo.shape[0] // photo.shape[1]
    predictor = SamPredictor(open_runtime(graphs, "onnxruntime", "cpu"))
    predictor.set_image(photo)
    shown = []
    for box in BOXES:
        masks, _, _ = predictor.predict(box=np.array(box), multimask_output=False)
        drawn = Image.fromarray(overlay(photo, [masks[0]], boxes=[box]))
        shown.append(np.array(drawn.resize(size, Image.Resampling.LANCZOS)))
    return Image.fromarray(np.concatenate(shown, 1)).quantize(128)


if __name__ == "__main__":
    picture().save(sys.argv[1], optimize=True)
