"""sam_edge.models.download: fetching from a server on this machine, and from a stand-in for the hub."""

import functools
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from sam_edge.errors import CheckpointError
from sam_edge.models import download
from sam_edge.models.download import fetch
from sam_edge.segment.known import KNOWN, KnownModel

CONTENT = b"weights " * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a log; `/cut` breaks off in the middle."""

    def log_message(self, *args) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Serve a file, or half of one."""
        if self.path != "/cut":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100])
        return None


@dataclass
class Server:
    """A running server."""

    url: str
    """Where it listens, with a final slash."""
    folder: Path
    """What it serves."""


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Server]:
    """A server of one file, with the cache in a folder of the test's own."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "weights.pth").write_bytes(CONTENT)
    monkeypatch.setenv("SAM_EDGE_CACHE", str(tmp_path / "cache"))
    running = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield Server(f"http://127.0.0.1:{running.server_port}/", folder)
    running.shutdown()
    running.server_close()


@pytest.fixture
def known(server, tiny_config) -> KnownModel:
    """A model that the server has."""
    source = f"{server.url}weights.pth"
    return KnownModel("small", tiny_config, "", source, "weights.pth", "MIT", sha256_prefix=DIGEST[:6])


@pytest.fixture
def on_hub(known) -> KnownModel:
    """A model that the hub would have."""
    return replace(known, source="someone/small-sam", file_name="model.safetensors", sha256_prefix=None)


def cached(tmp_path) -> list[str]:
    """Everything that lies in the cache."""
    return sorted(path.name for path in (tmp_path / "cache").glob("*"))


def test_a_file_is_downloaded_once(known, server, tmp_path):
    path = fetch(known)
    assert path == tmp_path / "cache" / "weights.pth"
    assert path.read_bytes() == CONTENT
    (server.folder / "weights.pth").unlink()
    assert fetch(known) == path
    assert cached(tmp_path) == ["weights.pth"]


def test_nothing_is_printed_on_stdout(known, capsys):
    fetch(known)
    assert capsys.readouterr().out == ""


def test_a_wrong_hash_leaves_nothing_behind(known, tmp_path):
    with pytest.raises(CheckpointError, match=rf"sha256 {DIGEST[:16]}\.\.\., which should begin with 000000"):
        fetch(replace(known, sha256_prefix="000000"))
    assert cached(tmp_path) == []


def test_a_cached_file_with_a_wrong_hash_is_to_be_deleted(known):
    path = fetch(known)
    path.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=rf"delete {path} and try again"):
        fetch(known)
    assert path.read_bytes() == b"something else"


def test_without_a_published_hash_the_file_is_taken(known):
    assert fetch(replace(known, sha256_prefix=None)).read_bytes() == CONTENT


def test_a_broken_connection_leaves_nothing_behind(known, server, tmp_path):
    with pytest.raises(CheckpointError, match="100 of 8000 bytes arrived"):
        fetch(replace(known, source=f"{server.url}cut", sha256_prefix=None))
    assert cached(tmp_path) == []


@pytest.mark.parametrize("source", ["http://127.0.0.1:9/weights.pth", "missing", "http://[broken/"])
def test_without_network_the_way_by_hand_is_told(known, server, tmp_path, source):
    url = source if source.startswith("http") else server.url + source
    with pytest.raises(CheckpointError) as caught:
        fetch(replace(known, source=url))
    message = str(caught.value)
    assert message.startswith("small could not be downloaded (")
    assert f"get {url} on a machine" in message
    assert f"put it at {tmp_path / 'cache' / 'weights.pth'}, or give the file's path as MODEL." in message
    assert "\n" not in message
    assert cached(tmp_path) == []


def test_a_file_put_into_the_cache_by_hand_is_used(known, on_hub, tmp_path):
    (tmp_path / "cache").mkdir()
    for model, name in ((known, "weights.pth"), (on_hub, "small.safetensors")):
        path = tmp_path / "cache" / name
        path.write_bytes(CONTENT)
        assert fetch(replace(model, source=model.source.replace("127.0.0.1", "example.invalid"))) == path


def hub_with(monkeypatch, tmp_path, content: bytes) -> Path:
    """A stand-in for the hub's client.

    Its cache is empty until the first download, and names the file by the hash that the hub reported.
    """
    blob = tmp_path / "hub" / "blobs" / DIGEST
    blob.parent.mkdir(parents=True)
    blob.write_bytes(content)
    link = tmp_path / "hub" / "model.safetensors"

    def client(repository: str, name: str, local_files_only: bool = False) -> str:
        assert (repository, name) == ("someone/small-sam", "model.safetensors")
        if local_files_only and not link.exists():
            raise LocalEntryNotFoundError("not in the cache")
        link.unlink(missing_ok=True)
        link.symlink_to(blob)
        return str(link)

    monkeypatch.setattr(download, "hf_hub_download", client)
    return link


def test_a_hub_model_lies_in_the_hub_s_own_cache(on_hub, tmp_path, monkeypatch):
    link = hub_with(monkeypatch, tmp_path, CONTENT)
    asked = []
    monkeypatch.setattr(download, "get_hf_file_metadata", lambda url, timeout: asked.append(url))
    assert fetch(on_hub) == link
    assert fetch(on_hub) == link
    assert asked == ["https://huggingface.co/someone/small-sam/resolve/main/model.safetensors"]
    assert cached(tmp_path) == []


def test_a_hub_file_that_is_not_what_the_hub_reported_is_to_be_deleted(on_hub, tmp_path, monkeypatch):
    hub_with(monkeypatch, tmp_path, CONTENT[:-1])
    monkeypatch.setattr(download, "get_hf_file_metadata", lambda url, timeout: None)
    with pytest.raises(CheckpointError, match=rf"delete .*blobs/{DIGEST} and try again"):
        fetch(on_hub)


def test_without_the_hub_the_way_by_hand_is_told(on_hub, tmp_path, monkeypatch):
    def offline(url: str, timeout: float) -> None:
        raise ConnectionError("cannot reach the hub\nand more lines")

    hub_with(monkeypatch, tmp_path, CONTENT)
    monkeypatch.setattr(download, "get_hf_file_metadata", offline)
    with pytest.raises(CheckpointError) as caught:
        fetch(on_hub)
    url = "https://huggingface.co/someone/small-sam/resolve/main/model.safetensors"
    assert f"(cannot reach the hub): get {url}" in str(caught.value)
    assert f"put it at {tmp_path / 'cache' / 'small.safetensors'}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_two_known_models_share_a_cached_file():
    targets = [download._target(known) for known in KNOWN.values()]
    assert len(set(targets)) == len(targets)
