"""Distillation of the embedding, and one-step compression as a whole."""

import copy

import pytest
import torch

from sam_edge.compress.distil import DistilOptions, _validation, embedding_error
from sam_edge.compress.one_step import OneStepOptions, compress_one_step
from sam_edge.compress.prune import PruneOptions
from sam_edge.data import open_images
from sam_edge.training import loop


def options(**distil):
    return OneStepOptions(PruneOptions(0.5), DistilOptions(workers=0, learning_rate=2e-3, batch_size=4, **distil))


def test_embedding_error_is_0_for_the_teacher_and_1_for_its_mean():
    teacher = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    assert embedding_error([teacher], [teacher]) == 0
    constant = torch.full_like(teacher, teacher.mean().item())
    assert embedding_error([constant], [teacher]) == pytest.approx(1, rel=0.01)


def test_distillation_brings_the_student_back_to_the_teacher(tiny_slim):
    pictures = open_images("synthetic:24:3")
    pruned = copy.deepcopy(tiny_slim)
    assert compress_one_step(pruned, pictures, options(epochs=0)) is None
    score = _validation(tiny_slim, pictures, range(6))
    untrained = score(pruned)
    trained = copy.deepcopy(tiny_slim)
    progress = compress_one_step(trained, pictures, options(epochs=12))
    assert progress is not None
    assert score(trained) > untrained / 2, "errors are negative scores: at least halved"


def test_only_the_image_encoder_is_trained(tiny_slim):
    before = copy.deepcopy(tiny_slim)
    compress_one_step(tiny_slim, open_images("synthetic:8:1"), options(epochs=1))
    for name in ("prompt_encoder", "mask_decoder"):
        wanted, got = getattr(before, name).state_dict(), getattr(tiny_slim, name).state_dict()
        assert all(torch.equal(wanted[key], got[key]) for key in wanted)


def test_a_killed_compression_continues_to_the_same_weights(tiny_slim, tmp_path, monkeypatch):
    pictures = open_images("synthetic:12:2")
    whole = copy.deepcopy(tiny_slim)
    compress_one_step(whole, pictures, options(epochs=3), state_file=tmp_path / "a.state")

    class Killed(Exception):
        pass

    def kill(progress, report):
        if progress.step == 4:
            raise Killed

    interrupted = copy.deepcopy(tiny_slim)
    state = tmp_path / "b.state"
    # every step is far enough from the last save
    monkeypatch.setattr(loop, "perf_counter", iter(range(0, 10**9, 1000)).__next__)
    with pytest.raises(Killed):
        compress_one_step(interrupted, pictures, options(epochs=3), state_file=state, on_step=kill)
    monkeypatch.undo()
    assert state.exists()
    resumed = copy.deepcopy(tiny_slim)
    seen = []
    compress_one_step(
        resumed,
        pictures,
        options(epochs=3),
        state_file=state,
        on_step=lambda progress, report: seen.append(progress.step),
    )
    assert seen[0] > 1
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
