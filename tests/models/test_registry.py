"""sam_edge.models.registry: what MODEL may be."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sam_edge.errors import BackendUnavailableError, CheckpointError, ModelError, SamEdgeError
from sam_edge.models import registry
from sam_edge.models.checkpoint import is_checkpoint_folder, load_checkpoint, save_checkpoint
from sam_edge.models.registry import load_model, random_model
from sam_edge.segment.config import Thresholds
from sam_edge.segment.known import KNOWN, KnownModel, shipped_folder


@pytest.fixture
def checkpoint(tiny_sam, tmp_path) -> Path:
    """A checkpoint folder whose config says more than its weights."""
    tiny_sam.config = tiny_sam.config.replace(thresholds=Thresholds(tau=8.5))
    return save_checkpoint(tiny_sam, tmp_path / "checkpoint")


def assert_same(model, other) -> None:
    """Same weights, bit for bit."""
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_folder_is_opened(checkpoint, tiny_sam):
    for spec in (checkpoint, str(checkpoint)):
        model = load_model(spec)
        assert model.config == tiny_sam.config
        assert not model.training
        assert_same(model, tiny_sam)


def test_the_weights_inside_a_checkpoint_folder_are_opened_with_its_config(checkpoint, tiny_sam):
    assert load_model(checkpoint / "model.safetensors").config == tiny_sam.config


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_a_checkpoint_file_is_recognised(tiny_sam, tiny_config, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    torch.save({"model": tiny_sam.state_dict()}, path)
    model = load_model(path)
    assert model.config == tiny_config
    assert_same(model, tiny_sam)


@pytest.mark.parametrize("dim", [32, 256])
def test_weights_in_a_safetensors_file_are_recognised_by_the_width_of_sam_s_decoder_alone(
    tiny_config, make_sam, tmp_path, dim
):
    sam = make_sam(tiny_config.replace(decoder=replace(tiny_config.decoder, dim=dim)))
    save_file(sam.state_dict(), tmp_path / "weights.safetensors")
    if dim == 256:
        assert load_model(tmp_path / "weights.safetensors").config == sam.config
        return
    with pytest.raises(CheckpointError, match=r"without their config\.json.*Give the checkpoint folder"):
        load_model(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "renamed.safetensors", "renamed.bin"])
def test_weights_parted_from_their_folder_are_the_same_model(checkpoint, tiny_sam, tmp_path, name):
    parted = (checkpoint / "model.safetensors").rename(tmp_path / name)
    model = load_model(parted)
    assert model.config == tiny_sam.config
    assert_same(model, tiny_sam)


def test_shipped_weights_parted_from_their_folder_are_the_same_model_or_none(tmp_path):
    """What nano draws of prompts is in no weight: read as another model it lost all its boxes."""
    copied = shutil.copy(shipped_folder("nano") / "model.safetensors", tmp_path)
    assert load_model(copied).config == load_model("nano").config
    # of before files kept their config
    copied = shutil.copy(shipped_folder("nano-vit") / "model.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match="Give the checkpoint folder"):
        load_model(copied)


def test_a_download_of_a_hugging_face_model_is_opened(tiny_sam, tmp_path):
    """Its folder has our two file names; only the config tells them apart."""
    save_file(tiny_sam.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam"}))
    assert_same(load_model(tmp_path), tiny_sam)
    assert_same(load_model(tmp_path / "model.safetensors"), tiny_sam)


def test_an_exported_folder_is_refused_with_the_way_back(tmp_path):
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds graphs, not weights\. Give the checkpoint folder"):
        load_model(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"one holds config\.json and model\.safetensors"):
        load_model(tmp_path)


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(ModelError, match=r"did you mean slimsam-50\? Known models are vit_b, .*nano-vit\.$"):
        load_model("slimsam50")
    with pytest.raises(ModelError, match=r"^'zzz' is neither a known model nor a file or folder: Known") as caught:
        load_model("zzz")
    assert "\n" not in str(caught.value)


def test_a_known_name_is_fetched_and_loaded(tiny_sam, tiny_config, tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    torch.save(tiny_sam.state_dict(), path)
    config = tiny_config.replace(thresholds=Thresholds(tau=3.0))
    small = KnownModel("small", config, "", "https://example.invalid/weights.pth", "weights.pth", "MIT")
    monkeypatch.setitem(KNOWN, "small", small)
    monkeypatch.setattr("sam_edge.models.download.fetch", lambda known: {"small": path}[known.name])
    model = load_model("small")
    assert model.config == config
    assert_same(model, tiny_sam)


def test_a_known_name_wins_over_a_path_without_a_separator(checkpoint, monkeypatch):
    checkpoint.rename(checkpoint.with_name("nano"))
    monkeypatch.chdir(checkpoint.parent)
    opened = []
    monkeypatch.setattr(registry, "_open_known", lambda known: opened.append(known.name) or random_model("nano"))
    load_model("nano")
    assert opened == ["nano"]
    assert load_model("./nano").config.image_size == 64
    assert load_model(Path("nano")).config.image_size == 64


@pytest.mark.parametrize("name", ["nano", "nano-vit"])
def test_a_packaged_model_is_what_its_name_says_or_its_absence_is_explained(name):
    folder = shipped_folder(name)
    if not is_checkpoint_folder(folder):
        with pytest.raises(CheckpointError, match=f"{name} is not in this installation"):
            load_model(name)
        return
    config, known = load_checkpoint(folder).config, KNOWN[name].config
    assert config.replace(thresholds=known.thresholds, lineage=()) == known
    assert load_model(name).config == config


def test_random_weights_are_seeded_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    model = load_model("random:nano")
    assert torch.equal(torch.rand(3), wanted)
    assert_same(model, random_model("nano", seed=0))
    assert model.config == KNOWN["nano"].config
    other = random_model("nano", seed=1).state_dict()["image_encoder.neck.0.weight"]
    assert not torch.equal(model.state_dict()["image_encoder.neck.0.weight"], other)


def test_random_weights_need_a_known_name():
    with pytest.raises(ModelError, match=r"did you mean vit_b\?"):
        load_model("random:vit-b")


def test_a_device_that_is_not_there_is_named(checkpoint):
    with pytest.raises(BackendUnavailableError, match=r"device 'cuda:99' cannot be used \(.+\): choose cpu"):
        load_model(checkpoint, device="cuda:99")


@pytest.mark.parametrize("known", KNOWN.values(), ids=lambda known: known.name)
def test_known_models_say_where_they_come_from_and_under_what_licence(known):
    assert known.is_url or known.source == registry.PACKAGED or known.source.count("/") == 1
    assert known.licence == "Apache-2.0"
    assert known.summary
    if known.name in ("vit_b", "vit_l", "vit_h"):
        assert known.file_name == f"sam_{known.name}_{known.sha256_prefix}.pth"
        assert known.source.endswith("/" + known.file_name)


def test_every_refusal_is_a_single_line(tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    for spec in ("zzz", "random:zzz", tmp_path, tmp_path / "broken.pth"):
        with pytest.raises(SamEdgeError) as caught:
            load_model(spec)
        assert "\n" not in str(caught.value)
