"""The learning rate that halves when validation stops improving, and goes on doing so after a kill."""

import pytest
import torch
from torch import nn

from sam_edge.training import loop
from sam_edge.training.loop import LoopOptions, fit

SCORES = [1, 2, 0, 0, 0, 0, 3, 1, 1, 1, 1, 0, 0, 0, 0, 9]
"""Better in validations 1, 2, 7 and 16: halved after 6, 11 and 15."""


def run(model, state_file=None, kill_at=None, seen=None):
    """SGD-like: under Adam with a constant gradient each step moves a weight by the learning rate."""
    scores = iter(SCORES)

    def batches(first, last):
        # validations done before a resume gave their scores to the killed run
        for _ in range(first):
            next(scores)
        return range(first, last)

    def on_step(progress, report):
        if seen is not None:
            seen.append((progress.halvings, progress.stale))
        if progress.step == kill_at:
            raise KeyboardInterrupt

    options = LoopOptions(
        len(SCORES), 0.1, "adam", schedule="plateau", clip_norm=0.0, validate_every=1, checkpoint_seconds=0.0
    )
    return fit(
        model,
        lambda batch, step: (model.weight.sum(), {}),
        batches,
        options,
        state_file=state_file,
        validate=lambda model: float(next(scores)),
        on_step=on_step,
    )


@pytest.fixture
def make():
    def model():
        torch.manual_seed(0)
        return nn.Linear(2, 2, bias=False).double()

    return model


def test_the_rate_is_halved_after_four_validations_without_a_new_best(make):
    model = make()
    start = model.weight.detach().clone()
    seen = []
    progress = run(model, seen=seen)
    assert progress.halvings == 3
    assert [halvings for halvings, _ in seen] == [0] * 5 + [1] * 5 + [2] * 4 + [3, 3]
    # the last score is the best, so the last weights were kept: 6 + 5 + 4 + 1 steps of a halving rate
    moved = start - model.weight.detach()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1 * (6 + 5 / 2 + 4 / 4 + 1 / 8)), rtol=1e-6, atol=0)


def test_halvings_survive_a_kill(make, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "perf_counter", iter(range(0, 10**9, 1000)).__next__)
    whole, killed = make(), make()
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(killed, tmp_path / "state", kill_at=9)
    killed = make()
    progress = run(killed, tmp_path / "state")
    assert progress.halvings == 3
    assert torch.equal(killed.weight, whole.weight)
