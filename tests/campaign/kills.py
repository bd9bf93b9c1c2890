"""Commands that are killed, run out of disk, lose their folder, or meet another at --out; and go on afterwards."""

import hashlib
import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tests.campaign.forked import Ending, Running, command
from tests.campaign.tally import Tally

EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}
PHOTOS = "../base/photos"
COMMANDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "--config", "../base/train.json", "--data", "../base/sa1b", "--split", "all", "--steps", "6",
              "--batch-size", "2", "--prompts", "2", "--rounds", "1", "--workers", "0", "--checkpoint-seconds", "0"),
    "compress": ("compress", "../base/slim", "--images", PHOTOS, "--epochs", "2", "--batch-size", "2", "--align-epochs",
                 "1", "--importance-images", "3", "--workers", "0"),
    "quantize": ("quantize", "../base/slim", "--images", PHOTOS, "--calibration-images", "2", "--metric", "mse"),
    "embed": ("embed", "../base/slim", "--images", PHOTOS, "--shard-views", "1", "--mask-points", "2"),
    "segment": ("segment", "../base/slim", PHOTOS, "--box", "2,2,40,40", "--pictures", "--format", "yolo"),
    "export-onnx": ("export-onnx", "../base/slim", "--images", PHOTOS),
    "run": ("run", "../base/recipe.toml"),
}  # fmt: skip
"""What is killed, but for `--out out`."""
CHAINS = {"train": 30, "compress": 28, "quantize": 26, "embed": 26, "segment": 26, "export-onnx": 5, "run": 3}
"""Times that each is begun, killed once or repeatedly, and ended: some 230 kills; fewer where one takes long."""
TROUBLES = ("no space", "read-only", "vanished", "two at once")
TRIES = 10
"""Of each trouble, per command."""
LONGEST_SECONDS = 1500.0
CHANGES = (
    "seconds",
    "date",
    "_ms",
    "per_second",
    "share",
    "bytes",
    "hardware",
    "latenc",
    "speed",
    "disturb",
    "bench",
    "cold_start",
    "model_sha256",
    "provenance",
    "energy",
    "made",
    "key",
)
"""Parts of the names of entries that no two runs share: durations, dates, what was measured of the machine, and the
hashes of files that hold such."""


def kill(work: Path, tally: Tally, names: list[str], *, share: float = 1.0, seed: int = 0) -> None:
    """Kill each command at random times, some repeatedly, and let the same command end what it began."""
    for name in names:
        wanted = list(tally.wanted(f"kill {name}", max(1, round(CHAINS[name] * share))))
        if not wanted:
            continue
        whole, seconds = _whole(work, name)
        for number in tally.wanted(f"kill {name}", max(wanted) + 1):
            rng = random.Random(f"{seed}/kill {name}/{number}")
            folder = _fresh(work)
            kills, trouble = 0, None
            for _ in range(rng.choice((1, 1, 2, 3)) if name != "run" else 4):
                running = Running(command([*COMMANDS[name], "--out", "out"], folder, EPOCH), work)
                # what goes on from another has less left to do
                running.wait(rng.uniform(0, 1 if not kills else 0.5) * seconds)
                running.kill()
                ending = running.ending()
                trouble = _torn(folder)
                if ending.code == 0 and not kills:
                    # it took less long than the first, which had everything to load
                    seconds = min(seconds, ending.seconds)
                    folder = _fresh(work)
                    continue
                if ending.code == 0 or trouble:
                    break
                kills += ending.code == -signal.SIGKILL
            tally.add(f"kill {name}", number, trouble or _ends(work, name, folder, whole), kills=kills)


def trouble(work: Path, tally: Tally, names: list[str], *, share: float = 1.0, seed: int = 0) -> None:
    """Everything else that may happen to a folder that is being written."""
    make: dict[str, Callable[[Path, str, random.Random, float], Ending]] = {
        "no space": _no_space,
        "read-only": _read_only,
        "vanished": _vanished,
        "two at once": _two_at_once,
    }
    for name in names:
        for what in TROUBLES:
            kind = f"{what}: {name}"
            tries = max(1, round(tries_of(name) * share))
            if not list(tally.wanted(kind, tries)):
                continue
            whole, seconds = _whole(work, name)
            for number in tally.wanted(kind, tries):
                ending = make[what](work, name, random.Random(f"{seed}/{kind}/{number}"), seconds)
                folder = work / "run"
                found = ending.trouble or (_torn(folder) if folder.exists() else None)
                if found is None and what != "two at once":
                    found = _ends(work, name, folder if folder.exists() else _fresh(work), whole)
                tally.add(kind, number, found, code=ending.code)


def tries_of(name: str) -> int:
    """How often each trouble meets a command: once where it takes long, as an export and a lineage do."""
    return TRIES if name not in ("run", "export-onnx") else 1


def _no_space(work: Path, name: str, rng: random.Random, seconds: float) -> Ending:
    """No file may grow beyond a random size, as on a disk that is full."""
    folder = _fresh(work)
    # what it prints is a file, too
    size = int(10 ** rng.uniform(3, 5))
    return Running(command([*COMMANDS[name], "--out", "out"], folder, EPOCH, file_bytes=size), work).ending(
        LONGEST_SECONDS
    )


def _read_only(work: Path, name: str, rng: random.Random, seconds: float) -> Ending:
    """A folder that this user may not write into; it is to be told so before any work is done."""
    folder = _fresh(work)
    (folder / "there").mkdir()
    (folder / "there").chmod(0o555)
    ending = Running(command([*COMMANDS[name], "--out", "there/out"], folder, EPOCH, nobody=True), work).ending()
    shutil.rmtree(folder / "there")
    if ending.trouble is None and (ending.code != 1 or "cannot write" not in ending.err):
        return Ending(1, "", "sam-edge: read-only\nsam-edge: was not refused", ending.seconds)
    return ending


def _vanished(work: Path, name: str, rng: random.Random, seconds: float) -> Ending:
    folder = _fresh(work)
    (folder / "there").mkdir()
    running = Running(command([*COMMANDS[name], "--out", "there/out"], folder, EPOCH), work)
    running.wait(rng.uniform(0, 1) * seconds)
    shutil.rmtree(folder / "there", ignore_errors=True)
    ending = running.ending(LONGEST_SECONDS)
    shutil.rmtree(folder / "there", ignore_errors=True)
    return ending


def _two_at_once(work: Path, name: str, rng: random.Random, seconds: float) -> Ending:
    """The second is refused at once; when the first was killed, its lock is nobody's."""
    folder = _fresh(work)
    first = Running(command([*COMMANDS[name], "--out", "out"], folder, EPOCH), work)
    while not (folder / ".out.lock").exists() and not first.wait(0.02):
        pass
    streams = work / "second"
    streams.mkdir(exist_ok=True)
    second = Running(command([*COMMANDS[name], "--out", "out"], folder, EPOCH), streams).ending(LONGEST_SECONDS)
    first.kill()
    was = first.ending().code
    refused = second.code == 1 and "is being written by another process" in second.err
    if was != 0 and not refused:
        return Ending(1, second.out, "sam-edge: two at once\nsam-edge: were not told apart", second.seconds)
    if refused and second.seconds > 10:
        return Ending(1, "", "sam-edge: refused late\nsam-edge: refused late", second.seconds)
    return Running(command([*COMMANDS[name], "--out", "out"], folder, EPOCH), work).ending(LONGEST_SECONDS)


def _fresh(work: Path) -> Path:
    folder = work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _whole(work: Path, name: str) -> tuple[dict[str, Any], float]:
    """What a command makes where nothing happens to it, and how long it takes."""
    kept = work / f"whole-{name}.json"
    if not kept.exists():
        folder = _fresh(work)
        ending = Running(command([*COMMANDS[name], "--out", "out"], folder, EPOCH), work).ending(LONGEST_SECONDS)
        assert ending.code == 0, f"{name}: {ending.err[-1000:]}"
        kept.write_text(json.dumps([contents(folder), ending.seconds]))
    found, seconds = json.loads(kept.read_text())
    return found, seconds


def _ends(work: Path, name: str, folder: Path, whole: dict[str, Any]) -> str | None:
    """What is wrong with what the same command ends with, started again."""
    ending = Running(command([*COMMANDS[name], "--out", "out"], folder, EPOCH), work).ending(LONGEST_SECONDS)
    if ending.trouble or ending.code:
        return f"started again: {ending.trouble or ending.err.strip()[-200:]}"
    found = contents(folder)
    different = sorted(file for file in found.keys() | whole.keys() if found.get(file) != whole.get(file))
    return f"another {different[0]}" if different else None


def contents(folder: Path) -> dict[str, Any]:
    """What every file says that two runs share: weights by their bytes, records without durations."""
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "report" not in path.relative_to(folder).parts
    }


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            names = sorted(file.keys())
            said = {
                name: _records(json.loads(text)) for name, text in (file.metadata() or {}).items() if text[:1] == "{"
            }
            return [said, {name: hashlib.sha256(file.get_tensor(name).tobytes()).hexdigest() for name in names}]
    if path.suffix in (".json", ".jsonl"):
        return [_records(json.loads(line)) for line in _documents(path)]
    if path.suffix == ".md":
        # says how long things took
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _documents(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def _records(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _records(v) for key, v in value.items() if not any(part in key for part in CHANGES)}
    return [_records(v) for v in value] if isinstance(value, list) else value


def _torn(folder: Path) -> str | None:
    """A file under its own name that is not whole; what is being written has another."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not path.is_file() or hidden or path.suffix == ".jsonl":
            # a log grows by lines, of which the last may be cut: whoever goes on from it takes it off
            continue
        try:
            _content(path)
        except Exception as error:
            return f"torn {path.name}: {error}"
    return None
