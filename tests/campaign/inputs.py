"""Inputs that nobody would write on purpose, each a function of a seed: files, and the command that is given them.

Most are good ones with a few things changed, so that they get past the first check.
"""

import copy
import io
import json
import os
import pickle
import random
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CANARY = "CANARY"
"""Variable that names a file which code of an input would write, if any ran."""
OUT = ("--out", "out")
FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "TIFF",
    "GIF",
    "PPM",
    "TGA",
    "ICO",
    "PCX",
    "SGI",
    "JPEG2000",
    "DDS",
    "IM",
    "SPIDER",
)
HOSTILE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 7, 2**31, 2**63, 10**30, -(10**9), 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "x", "x" * 3000, "../../../outside", "/etc/passwd", "\ud800", "\x00", "nan", [], {}, [[]], [None], {"": None},
    [1e300] * 3, [0, 0, 0, 0], [[5, 5, 5, 5, 5]], [-1, -1, 1e9, 1e9], 65536, 100000,
)  # fmt: skip
TOKENS = (
    "nan", "inf", "-inf", "-1", "0", "1e308", "1e-320", "99999999999999999999", "0x10", "1,2", "1,2,3,4,5", "", " ", 
    "\x1b[31m", "é", "💥", "--", "-", "=", "a=b", "a=b=c", "*", "[", "../..", "/dev/null", "/proc/self/mem",
    "synthetic", "synthetic:0", "synthetic:1:x", "synthetic:99999999999", "random:x", "timm:", "timm:x=y", "random:",
    "x" * 5000, "{}", "null", "%s%n", "$(id)", "`id`", "\udcff", "1" * 400, "true", "None", "cuda", "auto", "model",
    "photo.png", ".", "~", "~root",
)  # fmt: skip

Make = Callable[[random.Random, Path, Path], list[str]]
"""`make(rng, base, folder)` writes files to `folder`, made of the good ones in `base`; gives sam-edge's arguments."""


class RunsCode:
    """What pickles and is, when read back by a reader that trusts it, a command of the shell."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f'touch "${CANARY}"',)


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """A few random changes of a file's bytes, mostly near its beginning."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = min(int(rng.expovariate(1 / 60)) if rng.random() < 0.6 else rng.randrange(len(data) + 1), len(data))
        kind = rng.randrange(7)
        if kind == 0:
            del data[at:]
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at : at + 4] = rng.choice(
                (b"\x00" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x10\x00")
            )
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.choice((1, 8, 200)))
        elif kind == 4:
            del data[at : at + rng.choice((1, 4, 64, 1000))]
        elif kind == 5:
            data[at:at] = data[at : at + rng.choice((4, 16, 500))]
        else:
            data[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1, len(data))))
    return bytes(data)


def changed(rng: random.Random, value: Any) -> Any:
    """A document with a few of its nodes replaced, left out, repeated or renamed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holders = [node for node in _nodes(value) if isinstance(node, dict | list) and node]
        if not holders:
            break
        holder = rng.choice(holders)
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        kind = rng.randrange(6)
        if kind <= 2:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE))
        elif kind == 3:
            del holder[key]
        elif kind == 4 and isinstance(holder, dict):
            holder[rng.choice(("", "x", "schema", "id", key.upper()))] = holder.pop(key)
        else:
            other = rng.choice(list(_nodes(value)))
            # not a node into itself
            holder[key] = json.loads(json.dumps(other))
    return value


def _nodes(value: Any) -> list[Any]:
    found = [value]
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        found += _nodes(child)
    return found


def document(rng: random.Random, value: Any) -> bytes:
    """A changed document as a file, now and then with its text broken too."""
    kind = rng.random()
    if kind < 0.03:
        return rng.choice(
            (
                b"[" * 200_000,
                b'{"a":' * 100_000,
                b"",
                b"null",
                b"\xff\xfe{\x00}\x00",
                b"1" * 50_000,
                b'"',
                b"\xef\xbb\xbf{}",
            )
        )
    text = json.dumps(changed(rng, value)).encode("utf-8", "surrogatepass")
    return changed_bytes(rng, text) if kind < 0.2 else text


def a_picture(rng: random.Random) -> Image.Image:
    mode = rng.choice(("RGB", "RGB", "RGBA", "L", "P", "1", "CMYK", "I;16", "F", "LA", "I", "YCbCr", "HSV", "LAB"))
    width, height = rng.choice(((40, 30), (1, 1), (1, 200), (300, 2), (64, 64), (17, 31)))
    image = Image.fromarray(
        np.random.default_rng(rng.randrange(2**32)).integers(0, 255, (height, width, 3), dtype=np.uint8)
    )
    if mode == "I;16":
        return Image.fromarray(np.full((height, width), rng.choice((0, 700, 65535)), np.uint16))
    try:
        return image.convert(mode)
    except ValueError:
        return image


def picture_file(rng: random.Random) -> tuple[str, bytes]:
    """A picture of any format, changed or not; or a header that lies."""
    kind = rng.random()
    if kind < 0.06:
        return "png", lying_png(rng)
    if kind < 0.08:
        return "jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(outside) (w) file\nshowpage\n"
    form, stream = rng.choice(FORMATS), io.BytesIO()
    image = a_picture(rng)
    extra: dict[str, Any] = {}
    if form in ("JPEG", "PNG", "WEBP", "TIFF") and rng.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = rng.choice((0, 3, 6, 8, 99))
        extra["exif"] = changed_bytes(rng, exif.tobytes()) if rng.random() < 0.5 else exif
    for mode in (image.mode, "RGB", "L"):
        stream.seek(0)
        stream.truncate()
        try:
            image.convert(mode).save(stream, form, **extra)
            break
        except (OSError, ValueError, KeyError, TypeError, SyntaxError, struct.error):
            continue
    data = stream.getvalue() or b"nothing"
    return rng.choice((form.lower(), "jpg", "png")), data if rng.random() < 0.15 else changed_bytes(rng, data)


def lying_png(rng: random.Random) -> bytes:
    """A PNG that says it is large and holds little, or one that unpacks to much."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    side = rng.choice((0, 1, 5000, 9000, 13000, 30000, 60000, 2**31 - 1))
    other = rng.choice((side, 1, 7))
    colour, bits = rng.choice(((2, 8), (0, 1), (0, 16), (6, 16), (3, 8), (9, 3)))
    rows = zlib.compress(bytes(rng.choice((10, 100_000, 4_000_000))))
    header = struct.pack(">IIBBBBB", side, other, bits, colour, 0, 0, rng.choice((0, 1)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def pictures(rng: random.Random, base: Path, folder: Path) -> list[str]:
    suffix, data = picture_file(rng)
    (folder / f"photo.{suffix}").write_bytes(data)
    prompt = rng.choice((("--box", "2,2,20,20"), ("--point", "0,0"), ("--fast-read", "--point", "0,0")))
    return ["segment", str(base / "exported"), f"photo.{suffix}", *prompt, *OUT]


def _photos(base: Path, folder: Path) -> None:
    for file in (base / "photos").iterdir():
        shutil.copy(file, folder)


def sa1b(rng: random.Random, base: Path, folder: Path) -> list[str]:
    shutil.copytree(base / "sa1b", folder / "data")
    for file in (folder / "data").glob("*.json"):
        file.write_bytes(document(rng, json.loads(file.read_text())))
    return ["eval", str(base / "exported"), "--data", "data", "--split", "all", *rng.choice(((), ("--strict",)))]


def coco(rng: random.Random, base: Path, folder: Path) -> list[str]:
    _photos(base, folder)
    (folder / "instances.json").write_bytes(document(rng, json.loads((base / "instances.json").read_text())))
    if rng.random() < 0.2:
        return ["eval", str(base / "exported"), "--ap", "--data", "instances.json"]
    return ["eval", str(base / "exported"), "--data", "instances.json", "--split", "all"]


def shards(rng: random.Random, base: Path, folder: Path) -> list[str]:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=rng.choice((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT))) as tar:
        for file in sorted((base / "sa1b").iterdir()):
            content = file.read_bytes()
            if file.suffix == ".json" and rng.random() < 0.3:
                content = document(rng, json.loads(content))
            member = tarfile.TarInfo(rng.choice(("", "", "", "../", "/", "deep/")) + file.name)
            member.size = len(content)
            if rng.random() < 0.1:
                member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE))
                member.linkname, member.size = "/etc/passwd", 0
            tar.addfile(member, io.BytesIO(content))
    data = stream.getvalue()
    (folder / "data.tar").write_bytes(changed_bytes(rng, data) if rng.random() < 0.6 else data)
    return ["eval", str(base / "exported"), "--data", "data.tar", "--split", "all"]


def configs(rng: random.Random, base: Path, folder: Path) -> list[str]:
    name = rng.choice(("vit", "slim", "tiny_vit", "quantized"))
    shutil.copytree(base / name, folder / "model")
    file = folder / "model" / "config.json"
    file.write_bytes(document(rng, json.loads(file.read_text())))
    return _opened(rng)


def _opened(rng: random.Random, model: str = "model") -> list[str]:
    return ["segment", model, "../base/photo.png", "--box", "2,2,20,20", *OUT]


def safetensors(rng: random.Random, base: Path, folder: Path) -> list[str]:
    data = (base / rng.choice(("vit", "quantized")) / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    kind = rng.random()
    if kind < 0.6:
        text = json.dumps(changed(rng, header)).encode("utf-8", "surrogatepass")
        size = len(text) if rng.random() < 0.9 else rng.choice((0, 7, 2**20, 2**40, 2**63))
        data = struct.pack("<Q", size) + text + data[8 + length :]
    else:
        data = changed_bytes(rng, data)
    name = rng.choice(("w.safetensors", "w.safetensors", "w.pth"))
    (folder / name).write_bytes(data)
    return _opened(rng, name)


def pickles(rng: random.Random, base: Path, folder: Path) -> list[str]:
    source = (base / "vit.pth").read_bytes()
    kind = rng.random()
    if kind < 0.2:
        protocol = rng.randrange(6)
        data = pickle.dumps(rng.choice((RunsCode(), {"model": RunsCode()}, {"x": [RunsCode()]}, {1: 2}, [1])), protocol)
        if kind < 0.1:
            data = _zipped({"archive/data.pkl": data, "archive/version": b"3\n", "archive/byteorder": b"little"})
    elif kind < 0.7:
        with zipfile.ZipFile(io.BytesIO(source)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice([key for key in members if key.endswith("data.pkl")] if rng.random() < 0.6 else list(members))
        members[name] = changed_bytes(rng, members[name])
        if rng.random() < 0.2:
            members[rng.choice(("../outside", "/outside", "archive/../../outside"))] = b"x"
        if rng.random() < 0.2:
            del members[rng.choice(list(members))]
        data = _zipped(members, zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED)
    else:
        data = changed_bytes(rng, source)
    (folder / "w.pth").write_bytes(data)
    return _opened(rng, "w.pth")


def _zipped(members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def graphs(rng: random.Random, base: Path, folder: Path) -> list[str]:
    shutil.copytree(base / "exported", folder / "model")
    manifest = folder / "model" / "model.json"
    values = json.loads(manifest.read_text())
    kind = rng.random()
    if kind < 0.5:
        manifest.write_bytes(document(rng, values))
    elif kind < 0.6:
        graph = rng.choice(list(values["graphs"].values()))
        graph["file"] = rng.choice(
            ("../../base/photo.png", "/etc/passwd", "..", "", ".", "model.json", "../base/exported/encoder.onnx")
        )
        manifest.write_text(json.dumps(values))
    else:
        # as whoever changes a graph would change what is said of it
        import hashlib

        graph = rng.choice(list(values["graphs"].values()))
        file = folder / "model" / graph["file"]
        file.write_bytes(changed_bytes(rng, file.read_bytes()))
        graph["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        manifest.write_text(json.dumps(values))
    runtime = rng.choice(("auto", "auto", "auto", "openvino"))
    return [*_opened(rng), "--runtime", runtime]


def engines(rng: random.Random, base: Path, folder: Path) -> list[str]:
    shutil.copytree(base / "exported", folder / "model")
    values = {
        "schema": 1,
        "typed": {"precision": "fp16", "parity": {"mask_iou": 0.99}},
        "engines": [
            {
                "file": f"{graph}.sm89.engine", "graph": graph, "target": "sm89", "flavor": "rtx", "version": "1.7",
                "precision": "fp16", "shapes": {"pixels": {"min": [1, 4], "opt": [1, 4], "max": [1, 4]}},
                "sha256": "0" * 64, "onnx_sha256": "1" * 64, "build_seconds": 0.5, "bytes": 3,
            }
            for graph in ("encoder", "decoder")
        ],
    }  # fmt: skip
    (folder / "model" / "engine.json").write_bytes(document(rng, values))
    return ["read-engines"]


def recipes(rng: random.Random, base: Path, folder: Path) -> list[str]:
    values = {
        "title": "t", "model": "no such model", "images": "synthetic:4:1", "data": "synthetic:4:2", "seed": 0,
        "compress": {"epochs": 1, "ratio": 0.5, "schedule": "alternate"}, "quantize": {"weights": 8},
        "bench": {"runs": 1},
        "engine": {"targets": ["sm89"]}, "evaluate": {"limit": 1},
    }  # fmt: skip
    text = _toml(changed(rng, values)).encode("utf-8", "surrogatepass")
    (folder / "recipe.toml").write_bytes(changed_bytes(rng, text) if rng.random() < 0.3 else text)
    return ["run", "recipe.toml", *OUT]


def _toml(values: Any) -> str:
    if not isinstance(values, dict):
        return json.dumps(values)
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    lines = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in plain.items()]
    for key, table in values.items():
        if isinstance(table, dict):
            lines += [
                f"[{json.dumps(key)}]",
                *(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in table.items()),
            ]
    return "\n".join(lines) + "\n"


def command_lines(rng: random.Random, base: Path, folder: Path) -> list[str]:
    """Any command with options of its own and hostile values; what it would work on is not there, or small."""
    from tests.campaign.options import options_of

    shutil.copy(base / "photo.png", folder)
    (folder / "model").symlink_to(base / "exported")
    names = options_of()
    # the demo takes nothing, and always does the same
    name = rng.choice([name for name in names if name != "demo"])
    given = name.split()
    # what needs no input, or takes long with one, gets none that is there
    lengthy = name == "run" or name.startswith(("bench", "study"))
    for _ in range(1 if lengthy else rng.choice((0, 1, 2, 2))):
        given.append(
            rng.choice(TOKENS) if rng.random() < 0.4 and not lengthy else rng.choice(("missing.pth", "missing"))
        )
    for option, takes_value in rng.sample(names[name], min(len(names[name]), rng.choice((0, 1, 2, 4, 8)))):
        given.append(option)
        if takes_value and rng.random() < 0.95:
            given.append(
                rng.choice(TOKENS) if option not in ("--images", "--data") else rng.choice(("missing", "..", ""))
            )
    if rng.random() < 0.7 and "--out" not in given and any(option == "--out" for option, _ in names[name]):
        given += OUT
    if rng.random() < 0.3:
        given.insert(rng.randrange(len(given) + 1), rng.choice(TOKENS))
    return given


KINDS: dict[str, tuple[int, Make]] = {
    "pictures": (2500, pictures),
    "SA-1B labels": (1000, sa1b),
    "COCO labels": (1000, coco),
    "tar shards": (500, shards),
    "config.json": (1000, configs),
    "safetensors": (1000, safetensors),
    "pickles and zips": (1000, pickles),
    "graphs and model.json": (1000, graphs),
    "engine.json": (500, engines),
    "recipes": (500, recipes),
    "command lines": (1500, command_lines),
}
"""How many of each kind, and what makes one."""
