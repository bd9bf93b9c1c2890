"""sam_edge.files: whole results or none."""

import errno
import hashlib
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sam_edge.errors import SamEdgeError
from sam_edge.files import atomic_file, atomic_folder, claimed, date, put_right, sha256_of


def everything(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the content of files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def write_and_break(writer, target: Path, error: BaseException) -> None:
    """Start writing `target`, and fail in the middle."""
    with writer(target) as work:
        (work / "config.json" if work.is_dir() else work).write_bytes(b"half")
        raise error


def enter(writer, target: Path) -> None:
    """Start writing `target` where that is to be refused."""
    with writer(target):
        pytest.fail("must not be entered")


def test_a_folder_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "runs" / "one"
    with atomic_folder(target) as work:
        (work / "config.json").write_text("{}")
        assert not target.exists()
    assert everything(tmp_path) == {"runs": None, "runs/one": None, "runs/one/config.json": b"{}"}
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_folder_vanishes_and_the_old_one_stays(tmp_path, error):
    target = tmp_path / "one"
    with atomic_folder(target) as work:
        (work / "config.json").write_text("old")
    before = everything(tmp_path)
    with pytest.raises(error):
        write_and_break(atomic_folder, target, error())
    assert everything(tmp_path) == before


@pytest.mark.parametrize("mark", ["config.json", "model.json", "engine.json", "report.json"])
def test_a_folder_of_ours_is_replaced_whole(tmp_path, mark):
    target = tmp_path / "one"
    target.mkdir()
    (target / mark).write_text("old")
    (target / "stale").write_text("old")
    with atomic_folder(target) as work:
        (work / mark).write_text("new")
    assert everything(tmp_path) == {"one": None, f"one/{mark}": b"new"}


def test_an_empty_folder_is_used(tmp_path):
    target = tmp_path / "one"
    target.mkdir()
    with atomic_folder(target) as work:
        (work / "x").write_text("x")
    assert (target / "x").exists()


def test_a_folder_of_somebody_s_photos_is_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(SamEdgeError, match="not empty and was not written by sam-edge: choose another"):
        enter(atomic_folder, tmp_path)
    assert everything(tmp_path) == {"photo.jpg": b"precious"}


def test_a_file_cannot_be_a_folder(tmp_path):
    (tmp_path / "one").write_text("x")
    with pytest.raises(SamEdgeError, match="is a file: --out needs a folder"):
        enter(atomic_folder, tmp_path / "one")


@pytest.mark.parametrize("writer", [atomic_folder, atomic_file])
def test_a_refusing_disk_is_one_line(tmp_path, writer):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SamEdgeError, match=r"cannot write .*below: ") as caught:
        enter(writer, tmp_path / "file" / "below")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("writer", [atomic_folder, atomic_file])
def test_a_full_disk_leaves_nothing(tmp_path, writer):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(SamEdgeError, match=r"cannot write .*one: No space left on device"):
        write_and_break(writer, tmp_path / "one", full)
    assert everything(tmp_path) == {}


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "one.json"
    for content in ("first", "second"):
        with atomic_file(target) as part:
            part.write_text(content)
            assert part.parent == target.parent
            assert not target.exists() or target.read_text() == "first"
        assert target.read_text() == content
    assert everything(target.parent) == {"one.json": b"second"}


def test_an_interrupted_file_keeps_the_old_content(tmp_path):
    target = tmp_path / "one.json"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_and_break(atomic_file, target, KeyboardInterrupt())
    assert everything(tmp_path) == {"one.json": b"old"}


HOLD = """
import sys, time
from sam_edge.files import claimed
with claimed(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `runs/one`; killed when the test ends."""
    other = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "runs" / "one"], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    yield other
    other.kill()
    other.wait()


def test_what_another_process_holds_is_refused_until_it_has_ended_however(tmp_path, holder):
    with pytest.raises(SamEdgeError, match="one is being written by another process: wait for it"):
        enter(claimed, tmp_path / "runs" / "one")
    with claimed(tmp_path / "runs" / "two"):
        pass
    holder.kill()
    holder.wait()
    assert everything(tmp_path).keys() == {"runs", "runs/.one.lock"}
    with claimed(tmp_path / "runs" / "one"):
        pass
    assert everything(tmp_path) == {"runs": None}


def test_holding_leaves_no_folder_behind_and_is_refused_by_a_disk_that_refuses(tmp_path):
    with claimed(tmp_path / "a" / "b" / "c"):
        assert (tmp_path / "a" / "b").is_dir()
    assert everything(tmp_path) == {}
    (tmp_path / "file").write_text("x")
    with pytest.raises(SamEdgeError, match=r"cannot write .*below: "):
        enter(claimed, tmp_path / "file" / "below")
    with pytest.raises(SamEdgeError, match="cannot write /: it has no folder around it"):
        enter(claimed, "/")


def test_a_folder_mounted_where_nothing_else_can_be_written_is_held_itself(tmp_path, monkeypatch):
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    refusing = os.open

    def opened(path, flags, *mode):
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return refusing(path, flags, *mode)

    monkeypatch.setattr(os, "open", opened)
    with claimed(mounted), pytest.raises(SamEdgeError, match="another process"):
        enter(claimed, mounted)
    with pytest.raises(SamEdgeError, match=r"cannot write .*other: Permission denied"):
        enter(claimed, tmp_path / "other")
    assert everything(tmp_path) == {"mounted": None}


def test_processes_of_one_torchrun_hold_a_target_together(tmp_path, monkeypatch):
    with claimed(tmp_path / "one"):
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with claimed(tmp_path / "one"), pytest.raises(SamEdgeError, match="another process"):
            enter(claimed, tmp_path / "one")


def test_what_a_killed_process_left_is_put_right_and_nothing_else_touched(tmp_path):
    left = [".one.abcd_123.part", ".one.12.part", "..one.state.safetensors.12.part", ".one.abcd1234.old"]
    others = [".one.more.abcd1234.part", ".one.state.safetensors", ".two.12.part", "one.12.part", ".one.lock2"]
    for name in (*left[1:3], *others):
        (tmp_path / name).write_text("x")
    (tmp_path / left[0] / "deep").mkdir(parents=True)
    (tmp_path / left[3] / "old").mkdir(parents=True)
    (tmp_path / left[3] / "old" / "config.json").write_text("whole")
    put_right(tmp_path / "one")
    assert everything(tmp_path) == dict.fromkeys(others, b"x") | {"one": None, "one/config.json": b"whole"}
    (tmp_path / "one" / ".shard.12.part").write_text("x")
    (tmp_path / left[3] / "old").mkdir(parents=True)
    put_right(tmp_path / "one")
    assert everything(tmp_path) == dict.fromkeys(others, b"x") | {"one": None, "one/config.json": b"whole"}


def test_the_date_is_the_one_that_is_asked_for(monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert abs(datetime.fromisoformat(date()) - datetime.now(UTC)) < timedelta(minutes=1)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert date() == "2023-11-14T22:13:20+00:00"
    for wrong in ("yesterday", "1e99", str(10**30)):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(SamEdgeError, match="SOURCE_DATE_EPOCH must be seconds since 1970"):
            date()


def test_the_hash_of_a_file_is_sha256(tmp_path):
    (tmp_path / "one").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "one") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_the_hash_of_a_folder_follows_names_and_contents_only(tmp_path):
    for name in ("a", "b"):
        for file in ("x", "y/z"):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file)
    first = sha256_of(tmp_path / "a")
    assert sha256_of(tmp_path / "b") == first
    (tmp_path / "b" / "x").rename(tmp_path / "b" / "w")
    renamed = sha256_of(tmp_path / "b")
    (tmp_path / "a" / "x").write_text("other")
    assert len({first, renamed, sha256_of(tmp_path / "a")}) == 3
