"""sam_edge.models.checkpoint: what is saved comes back, and nothing else is trusted."""

import argparse
import errno
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sam_edge.errors import CheckpointError, SamEdgeError
from sam_edge.files import atomic_file
from sam_edge.models import checkpoint
from sam_edge.models.checkpoint import (
    NEVER_HALVED,
    holds_halves,
    is_checkpoint_folder,
    load_checkpoint,
    load_weights,
    read_state_dict,
    save_checkpoint,
    save_tensors,
)


@pytest.fixture
def folder(tiny_sam, tmp_path) -> Path:
    """A saved checkpoint."""
    return save_checkpoint(tiny_sam, tmp_path / "checkpoint")


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return (Path.touch, (self.proof,))


@pytest.mark.parametrize("arch", ["vit", "slim_vit"])
def test_a_round_trip_is_bit_equal(tiny_config, make_sam, tmp_path, arch):
    sam = make_sam(tiny_config.replace(arch=arch).with_step({"step": "test", "seed": 0}))
    loaded = load_checkpoint(save_checkpoint(sam, tmp_path / "checkpoint"))
    assert loaded.config == sam.config
    torch.testing.assert_close(loaded.state_dict(), sam.state_dict(), rtol=0, atol=0)


def test_a_tiny_vit_keeps_its_statistics(tiny_vit_config, make_sam, tmp_path):
    sam = make_sam(tiny_vit_config)
    loaded = load_checkpoint(save_checkpoint(sam, tmp_path / "checkpoint"))
    torch.testing.assert_close(loaded.state_dict(), sam.state_dict(), rtol=0, atol=0)


def test_what_was_loaded_from_halves_is_known_to_fit_them(tiny_sam, tmp_path):
    assert not holds_halves(tiny_sam)
    assert holds_halves(load_checkpoint(save_checkpoint(tiny_sam, tmp_path / "half", half=True)))


def test_half_precision_halves_the_file_and_loads_as_float32(tiny_sam, folder, tmp_path):
    half = save_checkpoint(tiny_sam, tmp_path / "half", half=True)
    sizes = [(path / "model.safetensors").stat().st_size for path in (half, folder)]
    assert sizes[0] < 0.6 * sizes[1]
    loaded = load_checkpoint(half).state_dict()
    for name, value in tiny_sam.state_dict().items():
        assert loaded[name].dtype == value.dtype
        stored = value if name.endswith(NEVER_HALVED) else value.half().float()
        torch.testing.assert_close(loaded[name], stored, rtol=0, atol=0)


def test_a_checkpoint_is_replaced_whole(tiny_config, make_sam, folder):
    other = make_sam(tiny_config, seed=1)
    save_checkpoint(other, folder)
    torch.testing.assert_close(load_checkpoint(folder).state_dict(), other.state_dict(), rtol=0, atol=0)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["checkpoint"]


@pytest.mark.parametrize("before", [False, True], ids=["first", "replacing"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # what safetensors itself makes of a full disk
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["os", "safetensors"],
)
def test_a_full_disk_leaves_what_was_there(tiny_sam, tmp_path, monkeypatch, error, before):
    target = tmp_path / "checkpoint"
    if before:
        save_checkpoint(tiny_sam, target)
    kept = sorted(tmp_path.rglob("*"))

    def full(tensors, path, metadata) -> None:
        Path(path).write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(SamEdgeError, match=r"cannot write .*checkpoint: .*No space left on device"):
        save_checkpoint(tiny_sam, target)
    assert sorted(tmp_path.rglob("*")) == kept


def test_a_full_disk_is_one_line_for_states_too(tmp_path, monkeypatch):
    """As a run's state, and a teacher's embeddings, are written."""

    def full(*_) -> None:
        raise SafetensorError("Error while serializing: I/O error: File too large (os error 27)\nand more")

    monkeypatch.setattr(checkpoint, "save_file", full)
    state = tmp_path / "run.state"
    state.write_text("before")
    match = r"cannot write .*run\.state: .*File too large \(os error 27\)\.\Z"
    with pytest.raises(SamEdgeError, match=match), atomic_file(state) as part:
        save_tensors({"a": torch.zeros(1)}, part)
    assert state.read_text() == "before"


def test_a_folder_of_something_else_is_not_overwritten(tiny_sam, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(SamEdgeError, match="was not written by sam-edge"):
        save_checkpoint(tiny_sam, tmp_path)
    assert (tmp_path / "photo.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize("keep", [0, 4, 1000], ids=["empty", "header", "body"])
def test_truncated_weights_are_refused(folder, tiny_sam, tmp_path, keep):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="was cut short"):
        load_checkpoint(folder)
    torch.save(tiny_sam.state_dict(), tmp_path / "sam.pth")
    (tmp_path / "sam.pth").write_bytes((tmp_path / "sam.pth").read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="was cut short"):
        read_state_dict(tmp_path / "sam.pth")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("<!DOCTYPE html>\n<html><head>", "<!DOCTYPE html>"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "version https://git-lfs"),
    ],
    ids=["web page", "git-lfs"],
)
def test_text_in_place_of_weights_is_called_that(tmp_path, text, start):
    (tmp_path / "sam.pth").write_text(text)
    with pytest.raises(CheckpointError, match=f"is text, no weights: it begins with '{start}.*git lfs pull"):
        read_state_dict(tmp_path / "sam.pth")


def test_options_and_numbers_beside_the_weights_are_passed_over(tiny_sam, tmp_path):
    beside = {"args": argparse.Namespace(lr=0.1), "loss": np.float64(0.5), "step": np.int64(3), "best": np.float32(1)}
    torch.save({"model": tiny_sam.state_dict(), **beside}, tmp_path / "sam.pth")
    assert read_state_dict(tmp_path / "sam.pth").keys() == tiny_sam.state_dict().keys()


def test_safetensors_are_known_by_their_content(tiny_sam, tmp_path):
    save_file(tiny_sam.state_dict(), tmp_path / "sam.pth")
    assert read_state_dict(tmp_path / "sam.pth").keys() == tiny_sam.state_dict().keys()


def test_a_pickle_of_an_object_is_refused_and_not_run(tmp_path):
    proof = tmp_path / "proof"
    torch.save({"model": Trap(proof)}, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match=r"would run its code.*save `model\.state_dict\(\)`"):
        read_state_dict(tmp_path / "sam.pth")
    assert not proof.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_is_refused_and_not_run(tmp_path):
    proof = tmp_path / "proof"
    (tmp_path / "sam.pt").write_bytes(pickle.dumps(Trap(proof)))
    with pytest.raises(CheckpointError):
        read_state_dict(tmp_path / "sam.pt")
    assert not proof.exists()


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_wrappers_are_opened(tiny_sam, tmp_path, key):
    state = tiny_sam.state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "sam.pth")
    assert read_state_dict(tmp_path / "sam.pth").keys() == state.keys()


@pytest.mark.parametrize("content", [torch.zeros(3), {"epoch": 3}, [1, 2]], ids=["tensor", "number", "list"])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match=r"holds no state dict: save `model\.state_dict\(\)`"):
        read_state_dict(tmp_path / "sam.pth")


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.to("meta"),
        lambda value: value.to_sparse(),
        lambda value: value.to(torch.complex64),
        lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        lambda value: torch.zeros(1).expand(1_000_000, 1_000_000),
    ],
    ids=["meta", "sparse", "complex", "quantized", "terabytes"],
)
def test_tensors_that_no_model_has_are_refused_before_they_are_used(tiny_sam, tmp_path, change):
    name = "mask_decoder.iou_token.weight"
    state = tiny_sam.state_dict()
    torch.save({**state, name: change(state[name])}, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match=r"sam\.pth: mask_decoder\.iou_token\.weight is no plain tensor"):
        read_state_dict(tmp_path / "sam.pth")


@pytest.mark.parametrize("name", [None, 3, ("a", "b")])
def test_a_state_dict_s_names_are_text(tiny_sam, tmp_path, name):
    torch.save({**tiny_sam.state_dict(), name: torch.zeros(1)}, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_state_dict(tmp_path / "sam.pth")


def test_integers_are_not_taken_for_floats(tiny_sam, tmp_path):
    name = "mask_decoder.iou_token.weight"
    state = tiny_sam.state_dict()
    with pytest.raises(CheckpointError, match=r"iou_token\.weight is of int8\.$"):
        load_weights(tiny_sam, {**state, name: state[name].to(torch.int8)}, "sam.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pth does not exist: give a checkpoint file or folder"):
        read_state_dict(tmp_path / "none.pth")


def test_missing_and_unexpected_tensors_are_named(folder):
    weights = folder / "model.safetensors"
    state = load_file(weights)
    del state["mask_decoder.iou_token.weight"]
    save_file({**state, "extra": torch.zeros(1)}, weights)
    with pytest.raises(CheckpointError, match=r"iou_token\.weight is missing; extra is unexpected\.$"):
        load_checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, value):
    weights = folder / "model.safetensors"
    state = load_file(weights)
    state["mask_decoder.iou_token.weight"][0, 3] = value
    save_file(state, weights)
    with pytest.raises(CheckpointError, match=r"iou_token\.weight is not finite\.$"):
        load_checkpoint(folder)


def test_many_problems_are_counted(tiny_sam):
    with pytest.raises(CheckpointError, match=r"\(and \d+ more\)\.$") as caught:
        load_weights(tiny_sam, {}, "nothing")
    assert len(str(caught.value)) < 400


def test_a_folder_without_its_config_is_no_checkpoint(folder):
    assert is_checkpoint_folder(folder)
    (folder / "config.json").unlink()
    assert not is_checkpoint_folder(folder)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        load_checkpoint(folder)


def test_a_config_of_far_more_weights_is_refused_before_they_are_made(folder):
    config = json.loads((folder / "config.json").read_text())
    for block in config["blocks"]:
        block |= {"embed": 32768, "qk": 32768, "v": 32768, "mlp": 65536}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"its config describes \d{10,} weights, and the file holds \d+ bytes"):
        load_checkpoint(folder)


@pytest.mark.parametrize("entry", [{}, {"bits": None}, 3, {"bits": 8, "axis": 0, "scale": "x", "zero_point": 0}])
def test_a_quantization_that_describes_no_layer_is_one_line(folder, entry):
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] = {"image_encoder.neck.0": entry}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="its config describes no model"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"activation_bits": 10**30}, "a grid's bits must be between 1 and 8"),
        ({"scale": float("nan")}, "a grid's scale must be a positive number, got nan"),
        ({"scale": 0.0}, "a grid's scale must be a positive number"),
        ({"zero_point": 300}, "a zero point must be an integer from 0 to 255, got 300"),
        ({"bits": 9}, "weights have 1 to 8 bits"),
        ({"axis": 7}, "scales along axis 0 or 1"),
        ({"split": {"scale": 0.1, "shift": 10**30, "split_steps": 0, "bits": 8}}, "shift must be an integer from 0"),
    ],
)
def test_a_quantization_that_no_grid_has_is_refused(folder, wrong, message):
    config = json.loads((folder / "config.json").read_text())
    entry = {"bits": 8, "activation_bits": 8, "scale": 0.1, "zero_point": 0, "axis": 0, "split": None}
    config["quantization"] = {"image_encoder.neck.0": {**entry, **wrong}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SamEdgeError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ({"q": []}, "has 2 heads, and its quantization 0"),
        ({"k": [1.0]}, "must have an end per head"),
        ({"v": [1.0, float("nan")]}, "must be positive numbers"),
        ({"q": [1.0], "k": [1.0], "v": [1.0], "positions": []}, "has 2 heads, and its quantization 1"),
    ],
)
def test_a_quantization_of_other_heads_is_refused(tiny_slim, tmp_path, ends, message):
    folder = save_checkpoint(tiny_slim, tmp_path / "slim")
    config = json.loads((folder / "config.json").read_text())
    heads = {name: [1.0, 1.0] for name in ("q", "k", "v", "positions")}
    entry = {"bits": 8, "scale": 0.1, "zero_point": 0, "split": None, "shares_of_peak": True}
    config["quantization"] = {"image_encoder.blocks.0.attn.products": {**entry, "heads": {**heads, **ends}}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SamEdgeError, match=message):
        load_checkpoint(folder)


def test_a_config_for_other_weights_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["blocks"][0]["mlp"] = 44
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"mlp\.lin1\.bias is \(40,\) instead of \(44,\)"):
        load_checkpoint(folder)
