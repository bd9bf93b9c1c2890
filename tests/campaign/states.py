"""What killed commands left, changed by whoever had the disk meanwhile, and the same command again."""

import json
import random
import shutil
import struct
from pathlib import Path

from tests.campaign.changes import changed, changed_bytes, document
from tests.campaign.forked import Running, command

LABELS = ("--data", "../base/sa1b", "--split", "all")
PHOTOS = ("--images", "../base/photos")
LINES: dict[str, tuple[str, ...]] = {
    "train": ("train", "--config", "../base/train.json", *LABELS, "--steps", "3", "--batch-size", "1", "--prompts", "1",
              "--rounds", "1", "--workers", "0", "--checkpoint-seconds", "0", "--out", "out"),
    "compress": ("compress", "../base/slim", *PHOTOS, "--epochs", "2", "--batch-size", "2", "--align-epochs", "1",
                 "--importance-images", "3", "--workers", "0", "--out", "out"),
    "embed": ("embed", "../base/slim", *PHOTOS, "--shard-views", "1", "--mask-points", "2", "--out", "out"),
    "segment": ("segment", "../base/exported", "../base/photos", "--box", "2,2,40,40", "--out", "out"),
    "eval": ("eval", "../base/exported", *LABELS, "--results", "out"),
}  # fmt: skip
"""Commands that go on from what they find."""
STATES = {
    "train": ".out.state.safetensors",
    "compress": "out.stages/.*.state",
    "embed": "out/*.json",
    "segment": "out/masks.jsonl",
    "eval": "out",
}
"""The file by whose being there one is known to be under way."""


def make_unfinished(work: Path) -> None:
    """Each command's folder, as a kill in its midst leaves it, in `work`/base/unfinished."""
    for name, line in LINES.items():
        folder = work / "input"
        for _ in range(50):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            running = Running(command([*line], folder), work)
            while not list(folder.glob(STATES[name])) and not running.wait(0.002):
                pass
            running.kill()
            running.ending()
            if list(folder.glob(STATES[name])):
                break
        shutil.copytree(folder, work / "base" / "unfinished" / name)


def unfinished_work(rng: random.Random, base: Path, folder: Path) -> list[str]:
    name = rng.choice(list(LINES))
    shutil.copytree(base / "unfinished" / name, folder, dirs_exist_ok=True)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".lock")]
    for file in rng.sample(files, min(len(files), rng.choice((1, 1, 2)))):
        kind = rng.random()
        if kind < 0.05:
            file.unlink()
        elif kind < 0.1:
            file.unlink()
            file.mkdir()
        elif kind < 0.15:
            file.write_bytes(b"")
        elif kind < 0.7:
            file.write_bytes(_within(rng, file.read_bytes()))
        else:
            file.write_bytes(changed_bytes(rng, file.read_bytes()))
    return [*LINES[name]]


def _within(rng: random.Random, data: bytes) -> bytes:
    """Another document in a file's form: JSON, JSON lines, or a header of tensors; else other bytes."""
    try:
        if data[8:9] == b"{":
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            if rng.random() < 0.5 and "__metadata__" in header:
                said = header["__metadata__"]
                key = rng.choice(list(said))
                said[key] = (
                    document(rng, json.loads(said[key])).decode(errors="replace") if said[key][:1] in "{[" else "x"
                )
            else:
                header = changed(rng, header)
            text = json.dumps(header).encode()
            return struct.pack("<Q", len(text)) + text + data[8 + length :]
        lines = data.splitlines()
        at = rng.randrange(len(lines)) if len(lines) > 1 and lines[0][:1] == b"{" and lines[0][-1:] == b"}" else None
        if at is None:
            return document(rng, json.loads(data))
        lines[at] = document(rng, json.loads(lines[at])).replace(b"\n", b" ")
        return b"\n".join(lines) + b"\n"
    except ValueError:
        return changed_bytes(rng, data)
