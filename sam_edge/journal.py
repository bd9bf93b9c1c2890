"""A log of JSON lines that grows as work is done and is gone on with after a kill.

The first line says what the work is; a file of other work is refused. A last line that a kill cut short is taken off.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sam_edge.errors import SamEdgeError
from sam_edge.files import parse_json


class Journal:
    """Open to be added to within a `with` block; `done` holds the names of the lines that are there."""

    def __init__(self, path: Path, header: Mapping[str, Any], name: str, option: str = "--results") -> None:
        """`header` is the first line, of which `key` tells this work from other; `name` is what lines are known by, and
        `option` what a user chose the file by."""
        self.path, self._header, self._name, self._option = path, dict(header), name, option
        self.done: set[str] = set()

    def __enter__(self) -> "Journal":
        """Raises SamEdgeError where the file is of other work, or cannot be written."""
        whole = 0
        for line, end in self._lines():
            if whole:
                self.done.add(line[self._name])
            whole = end
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("r+b" if self.path.exists() else "w+b")
            # what a kill left of a line
            self._file.truncate(whole)
            self._file.seek(whole)
        except OSError as error:
            raise SamEdgeError(f"cannot write {self.path}: {error.strerror or error}.") from error
        if not whole:
            self._write(self._header)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, line: Mapping[str, Any]) -> None:
        """Keep what was found of one thing; a process that reads the file meanwhile sees it at once."""
        self._write(line)
        self.done.add(line[self._name])

    def lines(self) -> Iterator[dict[str, Any]]:
        """What is kept, one at a time, but for the first line.

        Raises:
            SamEdgeError: the file is of other work.
        """
        for number, (line, _) in enumerate(self._lines()):
            if number:
                yield line

    def _lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """The lines written whole and the place behind each."""
        if not self.path.exists():
            return
        for number, (line, end) in enumerate(whole_lines(self.path)):
            if number == 0 and line.get("key") != self._header["key"]:
                raise SamEdgeError(
                    f"{self.path} holds results of another model, other settings or other pictures: choose another "
                    f"{self._option}, or delete it."
                )
            if number and self._name not in line:
                raise SamEdgeError(f"{self.path}: line {number + 1} is not this log's: choose another file.")
            yield line, end

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise SamEdgeError(f"cannot write {self.path}: {error.strerror or error}.") from error


def whole_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The objects of a file of JSON lines, and the place behind each; a last line that has no end is left out.

    That is how a kill leaves a line, or a process that writes while this one reads. A line that has its end and is
    broken was broken by something else, and what stands behind it is somebody's work: nothing is guessed.

    Raises:
        SamEdgeError: a file that cannot be read, or a broken line.
    """
    end = 0
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if not text.endswith(b"\n"):
                    return
                end += len(text)
                yield _parsed(path, number, text), end
    except OSError as error:
        raise SamEdgeError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _parsed(path: Path, number: int, text: bytes) -> dict[str, Any]:
    try:
        line = parse_json(text)
    except ValueError:
        line = None
    if isinstance(line, dict):
        return line
    if number == 1:
        raise SamEdgeError(f"{path} is no log of sam-edge's: choose another file.")
    raise SamEdgeError(f"{path}: line {number} is broken: take that line out, and what it held is done again.")
