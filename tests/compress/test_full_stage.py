"""The three distillation losses: where they are taken, and whom their gradients reach."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sam_edge.compress.full_stage import (
    Decoded,
    LossWeights,
    StepOutputs,
    decode_views,
    embedding_loss,
    first_masks,
    label_loss,
    output_loss,
    rescaled,
    token_loss,
    total_loss,
)
from sam_edge.errors import TrainingError
from sam_edge.models.resize import resized
from sam_edge.segment.prompts import Prompts
from sam_edge.training.losses import mask_loss


@pytest.fixture
def prompts() -> Prompts:
    """Two images, three single points each."""
    points = torch.rand(2, 3, 1, 2, generator=torch.Generator().manual_seed(3)) * 63
    return Prompts.build(points, torch.ones(2, 3, 1, dtype=torch.long))


@pytest.fixture
def teacher(make_sam, tiny_config):
    return make_sam(tiny_config, seed=9).requires_grad_(False)


def test_the_token_loss_is_taken_at_the_output_of_the_two_way_transformer(tiny_sam, teacher, pixels, prompts):
    """Its tensor is the transformer's own output without the prompt's tokens, and reaches the student's encoder."""
    outputs = []
    hook = tiny_sam.mask_decoder.transformer.register_forward_hook(lambda *call: outputs.append(call[-1]))
    embedding = tiny_sam.encode(pixels)
    got = decode_views(tiny_sam.decoder, embedding, prompts)
    assert got.tokens.shape == (2, 3, 1 + 4, 32)
    # segment-anything's own walk through the same transformer, one image at a time
    for image in range(2):
        sparse, dense = tiny_sam.prompt_encoder(
            (prompts.coords[image, :, :1], prompts.labels[image, :, :1]), None, None
        )
        tiny_sam.mask_decoder(
            image_embeddings=embedding[image : image + 1],
            image_pe=tiny_sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
    hook.remove()
    wanted = torch.stack([tokens for tokens, _ in outputs])
    assert wanted.shape == (2, 3, 5 + 2, 32)
    torch.testing.assert_close(got.tokens, wanted[:, :, :5], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        theirs = decode_views(teacher.decoder, teacher.encode(pixels), prompts)
    token_loss(got, theirs).backward()
    for name, parameter in tiny_sam.image_encoder.named_parameters():
        assert parameter.grad is not None, name
    assert tiny_sam.image_encoder.patch_embed.proj.weight.grad.abs().max() > 0
    # nothing behind the transformer takes part
    assert all(p.grad is None for p in tiny_sam.mask_decoder.output_upscaling.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_the_losses_are_l1_and_zero_for_the_teacher_itself(teacher, pixels, prompts):
    embedding = teacher.encode(pixels)
    own = decode_views(teacher.decoder, embedding, prompts)
    other = replace(own, tokens=own.tokens + 0.5, logits=own.logits - 2)
    assert embedding_loss(embedding + 0.25, embedding) == pytest.approx(0.25, rel=1e-4)
    assert token_loss(other, own) == pytest.approx(0.5, rel=1e-4)
    assert output_loss(other, own) == pytest.approx(2, rel=1e-4)
    assert embedding_loss(embedding, embedding) == token_loss(own, own) == output_loss(own, own) == 0


def test_images_decoded_one_by_one_give_what_they_give_together(teacher, pixels, prompts):
    embedding = teacher.encode(pixels)
    logits, iou = teacher.decoder.decode(embedding, prompts)
    got = decode_views(teacher.decoder, embedding, prompts)
    torch.testing.assert_close(got.logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.iou, iou, rtol=1e-4, atol=1e-5)
    assert torch.equal(first_masks(teacher.decoder, embedding, prompts), got.logits[:, :, 0] > 0)


def test_rounds_leave_no_graph(tiny_sam, pixels, prompts):
    masks = first_masks(tiny_sam.decoder, tiny_sam.encode(pixels), prompts)
    assert masks.dtype == torch.bool
    assert not masks.requires_grad


def test_a_smaller_student_is_compared_at_its_own_size(teacher, pixels, prompts):
    """Targets are resampled, prompts keep their places in the picture."""
    small = resized(teacher, 32)
    embedding = small.encode(F.interpolate(pixels, (32, 32)))
    mine = decode_views(small.decoder, embedding, rescaled(prompts, 0.5))
    theirs = decode_views(teacher.decoder, teacher.encode(pixels), prompts)
    assert mine.logits.shape[-1] * 2 == theirs.logits.shape[-1]
    assert torch.isfinite(output_loss(mine, theirs))
    flat = torch.full_like(theirs.logits, 3.0)
    ones = replace(mine, logits=torch.ones_like(mine.logits))
    assert output_loss(ones, replace(theirs, logits=flat)) == pytest.approx(2, rel=1e-5)
    constant = torch.ones_like(teacher.encode(pixels))
    assert embedding_loss(torch.zeros_like(embedding), constant) == pytest.approx(1, rel=1e-5)
    # the prompt's positional encoding is relative to the image: the same token in both
    mine_tokens, _ = small.decoder.embed_tokens(rescaled(prompts, 0.5).coords, prompts.labels)
    their_tokens, _ = teacher.decoder.embed_tokens(prompts.coords, prompts.labels)
    torch.testing.assert_close(mine_tokens, their_tokens, rtol=1e-4, atol=1e-5)


def test_perfect_masks_leave_only_the_error_of_their_predicted_iou():
    target = torch.zeros(1, 2, 8, 8)
    target[..., :4] = 1
    logits = (target[:, :, None].expand(1, 2, 4, 8, 8) - 0.5) * 200
    every = torch.ones(1, 2, dtype=torch.bool)
    decoded = Decoded(torch.zeros(1, 2, 5, 3), logits, torch.full((1, 2, 4), 0.7), every)
    loss, parts = label_loss(decoded, target)
    assert loss == pytest.approx(0.3, abs=1e-4)
    assert parts["miou"] == 1
    assert parts["iou"] == pytest.approx(0.3)
    # wrong in all three others: that counts where a prompt is ambiguous
    wrong = logits * torch.tensor([1.0, -1, -1, -1])[:, None, None]
    losses = [
        label_loss(
            replace(decoded, logits=wrong, iou=torch.tensor([1.0, 0, 0, 0]).expand(1, 2, 4), ambiguous=asked), target
        )[0]
        for asked in (every, torch.tensor([[True, False]]), ~every)
    ]
    all_wrong = mask_loss(-logits, target[:, :, None].expand_as(logits)).mean().item()
    assert [loss.item() for loss in losses] == pytest.approx([all_wrong, all_wrong / 2, 0], rel=1e-4, abs=1e-4)


def test_the_total_is_the_weighted_sum_of_its_parts_and_extra_losses(teacher, tiny_sam, pixels, prompts):
    embedding, wanted = tiny_sam.encode(pixels), teacher.encode(pixels)
    mine, theirs = (
        decode_views(model.decoder, value, prompts) for model, value in ((tiny_sam, embedding), (teacher, wanted))
    )
    outputs = StepOutputs(None, embedding, wanted, mine, theirs)
    target = torch.zeros_like(mine.logits[:, :, 0])
    extra = {"spread": lambda outputs: outputs.embedding.var()}
    total, parts = total_loss(outputs, target, LossWeights(2.0, 3.0, 0.5, 0.25), extra)
    expected = 2 * parts["embedding"] + 3 * parts["token"] + 0.5 * parts["output"] + 0.25 * parts["labels"]
    torch.testing.assert_close(total.detach(), expected + embedding.var().detach())
    assert parts["spread"] == embedding.var()
    only, parts = total_loss(outputs, None, LossWeights(1.0, 0.0, 0.0, 0.0), {})
    assert set(parts) == {"embedding"}
    assert only == embedding_loss(embedding, wanted)


@pytest.mark.parametrize("weights", [(0, 0, 0, 0), (-1, 1, 1, 1)])
def test_weights_that_teach_nothing_are_refused(weights):
    with pytest.raises(TrainingError, match="loss weights must be at least 0, and one of them more"):
        LossWeights(*weights)
