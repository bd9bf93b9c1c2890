"""Distillation: equations 5 to 8, and only the teacher passes that they need."""

import copy

import pytest
import torch
import torch.nn.functional as F

from sam_edge.compress.distil import Alignment, DistilOptions, alignment_loss, distil, open_teacher, split_indices
from sam_edge.compress.features import recorded
from sam_edge.compress.prune import prune_encoder
from sam_edge.compress.validation import Closeness, embedding_error
from sam_edge.compress.widths import PruneOptions
from sam_edge.data import open_images

HALF = PruneOptions(0.5, "magnitude", "local")


@pytest.fixture
def pictures():
    return open_images("synthetic:24:3")


def options(**changes):
    return DistilOptions(workers=0, learning_rate=2e-3, **changes)


def pruned(model, parts):
    student = copy.deepcopy(model)
    prune_encoder(student, HALF, parts)
    return student


def test_embedding_error_is_0_for_the_teacher_and_1_for_its_mean():
    teacher = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    assert embedding_error([teacher], [teacher]) == 0
    constant = torch.full_like(teacher, teacher.mean().item())
    assert embedding_error([constant], [teacher]) == pytest.approx(1, rel=0.01)


def test_a_model_agrees_with_itself_and_less_with_a_pruned_one(tiny_slim, pictures):
    closeness = Closeness(tiny_slim, pictures, range(4))
    assert closeness.of(tiny_slim) == {"embedding_error": 0, "mask_agreement": 1}
    assert closeness.of(pruned(tiny_slim, ("embedding", "mlp")))["mask_agreement"] < 1


def test_alpha_is_a_half_for_n_epochs_or_falls_to_zero(tiny_slim):
    bottleneck, embedding = (Alignment(tiny_slim, kind, 10) for kind in ("bottleneck", "embedding"))
    assert [bottleneck.weight(n) for n in (0, 9, 10, 39)] == [0.5, 0.5, 0, 0]
    assert [embedding.weight(n) for n in (0, 5, 9, 10)] == pytest.approx([0.9, 0.4, 0, 0])


def features_of(model, pixels, names):
    """Outputs of named layers, by a pass of their own."""
    found = {}
    hooks = [
        model.image_encoder.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: found.update({name: output})
        )
        for name in names
    ]
    embedding = model.encode(pixels)
    for hook in hooks:
        hook.remove()
    return embedding, [found[name] for name in names]


def test_bottleneck_aligning_is_equation_5(tiny_slim, pictures, pixels):
    v1 = pruned(tiny_slim, ("embedding",))
    teacher = open_teacher(tiny_slim, pictures, options(), None)
    names = [f"blocks.{b}.{layer}" for b in (0, 1) for layer in ("attn.q", "attn.k", "attn.v", "mlp.lin1")]
    (t0, h0), (t1, h1) = features_of(tiny_slim, pixels, names), features_of(v1, pixels, names)
    inner = sum(F.mse_loss(a, b) for a, b in zip(h0, h1, strict=True)) / len(names)
    wanted = 0.5 * inner + 0.5 * F.mse_loss(t0, t1)
    numbers = torch.tensor([0, 1])
    got = alignment_loss(v1, teacher, Alignment(tiny_slim, "bottleneck", 10), numbers, pixels, 3)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=0)
    later = alignment_loss(v1, teacher, Alignment(tiny_slim, "bottleneck", 10), numbers, pixels, 10)
    torch.testing.assert_close(later, F.mse_loss(t0, t1), rtol=1e-3, atol=0)


def test_embedding_aligning_is_equation_7(tiny_slim, pictures, pixels):
    v1 = pruned(tiny_slim, ("embedding",))
    v2 = pruned(v1, ("qk", "v", "mlp"))
    teacher = open_teacher(tiny_slim, pictures, options(), None)
    t0 = tiny_slim.encode(pixels)
    (t1, e1), (t2, e2) = (features_of(model, pixels, ["blocks.0", "blocks.1"]) for model in (v1, v2))
    inner = sum(F.mse_loss(a, b) for a, b in zip(e1, e2, strict=True)) / 2
    wanted = 0.6 * (inner + F.mse_loss(t1, t2)) + 0.4 * F.mse_loss(t0, t2)
    got = alignment_loss(v2, teacher, Alignment(v1, "embedding", 10), torch.tensor([0, 1]), pixels, 3)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=0)


def test_every_block_is_recorded_once(tiny_slim, pixels, make_sam, tiny_vit_config):
    with recorded(tiny_slim.image_encoder, "embedding") as embeddings:
        tiny_slim.encode(pixels)
    assert [value.shape for value in embeddings] == [(2, 8, 8, 32)] * 2
    model = make_sam(tiny_vit_config)
    with recorded(model.image_encoder, "embedding") as embeddings:
        model.encode(pixels)
    assert len(embeddings) == 5


@pytest.mark.parametrize(("kind", "views"), [(None, 1), (None, 3), ("bottleneck", 1), ("embedding", 2)])
def test_no_teacher_passes_but_those_the_equations_need(tiny_slim, pictures, tmp_path, kind, views):
    """The original runs once per view; inner teachers run in the first N epochs; then nothing but the student does."""
    epochs, aligned, batch = 5, 2, 4
    settings = options(views=views, batch_size=batch)
    training = split_indices(pictures.names)[0]
    per_epoch = len(training) // batch
    teacher = open_teacher(tiny_slim, pictures, settings, tmp_path)
    inner = tiny_slim if kind == "bottleneck" else pruned(tiny_slim, ("embedding",))
    student = pruned(tiny_slim, ("embedding",)) if kind == "bottleneck" else pruned(inner, ("mlp",))
    runs = {"teacher": 0, "inner": 0}
    tiny_slim.image_encoder.register_forward_hook(lambda *_: runs.update(teacher=runs["teacher"] + 1))
    if inner is not tiny_slim:
        inner.image_encoder.register_forward_hook(lambda *_: runs.update(inner=runs["inner"] + 1))
    alignment = None if kind is None else Alignment(inner, kind, aligned)
    steps = []
    distil(
        student, teacher, pictures, settings, epochs,
        alignment=alignment, validate=lambda model: 0.0, on_step=lambda p, r: steps.append(dict(runs)),
    )  # fmt: skip
    # an epoch of the order ends within a batch: one batch more per view may hold a view not yet seen
    allowed = (per_epoch + 1) * views
    if kind == "bottleneck":
        assert per_epoch * aligned <= runs["teacher"] <= per_epoch * aligned + allowed
    else:
        assert per_epoch * views <= runs["teacher"] <= allowed
    if kind == "embedding":
        # alpha is already 0 in the last of the N epochs
        assert runs["inner"] == per_epoch * (aligned - 1)
    last = steps[-1]
    assert last == steps[(max(aligned, views) + 1) * per_epoch], "nobody but the student runs after epoch N"


def test_distillation_brings_the_student_back_to_the_teacher(tiny_slim, pictures):
    student = pruned(tiny_slim, ("embedding", "qk", "v", "mlp"))
    closeness = Closeness(tiny_slim, pictures, split_indices(pictures.names)[1])
    untrained = closeness.of(student)
    teacher = open_teacher(copy.deepcopy(tiny_slim), pictures, options(), None)
    decoder = copy.deepcopy(student.mask_decoder.state_dict())
    distil(student, teacher, pictures, options(), 12, validate=lambda model: -closeness.of(model)["embedding_error"])
    trained = closeness.of(student)
    assert trained["embedding_error"] < untrained["embedding_error"] / 2
    assert trained["mask_agreement"] > untrained["mask_agreement"]
    assert all(torch.equal(value, decoder[name]) for name, value in student.mask_decoder.state_dict().items())
