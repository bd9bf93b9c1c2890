"""What a step of full-stage distillation costs beside the passes that the method requires."""

import pytest
import torch

from sam_edge.compress.distil_views import DistilBatch
from sam_edge.compress.full_stage import LossWeights, decode_views, first_masks
from sam_edge.compress.hard_prompts import HardPromptOptions, draw_rounds
from sam_edge.compress.student import StudentOptions, build_student
from sam_edge.compress.tinysam import FullStage
from sam_edge.models.registry import random_model
from sam_edge.segment.prompts import BOX_END, BOX_START, FOREGROUND, Prompts

PROMPTS, RUNS = 64, 3


def batch_of(config, teacher) -> DistilBatch:
    """One view with as many rectangles as prompts, and an embedding of the teacher's grid."""
    generator = torch.Generator().manual_seed(0)
    size, cells = config.image_size, config.mask_size
    masks = torch.zeros(1, PROMPTS, cells, cells, dtype=torch.uint8)
    boxes = torch.zeros(1, PROMPTS, 4)
    for number in range(PROMPTS):
        x, y = (int(torch.randint(0, cells - 40, (), generator=generator)) for _ in range(2))
        masks[0, number, y : y + 30, x : x + 36] = 255
        boxes[0, number] = torch.tensor([x, y, x + 36, y + 30]) * (size / cells)
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=generator)
    embedding = torch.randn(1, teacher.decoder.dim, teacher.grid, teacher.grid, generator=generator)
    return DistilBatch(image, embedding, masks, boxes, torch.full((1, 2), float(size)))


@pytest.mark.slow
def test_a_step_takes_at_most_a_quarter_more_than_the_passes_it_needs(seconds):
    teacher = random_model("nano-vit")
    student = build_student(teacher, StudentOptions("vit_t"), seed=0).train()
    batch = batch_of(student.config, teacher.config)
    method = FullStage(student, teacher, LossWeights(), HardPromptOptions(prompts=PROMPTS), seed=0)
    options = HardPromptOptions(prompts=PROMPTS)
    step = next(s for s in range(99) if draw_rounds(options, torch.Generator().manual_seed(s)) == 4)
    pixels = student.preprocess(batch.image.float())
    coords = torch.cat([batch.boxes.unflatten(-1, (2, 2)), batch.boxes[..., None, :2] + 9], 2)
    labels = torch.tensor([BOX_START, BOX_END, FOREGROUND]).expand(1, PROMPTS, 3)
    prompts = Prompts(coords, labels)
    with torch.no_grad():
        embedded = student.encode(pixels)

    def encode() -> None:
        student.encode(pixels).sum().backward()

    def decode() -> None:
        embedding = embedded.clone().requires_grad_()
        outputs = decode_views(student.decoder, embedding, prompts)
        (outputs.logits.sum() + outputs.tokens.sum() + outputs.iou.sum()).backward()

    def rounds() -> None:
        for _ in range(4):
            first_masks(student.decoder, embedded, prompts)

    def teach() -> None:
        with torch.no_grad():
            decode_views(teacher.decoder, batch.embedding, prompts)

    passes = (encode, decode, rounds, teach)
    alone = dict.fromkeys(passes, float("inf"))
    whole = float("inf")
    for _ in range(RUNS):
        for work in passes:
            alone[work] = min(alone[work], seconds(work))
        whole = min(whole, seconds(lambda: method(batch, step)[0].backward()))
    parts = {work.__name__: round(value, 2) for work, value in alone.items()}
    print(f"step {whole:.2f} s of {sum(alone.values()):.2f} s: {parts}")
    assert whole <= 1.25 * sum(alone.values())
