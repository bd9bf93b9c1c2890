"""`sam-edge segment` of many pictures: how people pre-label a folder.

`masks.jsonl` grows by a line per picture, behind a first line that says what was asked; a run that was killed goes on
from it. When all are done, `masks.json` is one COCO data set of them.
"""

import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sam_edge.commands.common import OnProgress
from sam_edge.commands.device.segment import (
    CATEGORIES,
    EverythingOptions,
    ImagePrompts,
    Segmenter,
    beside_coco,
    coco_annotation,
    coco_image,
    write_pictures,
)
from sam_edge.data.folder import list_images
from sam_edge.data.mask_files import MaskedPicture, MaskFormat, write_mask_files
from sam_edge.errors import DataError, PromptError
from sam_edge.files import atomic_file, atomic_folder, check_target, sha256_of
from sam_edge.journal import Journal, whole_lines
from sam_edge.runtimes.open import open_runtime
from sam_edge.segment.known import KNOWN

LOG, RESULT, PICTURES = "masks.jsonl", "masks.json", "pictures"


def names_one_picture(wanted: Sequence[str]) -> bool:
    """Whether one file is meant, there or not, and no folder and no pattern."""
    path = Path(wanted[0]).expanduser()
    return len(wanted) == 1 and not path.is_dir() and (path.exists() or not glob.has_magic(wanted[0]))


def find_pictures(wanted: Sequence[str]) -> tuple[Path, list[str]]:
    """The pictures of files, folders and patterns, each once: a folder that holds them all, and their names in it.

    Raises:
        DataError: a path that is not there, a folder or a pattern without pictures.
    """
    files: list[Path] = []
    for text in wanted:
        path = Path(text).expanduser()
        if path.is_dir():
            files += [path / name for name in list_images(path)]
        elif path.exists() or not glob.has_magic(text):
            # a file that is not there is told as one when it is read
            files.append(path)
        else:
            found = sorted(glob.glob(str(path), recursive=True))
            if not found:
                raise DataError(f"{text}: no file matches this pattern.")
            files += [Path(name) for name in found if os.path.isfile(name)]
    unique = list(dict.fromkeys(Path(os.path.abspath(file)) for file in files))
    root = Path(os.path.commonpath([file.parent for file in unique]))
    return root, [file.relative_to(root).as_posix() for file in unique]


def prelabel(
    spec: str,
    wanted: Sequence[str],
    out: Path,
    prompts: ImagePrompts,
    everything: EverythingOptions,
    *,
    runtime: str = "auto",
    device: str = "auto",
    fast_read: bool = False,
    pictures: bool = False,
    formats: Sequence[MaskFormat] = (),
    strict: bool = False,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Segment pictures into one COCO file; with `pictures` each has a folder of its overlay and masks, too.

    Each further one of `formats` has a folder of its name.

    A picture that cannot be read, or that the prompts lie outside of, is counted and left out.

    Raises:
        DataError, PromptError: such a picture, if `strict`.
        SamEdgeError: `out` holds masks of another model or other prompts, or something else.
    """
    root, names = find_pictures(wanted)
    check_target(out)
    opened = open_runtime(spec, runtime, device)
    asked = {"model": spec, "prompts": asdict(prompts), "everything": asdict(everything), "fast_read": fast_read}
    key = hashlib.sha256(json.dumps([asked, _identity(opened, spec), str(root)], sort_keys=True).encode()).hexdigest()
    log = Journal(
        out / LOG, {"key": key, **asked, "root": str(root)}, "file_name", ("width", "height", "masks"), "--out"
    )
    segmenter = Segmenter(opened, prompts, everything, fast_read)
    skipped: dict[str, str] = {}
    with log:
        for number, name in enumerate(names, 1):
            if name not in log.done or (pictures and not _folder(out, name).is_dir()):
                try:
                    picture = segmenter.read(root / name)
                except (DataError, PromptError) as error:
                    if strict:
                        raise
                    skipped[name] = str(error)
                else:
                    records = segmenter.records(picture)
                    if pictures:
                        with atomic_folder(_folder(out, name)) as work:
                            write_pictures(segmenter, picture, records, work, seed)
                            (work / RESULT).write_text(json.dumps(records))
                    height, width = picture.size
                    log.add({"file_name": name, "width": width, "height": height, "masks": records})
            if on_progress is not None:
                on_progress(number, len(names), f"{name}, {len(skipped)} skipped" if skipped else name)
    masks = _write_coco(out, spec, names)
    for form in beside_coco(formats):
        _write_format(out, form, names)
    return {
        "out": str(out),
        "model": spec,
        "pictures": len(names) - len(skipped),
        "masks": masks,
        "skipped": [{"image": name, "reason": reason} for name, reason in skipped.items()],
    }


def _identity(opened: Any, spec: str) -> Any:
    """What tells a model from another of the same name."""
    folder = getattr(opened, "folder", None)
    if folder is not None:
        return [graph["sha256"] for graph in folder.graphs.values()]
    path = Path(spec).expanduser()
    # a known name's weights come with the version, or from where they do not change
    return (
        sha256_of(path) if spec not in KNOWN and path.exists() else [step.get("date") for step in opened.config.lineage]
    )


def _folder(out: Path, name: str) -> Path:
    """Where a picture's own masks lie; two pictures that differ in their ending only keep apart."""
    return out / PICTURES / name


def _write_coco(out: Path, spec: str, names: Sequence[str]) -> int:
    """`masks.json` of the pictures that are done, one at a time; returns the number of masks."""
    wanted, count = set(names), 0
    with atomic_file(out / RESULT) as part, part.open("w", encoding="utf-8") as file:
        info = json.dumps({"description": f"masks found by sam-edge with {spec}"})
        file.write(f'{{"info": {info}, "categories": {json.dumps(CATEGORIES)}, "images": [')
        _write_items(
            file.write, (coco_image(i, p["file_name"], p["width"], p["height"]) for i, p in _done(out, wanted))
        )
        file.write('], "annotations": [')

        def annotations() -> Iterator[dict[str, Any]]:
            nonlocal count
            for number, picture in _done(out, wanted):
                for record in picture["masks"]:
                    count += 1
                    yield coco_annotation(count, number, record)

        _write_items(file.write, annotations())
        file.write("]}\n")
    return count


def _write_format(out: Path, form: MaskFormat, names: Sequence[str]) -> None:
    """The pictures that are done in another tool's format, in place of what an earlier run wrote of it."""
    with tempfile.TemporaryDirectory(prefix=f".{form}.", suffix=".part", dir=out) as scratch:
        done = (
            MaskedPicture(picture["file_name"], picture["width"], picture["height"], picture["masks"])
            for _, picture in _done(out, set(names))
        )
        write_mask_files(Path(scratch) / "new", form, done)
        if (out / form).exists():
            os.rename(out / form, Path(scratch) / "old")
        os.rename(Path(scratch) / "new", out / form)


def _write_items(write: Callable[[str], object], items: Iterator[dict[str, Any]]) -> None:
    for index, item in enumerate(items):
        write(("" if index == 0 else ",\n") + json.dumps(item))


def _done(out: Path, wanted: set[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The pictures of the log that were asked for, each once and with its number: the last line of each."""
    places = {line["file_name"]: end for line, end in whole_lines(out / LOG) if "file_name" in line}
    number = 0
    for line, end in whole_lines(out / LOG):
        name = line.get("file_name")
        if name in wanted and places[name] == end:
            number += 1
            yield number, line
