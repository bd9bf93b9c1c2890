"""sam_edge.training.loop: exact resumption, and steps that are what their arithmetic says."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sam_edge.errors import SamEdgeError, TrainingError
from sam_edge.models.checkpoint import read_tensors, save_tensors
from sam_edge.scenes.synthetic import SceneOptions, SyntheticScenes
from sam_edge.training.interactive import InteractiveOptions, InteractiveSegmentation
from sam_edge.training.loop import LoopOptions, Progress, fit, learning_rate_at
from sam_edge.training.stream import Source, ViewStream, stack_views, step_batches
from sam_edge.training.views import ViewOptions


class Killed(Exception):
    """The end of a process, as far as a test can have it."""


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights and statistics as they are now."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def regression(seed: int = 0) -> nn.Linear:
    """A linear model in float64, where sums are exact enough to be compared."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(5, 3).double()


def samples(first: int, last: int, size: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches first..last-1 of a fixed regression problem; number i is always the same."""
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(size, 5, generator=generator, dtype=torch.float64)
        yield x, x[:, :3] - 2 * x[:, 1:4] + 1


def squared_error(model: nn.Module) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    """The loss of `samples`."""

    def loss(batch, step):
        x, y = batch
        return (model(x) - y).square().mean(), {}

    return loss


# --- Killed and started again


def train_sam(
    model, steps: int, state_file: Path | None, kill_at: int | None = None, **changes
) -> tuple[Progress, list]:
    """A short interactive training on synthetic scenes that may be killed after a step; and the loss calls it made."""
    scenes = SyntheticScenes(6, seed=3, options=SceneOptions(size=64))
    views = ViewOptions(image_size=64, mask_size=model.config.mask_size, prompts=3, min_cells=4)
    stream = ViewStream([Source(scenes)], views, seed=5)
    options = LoopOptions(steps=steps, learning_rate=1e-3, weight_decay=0.1, checkpoint_seconds=0, **changes)
    method = InteractiveSegmentation(model, InteractiveOptions(rounds=2, interactive_share=0.5), seed=7)
    calls = []

    def loss(batch, step):
        calls.append(step)
        return method(batch, step)

    def on_step(progress, report):
        if progress.step == kill_at:
            raise Killed

    def validate(scored):
        # neither the first nor the last is the best
        return -abs(float(scored.mask_decoder.iou_token.weight.sum()) - 0.01)

    progress = fit(
        model,
        loss,
        lambda first, last: step_batches(stream, 2, first, last, workers=0, collate=stack_views),
        options,
        state_file=state_file,
        identity="test",
        validate=validate,
        on_step=on_step,
    )
    return progress, calls


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema_decay": 0.9, "warmup_steps": 2},
        {"accumulate": 2, "optimizer": "adam", "schedule": "constant"},
        {"validate_every": 2, "ema_decay": 0.5},
        {"optimizer": "muon"},
        {"optimizer": "muon", "rates": (("mask_decoder.*", 0.5), ("*.bias", 2.0))},
    ],
    ids=["plain", "ema", "accumulate", "validated", "muon", "rates"],
)
def test_a_run_killed_twice_ends_bit_equal_to_an_uninterrupted_one(tiny_config, make_sam, tmp_path, changes):
    whole, killed = make_sam(tiny_config), make_sam(tiny_config)
    wanted, _ = train_sam(whole, 5, None, **changes)
    for kill_at in (3, 4):
        with pytest.raises(Killed):
            train_sam(killed, 5, tmp_path / "state", kill_at, **changes)
        # a new process starts from the initial weights
        killed = make_sam(tiny_config)
    got, calls = train_sam(killed, 5, tmp_path / "state", **changes)
    # killed in step 4, before its state was saved: three steps are not taken again
    assert calls[0] == 3 * changes.get("accumulate", 1)
    torch.testing.assert_close(killed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert got.history == wanted.history
    assert got.best_score == wanted.best_score
    assert any(
        not torch.equal(a, b) for a, b in zip(make_sam(tiny_config).parameters(), whole.parameters(), strict=True)
    )


def test_running_statistics_survive_a_kill(tiny_vit_config, make_sam, tmp_path):
    whole, killed = make_sam(tiny_vit_config), make_sam(tiny_vit_config)
    train_sam(whole, 3, None)
    with pytest.raises(Killed):
        train_sam(killed, 3, tmp_path / "state", kill_at=3)
    killed = make_sam(tiny_vit_config)
    train_sam(killed, 3, tmp_path / "state")
    torch.testing.assert_close(killed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_finished_run_started_again_takes_no_step(tmp_path):
    first, second = regression(), regression()
    options = LoopOptions(steps=4, learning_rate=0.1)
    fit(first, squared_error(first), samples, options, state_file=tmp_path / "state")

    def no_loss(batch, step):
        raise AssertionError("a step was taken")

    progress = fit(second, no_loss, samples, options, state_file=tmp_path / "state")
    assert progress.step == 4
    torch.testing.assert_close(copied(second), copied(first), rtol=0, atol=0)


@pytest.mark.parametrize("kept", [0, 7, 200, -3], ids=["nothing", "a length", "a header", "most"])
def test_a_state_that_is_cut_off_is_told_in_a_line(tmp_path, kept):
    model, state = regression(), tmp_path / "state"
    fit(model, squared_error(model), samples, LoopOptions(steps=2), state_file=state)
    state.write_bytes(state.read_bytes()[:kept])
    with pytest.raises(SamEdgeError, match="state is not what was saved there: delete it to begin anew"):
        fit(model, squared_error(model), samples, LoopOptions(steps=2), state_file=state)


@pytest.mark.parametrize("wrong", ["a name", "a shape", "progress", "a step", "history"])
def test_a_state_of_other_contents_is_told_in_a_line(tmp_path, wrong):
    model, state = regression(), tmp_path / "state"
    fit(model, squared_error(model), samples, LoopOptions(steps=2), state_file=state)
    tensors, metadata = read_tensors(state)
    name = next(name for name in tensors if name.startswith("model."))
    if wrong == "a name":
        tensors["model.other"] = tensors.pop(name)
    elif wrong == "a shape":
        # which would be spread over the weights
        tensors[name] = torch.zeros(1)
    elif wrong == "progress":
        metadata["progress"] = "[]"
    elif wrong == "history":
        metadata["progress"] = json.dumps(json.loads(metadata["progress"]) | {"history": "none"})
    else:
        metadata["progress"] = json.dumps({"step": "2"})
    save_tensors(tensors, state, metadata)
    with pytest.raises(TrainingError, match="is not the state that was saved there: delete it to begin anew"):
        fit(model, squared_error(model), samples, LoopOptions(steps=2), state_file=state)


@pytest.mark.parametrize(
    ("changes", "identity"),
    [({"learning_rate": 0.2}, "a"), ({"steps": 9}, "a"), ({"ema_decay": 0.5}, "a"), ({}, "b")],
    ids=["rate", "steps", "ema", "identity"],
)
def test_the_state_of_other_settings_is_refused(tmp_path, changes, identity):
    model, settings = regression(), {"steps": 3, "learning_rate": 0.1}
    fit(model, squared_error(model), samples, LoopOptions(**settings), state_file=tmp_path / "state", identity="a")
    kept, before = (tmp_path / "state").read_bytes(), copied(model)
    with pytest.raises(TrainingError, match="run with other settings: choose another --out or delete it"):
        fit(
            model,
            squared_error(model),
            samples,
            LoopOptions(**{**settings, **changes}),
            state_file=tmp_path / "state",
            identity=identity,
        )
    assert (tmp_path / "state").read_bytes() == kept
    torch.testing.assert_close(copied(model), before, rtol=0, atol=0)


# --- What a step is


def test_the_run_returns_the_moving_average():
    model, decay = regression(), 0.4
    average = {name: value.clone() for name, value in copied(model).items()}

    def on_step(progress, report):
        effective = min(decay, progress.step / (9 + progress.step))
        for name, value in copied(model).items():
            average[name] = effective * average[name] + (1 - effective) * value

    options = LoopOptions(steps=12, learning_rate=0.1, ema_decay=decay)
    last = {}
    fit(
        model,
        squared_error(model),
        samples,
        options,
        on_step=lambda progress, report: (on_step(progress, report), last.update(copied(model))),
    )
    torch.testing.assert_close(copied(model), average, rtol=1e-12, atol=1e-12)
    assert (last["weight"] - average["weight"]).abs().max() > 1e-3
    assert not model.training


@pytest.mark.parametrize("decay", [0.0, 0.5], ids=["last weights", "ema"])
def test_the_best_validated_weights_are_kept(decay):
    model, scores, seen = regression(), iter([1.0, 3.0, 2.0]), []

    def validate(scored):
        assert not scored.training
        seen.append(copied(scored))
        return next(scores)

    options = LoopOptions(steps=6, learning_rate=0.1, validate_every=2, ema_decay=decay)
    modes = []
    progress = fit(
        model,
        lambda batch, step: (modes.append(model.training), squared_error(model)(batch, step))[1],
        samples,
        options,
        validate=validate,
    )
    assert all(modes)
    assert progress.best_score == 3.0
    assert [entry["score"] for entry in progress.history if "score" in entry] == [1.0, 3.0, 2.0]
    torch.testing.assert_close(copied(model), seen[1], rtol=0, atol=0)
    assert not torch.equal(seen[1]["weight"], seen[2]["weight"])


def test_the_best_weights_come_with_the_running_statistics_they_were_validated_with():
    model = nn.Sequential(regression(), nn.BatchNorm1d(3).double())
    scores, seen = iter([3.0, 1.0, 2.0]), []

    def validate(scored):
        seen.append(copied(scored))
        return next(scores)

    options = LoopOptions(steps=3, learning_rate=0.1, validate_every=1)
    fit(model, squared_error(model), samples, options, validate=validate)
    assert not torch.equal(seen[0]["1.running_mean"], seen[2]["1.running_mean"])
    torch.testing.assert_close(copied(model), seen[0], rtol=0, atol=0)


def test_validating_an_average_leaves_the_trained_weights_alone():
    checked, plain = regression(), regression()
    options = LoopOptions(steps=6, learning_rate=0.1, ema_decay=0.5)
    trail: dict[str, list[Tensor]] = {"checked": [], "plain": []}
    fit(
        checked,
        squared_error(checked),
        samples,
        LoopOptions(steps=6, learning_rate=0.1, ema_decay=0.5, validate_every=1),
        validate=lambda model: 0.0,
        on_step=lambda *_: trail["checked"].append(checked.weight.detach().clone()),
    )
    fit(
        plain,
        squared_error(plain),
        samples,
        options,
        on_step=lambda *_: trail["plain"].append(plain.weight.detach().clone()),
    )
    torch.testing.assert_close(trail["checked"], trail["plain"], rtol=0, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_before_its_step(bad):
    model, seen = regression(), []

    def loss(batch, step):
        value, parts = squared_error(model)(batch, step)
        return value * bad if step == 2 else value, parts

    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step 2: lower --learning-rate"):
        fit(model, loss, samples, LoopOptions(steps=5), on_step=lambda *_: seen.append(copied(model)))
    assert len(seen) == 2
    torch.testing.assert_close(copied(model), seen[-1], rtol=0, atol=0)


def test_a_frozen_model_is_refused():
    with pytest.raises(TrainingError, match="every parameter is frozen"):
        fit(regression().requires_grad_(False), lambda batch, step: None, samples, LoopOptions(steps=1))


def test_frozen_weights_stay():
    model = regression()
    model.bias.requires_grad_(False)
    before = copied(model)
    fit(model, squared_error(model), samples, LoopOptions(steps=3, learning_rate=0.1, weight_decay=0.1))
    assert torch.equal(model.bias, before["bias"])
    assert not torch.equal(model.weight, before["weight"])


def test_accumulated_half_batches_have_the_gradient_of_the_whole_batch():
    gradients = []
    for parts in (1, 2):
        model = regression()

        def batches(first, last, parts=parts):
            for x, y in samples(first // parts, last // parts):
                yield from zip(x.chunk(parts), y.chunk(parts), strict=True)

        def on_step(progress, report, model=model):
            gradients.append((model.weight.grad.clone(), model.bias.grad.clone()))

        options = LoopOptions(steps=3, learning_rate=0.1, accumulate=parts, clip_norm=0)
        fit(model, squared_error(model), batches, options, on_step=on_step)
    for whole, halves in zip(gradients[:3], gradients[3:], strict=True):
        torch.testing.assert_close(halves, whole, rtol=1e-9, atol=1e-9)
    assert gradients[0][0].abs().max() > 0.1


def test_gradients_are_clipped_to_their_norm():
    norms = {}
    for limit in (0.0, 0.25, 1e6):
        model = regression()

        def on_step(progress, report, model=model, limit=limit):
            norms[limit] = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()

        fit(model, squared_error(model), samples, LoopOptions(steps=1, clip_norm=limit), on_step=on_step)
    assert norms[0.0] == norms[1e6] > 1
    assert norms[0.25] == pytest.approx(0.25, rel=1e-4)


def test_the_first_steps_have_the_size_of_the_warmed_up_rate():
    model, places = regression(), []
    places.append(copied(model))
    options = LoopOptions(steps=8, learning_rate=0.08, warmup_steps=4, clip_norm=0)
    fit(
        model,
        lambda batch, step: (sum(p.sum() for p in model.parameters()), {}),
        samples,
        options,
        on_step=lambda *_: places.append(copied(model)),
    )
    # Adam's step for a constant gradient is the learning rate itself
    for step, (before, after) in enumerate(pairwise(places[:5])):
        moved = before["weight"] - after["weight"]
        torch.testing.assert_close(moved, torch.full_like(moved, 0.02 * (step + 1)), rtol=1e-5, atol=0)


def test_a_factor_scales_the_steps_of_the_parameters_it_names_the_last_one_counts():
    moved = {}
    for rates in ((), (("*", 7.0), ("bias", 0.25), ("weight", 3.0))):
        model = regression()
        before = copied(model)
        options = LoopOptions(steps=2, learning_rate=0.1, rates=rates, warmup_steps=1, clip_norm=0)
        fit(model, lambda batch, step, m=model: (sum(p.sum() for p in m.parameters()), {}), samples, options)
        moved[rates] = {name: before[name] - value for name, value in copied(model).items()}
    plain, scaled = moved.values()
    torch.testing.assert_close(scaled["weight"], 3 * plain["weight"])
    torch.testing.assert_close(scaled["bias"], 0.25 * plain["bias"])


@pytest.mark.parametrize(
    ("rate", "match"), [(("head.*", 0.1), "head"), (("bias", 0.0), "positive"), (("bias", math.nan), "positive")]
)
def test_a_factor_for_nothing_or_of_nothing_is_refused(rate, match):
    model = regression()
    with pytest.raises(TrainingError, match=match):
        fit(model, squared_error(model), samples, LoopOptions(steps=1, rates=(rate,)))


def test_matrices_decay_and_vectors_do_not():
    model = regression()
    before = copied(model)
    options = LoopOptions(steps=2, learning_rate=0.1, weight_decay=0.5, schedule="constant")
    fit(model, lambda batch, step: (0 * sum(p.sum() for p in model.parameters()), {}), samples, options)
    torch.testing.assert_close(model.weight.detach(), before["weight"] * 0.95**2)
    assert torch.equal(model.bias, before["bias"])


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine():
    options = LoopOptions(steps=110, learning_rate=2.0, warmup_steps=10)
    rates = [learning_rate_at(step, options) for step in range(110)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    for step in range(10, 110):
        assert rates[step] == pytest.approx(1 + math.cos(math.pi * (step - 10) / 100))
    assert rates[60] == pytest.approx(1.0)
    assert 0 < rates[-1] < 0.001
    assert max(rates) == rates[9] == rates[10] == 2.0


def test_a_constant_rate_stays_after_warm_up():
    options = LoopOptions(steps=20, learning_rate=3.0, warmup_steps=5, schedule="constant")
    assert [learning_rate_at(step, options) for step in range(5, 20)] == [3.0] * 15


def test_the_history_ends_with_the_last_step_and_stays_short():
    model = regression()
    progress = fit(model, squared_error(model), samples, LoopOptions(steps=451, learning_rate=0.01))
    assert progress.history[-1]["step"] == progress.step == 451
    assert 200 <= len(progress.history) <= 230
    assert progress.history[-1]["loss"] < progress.history[0]["loss"]
    assert 0 < progress.data_wait_seconds < progress.seconds


# --- Several processes

PROCESS = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from sam_edge.training.loop import LoopOptions, fit

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
model = nn.Linear(5, 3).double()
model.load_state_dict(torch.load(f"{folder}/start.pth"))
batches = torch.load(f"{folder}/batches.pth")

def mine(first, last):
    for x, y in batches[first:last]:
        yield x.chunk(2)[rank], y.chunk(2)[rank]

def loss(batch, step):
    return (model(batch[0]) - batch[1]).square().mean(), {}

fit(model, loss, mine, LoopOptions(steps=3, learning_rate=0.05))
torch.save(model.state_dict(), f"{folder}/end{rank}.pth")
dist.destroy_process_group()
"""


def test_two_processes_take_the_steps_of_one_with_the_joint_batch(tmp_path):
    alone = regression()
    torch.save(alone.state_dict(), tmp_path / "start.pth")
    torch.save(list(samples(0, 3)), tmp_path / "batches.pth")
    (tmp_path / "process.py").write_text(PROCESS)
    processes = [
        subprocess.Popen([sys.executable, str(tmp_path / "process.py"), str(rank), str(tmp_path)]) for rank in (0, 1)
    ]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    fit(alone, squared_error(alone), samples, LoopOptions(steps=3, learning_rate=0.05))
    ends = [torch.load(tmp_path / f"end{rank}.pth") for rank in (0, 1)]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    torch.testing.assert_close(ends[0], copied(alone), rtol=1e-9, atol=1e-9)


def test_running_statistics_are_averaged_with_the_weights(tiny_vit_config, make_sam):
    model, last = make_sam(tiny_vit_config), make_sam(tiny_vit_config)
    train_sam(model, 4, None, ema_decay=0.9)
    train_sam(last, 4, None)
    name = next(name for name, _ in model.named_buffers() if name.endswith("running_mean"))
    start, averaged, final = (dict(m.named_buffers())[name] for m in (make_sam(tiny_vit_config), model, last))
    # each lies between the start and where the last step left it, and not at either end
    moved = (final - start).abs() > 1e-6
    share = ((averaged - start) / (final - start))[moved]
    assert 0 < share.median() < 1


FREED = """
import resource, sys
import torch
from sam_edge.training import loop

if sys.argv[1] == "kept":
    loop._keep_memory()
torch.empty(1 << 24).zero_()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.empty(1 << 24).zero_()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is told")
def test_what_is_freed_is_kept_for_the_next_tensor():
    faults = [
        int(subprocess.run([sys.executable, "-c", FREED, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "given back")
    ]
    # ten times 64 MiB is 160 Ki pages
    assert faults[0] < 1 << 15 < 1 << 17 < faults[1]
