"""SlimSAM's tables 2 to 6 and figure 6 on any model and data, several seeds, ours beside the paper's.

    python -m sam_edge.ablation nano --images DIR --data DIR --out runs/ablation --epochs 8 --seed 0 --seed 1 --table 3

Every variant has the same epochs and is validated without labels, so that the labels only measure. Runs that begin
alike share their first stages and the teacher's embeddings; a killed run continues when it is started again.
"""

import argparse
import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from sam_edge.bench.slimming import TABLES, Result, Variant, as_dict, as_markdown, run_tables
from sam_edge.compress.distil import DistilOptions, distil, open_teacher, split_indices
from sam_edge.compress.importance import ImportanceOptions
from sam_edge.compress.labels import LabelledLoss
from sam_edge.compress.slimming import Slimming, SlimOptions
from sam_edge.compress.validation import Closeness
from sam_edge.compress.widths import PruneOptions
from sam_edge.data import open_images, open_labelled
from sam_edge.errors import DataError
from sam_edge.evaluate.miou import PromptKind, evaluate_miou
from sam_edge.export.runtimes import resolve_device
from sam_edge.files import atomic_file
from sam_edge.models.registry import load_model
from sam_edge.models.sam import EdgeSam, initialise
from sam_edge.segment.runtime import TorchRuntime
from sam_edge.training.pictures import Pictures


@dataclass(frozen=True)
class AblationOptions:
    """What all variants have in common."""

    epochs: int = 40
    """Epochs in all of every variant, as in the paper's ablations."""
    limit: int | None = None
    """Pictures to train on, drawn once; all without it."""
    eval_limit: int | None = None
    """Labelled pictures of the val split to measure on; all without it."""
    importance_images: int = 1000
    """Pictures that gradients are taken on."""
    batch_size: int = 4
    """Pictures per step."""
    learning_rate: float = 1e-4
    """Learning rate of Adam."""
    views: int = 1
    """Different views of each picture."""
    prompt: PromptKind = "point"
    """What masks are measured by."""
    bf16: bool = False
    """Train in bfloat16."""


class Ablation:
    """`measure(variant, seed)` for the tables."""

    def __init__(self, spec: str, images: str, data: str, out: Path, options: AblationOptions, device: str) -> None:
        self.spec, self.out, self.options, self.device = spec, out, options, resolve_device(device)
        everything = open_images(images)
        training, held_out = split_indices(everything.names)
        if options.limit is not None and options.limit < len(training):
            training = sorted(random.Random(0).sample(training, options.limit))
        self._all, self._training, self._held_out = everything, training, held_out
        self._labels = _label_loss(images)
        measured = open_labelled(data, "val")
        count = min(options.eval_limit or len(measured), len(measured))
        self._measured = measured.subset(sorted(random.Random(0).sample(range(len(measured)), count)))

    def measure(self, variant: Variant, seed: int) -> float:
        """Mean IoU of a variant."""
        pictures, epochs = self._pictures(variant, seed)
        options = SlimOptions(
            variant.schedule,  # type: ignore[arg-type]
            PruneOptions(variant.ratio, variant.importance, variant.ranking, variant.normalization, seed=seed),  # type: ignore[arg-type]
            ImportanceOptions(self.options.importance_images),
            DistilOptions(
                epochs,
                batch_size=self.options.batch_size,
                learning_rate=self.options.learning_rate,
                views=self.options.views,
                bf16=self.options.bf16,
                seed=seed,
            ),
        )
        model = load_model(self.spec, self.device)
        if variant.scratch:
            return self.score(self._from_scratch(model, pictures, options))
        kinds = (("bottleneck", variant.align_bottleneck), ("embedding", variant.align_embedding))
        slimming = Slimming(
            model,
            pictures,
            options,
            self.out / "stages",
            label_loss=self._labels,
            keep_teacher=self.out / "teacher",
            aligned=tuple(kind for kind, wanted in kinds if wanted),  # type: ignore[misc]
            halfway=variant.stage == "first",
        )
        return self.score(slimming.run())

    def score(self, model: EdgeSam) -> float:
        """Mean IoU by one prompt per mask."""
        runtime = TorchRuntime(model, self.device)
        return evaluate_miou(runtime, self._measured, prompt=self.options.prompt).miou

    def _pictures(self, variant: Variant, seed: int) -> tuple[Pictures, int]:
        """A share of the training pictures with the held-out ones, and the epochs that make as many steps."""
        count = max(round(len(self._training) * variant.data), 1)
        training = sorted(random.Random(seed).sample(self._training, count))
        epochs = max(round(self.options.epochs * len(self._training) / count), 1)
        return self._all.subset(sorted({*training, *self._held_out})), epochs

    def _from_scratch(self, model: EdgeSam, pictures: Pictures, options: SlimOptions) -> EdgeSam:
        """Distillation into random weights of the pruned shape."""
        assert options.distil.epochs is not None
        only_pruned = replace(options, distil=replace(options.distil, epochs=0))
        pruned = Slimming(load_model(self.spec, self.device), pictures, only_pruned).run()
        fresh = EdgeSam(pruned.config)
        initialise(fresh, options.distil.seed)
        pruned.image_encoder = fresh.image_encoder.to(self.device)
        teacher = open_teacher(model, pictures, options.distil, None)
        closeness = Closeness(model, pictures, split_indices(pictures.names)[1])
        distil(
            pruned,
            teacher,
            pictures,
            options.distil,
            options.distil.epochs,
            validate=lambda _: -closeness.of(pruned)["embedding_error"],
        )
        return pruned


def _label_loss(images: str) -> LabelledLoss | None:
    try:
        return LabelledLoss(open_labelled(images))
    except DataError:
        return None


def main() -> None:
    """Parse, measure, write `ablation.md` and `ablation.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what is compressed: a MODEL")
    parser.add_argument("--images", required=True, help="pictures to train on; labels are used by Taylor and hessian")
    parser.add_argument("--data", required=True, help="labelled pictures; their val split is measured on")
    parser.add_argument("--out", type=Path, required=True, help="folder for stages and results")
    parser.add_argument("--table", action="append", choices=list(TABLES), help="repeat for more; all by default")
    parser.add_argument("--seed", action="append", type=int, help="repeat for more; 0, 1 and 2 by default")
    defaults = AblationOptions()
    for name, value in asdict(defaults).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parser.add_argument(flag, action="store_true")
        else:
            kind = str if name == "prompt" else float if isinstance(value, float) else int
            parser.add_argument(flag, type=kind, default=value)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    options = AblationOptions(**{name: getattr(args, name) for name in asdict(defaults)})
    names, seeds = args.table or list(TABLES), args.seed or [0, 1, 2]
    ablation = Ablation(args.model, args.images, args.data, args.out, options, args.device)
    unpruned = ablation.score(load_model(args.model, ablation.device))
    print(f"unpruned: mIoU {unpruned:.3f}", flush=True)
    results = run_tables(
        names,
        seeds,
        ablation.measure,
        lambda done, total, text: print(f"{done}/{total} {text}", flush=True),
    )
    write(names, results, unpruned, args, options)


def write(
    names: list[str],
    results: dict[Variant, Result],
    unpruned: float,
    args: argparse.Namespace,
    options: AblationOptions,
) -> None:
    """`ablation.md` and `ablation.json` in the output folder; the first is printed too."""
    protocol = (
        f"{args.model}, trained on {args.images} for {options.epochs} epochs in all, mean IoU by one {options.prompt} "
        f"on the val split of {args.data}."
    )
    text = as_markdown(names, results, unpruned, protocol)
    content = {"model": args.model, "options": asdict(options), "unpruned": unpruned, "tables": as_dict(names, results)}
    for name, written in (("ablation.md", text), ("ablation.json", json.dumps(content, indent=1) + "\n")):
        with atomic_file(args.out / name) as part:
            part.write_text(written)
    print(text)


if __name__ == "__main__":
    main()
