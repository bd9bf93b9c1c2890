"""`sam-edge embed` and `sam-edge compress --method tinysam`: a teacher's embeddings, and a student made from them."""

import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sam_edge.commands.common import OnProgress
from sam_edge.commands.workshop.lineage import add_step, sizes
from sam_edge.compress.embeddings import EmbedOptions, embed_pictures, process_share
from sam_edge.compress.stored import StoredEmbeddings
from sam_edge.compress.student import build_student
from sam_edge.compress.tinysam import TinySamOptions, distil_full_stage, distil_plan
from sam_edge.data import Dataset, open_images, open_labelled
from sam_edge.data.open import PicturesOnly
from sam_edge.data.sample import LabelledDataset
from sam_edge.data.unreadable import Noted, unreadable_files
from sam_edge.errors import CompressionError, DataError
from sam_edge.files import check_target, sweep
from sam_edge.models.checkpoint import save_checkpoint, weights_sha256
from sam_edge.models.registry import load_model
from sam_edge.models.torch_runtime import resolve_device
from sam_edge.training.loop import Progress
from sam_edge.training.pictures import Pictures
from sam_edge.training.processes import joined_processes, rank, wait_for_all, world

Labels = Literal["auto", "data", "teacher"]


@dataclass(frozen=True)
class DistilSources:
    """What a distillation learns from, beside the teacher."""

    embeddings: Path | None = None
    """Folder written by `sam-edge embed`; without it one is written beside `--out` and deleted in the end."""
    embed: EmbedOptions = field(default_factory=EmbedOptions)
    """What is kept of each picture where no such folder is given."""
    labels: Labels = "auto"
    """Masks to learn: the pictures' own (`data`), what the teacher finds (`teacher`), or the former if any (`auto`)."""


def embed(
    spec: str,
    images: str,
    out: Path,
    options: EmbedOptions,
    *,
    batch_size: int = 4,
    device: str = "auto",
    strict: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Write a teacher's embeddings of all pictures; under torchrun, or by RANK and WORLD_SIZE, a share of them."""
    rank_, world_ = process_share()
    teacher = load_model(spec, resolve_device(device))
    pictures = _pictures(images, strict)

    def on_shard(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(done, total, "shards")

    if world_ == 1:
        sweep(out)
    with unreadable_files(strict) as unreadable:
        noted = Noted(pictures, unreadable)
        done = embed_pictures(
            teacher, noted, out, options, batch_size=batch_size, rank=rank_, world=world_, on_shard=on_shard
        )
    result = {"out": str(out), "pictures": len(pictures), "views": options.views, **asdict(done)}
    try:
        store = StoredEmbeddings(out, verify=False)
    except CompressionError:
        # other processes are still at it
        return {**result, "complete": False}
    return {
        **result,
        "complete": True,
        "masks": store.masks,
        "stored_bytes": store.stored_bytes,
        "squared_error": store.error,
    }


def distil(
    spec: str,
    images: str,
    out: Path,
    options: TinySamOptions,
    sources: DistilSources,
    *,
    device: str = "auto",
    strict: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Distil a student from the MODEL `spec` and write a checkpoint folder. A killed run continues.

    Under torchrun all processes share the embedding and every step, and the first writes.
    """
    check_target(out)
    device = resolve_device(device)
    with joined_processes(device), unreadable_files(strict) as unreadable:
        teacher = load_model(spec, device)
        labelled = _labelled(images, sources.labels, strict)
        own = _pictures(images, strict)
        pictures: Dataset[Any] = Noted(own if labelled is None else labelled, unreadable)
        student = build_student(teacher, options.student, options.seed)
        beside = out.absolute()
        folder = sources.embeddings or beside.with_name(f".{beside.name}.embeddings")
        store = _store(teacher, Noted(own, unreadable), folder, sources, own_masks=labelled is None)
        state_file = beside.with_name(f".{beside.name}.state.safetensors")
        steps = distil_plan(pictures.names, store.options.views, options).steps

        def on_step(progress: Progress, report: dict[str, float]) -> None:
            if on_progress is not None:
                on_progress(progress.step, steps, f"loss {report['loss']:.3f}")

        progress = distil_full_stage(student, teacher, store, pictures, options, state_file=state_file, on_step=on_step)
        settings = {**asdict(options), "method": "tinysam", "labels": "teacher" if labelled is None else "data"}
        settings["embeddings"] = {**asdict(store.options), "squared_error": store.error}
        add_step(
            student, "compress", settings, options.seed, store.index["teacher_sha256"], [Path(images).name], parent=spec
        )
        if rank() == 0:
            save_checkpoint(student, out)
            state_file.unlink(missing_ok=True)
            if sources.embeddings is None:
                shutil.rmtree(folder)
        watched = [row for row in progress.history if "score" in row]
        return {
            "out": str(out),
            **sizes(student.config, teacher.config),
            "labels": settings["labels"],
            "embedding_error_stored": store.error,
            "watched": watched,
            "best": max(watched, key=lambda row: row["score"]) if watched else None,
            "steps": progress.step,
            "seconds": progress.seconds,
            "data_wait_seconds": progress.data_wait_seconds,
            "unreadable": unreadable.found,
        }


def _pictures(images: str, strict: bool) -> Pictures:
    """All pictures that `images` stands for; those of a labelled data set under the names it gives them."""
    labelled = _labelled(images, "auto", strict)
    try:
        pictures = open_images(images, strict)
    except DataError:
        if labelled is None:
            raise
        return PicturesOnly(labelled)
    return pictures if labelled is None or set(labelled.names) <= set(pictures.names) else PicturesOnly(labelled)


def _labelled(images: str, labels: Labels, strict: bool) -> LabelledDataset | None:
    """The pictures with their own masks, if there are any and they are wanted."""
    if labels == "teacher":
        return None
    try:
        return open_labelled(images, "all", strict)
    except DataError:
        if labels == "data":
            raise
        return None


def _store(
    teacher: Any, pictures: Pictures, folder: Path, sources: DistilSources, *, own_masks: bool
) -> StoredEmbeddings:
    """The given store, or one written now."""
    if sources.embeddings is None:
        options = sources.embed if own_masks else replace(sources.embed, mask_points=0)
        embed_pictures(teacher, pictures, folder, options, rank=rank(), world=world())
        wait_for_all()
    store = StoredEmbeddings(folder)
    if store.index["teacher_sha256"] != weights_sha256(teacher):
        raise CompressionError(f"{folder} holds another teacher's embeddings: embed with this one.")
    if own_masks and not store.masks:
        raise CompressionError(
            "there is no mask to learn: the pictures have no labels, and the teacher's own masks were not looked for "
            "(--mask-points 0) or none passed its thresholds."
        )
    return store
