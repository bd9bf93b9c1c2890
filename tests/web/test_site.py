"""Writing and serving a site: what is in it, what is refused, and which headers come with it."""

import http.client
import json
import lzma
import shutil
import subprocess
import tarfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from sam_edge.errors import CheckpointError, ExportError, SamEdgeError
from sam_edge.runtimes.folder import shipped_graphs
from sam_edge.web import site as module
from sam_edge.web.serve import HEADERS, server
from sam_edge.web.site import PACKAGE, RUNTIME, graphs_at_hand, name_of, write_site

MOST_COMPRESSED_BYTES = 10_500_000
"""What a visitor loads for one model, if it is nano."""


@pytest.fixture(scope="module")
def nano() -> Path:
    folder = shipped_graphs("nano")
    assert folder is not None
    return folder


@pytest.fixture(scope="module")
def site(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site([("nano", nano)], tmp_path_factory.mktemp("web") / "site").out


@pytest.fixture
def served(site: Path) -> Iterator[http.client.HTTPConnection]:
    with server(site, 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield http.client.HTTPConnection("127.0.0.1", serving.server_port)
        serving.shutdown()


def test_the_runtime_in_the_archive_is_the_one_that_is_pinned(site: Path) -> None:
    pinned = json.loads((PACKAGE / "package.json").read_text())["dependencies"]["onnxruntime-web"]
    locked = json.loads((PACKAGE / "package-lock.json").read_text())["packages"]["node_modules/onnxruntime-web"]
    assert (site / "runtime" / "VERSION").read_text().strip() == pinned == locked["version"]
    assert f"v{pinned}" in (site / "runtime" / "ort.wasm.min.mjs").read_text()[:200]


def test_a_site_names_its_models_and_holds_every_file_that_its_page_asks_for(site: Path, nano: Path) -> None:
    (entry,) = json.loads((site / "site.json").read_text())["models"]
    config = json.loads((nano / "model.json").read_text())["config"]
    assert (entry["name"], entry["precision"], entry["image_size"]) == ("nano", "int8", 512)
    assert entry["thresholds"] == config["thresholds"]
    assert set(entry["graphs"]) == {"encoder", "decoder", "prepare", "predict", "upscale"}
    for graph in entry["graphs"].values():
        assert (site / graph["file"]).stat().st_size == graph["bytes"]
    for page in site.glob("*.js"):
        for line in page.read_text().splitlines():
            if line.startswith("import ") and ' from "./' in line:
                assert (site / line.split('"')[1]).is_file(), line
    assert {"index.html", "style.css", "icon.svg", "sample.jpg", "worker.js"} <= {file.name for file in site.iterdir()}


def test_a_page_and_its_model_are_small_enough_for_a_phone(site: Path) -> None:
    entry = json.loads((site / "site.json").read_text())["models"][0]
    graphs = [site / graph["file"] for graph in entry["graphs"].values()]
    runtime = [site / "runtime" / name for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.wasm")]
    files = [file for file in site.iterdir() if file.is_file()] + graphs + runtime
    # as a server compresses them
    compressed = sum(len(zlib.compress(file.read_bytes(), 4)) for file in files)
    assert compressed < MOST_COMPRESSED_BYTES
    assert RUNTIME.stat().st_size < 5_000_000


def test_integers_come_without_signs_and_mean_the_same(site: Path, nano: Path) -> None:
    """Browsers' kernels may clip sums of products of uint8 and int8."""
    parts = []
    for file in (nano / "prepare.onnx", site / "models" / "nano" / "prepare.onnx"):
        session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        given = np.random.default_rng(0).normal(size=(1, 128, 64, 64)).astype(np.float32)
        parts.append(session.run(None, {"embeddings": given}))
    for one, other in zip(*parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    unsigned = json.loads((nano / "model.json").read_text())["graphs"]["encoder"]["unsigned"]
    assert unsigned["data"]
    before, after = (nano / "encoder.onnx").read_bytes(), (site / "models" / "nano" / "encoder.onnx").read_bytes()
    start, _ = unsigned["data"][0]
    assert before[start] ^ after[start] == 0x80


def test_models_of_one_name_no_folder_and_graphs_too_large_are_refused(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExportError, match="two models are called nano"):
        write_site([("nano", nano), ("nano", nano)], tmp_path / "site")
    with pytest.raises(CheckpointError, match=r"model\.json"):
        write_site([("none", tmp_path / "none")], tmp_path / "site")
    data = tmp_path / "encoder.onnx.data"
    data.write_bytes(b"weights")
    monkeypatch.setattr(module.ExportedFolder, "graph_file", lambda folder, name: tmp_path / "encoder.onnx")
    with pytest.raises(ExportError, match="too large for a browser"):
        write_site([("nano", nano)], tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_names_can_stand_in_an_address(nano: Path, tmp_path: Path) -> None:
    assert [module.file_name(name) for name in ("nano", "my model (2)", "..", "random:vit_b")] == [
        "nano",
        "my-model-2",
        "model",
        "random-vit_b",
    ]
    assert name_of(f"{tmp_path}/.") == tmp_path.name
    assert name_of("nano") == "nano"
    assert graphs_at_hand("nano", "int8") == nano
    assert graphs_at_hand("nano", "fp32") is None
    assert graphs_at_hand(str(nano), "fp32") == nano


def test_what_is_served_lets_the_page_have_threads(served: http.client.HTTPConnection) -> None:
    kinds = {
        "/": "text/html",
        "/worker.js": "text/javascript",
        "/runtime/ort.wasm.min.mjs": "text/javascript",
        "/runtime/ort-wasm-simd-threaded.wasm": "application/wasm",
    }
    for path, kind in kinds.items():
        served.request("HEAD", path)
        answer = served.getresponse()
        answer.read()
        assert answer.status == 200
        assert answer.getheader("Content-Type", "").startswith(kind)
        assert {name: answer.getheader(name) for name in HEADERS} == HEADERS
    for path in ("/models/", "/nothing", "/../site.json/x"):
        served.request("GET", path)
        answer = served.getresponse()
        answer.read()
        assert answer.status == 404


def status(served: http.client.HTTPConnection, path: str, host: str | None = "127.0.0.1") -> int:
    """Of the answer to a GET that names a host, or none."""
    served.putrequest("GET", path, skip_host=True)
    if host is not None:
        served.putheader("Host", host)
    served.endheaders()
    answer = served.getresponse()
    answer.read()
    return answer.status


def test_only_who_calls_this_machine_by_its_own_name_is_answered(served: http.client.HTTPConnection) -> None:
    """A page of another name, pointed at this machine, could read what is served here (DNS rebinding)."""
    for host in ("127.0.0.1", f"127.0.0.1:{served.port}", "localhost:9999", "LOCALHOST"):
        assert status(served, "/site.json", host) == 200
    for host in ("evil.example", f"evil.example:{served.port}", "127.0.0.1.evil.example", "", None):
        assert status(served, "/site.json", host) == 421
    assert status(served, "/site.json", "[::1") == 404


def test_nothing_outside_the_site_is_served(nano: Path, tmp_path: Path) -> None:
    site = write_site([("nano", nano)], tmp_path / "site").out
    (tmp_path / "secret.txt").write_text("secret")
    (site / "out.txt").symlink_to(tmp_path / "secret.txt")
    (site / "up").symlink_to(tmp_path)
    (site / "inside.json").symlink_to(site / "site.json")
    # the site itself may be a link
    (tmp_path / "current").symlink_to(site)
    with server(tmp_path / "current", 0) as serving:
        assert serving.server_address[0] == "127.0.0.1"
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        served = http.client.HTTPConnection("127.0.0.1", serving.server_port)
        assert status(served, "/inside.json") == 200
        for path in ("/out.txt", "/up/secret.txt", "/up/", "/../secret.txt", "/..%2fsecret.txt", "//etc/passwd"):
            assert status(served, path) == 404, path
        for path in ("/%00", "/" + "a" * 5000):
            assert status(served, path) == 404, path
        serving.shutdown()


def test_no_site_and_a_port_that_is_taken_are_refused(site: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="export-web"):
        server(tmp_path, 0)
    with server(site, 0) as first, pytest.raises(SamEdgeError, match="choose another --port"):
        server(site, first.server_port)
    with pytest.raises(SamEdgeError, match="choose another --port"):
        server(site, 70_000)


def test_the_command_writes_shipped_graphs_without_torch(sam_edge, tmp_path: Path) -> None:
    out = tmp_path / "site"
    code, printed, _ = sam_edge("export-web", "nano", "--out", out, "--json")
    assert code == 0
    assert json.loads(printed)["models"] == ["nano"]
    assert (out / "index.html").is_file()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    code, _, error = sam_edge("export-web", "nano", "--out", tmp_path / "photos")
    assert code == 1
    assert "not empty" in error


@pytest.mark.slow
def test_a_checkpoint_is_quantized_and_exported_on_the_way(sam_edge, tiny_slim, tmp_path: Path) -> None:
    from sam_edge.models.checkpoint import save_checkpoint

    save_checkpoint(tiny_slim, tmp_path / "model")
    code, _, error = sam_edge("export-web", tmp_path / "model", "--out", tmp_path / "site", "--images", "synthetic:4")
    assert code == 0, error
    (entry,) = json.loads((tmp_path / "site" / "site.json").read_text())["models"]
    assert (entry["name"], entry["precision"]) == ("model", "int8")


def test_the_archive_holds_what_the_page_loads_and_nothing_else() -> None:
    with tarfile.open(RUNTIME) as archive:
        names = {member.name for member in archive.getmembers()}
        assert all(member.isfile() and member.mtime == 0 for member in archive.getmembers())
    from sam_edge.web.pack import FILES

    assert names == {*FILES, "VERSION"}


@pytest.mark.slow
def test_npm_s_package_of_the_lock_file_is_what_is_in_the_archive(tmp_path: Path) -> None:
    """What `make web` does; compared unpacked, since another liblzma may compress otherwise."""
    from sam_edge.web.pack import packed

    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PACKAGE / name, tmp_path)
    command = ["npm", "ci", "--prefix", tmp_path, "--ignore-scripts", "--no-audit", "--no-fund"]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode and ("ENOTFOUND" in ran.stderr or "EAI_AGAIN" in ran.stderr):
        pytest.skip("npm's registry cannot be reached")
    assert ran.returncode == 0, ran.stderr
    anew = packed(tmp_path / "node_modules" / "onnxruntime-web")
    assert lzma.decompress(anew) == lzma.decompress(RUNTIME.read_bytes())
