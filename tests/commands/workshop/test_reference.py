"""sam_edge.commands.workshop.reference: segment-anything's calls are what ours of the same names are."""

import numpy as np
import pytest

from sam_edge.bench.latency import MEASUREMENTS, runtime_calls
from sam_edge.commands.workshop.reference import reference_calls
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.models.registry import load_model
from sam_edge.models.torch_runtime import TorchRuntime


def test_both_answer_alike_in_every_phase(tiny_sam, tmp_path, photo: np.ndarray) -> None:
    spec = str(save_checkpoint(tiny_sam, tmp_path / "model"))
    theirs, ours = reference_calls(spec, photo), runtime_calls(TorchRuntime(load_model(spec)), photo)
    assert set(theirs) == set(ours) == {name for name in MEASUREMENTS if not name.startswith("transfer")}
    pixels, _ = ours["pre_process"]()  # type: ignore[misc]
    np.testing.assert_allclose(np.asarray(theirs["pre_process"]()), pixels, atol=1e-5)
    np.testing.assert_allclose(np.asarray(theirs["encode"]()), np.asarray(ours["encode"]()), atol=1e-4)
    for name, sets in (("decode_point", 1), ("decode_box", 1), ("decode_64_points", 64)):
        logits, _ = ours[name]()  # type: ignore[misc]
        got = np.asarray(theirs[name]())
        # of each prompt set the three masks of several
        assert got.shape[:2] == (sets, 3)
        np.testing.assert_allclose(got, logits[0, :, 1:], atol=1e-3)
    mask, _, _ = ours["end_to_end"]()  # type: ignore[misc]
    assert np.mean(mask == theirs["end_to_end"]()[0]) > 0.999  # type: ignore[index]


def test_the_sets_asked_are_not_all_alike(tiny_sam, tmp_path, photo: np.ndarray) -> None:
    spec = str(save_checkpoint(tiny_sam, tmp_path / "model"))
    found = np.asarray(reference_calls(spec, photo)["decode_64_points"]())
    assert found.std(0).max() > 0
    assert pytest.approx(found[0]) != found[-1]
