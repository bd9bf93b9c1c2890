"""SlimSAM's tables 2 to 6 and figure 6 on any model and data, several seeds, ours beside the paper's.

    sam-edge study slimming nano-vit --data DIR --data DIR --out runs/ablation --epochs 8 --table 2 \\
        --row magnitude --row SlimSAM --ratio 0.5

Trains on the train split of all data together and measures by one point and by box on the val split of each. Every
variant has the same epochs and is validated without labels, so that the labels only measure. Runs that begin alike
share their first stages, importances and the teacher's embeddings; a killed one continues when it is started again.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from sam_edge.compress.distil import DistilOptions, steps_per_epoch
from sam_edge.compress.importance import ImportanceOptions
from sam_edge.compress.labels import LabelledLoss
from sam_edge.compress.slimming import Slimming, SlimOptions
from sam_edge.compress.widths import PruneOptions
from sam_edge.data import is_val
from sam_edge.data.joined import Joined, open_joined
from sam_edge.data.open import PicturesOnly
from sam_edge.models.checkpoint import weights_sha256
from sam_edge.models.registry import load_model
from sam_edge.models.sam import EdgeSam
from sam_edge.models.torch_runtime import resolve_device
from sam_edge.studies.claims import pairs
from sam_edge.studies.measuring import drawn, held_out, parser_of, say, scores_of, write
from sam_edge.studies.repeats import LOG, Scores, differences, repeat
from sam_edge.studies.slimming_tables import TABLES, Variant, as_dict, as_markdown, choose, variants
from sam_edge.training.pictures import Pictures

VALIDATED = 16
"""Pictures of the val split that the embedding's error is taken on after each epoch."""


@dataclass(frozen=True)
class AblationOptions:
    """What all variants have in common."""

    epochs: int = 40
    """Epochs in all of every variant, as in the paper's ablations."""
    limit: int | None = None
    """Pictures to train on, drawn once; all without it."""
    eval_limit: int | None = None
    """Labelled pictures of each val split to measure on, drawn once; all without it."""
    importance_images: int = 1000
    """Pictures that gradients are taken on."""
    batch_size: int = 4
    """Pictures per step."""
    learning_rate: float = 1e-4
    """Learning rate of Adam."""
    views: int = 1
    """Different views of each picture."""
    workers: int = 1
    """Processes that read and crop."""
    bf16: bool = False
    """Train in bfloat16."""


class Ablation:
    """`measure(variant, seed)` for the tables."""

    def __init__(self, spec: str, data: Joined, out: Path, options: AblationOptions, device: str) -> None:
        self.spec, self.out, self.options, self.device = spec, out, options, resolve_device(device)
        self._training = drawn([n for n, name in enumerate(data.names) if not is_val(name)], options.limit)
        self._validated = drawn([n for n, name in enumerate(data.names) if is_val(name)], VALIDATED)
        self._pictures_of_all, self._labels = PicturesOnly(data), LabelledLoss(data)
        self.measured = held_out(data, options.eval_limit)
        self._saliencies: dict[str, dict[str, Tensor]] = {}

    def measure(self, variant: Variant, seed: int) -> Scores:
        """Mean IoU of a variant."""
        pictures, epochs = self._pictures(variant, seed)
        options = SlimOptions(
            variant.schedule,  # type: ignore[arg-type, unused-ignore]
            PruneOptions(
                variant.ratio,
                variant.importance,  # type: ignore[arg-type, unused-ignore]
                variant.ranking,  # type: ignore[arg-type, unused-ignore]
                variant.normalization,  # type: ignore[arg-type, unused-ignore]
                seed=seed,
            ),
            ImportanceOptions(self.options.importance_images),
            DistilOptions(
                epochs,
                batch_size=self.options.batch_size,
                learning_rate=self.options.learning_rate,
                views=self.options.views,
                workers=self.options.workers,
                bf16=self.options.bf16,
                seed=seed,
            ),
        )
        kinds = (("bottleneck", variant.align_bottleneck), ("embedding", variant.align_embedding))
        slimming = Slimming(
            load_model(self.spec, self.device),
            pictures,
            options,
            self.out / "stages",
            label_loss=self._labels,
            keep_teacher=self.out / "teacher",
            aligned=tuple(kind for kind, wanted in kinds if wanted),  # type: ignore[misc]
            halfway=variant.stage == "first",
            scratch=variant.scratch,
            saliencies=self._saliencies,
        )
        return self.score(slimming.run())

    def score(self, model: EdgeSam) -> Scores:
        """Mean IoU on the held-out pictures."""
        return scores_of(model, self.measured)

    @property
    def steps(self) -> int:
        """Optimizer steps of every variant."""
        options = DistilOptions(batch_size=self.options.batch_size)
        return self.options.epochs * steps_per_epoch(self._pictures(Variant(), 0)[0].names, options)

    def _pictures(self, variant: Variant, seed: int) -> tuple[Pictures, int]:
        """A share of the training pictures with the validated ones, and the epochs that make as many steps."""
        count = max(round(len(self._training) * variant.data), 1)
        training = sorted(random.Random(seed).sample(self._training, count))
        epochs = max(round(self.options.epochs * len(self._training) / count), 1)
        return self._pictures_of_all.subset(sorted({*training, *self._validated})), epochs


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, write."""
    parser = parser_of("slimming", __doc__)
    parser.add_argument("model", help="what is compressed: a MODEL")
    parser.add_argument("--data", action="append", required=True, help="labelled pictures; repeat for more")
    parser.add_argument("--out", type=Path, required=True, help="folder for stages and results")
    parser.add_argument("--table", action="append", default=[], choices=list(TABLES), help="repeat for more; else all")
    parser.add_argument("--row", action="append", default=[], help="part of a row's label; repeat for more, else all")
    parser.add_argument("--ratio", action="append", default=[], type=float, help="repeat for more; else all")
    parser.add_argument("--seed", action="append", type=int, help="repeat for more; 0, 1 and 2 by default")
    defaults = AblationOptions()
    for name, value in asdict(defaults).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=float if isinstance(value, float) else int, default=value)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="print the tables as JSON")
    args = parser.parse_args(arguments)
    options = AblationOptions(**{name: getattr(args, name) for name in asdict(defaults)})
    tables, seeds = choose(args.table, args.row, args.ratio), args.seed or [0, 1, 2]
    ablation = Ablation(args.model, open_joined(args.data), args.out, options, args.device)
    model = load_model(args.model, ablation.device)
    settings = {"model": weights_sha256(model), "data": args.data, **asdict(options)}
    log, wanted = args.out / LOG, variants(tables)
    unpruned = repeat(["unpruned"], [0], lambda *_: ablation.score(model), log, settings, say)["unpruned"][0]
    results = repeat(list(wanted), seeds, lambda name, seed: ablation.measure(wanted[name], seed), log, settings, say)
    protocol = (
        f"{args.model}, {len(seeds)} seeds, {ablation.steps} steps of {options.batch_size} pictures at a learning rate "
        f"of {options.learning_rate:g}, trained on {', '.join(args.data)}, measured on the val split of each."
    )
    rows = {row.label: results[row.variant.name] for table in tables.values() for row in table.rows}
    content = {
        **settings,
        "protocol": protocol,
        "seeds": seeds,
        "steps": ablation.steps,
        "unpruned": unpruned,
        "tables": as_dict(tables, results),
        "compared": differences(rows, pairs("slimming")),
    }
    text = as_markdown(tables, results, unpruned, protocol)
    write(args.out, text, content, [args.model], ablation.measured, as_json=args.json)


if __name__ == "__main__":
    main()
