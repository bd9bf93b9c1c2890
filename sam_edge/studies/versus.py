"""One model against others on the same labelled pictures: mean IoU of each, and how far the first is ahead.

    sam-edge study versus nano nano-vit --data DIR --data DIR --out runs/versus

By a box, by one point, and by one point of whose three masks the model chooses; on the val split of each data set. A
difference is over the same masks, with what holds 95 % of it over pictures (`sam_edge.paired`). Models may be of any
kind, quantized and exported ones too; what is measured of one is kept, and a killed run goes on with the next.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from sam_edge.bench.provenance import provenance, used_sha256
from sam_edge.data.joined import open_joined
from sam_edge.errors import BenchError
from sam_edge.evaluate.miou import Asked
from sam_edge.evaluate.walk import data_sha256
from sam_edge.runtimes.open import open_for_many
from sam_edge.studies.measuring import held_out, parser_of, say, scores_on
from sam_edge.studies.repeats import LOG, Scores, difference, differences, points, repeat

ASKED = {"box": Asked("box"), "point": Asked("point"), "point_multimask": Asked("point", multimask=True)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print a table."""
    parser = parser_of("versus", __doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="the first is compared with each of the others")
    parser.add_argument("--data", action="append", required=True, help="labelled pictures; repeat for more")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is measured")
    parser.add_argument("--limit", type=int, default=None, help="pictures of each val split, drawn once; else all")
    parser.add_argument("--runtime", default="auto", help="what runs the models")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    args = parser.parse_args(arguments)
    first, *others = args.models
    if not others or len(set(args.models)) < len(args.models):
        raise BenchError(f"give two different MODELs or more to compare, got {', '.join(args.models)}.")
    measured = held_out(open_joined(args.data), args.limit)

    def measure(model: str, _: int) -> Scores:
        return scores_on(open_for_many(model, args.runtime, args.device), measured, ASKED)

    shas = {model: used_sha256(model) for model in args.models}
    settings = {"models": shas, "data": args.data, "limit": args.limit, "runtime": args.runtime}
    results = repeat(args.models, [0], measure, args.out / LOG, settings, say)
    measures = list(results[first][0])
    if args.json:
        seen = {label: data_sha256(pictures) for label, pictures in measured.items()}
        told = {"provenance": provenance(shas, seen), **settings}
        told |= {"scores": {model: dict(scores) for model, (scores,) in results.items()}}
        told |= {"pictures": {label: len(pictures) for label, pictures in measured.items()}}
        told |= {"compared": differences(results, [(first, other, how) for other in others for how in measures])}
        print(json.dumps(told))
        return
    print(f"| | {' | '.join(args.models)} | {' | '.join(f'{first} less {other}' for other in others)} |")
    print(f"|{'---|' * (len(args.models) + len(others) + 1)}")
    for how in measures:
        ahead = (difference(results[first], results[other], how) for other in others)
        cells = [f"{100 * results[model][0][how]:.1f}" for model in args.models]
        print(f"| {how} | {' | '.join([*cells, *(points(one) for one in ahead if one is not None)])} |")


if __name__ == "__main__":
    main()
