"""The good inputs that the campaign changes, and works on: as small as they can be."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sam_edge.data.rle import encode_mask
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.config import DecoderConfig, ModelConfig, StageConfig, uniform_blocks
from tests.campaign.states import make_unfinished

DECODER = DecoderConfig(dim=32, depth=1, heads=2, mlp=32, mask_channels=8, iou_hidden=16)
VIT = ModelConfig("vit", 64, uniform_blocks(2, 16, 2, (1,), window=3, mlp=16), patch_size=16, decoder=DECODER)
TINY_VIT = ModelConfig(
    "tiny_vit",
    64,
    stages=(
        StageConfig(8, 1, 0, 0, 1),
        StageConfig(8, 1, 2, 3, 2),
        StageConfig(8, 1, 2, 4, 2),
        StageConfig(8, 1, 2, 2, 1),
    ),
    decoder=DECODER,
)
PHOTOS = 6
RECIPE = """
title = "campaign"
model = "../base/slim"
images = "../base/photos"
data = "../base/sa1b"
[compress]
epochs = 1
batch_size = 2
importance_images = 2
[quantize]
calibration_images = 1
[engine]
targets = []
[evaluate]
limit = 2
[bench]
runs = 1
warmup = 1
"""


def make_base(base: Path) -> None:
    """Models in every form, photos, and labels in two layouts; once."""
    if (base / "done").exists():
        return
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    torch.manual_seed(0)
    for name, config in (("vit", VIT), ("slim", VIT.replace(arch="slim_vit")), ("tiny_vit", TINY_VIT)):
        save_checkpoint(EdgeSam(config), base / name)
    (base / "train.json").write_text(VIT.replace(arch="slim_vit").to_json())
    (base / "recipe.toml").write_text(RECIPE)
    torch.save(EdgeSam(VIT).state_dict(), base / "vit.pth")
    _pictures(base)
    from sam_edge.commands.workshop.export import to_graphs
    from sam_edge.commands.workshop.quantize import quantize
    from sam_edge.quantize.ptq import QuantizeOptions

    photos = str(base / "photos")
    quantize(str(base / "slim"), photos, base / "quantized", QuantizeOptions(metric="minmax"), calibration_images=1)
    to_graphs(str(base / "slim"), photos, base / "exported", "fp32", device="cpu", seed=0)
    make_unfinished(base.parent)
    (base / "done").touch()


def _pictures(base: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("photos", "sa1b"):
        (base / folder).mkdir()
    images, annotations = [], []
    for number in range(PHOTOS):
        pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        name = f"{number}.png"
        Image.fromarray(pixels).save(base / "photos" / name)
        images.append({"id": number, "file_name": name, "height": 48, "width": 64})
        outline = [10, 8, 50, 8, 50, 40, 10, 40]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "area": 1280,
                            "bbox": [10, 8, 40, 32], "segmentation": [outline]})  # fmt: skip
        if number < 2:
            mask = np.zeros((48, 64), bool)
            mask[8:40, 10:50] = True
            entry = {"segmentation": encode_mask(mask), "bbox": [10, 8, 40, 32], "point_coords": [[30, 24]]}
            Image.fromarray(pixels).save(base / "sa1b" / name)
            content = {"image": {"height": 48, "width": 64}, "annotations": [entry, entry]}
            (base / "sa1b" / f"{number}.json").write_text(json.dumps(content))
    shutil.copy(base / "photos" / "0.png", base / "photo.png")
    categories = [{"id": 1, "name": "thing"}]
    labels = {"images": images, "annotations": annotations, "categories": categories}
    (base / "instances.json").write_text(json.dumps(labels))
