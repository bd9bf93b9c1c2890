"""TinySAM's tables 3 and 4 on labelled pictures of one's own, several seeds.

    sam-edge study distillation --teacher nano --student vit_t --data DIR --data DIR --out runs/ablation

Every row trains for the same steps on the train split of all data together; mIoU by one point and by box is measured
on the val split of each. A killed ablation continues when it is started again.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

from sam_edge.compress.embeddings import EmbedOptions, embed_pictures
from sam_edge.compress.full_stage import LossWeights
from sam_edge.compress.hard_prompts import HardPromptOptions
from sam_edge.compress.prune import prune_encoder
from sam_edge.compress.stored import StoredEmbeddings
from sam_edge.compress.student import StudentOptions, build_student
from sam_edge.compress.tinysam import TinySamOptions, distil_full_stage
from sam_edge.compress.widths import PruneOptions
from sam_edge.data import is_val
from sam_edge.data.joined import Joined, open_joined
from sam_edge.data.open import PicturesOnly
from sam_edge.files import sha256_of
from sam_edge.models.checkpoint import is_checkpoint_folder, load_checkpoint, save_checkpoint, weights_sha256
from sam_edge.models.registry import RANDOM, load_model
from sam_edge.models.sam import EdgeSam
from sam_edge.models.torch_runtime import resolve_device
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.studies.claims import pairs
from sam_edge.studies.measuring import drawn, held_out, parser_of, say, scores_of, write
from sam_edge.studies.repeats import (
    LOG,
    Results,
    Scores,
    as_dict,
    beats,
    cells,
    difference,
    differences,
    points,
    repeat,
)

CALIBRATION_IMAGES = 8
"""Pictures that quantization takes its ranges from (TinySAM, section 4.1)."""


@dataclass(frozen=True)
class AblationRow:
    """One row: what is learnt from, all else alike."""

    name: str
    """What it is called here."""
    losses: tuple[int, int, int, int]
    """1 for those that are on, of the embedding, the tokens, the output (eq. 4) and the labels (eq. 5's rest)."""
    hard_prompts: bool = True
    """Prompts from the network's errors (eq. 6), or random ones."""
    from_scratch: bool = False
    """Without anything of the teacher's: neither its decoder nor its prompt encoder."""
    quantized_from: str | None = None
    """The row whose students are quantized; nothing is trained."""
    paper: str = ""
    """The paper's row and AP on COCO, where it has one."""


ROWS = (
    AblationRow("no teacher", (0, 0, 0, 1), hard_prompts=False, from_scratch=True),
    AblationRow("labels only", (0, 0, 0, 1), hard_prompts=False, paper="table 3, baseline (not defined): 40.5"),
    AblationRow("embedding only", (1, 0, 0, 0)),
    AblationRow("output", (0, 0, 1, 1), paper="table 4: 41.6"),
    AblationRow("output + embedding", (1, 0, 1, 1), paper="table 4: 41.7"),
    AblationRow("all three, random prompts", (1, 1, 1, 1), hard_prompts=False, paper="table 3: 41.4"),
    AblationRow("all three, no label loss", (1, 1, 1, 0)),
    AblationRow("all three", (1, 1, 1, 1), paper="tables 3 and 4: 41.9"),
    AblationRow("all three, quantized", (1, 1, 1, 1), quantized_from="all three", paper="table 3: 41.3"),
)
"""The paper has no row of labels alone, of the embedding alone or of eq. 4 alone; table 4's rows have hard prompts."""


class Ablation:
    """Trains and measures a row's student: `measure(row, seed)`."""

    def __init__(
        self,
        teacher: EdgeSam,
        data: Joined,
        out: Path,
        base: TinySamOptions,
        *,
        views: int,
        limit: int | None,
        eval_limit: int | None,
    ) -> None:
        self.teacher, self.out, self.base = teacher, out, base
        self.pictures = data.subset(drawn([n for n, name in enumerate(data.names) if not is_val(name)], limit))
        folder = out / "embeddings"
        embed_pictures(teacher, PicturesOnly(self.pictures), folder, EmbedOptions(views=views, mask_points=0))
        self.store = StoredEmbeddings(folder)
        self.measured = held_out(data, eval_limit)

    def measure(self, row: AblationRow, seed: int) -> Scores:
        """Mean IoU of a row's student."""
        return self.score(self._quantized(row.quantized_from, seed) if row.quantized_from else self._student(row, seed))

    def score(self, model: EdgeSam) -> Scores:
        """Mean IoU on the held-out pictures."""
        return scores_of(model, self.measured)

    def _student(self, row: AblationRow, seed: int) -> EdgeSam:
        """The row's trained student, kept as a checkpoint."""
        folder = self.out / f"{row.name.replace(' ', '-').replace(',', '')}-{seed}"
        if is_checkpoint_folder(folder):
            return load_checkpoint(folder).to(self.teacher.device)
        rounds = self.base.prompting.max_rounds if row.hard_prompts else 0
        options = replace(
            self.base,
            student=_without_teacher(self.base.student) if row.from_scratch else self.base.student,
            weights=LossWeights(*(on * w for on, w in zip(row.losses, astuple(self.base.weights), strict=True))),
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
        """The student of another row, quantized on pictures that it was trained on."""
        student = self._student(next(row for row in ROWS if row.name == row_name), seed)
        pictures = [self.pictures[number].image for number in range(min(CALIBRATION_IMAGES, len(self.pictures)))]
        quantize_model(student, pictures, QuantizeOptions())
        return student


def pruned(teacher: EdgeSam, ratio: float, folder: Path) -> Path:
    """The teacher without `ratio` of its encoder's channels, in each block those of least magnitude; a checkpoint."""
    if not is_checkpoint_folder(folder):
        model = deepcopy(teacher)
        prune_encoder(model, PruneOptions(ratio, "magnitude", "local"))
        save_checkpoint(model, folder)
    return folder


def _without_teacher(student: StudentOptions) -> StudentOptions:
    """The same network at random, encoder and decoder."""
    name = f"{RANDOM}{student.student.removeprefix(RANDOM)}"
    return replace(student, student=name, pretrained=False, decoder="scratch")


def table(results: Results, rows: Sequence[AblationRow], teacher: Scores) -> str:
    """Ours beside the paper's, as Markdown, in percent: mean ± standard deviation over seeds, and who is ahead of whom,
    with what holds 95 % of the difference over pictures and seeds."""
    lines = [f"| row | {' | '.join(teacher)} | the paper's AP |", f"|{'---|' * (len(teacher) + 2)}"]
    lines.append(f"| the teacher | {' | '.join(f'{100 * value:.1f}' for value in teacher.values())} | |")
    for row in rows:
        lines.append(f"| {row.name} | {' | '.join(cells(results[row.name]))} | {row.paper} |")
    verdicts = (
        f"- {measure}: {row.name} beats {other.name}{_by(results[row.name], results[other.name], measure)}."
        for measure in teacher
        for row in rows
        for other in rows
        if beats(results[row.name], results[other.name], measure)
    )
    return "\n".join([*lines, "", *verdicts]) + "\n"


def _by(better: Sequence[Scores], worse: Sequence[Scores], measure: str) -> str:
    ahead = difference(better, worse, measure)
    return "" if ahead is None else f" by {points(ahead)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run."""
    parser = parser_of("distillation", __doc__)
    parser.add_argument("--teacher", default="nano", help="MODEL that is distilled")
    parser.add_argument("--student", default="vit_t", help="known name, or checkpoint")
    parser.add_argument(
        "--prune",
        type=float,
        metavar="RATIO",
        help="in place of --student: the teacher without this share of its channels, those of least magnitude",
    )
    parser.add_argument("--student-size", type=int, default=None, help="the student's image size in pixels")
    parser.add_argument(
        "--decoder", choices=["trained", "frozen"], default="trained", help="what becomes of the teacher's decoder"
    )
    parser.add_argument("--data", action="append", required=True, help="labelled pictures; repeat for more")
    parser.add_argument("--out", type=Path, required=True, help="where embeddings, students and the table go")
    parser.add_argument("--row", action="append", default=[], choices=[row.name for row in ROWS], help="all by default")
    parser.add_argument("--seed", action="append", type=int, help="repeat for more; 0, 1 and 2 by default")
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps of each run")
    parser.add_argument("--batch-size", type=int, default=4, help="views per step")
    parser.add_argument("--learning-rate", type=float, default=TinySamOptions.learning_rate)
    parser.add_argument("--decoder-rate", type=float, default=TinySamOptions.decoder_rate, help="of a trained decoder")
    parser.add_argument("--prompts", type=int, default=64, help="prompted masks per view")
    parser.add_argument("--max-rounds", type=int, default=9, help="rounds of hard prompts, at most")
    parser.add_argument("--views", type=int, default=4, help="stored views of each picture")
    parser.add_argument("--limit", type=int, default=None, help="pictures to train on, drawn once; else all")
    parser.add_argument("--eval-limit", type=int, default=None, help="pictures of each val split; else all")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--workers", type=int, default=1, help="processes that read and crop")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    args = parser.parse_args(arguments)
    teacher = load_model(args.teacher, resolve_device(args.device))
    student = args.student if args.prune is None else str(pruned(teacher, args.prune, args.out / "start"))
    base = TinySamOptions(
        StudentOptions(student, args.student_size, decoder=args.decoder),
        prompting=HardPromptOptions(prompts=args.prompts, max_rounds=args.max_rounds),
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        decoder_rate=args.decoder_rate,
        # equal steps for all, and nobody's best is picked by the very pictures they are compared on
        validations=0,
        workers=args.workers,
        bf16=args.bf16,
    )
    rows = {row.name: row for row in ROWS if not args.row or row.name in args.row}
    seeds = args.seed or [0, 1, 2]
    limits = {"views": args.views, "limit": args.limit, "eval_limit": args.eval_limit}
    ablation = Ablation(teacher, open_joined(args.data), args.out, base, **limits)
    start = sha256_of(student) if Path(student).exists() else student
    settings = {"teacher": weights_sha256(teacher), "start": start, "data": args.data, **limits, **asdict(base)}
    log = args.out / LOG
    of_teacher = repeat(["teacher"], [0], lambda *_: ablation.score(teacher), log, settings, say)["teacher"][0]
    results = repeat(list(rows), seeds, lambda name, seed: ablation.measure(rows[name], seed), log, settings, say)
    about = args.student if args.prune is None else f"itself without {args.prune:.0%} of its encoder's channels"
    protocol = (
        f"{args.teacher} -> {about}, {len(seeds)} seeds, {args.steps} steps of {args.batch_size} views with "
        f"{args.prompts} prompts, trained on {', '.join(args.data)}, measured on the val split of each."
    )
    content = {
        **settings,
        "protocol": protocol,
        "seeds": seeds,
        "of_teacher": of_teacher,
        "rows": as_dict(results),
        "compared": differences(results, pairs("distillation")),
    }
    text = f"{protocol}\n\n{table(results, list(rows.values()), of_teacher)}"
    # a pruned student is made of the teacher
    models = [args.teacher, *([args.student] if args.prune is None else [])]
    write(args.out, text, content, models, ablation.measured, as_json=args.json)


if __name__ == "__main__":
    main()
