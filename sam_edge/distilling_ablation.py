"""TinySAM's tables 3 and 4 on labelled pictures of one's own, several seeds.

    python -m sam_edge.distilling_ablation --teacher nano --student nano-t --data DIR --data DIR --out runs/ablation

Every row trains for the same steps on the train split of all data together; mIoU by one point and by box is measured
on the val split of each. A killed ablation continues when it is started again.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sam_edge.bench.distillation import ROWS, AblationRow, Scores, ablate, choose, table, write_csv
from sam_edge.compress.embeddings import EmbedOptions, embed_pictures
from sam_edge.compress.full_stage import LossWeights
from sam_edge.compress.hard_prompts import HardPromptOptions
from sam_edge.compress.stored import StoredEmbeddings
from sam_edge.compress.student import StudentOptions, build_student
from sam_edge.compress.tinysam import TinySamOptions, distil_full_stage
from sam_edge.data import LabelledImage, is_val, open_labelled
from sam_edge.data.dataset import Dataset
from sam_edge.data.open import PicturesOnly
from sam_edge.data.sample import LabelledDataset
from sam_edge.evaluate.miou import evaluate_miou
from sam_edge.models.checkpoint import is_checkpoint_folder, load_checkpoint, save_checkpoint
from sam_edge.models.registry import load_model
from sam_edge.models.sam import EdgeSam
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.segment.runtime import TorchRuntime

CALIBRATION_IMAGES = 8
"""Pictures that quantization takes its ranges from (TinySAM, section 4.1)."""


class Joined(LabelledDataset):
    """Several labelled data sets as one; names begin with their folder's."""

    def __init__(self, parts: dict[str, LabelledDataset]) -> None:
        self._items = [(part, number) for part in parts.values() for number in range(len(part))]
        self._names = [f"{folder}/{name}" for folder, part in parts.items() for name in part.names]

    @property
    def names(self) -> list[str]:
        return self._names

    def __getitem__(self, index: int) -> LabelledImage:
        part, number = self._items[index]
        return replace(part[number], name=self._names[index])


class Ablation:
    """Trains and measures a row's student; `run(row, seed)` for `bench.distillation.ablate`."""

    def __init__(
        self,
        teacher: EdgeSam,
        parts: dict[str, LabelledDataset],
        out: Path,
        base: TinySamOptions,
        *,
        views: int,
        limit: int,
    ) -> None:
        self.teacher, self.out, self.base = teacher, out, base
        self.pictures = Joined(parts)
        folder = out / "embeddings"
        embed_pictures(teacher, PicturesOnly(self.pictures), folder, EmbedOptions(views=views, mask_points=0))
        self.store = StoredEmbeddings(folder)
        self.held_out = {name: _held_out(part, limit) for name, part in parts.items()}

    def __call__(self, row: AblationRow, seed: int) -> Scores:
        started = time.perf_counter()
        student = self._quantized(row.quantized_from, seed) if row.quantized_from else self._student(row, seed)
        scores: Scores = {}
        for name, pictures in self.held_out.items():
            for prompt in ("point", "box"):
                scores[f"{name} {prompt}"] = evaluate_miou(TorchRuntime(student), pictures, prompt=prompt).miou
        print(f"{time.strftime('%H:%M:%S')} {row.name}, seed {seed}: {scores}, {time.perf_counter() - started:.0f} s")
        return scores

    def _student(self, row: AblationRow, seed: int) -> EdgeSam:
        """The row's trained student, kept as a checkpoint."""
        folder = self.out / f"{row.name.replace(' ', '-').replace(',', '')}-{seed}"
        if is_checkpoint_folder(folder):
            return load_checkpoint(folder).to(self.teacher.device)
        rounds = self.base.prompting.max_rounds if row.hard_prompts else 0
        options = replace(
            self.base,
            student=replace(self.base.student, decoder="scratch" if row.from_scratch else "trained"),
            weights=LossWeights(*row.weights),
            prompting=replace(self.base.prompting, max_rounds=rounds),
            seed=seed,
        )
        student = build_student(self.teacher, options.student, seed)
        state_file = self.out / f"{folder.name}.state"
        distil_full_stage(student, self.teacher, self.store, self.pictures, options, state_file=state_file)
        save_checkpoint(student, folder)
        state_file.unlink()
        return student

    def _quantized(self, row_name: str, seed: int) -> EdgeSam:
        """The student of another row, quantized on pictures of the train split."""
        row = next(row for row in ROWS if row.name == row_name)
        student = self._student(row, seed)
        numbers = [number for number, name in enumerate(self.pictures.names) if not is_val(name)]
        quantize_model(
            student, [self.pictures[number].image for number in numbers[:CALIBRATION_IMAGES]], QuantizeOptions()
        )
        return student


def _held_out(part: LabelledDataset, limit: int) -> Dataset[LabelledImage]:
    numbers = [number for number, name in enumerate(part.names) if is_val(name)]
    return part.subset(numbers[:limit])


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="nano", help="MODEL that is distilled")
    parser.add_argument("--student", default="nano-t", help="known name, or checkpoint")
    parser.add_argument("--student-size", type=int, default=None, help="the student's image size in pixels")
    parser.add_argument("--data", action="append", required=True, help="labelled pictures; repeat for more")
    parser.add_argument("--out", type=Path, required=True, help="where embeddings, students and the table go")
    parser.add_argument("--row", action="append", default=[], choices=[row.name for row in ROWS], help="all by default")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row")
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps of each run")
    parser.add_argument("--batch-size", type=int, default=4, help="views per step")
    parser.add_argument("--learning-rate", type=float, default=TinySamOptions.learning_rate)
    parser.add_argument("--prompts", type=int, default=64, help="prompted masks per view")
    parser.add_argument("--max-rounds", type=int, default=9, help="rounds of hard prompts, at most")
    parser.add_argument("--views", type=int, default=4, help="stored views of each picture")
    parser.add_argument("--limit", type=int, default=1000, help="val pictures of each data set, at most")
    parser.add_argument("--workers", type=int, default=1, help="processes that read and crop")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    base = TinySamOptions(
        StudentOptions(args.student, args.student_size),
        prompting=HardPromptOptions(prompts=args.prompts, max_rounds=args.max_rounds),
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        # equal steps for all, and nobody's best is picked by the very pictures they are compared on
        validations=0,
        workers=args.workers,
    )
    parts = {_label(spec): open_labelled(spec) for spec in args.data}
    args.out.mkdir(parents=True, exist_ok=True)
    rows = choose(args.row)
    ablation = Ablation(
        load_model(args.teacher, args.device), parts, args.out, base, views=args.views, limit=args.limit
    )
    results = ablate(rows, range(args.seeds), ablation, args.out / "scores.jsonl")
    write_csv(results, args.out / "ablation.csv")
    text = table(results, rows)
    (args.out / "ablation.md").write_text(text, encoding="utf-8")
    print(text)


def _label(spec: str) -> str:
    return Path(spec).name if Path(spec).exists() else spec.replace(":", "-")


if __name__ == "__main__":
    main()
