"""sam_edge.models.decoder: the batched walk is segment-anything's."""

import pytest
import torch

from sam_edge.errors import PromptError
from sam_edge.segment.prompts import ABSENT, NOT_A_POINT, Prompts

SETS = 3


@pytest.fixture
def embeddings() -> torch.Tensor:
    """Image embeddings of two images."""
    return torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(4))


def some_prompts(kind: str, images: int = 2) -> dict[str, torch.Tensor]:
    """Random prompts of a kind, as keywords of `Prompts.build`."""
    generator = torch.Generator().manual_seed(6)
    made = {}
    if "point" in kind:
        made["points"] = 64 * torch.rand(images, SETS, 2, 2, generator=generator)
        made["labels"] = torch.randint(0, 2, (images, SETS, 2), generator=generator)
    if "box" in kind:
        corners = 64 * torch.rand(images, SETS, 2, 2, generator=generator)
        made["boxes"] = corners.sort(dim=2).values.flatten(2)
    if "mask" in kind:
        made["masks"] = torch.randn(images, SETS, 1, 32, 32, generator=generator)
    return made


def segment_anything(sam, embedding, points=None, labels=None, boxes=None, masks=None):
    """Logits and IoU of one image's prompt sets by segment-anything's own modules."""
    sparse, dense = sam.prompt_encoder(points=None if points is None else (points, labels), boxes=boxes, masks=masks)
    return sam.mask_decoder.predict_masks(
        image_embeddings=embedding[None],
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )


def assert_close(ours, theirs) -> None:
    """Both outputs agree to 1e-5."""
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["points", "box", "points and box", "points and mask", "box and mask", "mask"])
def test_every_kind_of_prompt_is_segment_anything_s(tiny_sam, embeddings, kind):
    given = some_prompts(kind)
    with torch.no_grad():
        logits, iou = tiny_sam.decoder.decode(embeddings, Prompts.build(**given))
        for image, embedding in enumerate(embeddings):
            one = {name: value[image] for name, value in given.items()}
            assert_close((logits[image], iou[image]), segment_anything(tiny_sam, embedding, **one))
    assert logits.shape == (2, SETS, 4, 32, 32)
    assert iou.shape == (2, SETS, 4)


def test_a_label_of_not_a_point_is_segment_anything_s(tiny_sam, embeddings):
    given = some_prompts("points")
    given["labels"][:, 1, 0] = NOT_A_POINT
    with torch.no_grad():
        logits, iou = tiny_sam.decoder.decode(embeddings, Prompts.build(**given))
        one = {name: value[0] for name, value in given.items()}
        assert_close((logits[0], iou[0]), segment_anything(tiny_sam, embeddings[0], **one))


def test_gradients_are_segment_anything_s(tiny_sam, embeddings):
    given = some_prompts("points and mask", images=1)
    one = {name: value[0] for name, value in given.items()}
    # in training, masks are up-scaled by matrix products in place of transposed convolutions
    upscaling = tiny_sam.train().mask_decoder.output_upscaling
    results = []
    for run in (
        lambda e: tiny_sam.decoder.decode(e, Prompts.build(**given)),
        lambda e: segment_anything(tiny_sam, e[0], **one),
    ):
        leaf = embeddings[:1].clone().requires_grad_()
        tiny_sam.zero_grad()
        logits, iou = run(leaf)
        (logits.square().mean() + iou.square().mean()).backward()
        learned = (tiny_sam.prompt_encoder.point_embeddings[1].weight, upscaling[0].weight, upscaling[3].bias)
        results.append((logits, leaf.grad, *(weight.grad.clone() for weight in learned)))
    results[0] = (results[0][0][0], *results[0][1:])
    assert_close(*results)
    assert all(gradient.abs().sum() > 0 for gradient in results[0][1:])


def test_sets_of_different_length_give_what_each_gives_alone(tiny_sam, embeddings):
    given = some_prompts("points", images=1)
    full = Prompts.build(**given)
    labels = full.labels.clone()
    labels[:, 1, 1:] = ABSENT
    # whatever lies at an absent point must not matter
    coords = full.coords.clone()
    coords[:, 1, 1:] = 1e4
    with torch.no_grad():
        logits, iou = tiny_sam.decoder.decode(embeddings[:1], Prompts(coords, labels))
        alone = tiny_sam.decoder.decode(embeddings[:1], Prompts(full.coords[:, 1:2, :1], full.labels[:, 1:2, :1]))
        whole = tiny_sam.decoder.decode(embeddings[:1], full)
    assert_close((logits[:, 1], iou[:, 1]), (alone[0][:, 0], alone[1][:, 0]))
    for index in (0, 2):
        assert_close((logits[:, index], iou[:, index]), (whole[0][:, index], whole[1][:, index]))
    assert (logits[:, 1] - whole[0][:, 1]).abs().max() > 1e-3


def test_only_the_sets_marked_use_their_mask(tiny_sam, embeddings):
    given = some_prompts("points and mask")
    with_mask = Prompts.build(**given)
    without = Prompts.build(given["points"], given["labels"])
    has_mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    decoder = tiny_sam.decoder
    with torch.no_grad():
        logits, _ = decoder(embeddings, with_mask.coords, with_mask.labels, with_mask.masks, has_mask)
        wanted = torch.where(
            has_mask[..., None, None, None] > 0,
            decoder.decode(embeddings, with_mask)[0],
            decoder.decode(embeddings, without)[0],
        )
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)


def test_a_batch_of_images_and_sets_equals_one_at_a_time(tiny_sam, embeddings):
    prompts = Prompts.build(**some_prompts("points and box and mask"))
    with torch.no_grad():
        logits, iou = tiny_sam.decoder.decode(embeddings, prompts)
        for image in range(2):
            for index in range(SETS):
                at = (slice(image, image + 1), slice(index, index + 1))
                one = Prompts(prompts.coords[at], prompts.labels[at], prompts.masks[at])
                alone = tiny_sam.decoder.decode(embeddings[at[0]], one)
                assert_close((logits[at], iou[at]), alone)


def test_decoding_is_its_three_parts(tiny_sam, embeddings):
    prompts = Prompts.build(**some_prompts("points"))
    decoder = tiny_sam.decoder
    with torch.no_grad():
        tokens, iou, image = decoder.predict(decoder.prepare(embeddings), prompts.coords, prompts.labels)
        # a part of the sets can be brought up alone
        some = decoder.upscale(tokens[:, 1:], image[:, 1:])
        logits, wanted = decoder.decode(embeddings, prompts)
    assert_close((some, iou), (logits[:, 1:], wanted))


def test_the_decoder_shares_the_model_s_weights(tiny_sam, embeddings):
    prompts = Prompts.build(**some_prompts("box"))
    with torch.no_grad():
        before = tiny_sam.decoder.decode(embeddings, prompts)[1]
        tiny_sam.mask_decoder.iou_prediction_head.layers[2].bias.add_(1.0)
        torch.testing.assert_close(tiny_sam.decoder.decode(embeddings, prompts)[1], before + 1.0)


def test_positions_are_computed_in_float32_under_autocast_too(tiny_sam, embeddings):
    decoder, prompts = tiny_sam.decoder, Prompts.build(**some_prompts("box"))
    with torch.no_grad():
        grid, sparse = decoder.positions(), decoder.embed_tokens(prompts.coords, prompts.labels)[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(decoder.positions(), grid)
            assert torch.equal(decoder.embed_tokens(prompts.coords, prompts.labels)[0], sparse)
            # all else does run in bfloat16
            assert decoder.decode(embeddings, prompts)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"points": torch.zeros(1, 1, 1, 2)},
        {"labels": torch.zeros(1, 1, 1)},
        {"points": torch.zeros(1, 1, 2, 2), "labels": torch.zeros(1, 1, 1)},
    ],
    ids=["nothing", "points without labels", "labels without points", "fewer labels"],
)
def test_incomplete_prompts_are_refused(given):
    with pytest.raises(PromptError):
        Prompts.build(**given)
