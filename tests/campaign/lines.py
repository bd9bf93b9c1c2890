"""Command lines that nobody means, and places that are not what they seem."""

import os
import random
import shutil
from functools import cache
from pathlib import Path

from tests.campaign.options import Option, commands

OUT = ("--out", "out")
TOKENS = (
    "nan", "inf", "-inf", "-1", "0", "1e308", "1e-320", "99999999999999999999", "0x10", "1,2", "1,2,3,4,5", "", " ",
    "\x1b[31m", "é", "💥", "--", "-", "=", "a=b", "a=b=c", "*", "[", "../..", "/dev/null", "/proc/self/mem",
    "synthetic", "synthetic:0", "synthetic:1:x", "synthetic:99999999999", "random:x", "timm:", "timm:x=y", "random:",
    "x" * 5000, "{}", "null", "%s%n", "$(id)", "`id`", "\udcff", "1" * 400, "true", "None", "cuda", "auto", "model",
    "photo.png", ".", "~", "~root",
)  # fmt: skip
INTEGERS = ("0", "-1", "1", "2", "3", "7", "1000000000", "9223372036854775808", "-9223372036854775809")
NUMBERS = ("0", "-0.0", "1e-9", "0.3", "0.5", "1", "1.5", "-1", "1e308", "nan", "inf", "-inf", "1e-320")
WORK = ("steps", "epochs", "runs", "warmup", "seconds", "rounds", "clicks", "points-per-side", "crops", "views",
        "per-image", "batches", "photos", "images", "minutes", "iterations", "prompts", "batch-size", "accumulate",
        "shard-views", "workers", "mask-points", "threads", "limit")  # fmt: skip
"""Parts of the names of options that say how much is to be done: as much as they say is no hang."""
LITTLE = ("0", "-1", "1", "2", "3", "x", "nan", "1.5", "-9223372036854775809", "")
PLACES = ("photo.png", "missing", "slim", "exported", "train.json", "instances.json", "photos", "sa1b", ".", "vit.pth",
          "out", "empty", "dangling", "synthetic:2:1")  # fmt: skip
SCENES = ("--images", "synthetic:4:1")
LABELS = ("--data", "synthetic:4:2", "--split", "all")
WHOLE: dict[str, tuple[str, ...]] = {
    "segment": ("exported", "photo.png", "--box", "2,2,20,20", *OUT),
    "eval": ("exported", *LABELS, "--limit", "1"),
    "card": ("exported", *LABELS, "--limit", "1", *OUT),
    "embed": ("slim", *SCENES, "--mask-points", "2", *OUT),
    "train": ("--config", "train.json", *LABELS, "--steps", "1", "--batch-size", "1", "--prompts", "1", "--rounds", "1",
              "--workers", "0", *OUT),
    "compress": ("slim", *SCENES, "--epochs", "1", "--importance-images", "1", "--workers", "0", *OUT),
    "quantize": ("slim", *SCENES, "--calibration-images", "1", "--metric", "minmax", "--no-twin", *OUT),
    "calibrate": ("slim", *SCENES, "--photos", "2", "--points-per-side", "2", *OUT),
    "convert": ("slim", "--layout", "safetensors", "--out", "out"),
    "export-onnx": ("missing", *SCENES, *OUT),
    "export-trt": ("missing", *SCENES, *OUT),
    "run": ("missing.toml", *OUT),
    "bench": ("missing", *OUT),
    "models": (),
    "runtimes": (),
}  # fmt: skip
"""Lines that are right, and quickly done."""


def command_lines(rng: random.Random, base: Path, folder: Path) -> list[str]:
    """Any command with options of its own and hostile values; what it would work on is not there, or small."""
    _place(base, folder)
    names = commands()
    # the demo takes nothing, and always does the same
    name = rng.choice([name for name in names if name != "demo"])
    given = name.split()
    options = names[name]
    # what needs no input, or takes long with one, gets none that is there
    lengthy = name in ("run", "bench")
    for _ in range(1 if lengthy else rng.choice((0, 1, 2, 2))):
        given.append(
            rng.choice(TOKENS) if rng.random() < 0.4 and not lengthy else rng.choice(("missing.pth", "missing"))
        )
    for option in rng.sample(options, min(len(options), rng.choice((0, 1, 2, 4, 8)))):
        given.append(option.names[0])
        if option.takes_value and rng.random() < 0.95:
            given.append(
                rng.choice(TOKENS)
                if option.names[0] not in ("--images", "--data")
                else rng.choice(("missing", "..", ""))
            )
    if rng.random() < 0.7 and "--out" not in given and any(option.names[0] == "--out" for option in options):
        given += OUT
    if rng.random() < 0.3:
        given.insert(rng.randrange(len(given) + 1), rng.choice(TOKENS))
    return given


def options(rng: random.Random, base: Path, folder: Path) -> list[str]:
    """A line that is right, but for one option or a few, which are of the right kind and seldom of a right value."""
    _place(base, folder)
    name = rng.choice(list(WHOLE))
    given = [name, *WHOLE[name]]
    known = commands()[name]
    for option in rng.sample(known, min(len(known), rng.choice((1, 1, 2, 3)))):
        flag = option.names[0]
        if flag in given and not option.repeats and rng.random() < 0.8:
            at = given.index(flag)
            del given[at : at + 1 + option.takes_value]
        given.append(rng.choice(option.names))
        if option.takes_value:
            given.append(_value(rng, option))
    return given


def _value(rng: random.Random, option: Option) -> str:
    if rng.random() < 0.08:
        return rng.choice(TOKENS)
    if option.choices:
        return rng.choice(option.choices)
    if option.kind in (int, float) and any(part in option.names[0] for part in WORK):
        return rng.choice(LITTLE)
    if option.kind in (int, float):
        return rng.choice(INTEGERS if option.kind is int else NUMBERS)
    return rng.choice((*PLACES, *TOKENS))


def odd_places(rng: random.Random, base: Path, folder: Path) -> list[str]:
    """Right lines, whose inputs are links, pipes, folders, devices or nothing, and whose `--out` is taken."""
    _place(base, folder)
    name = rng.choice([name for name in WHOLE if WHOLE[name] and WHOLE[name][0] not in ("missing", "missing.toml")])
    given = [name, *WHOLE[name]]
    odd = folder / rng.choice(
        ("odd", "odd.png", "odd.pth", "odd.safetensors", "odd.json", "\udcd5.png", "ODD.PNG", "a b")
    )
    _odd(rng, base, folder, odd)
    known = (*PLACES, SCENES[1], LABELS[1])
    at = rng.choice([at for at, part in enumerate(given) if part in known])
    # what is to be written is not to be a thing that anybody shares
    given[at] = odd.name if given[at] != "out" or not odd.is_symlink() else "out"
    return given


def _odd(rng: random.Random, base: Path, folder: Path, odd: Path) -> None:
    kind = rng.randrange(14)
    if kind == 0:
        odd.symlink_to("nowhere")
    elif kind == 1:
        odd.symlink_to(odd.name)
    elif kind == 2:
        os.mkfifo(odd)
    elif kind == 3:
        odd.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/dev/full", "/proc/self/environ", "/", "/etc/passwd")))
    elif kind == 4:
        odd.mkdir()
    elif kind == 5:
        odd.touch()
    elif kind == 6:
        odd.mkdir()
        (odd / "loop").symlink_to(".")
        shutil.copy(base / "photo.png", odd / "A.PNG")
    elif kind == 7:
        odd.mkdir()
        os.mkfifo(odd / "pipe.png")
        (odd / "folder.png").mkdir()
        (odd / "gone.jpg").symlink_to("nowhere")
        (odd / "config.json").mkdir()
    elif kind == 8:
        shutil.copytree(base / "slim", odd)
        (odd / "model.safetensors").unlink()
        (odd / "model.safetensors").symlink_to(
            rng.choice(("nowhere", "/dev/zero", "../../base/vit/model.safetensors", "."))
        )
    elif kind in (9, 10):
        shutil.copytree(base / ("exported" if kind == 9 else "sa1b"), odd)
        for file in rng.sample(sorted(odd.iterdir()), rng.choice((1, 2))):
            file.unlink()
            rng.choice((lambda file=file: file.mkdir(), lambda file=file: os.mkfifo(file), lambda: None,
                        lambda file=file: file.touch(), lambda file=file: file.symlink_to("/dev/zero")))()  # fmt: skip
    elif kind == 11:
        odd.write_bytes(b"\x00" * 4096)
    elif kind == 12:
        odd.write_text("<!DOCTYPE html><html>404 Not Found</html>")
    else:
        shutil.copy(rng.choice([path for path in base.rglob("*") if path.is_file()]), odd)


@cache
def _kept(base: Path) -> list[Path]:
    return [base / name for name in ("exported", "slim", "train.json", "instances.json", "photos", "sa1b", "vit.pth")]


def _place(base: Path, folder: Path) -> None:
    """Good inputs under short names, as links: nothing may write through them."""
    shutil.copy(base / "photo.png", folder)
    (folder / "model").symlink_to(base / "exported")
    for path in _kept(base):
        (folder / path.name).symlink_to(path)
    (folder / "empty").mkdir()
    (folder / "dangling").symlink_to("nowhere")
