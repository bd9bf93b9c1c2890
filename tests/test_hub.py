"""Folders that go to the hub and come from it: the same bytes, and one line where they cannot."""

import pytest

pytest.importorskip("huggingface_hub")

from huggingface_hub import HfApi, ModelCard

import sam_edge
from sam_edge import hub
from sam_edge.errors import CheckpointError
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.segment.known import shipped_folder


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "README.md"}


@pytest.fixture
def checkpoint(tiny_slim, tmp_path):
    return save_checkpoint(tiny_slim, tmp_path / "model")


def test_what_is_saved_is_what_lay_there(checkpoint, tmp_path):
    model = sam_edge.Pretrained.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path / "copy")
    assert files(tmp_path / "copy") == files(checkpoint)
    card = ModelCard.load(tmp_path / "copy" / "README.md")
    assert card.data.library_name == "sam-edge"
    assert card.data.pipeline_tag == "mask-generation"
    assert "sam_edge.load(model.folder)" in card.text
    assert sam_edge.load(tmp_path / "copy", device="cpu").config == sam_edge.load(checkpoint, device="cpu").config


def test_graphs_go_with_their_own_readme(tmp_path):
    graphs = shipped_folder("nano-onnx")
    sam_edge.Pretrained(graphs).save_pretrained(tmp_path / "copy")
    assert files(tmp_path / "copy") == files(graphs)
    assert (tmp_path / "copy" / "README.md").read_bytes() == (graphs / "README.md").read_bytes()


def test_a_push_uploads_the_folder(checkpoint, monkeypatch):
    pushed = {}

    class Repository:
        repo_id = "me/model"

    def upload(self, *, folder_path, repo_id, **_):
        pushed[repo_id] = files(folder_path)
        return "https://hub/commit"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, **_: Repository)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert sam_edge.Pretrained(checkpoint).push_to_hub("me/model") == "https://hub/commit"
    assert pushed == {"me/model": files(checkpoint)}


def test_a_repository_is_downloaded_with_the_options(checkpoint, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or checkpoint)
    assert sam_edge.Pretrained.from_pretrained("me/model", revision="v1").folder == checkpoint
    assert asked == [("me/model", {"revision": "v1"})]


def test_what_cannot_be_had_is_one_line(tmp_path):
    (tmp_path / "photos").mkdir()
    for name, why in (("a/b/c/d", "owner/name"), (tmp_path / "photos", "neither a checkpoint folder")):
        with pytest.raises(CheckpointError, match=why):
            sam_edge.Pretrained.from_pretrained(name)
    with pytest.raises(CheckpointError, match="cannot be had from the hub") as caught:
        sam_edge.Pretrained.from_pretrained("me/no-such-model", local_files_only=True, cache_dir=tmp_path)
    assert "\n" not in str(caught.value)
