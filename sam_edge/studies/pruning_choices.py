"""Choices that `compress` has made, measured: what pruning alone, without training, leaves of the embedding.

    sam-edge study pruning nano-vit --images DIR --ratio 0.5 --ratio 0.77

Prints the embedding's squared error over the teacher's variance on pictures that no gradient was taken on, with mean
and standard deviation over seeds, each with gradients of pictures and noise of its own. Gradients of several pictures:
summed as absolute values, or with their signs, by pruning all widths at once. Relative positions: the same channels of
q and k in every head, which the tables are cut along, or each head's own, which would need tables of its own; by q and
k alone.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from sam_edge.bench.provenance import provenance, used_sha256
from sam_edge.commands.common import sample_pictures
from sam_edge.compress.groups import find_groups
from sam_edge.compress.importance import ImportanceOptions, accumulated_saliency, disturbed_loss
from sam_edge.compress.prune import prepare, prune_encoder
from sam_edge.compress.slices import ALL_PARTS, ChannelGroup, Part, Slice, group_score
from sam_edge.compress.widths import PruneOptions, choose
from sam_edge.errors import DataError
from sam_edge.models.registry import load_model
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.frame import to_pixels
from sam_edge.studies.claims import pairs
from sam_edge.studies.measuring import parser_of
from sam_edge.studies.repeats import Scores, as_dict, differences, mean_and_spread

ACCUMULATIONS: tuple[Literal["absolute", "signed"], ...] = ("absolute", "signed")
KEPT = ImportanceOptions().accumulation
MEASURE = "embedding error"


def measure(
    model: EdgeSam,
    pictures: Sequence[UInt8[np.ndarray, "h w 3"]],
    measured: Sequence[UInt8[np.ndarray, "h w 3"]],
    ratios: Sequence[float],
    seed: int,
) -> dict[str, Scores]:
    """Embedding error by ratio and choice, of all of `measured` and of each; gradients from `pictures`."""
    model = deepcopy(model)
    prepare(model)
    inputs, seen = (
        [torch.from_numpy(to_pixels(one, model.config)[0]) for one in some] for some in (pictures, measured)
    )
    saliency = {
        how: accumulated_saliency(
            model.image_encoder,
            lambda number: disturbed_loss(model, inputs[number], ImportanceOptions().noise, seed + number),
            len(inputs),
            how,
        )
        for how in ACCUMULATIONS
    }
    wanted = _encoded(model, seen)
    errors = {}
    for ratio in ratios:
        options = PruneOptions(ratio, ranking="local", seed=seed)
        arms: dict[str, tuple[Sequence[Part], Literal["absolute", "signed"]]]
        arms = {f"gradients: {how}": (ALL_PARTS, how) for how in ACCUMULATIONS}
        arms["q and k: the same channels in every head"] = (("qk",), KEPT)
        for choice, (parts, how) in arms.items():
            pruned = deepcopy(model)
            prune_encoder(pruned, options, parts, saliency[how])
            errors[f"{ratio:g} | {choice}"] = _scores(_encoded(pruned, seen), wanted)
        silent = deepcopy(model)
        silence_channels_of_heads(silent, options, saliency[KEPT])
        errors[f"{ratio:g} | q and k: each head's own"] = _scores(_encoded(silent, seen), wanted)
    return errors


def silence_channels_of_heads(model: EdgeSam, options: PruneOptions, saliency: Mapping[str, Tensor]) -> None:
    """Zero the channels of q and k that each head needs least, as many as pruning would remove of it, in place.

    What is zero in q and k adds nothing to their product or to the relative positions, which multiply q, so that this
    is the function of a model without these channels.
    """
    groups = [group for group in find_groups(model) if group.part == "qk"]
    shared = [group_score(group, saliency) for group in groups]
    weights = {name: weight.detach() for name, weight in model.image_encoder.named_parameters()}
    for group, kept in zip(groups, choose(groups, shared, options), strict=True):
        # one set per head: channel c of head h is entry h of the group's channel c
        own = replace(group, heads=1, sets=group.heads, slices=tuple(_by_head(group)))
        score = group_score(own, saliency)
        stays = score.argsort(dim=1, descending=True, stable=True)[:, : kept.shape[1]]
        gone = torch.ones_like(score, dtype=torch.bool).scatter_(1, stays, False).flatten()
        for part in own.slices:
            weights[part.name].movedim(part.dim, 0)[part.index[gone].flatten()] = 0


def _by_head(group: ChannelGroup) -> Iterator[Slice]:
    """The rows of q and k, head after head; the tables belong to none."""
    for part in group.slices:
        if part.index.shape[1] == group.heads and part.name.split(".")[-2] in ("q", "k"):
            yield replace(part, index=part.index.T.reshape(-1, 1))


def _scores(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> Scores:
    """Squared error over the variance of all that was wanted; see `sam_edge.compress.validation.embedding_error`."""
    variance = torch.cat([embedding.flatten() for embedding in wanted]).var()
    errors = [((g - w).square().mean() / variance).item() for g, w in zip(got, wanted, strict=True)]
    return Scores({MEASURE: float(np.mean(errors))}, {MEASURE: [[(error, 1) for error in errors]]})


@torch.no_grad()
def _encoded(model: EdgeSam, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [model.encode(pixels) for pixels in inputs]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print a table."""
    parser = parser_of("pruning", __doc__)
    parser.add_argument("model", help="what is pruned: a MODEL whose encoder is a ViT")
    parser.add_argument("--images", required=True, help="pictures, labelled or not")
    parser.add_argument("--ratio", action="append", type=float, help="repeat for more; 0.5 and 0.77 by default")
    parser.add_argument("--seed", action="append", type=int, help="repeat for more; 0, 1 and 2 by default")
    parser.add_argument("--importance-images", type=int, default=32, help="pictures that gradients are taken on")
    parser.add_argument("--eval-limit", type=int, default=16, help="pictures that the error is taken on")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    args = parser.parse_args(arguments)
    model, seeds, count = load_model(args.model), args.seed or [0, 1, 2], args.importance_images
    pictures = sample_pictures(args.images, args.eval_limit + count * len(seeds), 0)
    measured, rest = pictures[: args.eval_limit], pictures[args.eval_limit :]
    if not rest:
        raise DataError(f"{args.images} has no picture beside the {args.eval_limit} to measure on: lower --eval-limit.")
    found: dict[str, list[Scores]] = {}
    for index, seed in enumerate(seeds):
        # of few pictures some serve several seeds
        trained = [rest[number % len(rest)] for number in range(index * count, (index + 1) * count)]
        for choice, scores in measure(model, trained, measured, args.ratio or [0.5, 0.77], seed).items():
            found.setdefault(choice, []).append(scores)
    if args.json:
        seen = hashlib.sha256(b"".join(picture.tobytes() for picture in pictures)).hexdigest()
        told: dict[str, Any] = {"provenance": provenance({args.model: used_sha256(args.model)}, {args.images: seen})}
        told |= {"seeds": seeds, "importance_images": count, "eval_limit": args.eval_limit}
        told |= {"choices": as_dict(found), "compared": differences(found, pairs("pruning"))}
        print(json.dumps(told))
        return
    print("| ratio | choice | embedding error |\n|---|---|---|")
    for choice, runs in found.items():
        mean, spread = mean_and_spread(runs, MEASURE)
        print(f"| {choice} | {mean:.4f} ± {spread:.4f} |")


if __name__ == "__main__":
    main()
