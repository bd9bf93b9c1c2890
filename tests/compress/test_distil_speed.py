"""What a step of aligning costs, data and optimizer included, beside the passes that its equation requires."""

import copy

import pytest
import torch

from sam_edge.compress.distil import Alignment, DistilOptions, distil, open_teacher, steps_per_epoch
from sam_edge.compress.prune import prepare, prune_encoder
from sam_edge.compress.widths import PruneOptions
from sam_edge.data import open_images
from sam_edge.models.registry import random_model

PICTURES, BATCH, TURNS = 30, 4, 2
HALF = PruneOptions(0.5, "magnitude", "local")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["embedding alone", "bottlenecks with v0", "embeddings with v1"])
def test_a_step_takes_at_most_a_quarter_more_than_the_passes_it_needs(stage, seconds, tmp_path):
    v0 = random_model("nano-vit")
    prepare(v0)
    v1 = copy.deepcopy(v0)
    prune_encoder(v1, HALF, ("embedding",))
    inner, parts = (v1, ("qk", "v", "mlp")) if stage == "embeddings with v1" else (v0, ("embedding",))
    student = copy.deepcopy(inner)
    prune_encoder(student, HALF, parts)
    pictures = open_images(f"synthetic:{PICTURES}:1")
    options = DistilOptions(batch_size=BATCH, workers=0)
    steps = steps_per_epoch(pictures.names, options)
    teacher = open_teacher(v0, pictures, options, tmp_path / "kept")
    alignment = {
        "embedding alone": None,
        "bottlenecks with v0": Alignment(v0, "bottleneck", 10),
        "embeddings with v1": Alignment(v1, "embedding", 10),
    }[stage]

    def train(**more) -> None:
        distil(copy.deepcopy(student), teacher, pictures, options, 1, validate=lambda *_: 0.0, **more)

    pixels = torch.randn(BATCH, 3, v0.config.image_size, v0.config.image_size)
    student.requires_grad_(True)

    def learn() -> None:
        for _ in range(steps):
            student.encode(pixels).sum().backward()

    def teach() -> None:
        with torch.no_grad():
            for _ in range(steps if alignment else 0):
                inner.encode(pixels)

    train()  # keeps v0's embeddings, as the epochs before have
    passes = teacher.passes
    whole, needed = float("inf"), float("inf")
    for _ in range(TURNS):
        needed = min(needed, seconds(learn) + seconds(teach))
        whole = min(whole, seconds(lambda: train(alignment=alignment)))
    print(f"{stage}: {whole / needed:.2f} of the passes' time, {needed / steps:.2f} s")
    assert teacher.passes == passes
    assert whole <= 1.25 * needed
