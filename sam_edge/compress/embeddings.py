"""A teacher's embeddings of all views of all pictures, computed in advance and kept on disk (TinySAM, section 4.1).

    FOLDER/index.json             what is kept: teacher, options, file names
    FOLDER/00012.safetensors      one shard: values (and scales), fingerprints, the teacher's own masks
    FOLDER/00012.json             written after it: its sha256 and the error of its values

Item number `picture * views + view` lies in shard `item // shard_views`. Each process takes every n-th shard, and one
that is there already is left alone: a killed run continues, and machines that share a disk share the work.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam_edge.compress.fixed_views import FINGERPRINT_BYTES, FixedViews, extent_px, fingerprint, square
from sam_edge.compress.packing import StoredPrecision, pack, unpack
from sam_edge.compress.teacher_masks import own_masks
from sam_edge.errors import CompressionError, DataError
from sam_edge.files import atomic_file, sha256_of
from sam_edge.models.checkpoint import save_tensors, weights_sha256
from sam_edge.models.sam import EdgeSam
from sam_edge.training.pictures import Pictures

SCHEMA = 1
INDEX = "index.json"


@dataclass(frozen=True)
class EmbedOptions:
    """What is kept of each picture."""

    views: int = 1
    """Views of each picture: the first shows all of it, the others are seeded crops."""
    max_zoom: float = 2.0
    """Largest magnification of a crop."""
    precision: StoredPrecision = "int8"
    """`int8` with a scale per view and channel, or `fp16` in twice the space."""
    mask_points: int = 16
    """Points per side of the grid that the teacher's own masks are found with; 0 keeps none, for labelled pictures."""
    max_masks: int = 64
    """Own masks kept per view, those of highest predicted IoU."""
    shard_views: int = 64
    """Views per shard: what a killed run may lose."""
    seed: int = 0
    """Seed of the crops."""

    @property
    def fixed_views(self) -> FixedViews:
        """The views that these options number."""
        return FixedViews(self.max_zoom, self.seed)


@dataclass(frozen=True)
class EmbedResult:
    """What one process has done."""

    shards: int
    """Shards of the whole store."""
    written: int
    """Shards that this process wrote; the others were there, or are other processes'."""
    unreadable: list[str]
    """Pictures of the written shards that could not be read; they are left out of training."""


def index_of(teacher: EdgeSam, names: list[str], options: EmbedOptions) -> dict[str, Any]:
    """What `index.json` holds: two stores with the same index hold the same."""
    config = teacher.config
    return {
        "schema": SCHEMA,
        "teacher_sha256": weights_sha256(teacher),
        "image_size": config.image_size,
        "channels": config.decoder.dim,
        "grid": config.grid,
        "mask_size": config.mask_size,
        "thresholds": asdict(config.thresholds),
        "options": asdict(options),
        "names": names,
    }


def embed_pictures(
    teacher: EdgeSam,
    pictures: Pictures,
    folder: Path,
    options: EmbedOptions,
    *,
    batch_size: int = 4,
    rank: int = 0,
    world: int = 1,
    on_shard: Callable[[int, int], None] | None = None,
) -> EmbedResult:
    """Write every `world`-th shard from `rank` on that is not there yet.

    Raises:
        CompressionError: `folder` holds something else, or an option is out of its range.
    """
    if min(options.views, options.shard_views, options.max_masks, batch_size) < 1 or options.mask_points < 0:
        raise CompressionError("views, shard views, masks and batch size must be at least 1, mask points at least 0.")
    if options.max_zoom < 1:
        raise CompressionError(f"max_zoom must be at least 1, got {options.max_zoom}.")
    index = index_of(teacher, pictures.names, options)
    _claim(folder, index)
    items = len(pictures) * options.views
    shards = -(-items // options.shard_views)
    mine = range(rank, shards, world)
    written, unreadable = 0, []
    for done, shard in enumerate(mine):
        tensor_file, note_file = shard_files(folder, shard)
        if not (note_file.is_file() and tensor_file.is_file()):
            span = range(shard * options.shard_views, min((shard + 1) * options.shard_views, items))
            tensors, note = _shard(teacher, pictures, span, options, batch_size)
            with atomic_file(tensor_file) as part:
                save_tensors(tensors, part)
            note["sha256"] = sha256_of(tensor_file)
            with atomic_file(note_file) as part:
                part.write_text(json.dumps(note), encoding="utf-8")
            written += 1
            unreadable += note["unreadable"]
        if on_shard is not None:
            on_shard(done + 1, len(mine))
    return EmbedResult(shards, written, unreadable)


def _claim(folder: Path, index: dict[str, Any]) -> None:
    """Leave the index in an empty folder, or find the same one there."""
    text = json.dumps(index)
    file = folder / INDEX
    if file.is_file():
        if file.read_bytes() != text.encode():
            raise CompressionError(
                f"{folder} holds embeddings of another teacher, other pictures or other options: "
                "choose another folder or delete it."
            )
        return
    if folder.exists() and (not folder.is_dir() or any(not f.name.startswith(".") for f in folder.iterdir())):
        raise CompressionError(f"{folder} is not an empty folder: choose another.")
    with atomic_file(file) as part:
        part.write_text(text, encoding="utf-8")


def shard_files(folder: Path, shard: int) -> tuple[Path, Path]:
    """A shard's tensors and its note."""
    return folder / f"{shard:05d}.safetensors", folder / f"{shard:05d}.json"


@torch.no_grad()
def _shard(
    teacher: EdgeSam, pictures: Pictures, span: range, options: EmbedOptions, batch_size: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A shard's tensors and its note but for the sha256."""
    config = teacher.config
    shape = (config.decoder.dim, config.grid, config.grid)
    embeddings = torch.zeros(len(span), *shape)
    prints = np.zeros((len(span), FINGERPRINT_BYTES), np.uint8)
    bits: list[np.ndarray] = []
    starts = [0]
    unreadable: list[str] = []
    extents: dict[int, tuple[float, float]] = {}
    for places, images in _batches(pictures, span, options, config.image_size, config.pixel_mean, batch_size):
        pixels = teacher.preprocess(torch.from_numpy(np.stack([view[0] for view in images])).to(teacher.device).float())
        for place, embedding, view in zip(places, teacher.encode(pixels).float(), images, strict=True):
            embeddings[place], prints[place], extents[place] = embedding.cpu(), view[1], view[2]
    packed = pack(embeddings, options.precision)
    kept = unpack(packed["values"], packed.get("scales"))
    for place, item in enumerate(span):
        if place not in extents:
            unreadable.append(pictures.names[item // options.views])
        elif options.mask_points:
            # on the embedding as it is kept: training sees no other
            given = kept[place : place + 1].to(teacher.device)
            found = own_masks(teacher, given, extents[place], options.mask_points, options.max_masks)
            bits.append(np.packbits(found.flatten(1).cpu().numpy(), axis=1))
        starts.append(starts[-1] + (len(bits[-1]) if place in extents and options.mask_points else 0))
    there = sorted(extents)
    squared = (kept[there] - embeddings[there]).square().sum().item()
    spread = (embeddings[there] - embeddings[there].mean()).square().sum().item() if there else 0.0
    width = -(-(config.mask_size**2) // 8)
    tensors = packed | {
        "fingerprints": torch.from_numpy(prints),
        "mask_bits": torch.from_numpy(np.concatenate([np.zeros((0, width), np.uint8), *bits])),
        "mask_starts": torch.tensor(starts),
    }
    note = {"views": len(there), "squared_error": squared, "squared_spread": spread}
    return tensors, {**note, "masks": starts[-1], "unreadable": sorted(set(unreadable))}


def _batches(
    pictures: Pictures,
    span: range,
    options: EmbedOptions,
    size: int,
    padding: tuple[float, float, float],
    batch_size: int,
) -> Iterator[tuple[list[int], list[tuple[np.ndarray, np.ndarray, tuple[float, float]]]]]:
    """Readable views of a shard: their places in it; pixels, fingerprint and extent of each."""
    places, images = [], []
    last: tuple[int, Any] = (-1, None)
    for place, item in enumerate(span):
        picture, view = divmod(item, options.views)
        if picture != last[0]:
            try:
                last = (picture, pictures[picture][1])
            except DataError:
                last = (picture, None)
        if last[1] is None:
            continue
        crop = options.fixed_views.crop(pictures.names[picture], view, *last[1].shape[:2])
        places.append(place)
        images.append((square(crop, last[1], size, padding), fingerprint(crop, last[1]), extent_px(crop, size)))
        if len(places) == batch_size:
            yield places, images
            places, images = [], []
    if places:
        yield places, images


def process_share() -> tuple[int, int]:
    """This process's number and how many there are: as torchrun says; shards need no other word between them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
