"""What the campaign has done, a line each: a killed campaign goes on from there."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any


class Tally:
    """`FILE.jsonl`, open to be added to, and how long this call may go on adding."""

    def __init__(self, file: Path, seconds: float = float("inf")) -> None:
        self._file, self._until = file, monotonic() + seconds
        file.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_bytes() if file.exists() else b""
        # what a kill left of the last line
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            file.write_bytes(whole)
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
        self._done = {(line["kind"], line["number"]) for line in self.lines}

    def wanted(self, kind: str, count: int) -> Iterator[int]:
        """The numbers below `count` that are not done yet, until time is up."""
        for number in range(count):
            if monotonic() > self._until:
                return
            if (kind, number) not in self._done:
                yield number

    def add(self, kind: str, number: int, trouble: str | None, **more: Any) -> None:
        """Keep how one try ended."""
        line = {"kind": kind, "number": number, "trouble": trouble, **more}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        self._done.add((kind, number))

    def counts(self) -> dict[str, tuple[int, Counter[str]]]:
        """Per kind, how many tries and how each trouble's number."""
        found: dict[str, tuple[int, Counter[str]]] = {}
        for line in self.lines:
            tries, troubles = found.get(line["kind"], (0, Counter()))
            if line["trouble"]:
                troubles[line["trouble"]] += 1
            found[line["kind"]] = tries + 1, troubles
        return found
