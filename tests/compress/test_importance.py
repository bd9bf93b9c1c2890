"""Importance against loops in float64 that follow the equations, weight by weight."""

import pytest
import torch

from sam_edge.compress import importance
from sam_edge.compress.groups import find_groups
from sam_edge.compress.importance import accumulated_saliency, disturbed_loss
from sam_edge.compress.labels import LabelledLoss
from sam_edge.compress.slices import group_score
from sam_edge.errors import CheckpointError, CompressionError
from sam_edge.scenes.synthetic import SyntheticScenes

NOISE = 0.01
IMAGES = 3


@pytest.fixture
def images():
    return torch.randn(IMAGES, 1, 3, 64, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def disturbed(model, images):
    return lambda number: disturbed_loss(model, images[number], NOISE, 100 + number)


def reference_gradients(model, images):
    """Of eq. 4 per picture: t + N held fixed, so dL/dt = -2 N / size, pushed back through the encoder."""
    weights = dict(model.image_encoder.named_parameters())
    found = []
    for number, image in enumerate(images):
        embedding = model.encode(image)
        generator = torch.Generator().manual_seed(100 + number)
        noise = NOISE * torch.randn(embedding.shape, generator=generator, dtype=torch.float64)
        into = -2 * noise / embedding.numel()
        gradients = torch.autograd.grad(embedding, list(weights.values()), into)
        found.append(dict(zip(weights, gradients, strict=True)))
    return weights, found


@pytest.mark.parametrize("accumulation", ["signed", "absolute", "squared"])
def test_disturbed_taylor_is_equation_4_summed_over_everything_coupled(tiny_slim, images, accumulation):
    model = tiny_slim.double()
    weights, gradients = reference_gradients(model, images)
    saliency = accumulated_saliency(model.image_encoder, disturbed(model, images), IMAGES, accumulation)

    def worth(name, at):
        w, g = weights[name].detach()[at], [picture[name][at] for picture in gradients]
        if accumulation == "signed":
            return (sum(g) * w).abs().sum()
        if accumulation == "absolute":
            return sum((each * w).abs().sum() for each in g)
        return (sum(each**2 for each in g) * w**2).sum()

    channel, head = 5, 16
    rows = [channel, channel + head]
    expected = {
        "qk": [(f"blocks.0.attn.{n}.{k}", rows) for n in "qk" for k in ("weight", "bias")]
        + [(f"blocks.0.attn.rel_pos_{axis}", (slice(None), channel)) for axis in "hw"],
        "v": [("blocks.0.attn.v.weight", channel), ("blocks.0.attn.v.bias", channel),
              ("blocks.0.attn.proj.weight", (slice(None), channel))],
        "mlp": [("blocks.0.mlp.lin1.weight", channel), ("blocks.0.mlp.lin1.bias", channel),
                ("blocks.0.mlp.lin2.weight", (slice(None), channel))],
    }  # fmt: skip
    scores = {g.part: group_score(g, saliency) for g in find_groups(model) if g.block == 0}
    for part, entries in expected.items():
        wanted = sum(worth(name, at) for name, at in entries)
        assert scores[part][0, channel].item() == pytest.approx(wanted.item(), rel=1e-9)


def test_the_noise_scales_all_importance_alike(tiny_slim, images):
    model = tiny_slim.double()

    def saliency(noise):
        loss = lambda number: disturbed_loss(model, images[number], noise, number)  # noqa: E731
        return accumulated_saliency(model.image_encoder, loss, IMAGES, "absolute")

    small, large = saliency(0.01), saliency(0.02)
    for name, value in small.items():
        torch.testing.assert_close(2 * value, large[name], rtol=1e-9, atol=1e-18)


def test_without_disturbance_there_is_no_importance(tiny_slim, images):
    model = tiny_slim.double()
    saliency = accumulated_saliency(
        model.image_encoder, lambda number: disturbed_loss(model, images[number], 0.0, 0), 1, "absolute"
    )
    assert all(not value.any() for value in saliency.values())


def test_importance_leaves_weights_and_gradients_as_they_were(tiny_slim, images):
    model = tiny_slim.double().requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accumulated_saliency(model.image_encoder, lambda n: disturbed_loss(model, images[n], NOISE, n), 2, "signed")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not weight.requires_grad and weight.grad is None for weight in model.parameters())


def test_a_killed_accumulation_continues_to_the_same_sums(tiny_slim, images, tmp_path, monkeypatch):
    model = tiny_slim.double()
    whole = accumulated_saliency(model.image_encoder, disturbed(model, images), IMAGES, "absolute")
    monkeypatch.setattr(importance, "SAVE_SECONDS", 0.0)
    seen = []

    class Killed(Exception):
        pass

    def dying(number):
        if number == 2 and len(seen) == 2:
            raise Killed
        seen.append(number)
        return disturbed(model, images)(number)

    again = {"state_file": tmp_path / "state", "identity": "a"}
    with pytest.raises(Killed):
        accumulated_saliency(model.image_encoder, dying, IMAGES, "absolute", **again)
    seen.append("killed")
    resumed = accumulated_saliency(model.image_encoder, dying, IMAGES, "absolute", **again)
    assert seen == [0, 1, "killed", 2]
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert not list(tmp_path.iterdir())


def test_the_state_of_other_settings_is_not_used(tiny_slim, images, tmp_path, monkeypatch):
    monkeypatch.setattr(importance, "SAVE_SECONDS", 0.0)
    model = tiny_slim.double()
    seen = []

    def loss(number):
        if len(seen) == 1:
            seen.append("killed")
            raise KeyboardInterrupt
        seen.append(number)
        return disturbed(model, images)(number)

    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        accumulated_saliency(model.image_encoder, loss, 2, "absolute", state_file=state, identity="a")
    (saved,) = tmp_path.iterdir()
    whole = saved.read_bytes()
    accumulated_saliency(model.image_encoder, loss, 2, "absolute", state_file=state, identity="b")
    assert seen == [0, "killed", 0, 1]
    saved.write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="is not what was saved there: delete it to begin anew"):
        accumulated_saliency(model.image_encoder, loss, 2, "absolute", state_file=state, identity="a")


def test_a_loss_that_is_not_finite_is_refused(tiny_slim):
    with pytest.raises(CompressionError, match="nan"):
        accumulated_saliency(
            tiny_slim.image_encoder, lambda n: next(tiny_slim.parameters()).sum() * float("nan"), 1, "signed"
        )


def test_the_loss_on_labels_reaches_every_weight_of_the_encoder(tiny_slim):
    scenes = SyntheticScenes(3)
    loss = LabelledLoss(scenes)
    saliency = accumulated_saliency(
        tiny_slim.image_encoder, lambda number: loss(tiny_slim, scenes.names[number], number), 2, "absolute"
    )
    # the bias of k moves all of a query's logits alike where no position is looked up: it does nothing in softmax
    assert all(value.any() for name, value in saliency.items() if not name.endswith("k.bias"))
    assert loss(tiny_slim, "no such picture", 0) is None
