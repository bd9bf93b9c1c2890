"""Inputs that nobody would write on purpose, each a function of a seed: files, and the command that is given them.

Most are good ones with a few things changed, so that they get past the first check.
"""

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
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.campaign.changes import changed, changed_bytes, document
from tests.campaign.lines import OUT, command_lines, odd_places, options
from tests.campaign.states import unfinished_work

CANARY = "CANARY"
"""Variable that names a file which code of an input would write, if any ran."""
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
NAMES = ("photo",) * 8 + (
    "with space",
    "PHOTO",
    "é",
    "\udcd5",
    "line\nbreak",
    "-dash",
    ".hidden",
    "[1]",
    "%s",
    "x" * 240,
    "a.b",
)
PROMPTS = (
    ("--box", "2,2,20,20"),
    ("--box", "2,2,20,20"),
    ("--point", "0,0"),
    ("--fast-read", "--point", "0,0"),
    ("--point", "3,3", "--point", "5,5,0", "--box", "1,1,30,30"),
    ("--point", "-1,4"),
    ("--box", "5,5,5,5"),
    ("--point", "1e9,1e9"),
    ("--everything", "--points-per-side", "2", "--pred-iou", "0", "--stability", "0"),
    ("--box", "0,0,9,9", *(part for number in range(300) for part in ("--point", f"{number % 30},{number % 17}"))),
)


Make = Callable[[random.Random, Path, Path], list[str]]
"""`make(rng, base, folder)` writes files to `folder`, made of the good ones in `base`; gives sam-edge's arguments."""


class RunsCode:
    """What pickles and is, when read back by a reader that trusts it, a command of the shell."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f'touch "${CANARY}"',)


def a_picture(rng: random.Random) -> Image.Image:
    mode = rng.choice(
        ("RGB", "RGB", "RGBA", "L", "P", "1", "CMYK", "I;16", "F", "LA", "PA", "RGBX", "I", "YCbCr", "HSV", "LAB")
    )
    width, height = rng.choice(((40, 30), (40, 30), (1, 1), (1, 200), (300, 2), (64, 64), (17, 31)))
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
    if form in ("GIF", "TIFF", "WEBP", "PNG") and rng.random() < 0.2:
        extra |= {
            "save_all": True,
            "append_images": [a_picture(rng).convert("RGB").resize(image.size) for _ in range(2)],
        }
    for mode in (image.mode, "RGB", "L"):
        stream.seek(0)
        stream.truncate()
        try:
            image.convert(mode).save(stream, form, **extra)
            break
        except (OSError, ValueError, KeyError, TypeError, SyntaxError, RuntimeError, struct.error):
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
    if rng.random() < 0.004:
        suffix, data = "png", largest_picture()
    name = f"{rng.choice(NAMES)}.{suffix}"
    (folder / name).write_bytes(data)
    prompt = rng.choice(PROMPTS)
    given = rng.choice((name, name, name, name, ".", f"*.{suffix}", str(folder / name)))
    return ["segment", str(base / "exported"), *prompt, *OUT, "--", given]


@cache
def largest_picture() -> bytes:
    """A hundred megapixels."""
    stream = io.BytesIO()
    Image.new("L", (10_000, 10_000), 90).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


ASKED: tuple[tuple[str, ...], ...] = (
    (),
    (),
    ("--strict",),
    ("--prompt", "point"),
    ("--prompt", "point", "--multimask"),
    ("--clicks", "2"),
    ("--everything", "--points-per-side", "2"),
    ("--limit", "1"),
)


def _photos(base: Path, folder: Path) -> None:
    for file in (base / "photos").iterdir():
        shutil.copy(file, folder)


def sa1b(rng: random.Random, base: Path, folder: Path) -> list[str]:
    shutil.copytree(base / "sa1b", folder / "data")
    for file in (folder / "data").glob("*.json"):
        file.write_bytes(document(rng, json.loads(file.read_text())))
    return ["eval", str(base / "exported"), "--data", "data", "--split", "all", *rng.choice(ASKED)]


def coco(rng: random.Random, base: Path, folder: Path) -> list[str]:
    _photos(base, folder)
    (folder / "instances.json").write_bytes(document(rng, json.loads((base / "instances.json").read_text())))
    if rng.random() < 0.3:
        line = ["eval", str(base / "exported"), "--ap", "--data", "instances.json"]
        if rng.random() < 0.5:
            (folder / "instances.json").write_text((base / "instances.json").read_text())
            found = [{"image_id": n, "category_id": 1, "bbox": [10, 8, 40, 32], "score": 0.5} for n in range(3)]
            (folder / "found.json").write_bytes(document(rng, found))
            line += ["--detections", "found.json"]
        return line
    return ["eval", str(base / "exported"), "--data", "instances.json", "--split", "all", *rng.choice(ASKED)]


def shards(rng: random.Random, base: Path, folder: Path) -> list[str]:
    stream = io.BytesIO()
    # broken up, a picture and its labels no longer belong together
    prefix = (
        [rng.choice(("", "", "", "", "../", "/", "deep/", "./"))] if rng.random() < 0.8 else ["", "../", "/", "deep/"]
    )
    form = rng.choice((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    with tarfile.open(fileobj=stream, mode=rng.choice(("w",) * 9 + ("w:gz",)), format=form) as tar:
        for file in sorted((base / "sa1b").iterdir()):
            content = file.read_bytes()
            if file.suffix == ".json" and rng.random() < 0.5:
                content = document(rng, json.loads(content))
            elif rng.random() < 0.2:
                content = changed_bytes(rng, content)
            member = tarfile.TarInfo(rng.choice(prefix) + file.name)
            member.size = len(content)
            if rng.random() < 0.05:
                member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE))
                member.linkname, member.size = "/etc/passwd", 0
            tar.addfile(member, io.BytesIO(content))
    data = stream.getvalue()
    (folder / "data.tar").write_bytes(changed_bytes(rng, data) if rng.random() < 0.4 else data)
    return ["eval", str(base / "exported"), "--data", "data.tar", "--split", "all", *rng.choice(ASKED)]


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
    if kind < 0.4:
        _retell(rng, header)
        text = json.dumps(header).encode()
        data = struct.pack("<Q", len(text)) + text + data[8 + length :]
    elif kind < 0.8:
        text = json.dumps(changed(rng, header)).encode("utf-8", "surrogatepass")
        size = len(text) if rng.random() < 0.9 else rng.choice((0, 7, 2**20, 2**40, 2**63))
        data = struct.pack("<Q", size) + text + data[8 + length :]
    else:
        data = changed_bytes(rng, data)
    name = rng.choice(("w.safetensors", "w.safetensors", "w.pth"))
    (folder / name).write_bytes(data)
    return _opened(rng, name)


def _retell(rng: random.Random, header: dict[str, Any]) -> None:
    """Say something else of a file's tensors, in words that a header may have."""
    for _ in range(rng.choice((1, 1, 2))):
        names = [name for name in header if name != "__metadata__"]
        one, other = header[rng.choice(names)], header[rng.choice(names)]
        kind = rng.randrange(7)
        if kind == 0:
            one["dtype"] = rng.choice(
                ("F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "C64")
            )
        elif kind == 1:
            one["shape"] = rng.choice(
                (one["shape"][::-1], [1, *one["shape"]], one["shape"][1:], [0], [], [2**40, 2**40])
            )
        elif kind == 2:
            one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]
        elif kind == 3:
            one["data_offsets"] = rng.choice((other["data_offsets"], [0, 0], [4, 0], [0, 2**60]))
        elif kind == 4:
            header[rng.choice(("", "x", "image_encoder.pos_embed", "a" * 5000, "../x"))] = one
        elif kind == 5:
            del header[rng.choice(names)]
        elif "__metadata__" in header:
            text = header["__metadata__"]
            key = rng.choice(list(text))
            text[key] = rng.choice(
                (text[key][:40], "", "{}", "[]", "null", "[" * 100_000, text[key].replace("16", "99999"))
            )


def pickles(rng: random.Random, base: Path, folder: Path) -> list[str]:
    source = (base / "vit.pth").read_bytes()
    kind = rng.random()
    if kind < 0.2:
        protocol = rng.randrange(6)
        data = pickle.dumps(rng.choice((RunsCode(), {"model": RunsCode()}, {"x": [RunsCode()]}, {1: 2}, [1])), protocol)
        if kind < 0.1:
            data = _zipped({"archive/data.pkl": data, "archive/version": b"3\n", "archive/byteorder": b"little"})
    elif kind < 0.5:
        return _odd_weights(rng, base, folder)
    elif kind < 0.8:
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


def _odd_weights(rng: random.Random, base: Path, folder: Path) -> list[str]:
    """A file that PyTorch reads with pleasure, and whose tensors are not what a model has."""
    import torch
    from safetensors.torch import load_file

    # torch.load would check again, and refuse, a broken sparse tensor that an earlier call of it has met
    state = load_file(base / "vit" / "model.safetensors")
    for name in rng.sample(list(state), rng.choice((1, 1, 2, len(state)))):
        value = state[name]
        make: tuple[Callable[[], Any], ...] = (
            lambda value=value: value.double(),
            lambda value=value: value.to(torch.complex64),
            lambda value=value: value > 0,
            lambda value=value: (100 * value).to(torch.int8),
            lambda value=value: value.to(torch.float8_e4m3fn),
            lambda value=value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
            lambda value=value: value.to_sparse(),
            lambda value=value: value.to("meta"),
            lambda value=value: torch.nn.Parameter(value),
            # a picture of terabytes in a few bytes
            lambda: torch.zeros(1).expand(1_000_000, 1_000_000),
            lambda value=value: value.new_zeros(1).expand(value.shape),
            lambda value=value: torch.as_strided(value, (3, 3), (0, 0)) if value.numel() else value,
            lambda value=value: value[None],
            lambda: torch.zeros(0),
            lambda value=value: value * float("nan"),
            lambda value=value: value.tolist(),
            lambda: None,
            lambda: "text",
        )
        state[name] = rng.choice(make)()
    for _ in range(rng.choice((0, 0, 1))):
        state[rng.choice((0, "", "x" * 3000, None, (1, 2), "image_encoder"))] = state.pop(rng.choice(list(state)))
    whole: Any = rng.choice(
        (
            state,
            state,
            {"model": state, "epoch": 3},
            {"state_dict": {"model": state}},
            {"module." + str(key): value for key, value in state.items()},
            [state],
            list(state.values()),
            {"model": None},
            {"model": {}},
        )
    )
    torch.save(whole, folder / "w.pth", _use_new_zipfile_serialization=rng.random() < 0.8)
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
    elif kind < 0.8:
        _other_graph(rng, folder / "model", values)
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


def _other_graph(rng: random.Random, folder: Path, values: dict[str, Any]) -> None:
    """An ONNX file that is one, and not what it is said to be."""
    import hashlib

    import onnx

    graph = rng.choice(list(values["graphs"].values()))
    file = folder / graph["file"]
    model = onnx.load(file)
    inner, kind = model.graph, rng.randrange(9)
    node = rng.choice(inner.node)
    if kind == 0:
        node.op_type = rng.choice(("Relu", "NoSuchOperator", "Add", "MatMul", "Loop", "ai.custom"))
    elif kind == 1:
        dims = rng.choice([*inner.input, *inner.output]).type.tensor_type.shape.dim
        if dims:
            rng.choice(dims).dim_value = rng.choice((0, 1, -1, 7, 2**40))
    elif kind == 2:
        rng.choice([*inner.input, *inner.output]).name = rng.choice(("", "x", "pixels", "../x"))
    elif kind == 3:
        weight = rng.choice(inner.initializer)
        weight.dims[:] = rng.choice(([0], [2**40, 2**40], [1, *weight.dims], list(weight.dims)[::-1]))
    elif kind in (4, 5):
        # weights in a file beside it, or elsewhere
        weight = rng.choice(inner.initializer)
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        place = rng.choice(
            ("../../base/photo.png", "/etc/passwd", "weights.bin", "", ".", "model.json", "../../../../etc/passwd")
        )
        for key, value in (
            ("location", place),
            ("offset", rng.choice(("0", "-1", str(2**62), "x"))),
            ("length", rng.choice(("4", str(2**62)))),
        ):
            weight.external_data.add(key=key, value=value)
    elif kind == 6:
        rng.choice(inner.initializer).data_type = rng.choice((0, 2, 6, 7, 10, 11, 99))
    elif kind == 7:
        model.opset_import[0].version = rng.choice((0, 1, 7, 99))
    elif node.input:
        node.input[0] = rng.choice(("", "nothing", node.output[0]))
    file.write_bytes(model.SerializeToString())
    graph["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "model.json").write_text(json.dumps(values))


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
        "title": "t", "model": rng.choice(("no such model", "../base/slim")), "images": "missing",
        "data": "missing", "seed": 0,
        "compress": {"epochs": 1, "ratio": 0.5, "schedule": "alternate"}, "quantize": {"weights": 8},
        "bench": {"runs": 1},
        "engine": {"targets": ["sm89"]}, "evaluate": {"limit": 1},
    }  # fmt: skip
    text = _toml(changed(rng, values)).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        text += b"\n" + rng.choice(
            (
                b"a = " + b"[" * 100_000,
                b"a = " + b"1" * 50_000,
                b"a = 2020-13-45",
                b"a.b.c.d = 1\na.b = 2",
                b"[[compress]]",
                b"a = 1979-05-27T07:32:00Z",
                b'"" = 1',
                b"\xef\xbb\xbf",
                b"a = " + b"{b=" * 50_000,
                b"\x00",
                b"seed = 1_0\r",
                b".".join([b"a"] * 50_000) + b" = 1",
            )
        )
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
    "options": (1500, options),
    "unfinished work": (1000, unfinished_work),
    "odd places": (500, odd_places),
}
"""How many of each kind, and what makes one."""
