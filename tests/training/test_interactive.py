"""sam_edge.training.interactive: prompts belong to examples, not to batches."""

import numpy as np
import pytest
import torch

from sam_edge.errors import TrainingError
from sam_edge.scenes.synthetic import SceneOptions, SyntheticScenes
from sam_edge.segment.frame import Frame
from sam_edge.segment.prompts import BOX_START, FOREGROUND
from sam_edge.segment.scaling import Scaling
from sam_edge.training import interactive
from sam_edge.training.interactive import InteractiveOptions, InteractiveSegmentation
from sam_edge.training.loop import LoopOptions
from sam_edge.training.losses import brought_to
from sam_edge.training.stream import Source, ViewBatch, ViewStream, step_batches
from sam_edge.training.stream import stack_views as stacked
from sam_edge.training.train import TrainOptions
from sam_edge.training.views import ViewOptions


@pytest.fixture
def batch(tiny_config) -> ViewBatch:
    """Examples 0 to 3 of a stream of scenes."""
    scenes = SyntheticScenes(6, seed=3, options=SceneOptions(size=64))
    views = ViewOptions(image_size=64, mask_size=tiny_config.mask_size, prompts=3, min_cells=4)
    return next(iter(step_batches(ViewStream([Source(scenes)], views, 5), 4, 0, 1, workers=0, collate=stacked)))


@pytest.fixture
def seen(monkeypatch) -> list[tuple]:
    """What `Prompts` are made of, as they are made."""
    made: list[tuple] = []
    keep = interactive.Prompts
    monkeypatch.setattr(interactive, "Prompts", lambda *given: made.append(given) or keep(*given))
    return made


def half(batch: ViewBatch, number: int) -> ViewBatch:
    first, second = (batch.example(2 * number + place) for place in (0, 1))
    return ViewBatch(*(torch.cat(pair) for pair in zip(vars(first).values(), vars(second).values(), strict=True)))


@pytest.mark.parametrize("rounds", [1, 3])
def test_the_loss_of_a_batch_is_that_of_its_halves(tiny_sam, batch, rounds):
    method = InteractiveSegmentation(tiny_sam, InteractiveOptions(rounds=rounds, interactive_share=1.0), seed=7)
    whole, parts = method(batch, 0)
    halves = [method(half(batch, number), number) for number in (0, 1)]
    assert sum(loss.item() for loss, _ in halves) / 2 == pytest.approx(whole.item(), rel=1e-4)
    for name, value in parts.items():
        assert sum(float(part[name]) for _, part in halves) / 2 == pytest.approx(float(value), rel=1e-4, abs=1e-6)


def test_processes_prompt_their_share_as_one_would(tiny_sam, batch, monkeypatch):
    method = InteractiveSegmentation(tiny_sam, InteractiveOptions(rounds=1), seed=7)
    whole, _ = method(batch, 0)
    monkeypatch.setattr("sam_edge.training.stream.world", lambda: 2)
    losses = []
    for number in (0, 1):
        monkeypatch.setattr("sam_edge.training.stream.rank", lambda number=number: number)
        losses.append(method(half(batch, number), 0)[0].item())
    assert sum(losses) / 2 == pytest.approx(whole.item(), rel=1e-4)
    assert losses[0] != losses[1]


def test_prompts_change_from_example_to_example_and_seed_to_seed(tiny_sam, batch, seen):
    same = ViewBatch(*(torch.cat([value[:1]] * 4) for value in vars(batch).values()))
    for seed, step in ((1, 0), (1, 1), (2, 0), (1, 0)):
        InteractiveSegmentation(tiny_sam, InteractiveOptions(rounds=1), seed)(same, step)
    coords = [given[0] for given in seen]
    assert torch.equal(coords[0], coords[3])
    assert not torch.equal(coords[0], coords[1])
    assert not torch.equal(coords[0], coords[2])
    assert len({example.numpy().tobytes() for example in coords[0]}) == 4


@pytest.mark.parametrize(("share", "wanted"), [(0.0, FOREGROUND), (1.0, BOX_START)])
def test_first_prompts_are_points_or_boxes_as_asked(tiny_sam, batch, seen, share, wanted):
    InteractiveSegmentation(tiny_sam, InteractiveOptions(box_share=share, rounds=1), 1)(batch, 0)
    assert (seen[0][1][..., 0] == wanted).all()


@pytest.fixture
def windows() -> ViewBatch:
    """Four views of a quarter of the canvas of a 64 px model."""
    views = ViewOptions(image_size=32, mask_size=16, prompts=3, min_cells=4)
    scenes = SyntheticScenes(6, seed=3, options=SceneOptions(size=64))
    return next(iter(step_batches(ViewStream([Source(scenes)], views, 5), 4, 0, 1, workers=0, collate=stacked)))


def test_windows_lie_all_over_the_canvas(tiny_slim, windows, monkeypatch):
    places = set()
    keep = interactive.CanvasWindow
    monkeypatch.setattr(interactive, "CanvasWindow", lambda model, place: places.add(place) or keep(model, place))
    method = InteractiveSegmentation(tiny_slim, InteractiveOptions(rounds=1), seed=7, window=32)
    for step in range(40):
        method(windows, step)
    assert {place.side for place in places} == {4}
    assert {place.row for place in places} == {place.column for place in places} == set(range(5))


def test_a_window_trains_the_canvas(tiny_slim, windows):
    method = InteractiveSegmentation(tiny_slim, InteractiveOptions(rounds=2, interactive_share=1.0), seed=7, window=32)
    method(windows, 0)[0].backward()
    # positions outside of the window are not concerned
    seen = (tiny_slim.image_encoder.pos_embed.grad != 0).any(-1)[0]
    assert seen.sum() == 16
    untouched = [name for name, p in tiny_slim.named_parameters() if p.requires_grad and p.grad is None]
    assert all("point_embeddings" in name or "no_mask" in name for name in untouched)


def test_ellipses_are_asked_for_by_boxes_alone(tiny_sam, seen):
    views = ViewOptions(image_size=64, mask_size=tiny_sam.config.mask_size, prompts=3, min_cells=4, ellipses=0.5)
    stream = ViewStream([Source(SyntheticScenes(6, seed=3, options=SceneOptions(size=64)))], views, 5)
    mixed = next(iter(step_batches(stream, 12, 0, 1, workers=0, collate=stacked)))
    assert 0 < mixed.boxes_only.sum() < 12
    InteractiveSegmentation(tiny_sam, InteractiveOptions(box_share=0.0, rounds=1), 1)(mixed, 0)
    assert torch.equal(seen[0][1][:, 0, 0] == BOX_START, mixed.boxes_only)


def test_nothing_is_asked_about_by_points_alone(tiny_sam, batch, seen):
    batch.masks[1:3, 0] = 0
    InteractiveSegmentation(tiny_sam, InteractiveOptions(box_share=1.0, interior_share=0.0, rounds=1), 1)(batch, 0)
    coords, labels = seen[0][:2]
    on_nothing = (batch.masks == 0).flatten(2).all(-1)
    assert torch.equal(labels[..., 0] == FOREGROUND, on_nothing)
    assert torch.equal(coords[..., 0, :][on_nothing], batch.interior[on_nothing])


@pytest.mark.parametrize("scale", [1, 2])
def test_targets_meet_logits_brought_to_their_size(tiny_sam, monkeypatch, scale):
    size = tiny_sam.config.mask_size
    views = ViewOptions(image_size=64, mask_size=scale * size, prompts=3, min_cells=4 * scale**2)
    scenes = SyntheticScenes(6, seed=3, options=SceneOptions(size=64))
    batch = next(iter(step_batches(ViewStream([Source(scenes)], views, 5), 2, 0, 1, workers=0, collate=stacked)))
    method, decoded, met = InteractiveSegmentation(tiny_sam, InteractiveOptions(interactive_share=1.0), 1), [], []
    decode, loss = method.decode, interactive.segmentation_loss
    scaling = Scaling.of(Frame.of(64, 64, 64), size)
    monkeypatch.setattr(method, "decode", lambda *given: decoded.append(decode(*given)) or decoded[-1])
    monkeypatch.setattr(interactive, "segmentation_loss", lambda *given: met.append(given) or loss(*given))
    method(batch, 0)
    for (logits, *_), (given, _, target, _) in zip(decoded, met, strict=True):
        assert given.shape[-1] == logits.shape[-1] == size
        assert target.shape[-1] == scale * size
        finer = brought_to(given, (scale * size, scale * size))
        # 2 x: the view's own pixels, as the predictor brings masks to a picture of this size
        each = logits.detach().reshape(-1, size, size).numpy()
        wanted = np.stack([mask if scale == 1 else scaling.full(mask) for mask in each])
        torch.testing.assert_close(finer.detach().flatten(), torch.from_numpy(wanted).flatten())
    with pytest.raises(TrainingError, match="target_scale"):
        TrainOptions(LoopOptions(steps=1), target_scale=0)


def test_boxes_move_no_further_than_the_jitter_allows(tiny_sam, batch, seen):
    for jitter in (0.0, 0.05):
        seen.clear()
        options = InteractiveOptions(box_share=1.0, rounds=1, box_jitter=jitter)
        InteractiveSegmentation(tiny_sam, options, 1)(batch, 0)
        boxes = seen[0][0].flatten(2)
        sides = (batch.boxes[..., 2:] - batch.boxes[..., :2]).repeat(1, 1, 2).clamp(min=1)
        # two standard deviations at most
        assert ((boxes - batch.boxes).abs() <= 2 * jitter * sides + 1e-4).all()
        assert torch.equal(boxes, batch.boxes) == (jitter == 0)


def test_shares_outside_one_and_no_rounds_are_refused():
    for bad in ({"box_share": 1.1}, {"box_jitter": 2.0}, {"interactive_share": -0.1}, {"rounds": 0}):
        with pytest.raises(TrainingError, match=next(iter(bad))):
            InteractiveOptions(**bad)
