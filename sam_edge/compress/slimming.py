"""SlimSAM: prune and distil by turns (section 3.2), or everything at once as the baseline does.

A run is a chain of stages. Each leaves a checkpoint folder whose name ends in a hash of all that led to it, so that a
killed run goes on where it was, and runs that begin alike share their beginning.
"""

import copy
import hashlib
import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sam_edge.compress.distil import (
    Alignment,
    DistilOptions,
    OnStep,
    distil,
    open_teacher,
    split_indices,
    steps_per_epoch,
)
from sam_edge.compress.features import Kind
from sam_edge.compress.importance import ImportanceOptions, accumulated_saliency, disturbed_loss
from sam_edge.compress.prune import check_ratio, prepare, prune_encoder
from sam_edge.compress.slices import ALL_PARTS, BOTTLENECK, Part
from sam_edge.compress.validation import IMAGES, Closeness
from sam_edge.compress.widths import PruneOptions
from sam_edge.errors import CompressionError, DataError
from sam_edge.models.checkpoint import is_checkpoint_folder, load_checkpoint, save_checkpoint, weights_sha256
from sam_edge.models.sam import EdgeSam, initialise
from sam_edge.segment.frame import to_pixels
from sam_edge.training.loop import Progress
from sam_edge.training.pictures import Pictures
from sam_edge.training.processes import rank, wait_for_all

Schedule = Literal["alternate", "one-step"]
LabelLoss = Callable[[EdgeSam, str, int], Float[Tensor, ""] | None]
OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class SlimOptions:
    """A whole compression."""

    schedule: Schedule = "alternate"
    """`alternate` prunes and aligns embedding and bottleneck by turns, `one-step` prunes all, then distils."""
    prune: PruneOptions = field(default_factory=PruneOptions)
    """What is removed."""
    importance: ImportanceOptions = field(default_factory=ImportanceOptions)
    """How gradients become importance."""
    distil: DistilOptions = field(default_factory=DistilOptions)
    """How the rest recovers."""

    @property
    def epochs(self) -> int:
        """Epochs in all: those asked for, or the paper's."""
        if self.distil.epochs is not None:
            return self.distil.epochs
        return 40 if self.prune.ratio <= 0.5 else 80

    def as_dict(self) -> dict[str, Any]:
        """Settings for the lineage."""
        parts = (asdict(part) for part in (self.prune, self.importance, self.distil))
        merged = {name: value for part in parts for name, value in part.items()}
        return {"method": "slimsam", "schedule": self.schedule, **merged, "epochs": self.epochs}


@dataclass
class Slimming:
    """One run of the chain over a model; `stages` is where its checkpoints go, None keeps nothing."""

    model: EdgeSam
    pictures: Pictures
    options: SlimOptions
    stages: Path | None = None
    label_loss: LabelLoss | None = None
    """`label_loss(model, picture's name, seed)` for `taylor` and `hessian`; None for a picture without labels."""
    validate: Callable[[nn.Module], float] | None = None
    """Score on labels, higher is better; without it the embedding's error is what counts."""
    on_progress: OnProgress | None = None
    keep_teacher: Path | None = None
    """Where the teacher's embeddings are kept; by default beside the stages, until the run ends."""
    aligned: tuple[Kind, ...] = ("bottleneck", "embedding")
    """Inner features that are aligned; an ablation leaves some out."""
    halfway: bool = False
    """Stop when the embedding is pruned and the bottlenecks are aligned."""
    scratch: bool = False
    """With `one-step`: random weights of the pruned shape in place of the pruned ones, as a baseline."""
    saliencies: dict[str, dict[str, Tensor]] | None = None
    """Where runs of one process leave what their gradients gave, so that those which begin alike take them once."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """What each stage did."""

    def run(self) -> EdgeSam:
        """All stages; returns the compressed model.

        Raises:
            CompressionError: a request that the model cannot satisfy. DataError, TrainingError: see `distil`.
        """
        prepare(self.model)
        check_ratio(self.model, self.options.prune)
        original = copy.deepcopy(self.model)
        self._identity = _hash([weights_sha256(self.model), self.model.config.image_size, self.pictures.names])
        cache = self.keep_teacher or (self.stages / ".teacher" if self.stages is not None else None)
        folder = None if cache is None else cache / _hash([self._identity, self._views()])
        self._teacher = open_teacher(original, self.pictures, self.options.distil, folder)
        held_out = split_indices(self.pictures.names)[1]
        # without training nothing is chosen by it, and encoding SAM-B's 16 pictures would be the longest part
        self._closeness = Closeness(original, self.pictures, held_out, IMAGES if self.options.epochs else IMAGES // 4)
        if self.options.schedule == "one-step":
            self._prune("pruned", ALL_PARTS)
            if self.scratch:
                self._stage("started-anew", {"seed": self.options.distil.seed}, self._start_anew)
            self._align("distilled", self.options.epochs, None)
        elif self.model.config.arch == "tiny_vit":
            # every stage of a TinyViT has an embedding of its own: there is a bottleneck to prune, and no other half
            self._bottleneck("1", "2", self.options.epochs)
        else:
            half = self.options.epochs // 2
            self._prune("1-embedding-pruned", ("embedding",))
            self._align("2-bottleneck-aligned", self.options.epochs - half, self._alignment(original, "bottleneck"))
            if not self.halfway:
                self._bottleneck("3", "4", half)
        if folder is not None and self.keep_teacher is None and rank() == 0:
            shutil.rmtree(folder.parent, ignore_errors=True)
        return self.model

    def closeness(self) -> dict[str, float]:
        """How far the model has come back to its teacher."""
        return self._closeness.of(self.model)

    def _bottleneck(self, prune: str, align: str, epochs: int) -> None:
        before = copy.deepcopy(self.model)
        self._prune(f"{prune}-bottleneck-pruned", BOTTLENECK)
        self._align(f"{align}-embedding-aligned", epochs, self._alignment(before, "embedding"))

    def _alignment(self, model: EdgeSam, kind: Kind) -> Callable[[int], Alignment] | None:
        model.requires_grad_(False).eval()
        wanted = self.options.distil.align_epochs
        if kind not in self.aligned or wanted == 0:
            return None
        return lambda epochs: Alignment(model, kind, min(wanted, (epochs + 1) // 2))

    def _prune(self, name: str, parts: tuple[Part, ...]) -> None:
        options = self.options

        def work(state_file: Path | None, identity: str) -> dict[str, Any]:
            prune_encoder(self.model, options.prune, parts, self._saliency(name, state_file, identity))
            return {}

        settings = {**asdict(options.prune), **asdict(options.importance)}
        if parts == ("embedding",) and self.model.config.backbone is None:
            # one group: there is nothing to rank it against
            del settings["ranking"], settings["normalization"]
        self._stage(name, settings, work)

    def _start_anew(self, state_file: Path | None, identity: str) -> dict[str, Any]:
        fresh = EdgeSam(self.model.config)
        initialise(fresh, self.options.distil.seed)
        self.model.image_encoder = fresh.image_encoder.to(self.model.device)
        return {}

    def _align(self, name: str, epochs: int, alignment: Callable[[int], Alignment] | None) -> None:
        options = self.options.distil
        if epochs == 0:
            return

        def work(state_file: Path | None, identity: str) -> dict[str, Any]:
            progress = distil(
                self.model,
                self._teacher,
                self.pictures,
                options,
                epochs,
                alignment=None if alignment is None else alignment(epochs),
                validate=self.validate or self._by_embedding,
                state_file=state_file,
                identity=identity,
                on_step=self._on_step(name, epochs * steps_per_epoch(self.pictures.names, options)),
            )
            return {"steps": progress.step, "seconds": progress.seconds, "score": progress.best_score}

        self._stage(
            name,
            {
                **asdict(options),
                "epochs": epochs,
                "labels": self.validate is not None,
                "aligned": alignment is not None,
            },
            work,
        )

    def _stage(
        self, name: str, settings: Mapping[str, Any], work: Callable[[Path | None, str], dict[str, Any]]
    ) -> None:
        """Do a stage's work on the model, or take what an earlier run left."""
        self._identity = _hash([self._identity, name, settings])
        folder = None if self.stages is None else self.stages / f"{name}-{self._identity[:8]}"
        if folder is not None and is_checkpoint_folder(folder):
            device = self.model.device
            self.model = load_checkpoint(folder).to(device)
            self.records.append(self.model.config.lineage[-1]["result"])
            self.model.config = self.model.config.replace(lineage=self.model.config.lineage[:-1])
            return
        state_file = None if folder is None else folder.with_name(f".{folder.name}.state")
        record = {"stage": name, **work(state_file, self._identity)}
        self.records.append(record)
        if folder is not None and state_file is not None and rank() == 0:
            kept = self.model.config
            step = {"step": "compress", "stage": name, "settings": dict(settings), "result": record}
            self.model.config = kept.with_step(step)
            save_checkpoint(self.model, folder)
            self.model.config = kept
            state_file.unlink(missing_ok=True)
        wait_for_all()

    def _saliency(self, name: str, state_file: Path | None, identity: str) -> dict[str, Tensor] | None:
        options, how = self.options.prune, self.options.importance
        if options.importance in ("magnitude", "random"):
            return None
        indices = split_indices(self.pictures.names)[0]
        order = _shuffled(indices, options.seed)[: how.images]
        if options.importance == "disturbed-taylor":
            loss = self._disturbed(order)
        elif self.label_loss is not None:
            loss = self._on_labels(order, self.label_loss)
        else:
            raise CompressionError(
                f"{options.importance} importance needs pictures with masks: give labelled --images, or "
                "--importance disturbed-taylor, which needs none."
            )
        accumulation = "squared" if options.importance == "hessian" else how.accumulation
        names = [self.pictures.names[index] for index in order]
        shared, key = self.saliencies, ""
        if shared is not None:
            settings = [options.importance, accumulation, how.noise, options.seed]
            key = _hash([weights_sha256(self.model), names, settings])
            if key in shared:
                return shared[key]
        found = accumulated_saliency(
            self.model.image_encoder,
            loss,
            len(order),
            accumulation,
            state_file=state_file,
            identity=identity,
            on_image=lambda done: self._say(done, len(order), f"{name}: importance"),
        )
        if shared is not None:
            shared[key] = found
        return found

    def _disturbed(self, order: list[int]) -> Callable[[int], Tensor | None]:
        def loss(number: int) -> Tensor | None:
            try:
                _, image = self.pictures[order[number]]
            except DataError:
                return None
            pixels = torch.from_numpy(to_pixels(image, self.model.config)[0]).to(self.model.device)
            return disturbed_loss(self.model, pixels, self.options.importance.noise, self.options.prune.seed + number)

        return loss

    def _on_labels(self, order: list[int], label_loss: LabelLoss) -> Callable[[int], Tensor | None]:
        names, seed = self.pictures.names, self.options.prune.seed
        return lambda number: label_loss(self.model, names[order[number]], seed + number)

    def _by_embedding(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, EdgeSam)
        return {"score": -self._closeness.embedding_error(model)}

    def _on_step(self, name: str, total: int) -> OnStep:
        start: list[tuple[int, float]] = []

        def on_step(progress: Progress, report: dict[str, float]) -> None:
            # of this run, so that a resumed one tells its own speed
            if not start:
                start.append((progress.step, progress.seconds))
            steps, seconds = progress.step - start[0][0], progress.seconds - start[0][1]
            rate = f", {steps * self.options.distil.batch_size / seconds:.1f} images/s" if seconds else ""
            self._say(progress.step, total, f"{name}: loss {report['loss']:.4f}{rate}")

        return on_step

    def _say(self, done: int, total: int, text: str) -> None:
        if self.on_progress is not None:
            self.on_progress(done, total, text)

    def _views(self) -> list[Any]:
        options = self.options.distil
        return [options.views, options.seed, options.bf16]


def _shuffled(indices: list[int], seed: int) -> list[int]:
    return random.Random(seed).sample(indices, len(indices))


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
