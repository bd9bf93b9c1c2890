"""sam_edge.journal: lines as they are found, whatever ends the process."""

import json

import pytest

from sam_edge.errors import SamEdgeError
from sam_edge.journal import Journal

HEADER = {"key": "a", "model": "nano"}


def written(path, count):
    with Journal(path, HEADER, "name") as log:
        for number in range(count):
            log.add({"name": str(number), "value": number / 3})


@pytest.mark.parametrize("cut", range(1, 40, 7))
def test_a_line_that_was_cut_short_is_written_again(tmp_path, cut):
    path = tmp_path / "new" / "log.jsonl"
    written(path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Journal(path, HEADER, "name") as log:
        for number in range(3):
            if str(number) not in log.done:
                log.add({"name": str(number), "value": number / 3})
    assert path.read_bytes() == whole


def test_a_line_is_there_as_soon_as_it_is_added(tmp_path):
    path = tmp_path / "log.jsonl"
    with Journal(path, HEADER, "name") as log:
        log.add({"name": "é\udcff"})
        assert [line["name"] for line in Journal(path, HEADER, "name").lines()] == ["é\udcff"]


def test_a_log_of_something_else_is_refused_and_kept(tmp_path):
    path = tmp_path / "log.jsonl"
    written(path, 1)
    before = path.read_bytes()
    with pytest.raises(SamEdgeError, match="another model"), Journal(path, {**HEADER, "key": "b"}, "name"):
        pass
    path.with_name("other.jsonl").write_text("no log\n")
    with pytest.raises(SamEdgeError, match="no log"), Journal(path.with_name("other.jsonl"), HEADER, "name"):
        pass
    path.with_name("lines.jsonl").write_text(json.dumps(HEADER) + '\n{"other": 1}\n')
    with pytest.raises(SamEdgeError, match="line 2"), Journal(path.with_name("lines.jsonl"), HEADER, "name"):
        pass
    assert path.read_bytes() == before


def test_a_line_that_is_broken_in_the_middle_is_told_and_nothing_is_lost(tmp_path):
    """What stands behind it was measured too: to take the file's end off would throw it away."""
    path = tmp_path / "log.jsonl"
    written(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    for broken in (b'{"name": \n', b"[]\n", b"\0\0\n", b"\n"):
        text = b"".join([*lines[:2], broken, *lines[2:]])
        path.write_bytes(text)
        with pytest.raises(SamEdgeError, match="line 3 is broken: take that line out"), Journal(path, HEADER, "name"):
            pass
        assert path.read_bytes() == text


def test_a_folder_is_no_log(tmp_path):
    with pytest.raises(SamEdgeError, match="cannot"), Journal(tmp_path, HEADER, "name"):
        pass
