"""What `sam-edge train` does: a MODEL or a config and labelled data in, a checkpoint folder and results out."""

import copy
import tomllib
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from torch import nn

from sam_edge.commands.common import OnProgress
from sam_edge.compress.full_stage import LossWeights
from sam_edge.compress.taught import TaughtSegmentation
from sam_edge.data import Dataset, LabelledImage, Split, open_labelled
from sam_edge.data.unreadable import unreadable_files
from sam_edge.errors import CheckpointError, DataError, TrainingError
from sam_edge.evaluate.miou import Asked, evaluate_prompts
from sam_edge.files import check_target, parse_json
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.models.cost import cost
from sam_edge.models.registry import RANDOM, load_model
from sam_edge.models.sam import EdgeSam, initialise
from sam_edge.models.torch_runtime import TorchRuntime, resolve_device
from sam_edge.segment.config import SCHEMA, ModelConfig
from sam_edge.training.loop import Progress, Validate
from sam_edge.training.processes import joined_processes, rank, world
from sam_edge.training.stream import Source
from sam_edge.training.train import TrainOptions, train

ALL_THREE = LossWeights(labels=0.0)
"""TinySAM's eq. 4 with equal weights."""


def train_model(
    spec: str | None,
    config: Path | None,
    data: Sequence[str],
    out: Path,
    options: TrainOptions,
    *,
    split: Split = "train",
    validation_images: int = 64,
    teacher: str | None = None,
    teaching: LossWeights = ALL_THREE,
    half: bool = False,
    device: str = "auto",
    strict: bool = False,
    images_root: Path | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any] | None:
    """Train and write a checkpoint folder; a killed run continues from the state beside `out`.

    Every process of a `torchrun` calls it; process 0 validates, writes and returns the results, the others None.

    Args:
        spec, config: what is trained; exactly one of them.
        data: labelled data as `open_labelled` takes it, each with `=WEIGHT` behind it where it is not 1.
        split: what is trained on; only `train` leaves pictures to validate on.
        validation_images: pictures of each source's val split to validate on.
        images_root: the folder of a COCO file's pictures, where they are not near it.
        teacher: a MODEL whose embedding, tokens and masks are learned beside the labels, by the weights `teaching`.
        half: store the weights in float16.

    Raises:
        TrainingError: see `train`; or a MODEL that cannot be trained.
        CompressionError: a teacher of another width.
        DataError, ModelError, CheckpointError: bad input.
    """
    device = resolve_device(device)
    check_target(out)
    with joined_processes(device), unreadable_files(strict) as unreadable:
        model = _start(spec, config, options.seed).to(device)
        sources = [_source(text, split, strict, images_root) for text in data]
        validated = split == "train" and validation_images > 0 and options.loop.validate_every > 0
        held_out = _held_out(data, validation_images, options.seed, strict, images_root) if validated else []
        state_file = out.absolute().with_name(f".{out.name}.state.safetensors")
        seen: dict[str, float] = {}

        def on_step(progress: Progress, report: dict[str, float]) -> None:
            if on_progress is not None and rank() == 0:
                seen.update(report)
                on_progress(progress.step, options.loop.steps, _text(progress, seen, options))

        validate = _validation(held_out) if held_out else None
        method = None if teacher is None else _taught(model, options, load_model(teacher, device), teaching)
        progress = train(
            model,
            sources,
            options,
            method=method,
            unreadable=unreadable,
            state_file=state_file,
            validate=validate,
            on_step=on_step,
        )
        if rank() != 0:
            return None
        save_checkpoint(model, out, half=half)
        state_file.unlink(missing_ok=True)
        return {
            "out": str(out),
            "parameters": cost(model.config).parameters,
            "steps": progress.step,
            "seconds": progress.seconds,
            "views_per_second": _views(progress, options) / max(progress.seconds, 1e-9),
            "data_wait_share": progress.data_wait_seconds / max(progress.seconds, 1e-9),
            "loss": progress.history[-1]["loss"],
            "best_score": progress.best_score,
            "history": progress.history,
            "unreadable": unreadable.found,
        }


def _start(spec: str | None, config: Path | None, seed: int) -> EdgeSam:
    """The model that training starts from."""
    if (spec is None) == (config is None):
        raise TrainingError("give a MODEL to fine-tune or --config FILE to train from scratch, and not both.")
    if config is not None:
        model = EdgeSam(read_config(config))
        initialise(model, seed)
        return model
    model = load_model(str(spec))
    if model.config.quantization is not None:
        raise TrainingError(f"{spec} is quantized: integers cannot be trained; give the checkpoint it was made from.")
    if str(spec).startswith(RANDOM):
        initialise(model, seed)
    return model


def _taught(model: EdgeSam, options: TrainOptions, teacher: EdgeSam, teaching: LossWeights) -> TaughtSegmentation:
    if options.window:
        raise TrainingError("a teacher sees whole views: leave --window out, or --teacher.")
    return TaughtSegmentation(model, options.prompting, options.seed, teacher, teaching)


def read_config(path: Path) -> ModelConfig:
    """A model's description as JSON (the `config.json` of a checkpoint folder) or TOML, without what was done to it.

    Raises:
        CheckpointError: unreadable, or no model's description.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix.lower() == ".toml" else parse_json(text)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is neither JSON nor, named .toml, TOML: {error}.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} describes no model: it holds no table.")
    values = {"schema": SCHEMA} | values
    return ModelConfig.from_dict(values).replace(quantization=None, lineage=())


def parse_data(text: str) -> tuple[str, float]:
    """`DATA=WEIGHT` as its parts; the weight is 1 where it is left out.

    Raises:
        DataError: a weight that is negative or no number.
    """
    spec, equals, number = text.rpartition("=")
    if not equals or Path(text).exists():
        return text, 1.0
    try:
        weight = float(number)
    except ValueError as error:
        raise DataError(f"--data {text}: expected DATA or DATA=WEIGHT with a number, got {number!r}.") from error
    if not 0 <= weight < float("inf"):
        raise DataError(f"--data {text}: the weight cannot be negative, got {number}.")
    return spec, weight


def _source(text: str, split: Split, strict: bool, images_root: Path | None) -> Source:
    spec, weight = parse_data(text)
    return Source(open_labelled(spec, split, strict, images_root), weight)


def _held_out(
    data: Sequence[str], count: int, seed: int, strict: bool, images_root: Path | None
) -> list[Dataset[LabelledImage]]:
    """Up to `count` pictures of each source's val split; a source too small to have one is left out."""
    found = []
    for text in data:
        try:
            dataset = open_labelled(parse_data(text)[0], "val", strict, images_root)
            pictures = dataset.sample(count, np.random.default_rng(seed))
        except DataError:
            continue
        if any(picture.annotations for picture in pictures):
            found.append(pictures)
    return found


def _validation(held_out: Sequence[Dataset[LabelledImage]]) -> Validate:
    """Mean IoU by a box and by a point (best of three masks by predicted IoU), each source alike."""

    def validate(model: nn.Module) -> dict[str, float]:
        if rank() != 0:
            return {"score": 0.0}
        assert isinstance(model, EdgeSam)
        # a copy: a runtime may put modules in place of others
        runtime = TorchRuntime(copy.deepcopy(model), str(model.device))
        found = [evaluate_prompts(runtime, dataset, [Asked("box"), Asked("point", True)]) for dataset in held_out]
        scores = {name: fmean(results[at].miou for results in found) for at, name in enumerate(("box", "point"))}
        return scores | {"score": (scores["box"] + scores["point"]) / 2}

    return validate


def _views(progress: Progress, options: TrainOptions) -> int:
    return progress.step * options.loop.accumulate * options.batch_size * world()


def _text(progress: Progress, seen: dict[str, float], options: TrainOptions) -> str:
    text = f"loss {seen['loss']:.3f}"
    if "score" in seen:
        text += f", val box {seen['box']:.3f} point {seen['point']:.3f}"
    rate = _views(progress, options) / max(progress.seconds, 1e-9)
    waiting = progress.data_wait_seconds / max(progress.seconds, 1e-9)
    return f"{text}, {rate:.1f} views/s, {waiting:.0%} waiting"
