"""What the papers claim and sam-edge chose, decided by differences that studies measure.

A study's file in docs/results has under `compared` how far one arm is ahead of another, with the interval that holds
95 % of it over pictures and seeds (`sam_edge.paired`). A claim names two arms and says where that interval has to lie.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sam_edge.paired import Difference, Verdict

OURS = "sam-edge"


@dataclass(frozen=True)
class Claim:
    """One arm is ahead of another, or less than a margin behind it."""

    source: str
    """Who says so, and where."""
    text: str
    mine: str
    """The arm that is ahead, as its study names it."""
    other: str
    measure: str
    """What the papers ask by where the measure has both: SlimSAM by one point, TinySAM by a box."""
    margin: float = 0.0
    """By how much it may lie behind: what the paper itself lost."""

    def verdict(self, found: Mapping[str, Any]) -> Verdict:
        """Of one of a study's comparisons."""
        return Difference(found["mean"], found["low"], found["high"]).says(self.margin)


def _slimsam() -> Iterator[Claim]:
    others = ("scratch distillation", "random pruning", "magnitude pruning", "hessian pruning", "Taylor pruning")
    for ratio in ("50%", "77%"):
        for other in others:
            text = f"at {ratio} SlimSAM is ahead of {other}, training alike"
            yield Claim("SlimSAM, table 2", text, f"{ratio} SlimSAM", f"{ratio} {other}", "point")
    for schedule in ("one-step", "alternate"):
        text = f"{schedule}: disturbed Taylor is ahead of Taylor on labels"
        yield Claim("SlimSAM, table 3", text, f"{schedule}, disturbed Taylor", f"{schedule}, Taylor", "point")
    text = "alternate slimming is ahead of one step"
    yield Claim("SlimSAM, figure 6", text, "alternate, disturbed Taylor", "one-step, disturbed Taylor", "point")
    for step, more in (("step 1", "bottleneck"), ("step 2", "embedding")):
        text = f"{step}: aligning {more} features too is ahead of final embeddings alone"
        arms = f"{step}, + {more} features", f"{step}, final embeddings"
        yield Claim("SlimSAM, table 4", text, *arms, "point")
    text = "global ranking with Gaussian normalization is ahead of local"
    yield Claim("SlimSAM, table 5", text, "global, Gaussian", "local", "point")


def _pruning() -> Iterator[Claim]:
    for ratio in ("0.5", "0.77"):
        text = f"at {ratio}, pruned by absolute gradients the embedding is off by less than by signed ones"
        arms = f"{ratio} | gradients: signed", f"{ratio} | gradients: absolute"
        yield Claim(OURS, text, *arms, "embedding error")
    for ratio in ("0.5", "0.77"):
        text = f"at {ratio}, heads that lose channels of their own are off by less than those that lose the same"
        arms = f"{ratio} | q and k: the same channels in every head", f"{ratio} | q and k: each head's own"
        yield Claim(OURS, text, *arms, "embedding error")


def _distillation() -> Iterator[Claim]:
    three, random, embedding = "all three", "all three, random prompts", "output + embedding"
    yield Claim("TinySAM, table 3", "full-stage distillation is ahead of labels alone", random, "labels only", "box")
    yield Claim("TinySAM, table 3", "hard prompts are ahead of random ones", three, random, "box")
    text = "quantization takes at most 0.6 points"
    yield Claim("TinySAM, table 3", text, "all three, quantized", three, "box", 0.006)
    text = "the embedding's loss beside the output's is ahead of the output's alone"
    yield Claim("TinySAM, table 4", text, embedding, "output", "box")
    yield Claim("TinySAM, table 4", "the tokens' loss adds to both", three, embedding, "box")


def _quantization() -> Iterator[Claim]:
    for bits, margin in (("W8A8", 0.006), ("W6A6", 0.033)):
        text = f"{bits} takes at most {100 * margin:.1f} points"
        yield Claim("TinySAM, table 5", text, f"{bits} hessian twin", "float", "miou_box", margin)
    metrics = [(f"the hessian metric is ahead of {other}", other) for other in ("mse", "minmax")]
    for cases in (metrics, [("twin scales are ahead of one", "hessian")]):
        for bits in ("W8A8", "W6A6"):
            for text, other in cases:
                arms = f"{bits} hessian twin", f"{bits} {other}{' twin' if other == 'mse' else ''}"
                yield Claim("TinySAM, section 3.3", f"{bits}: {text}", *arms, "miou_box")


def _everything() -> Iterator[Claim]:
    text = "the hierarchical strategy loses at most 0.76 points"
    yield Claim("TinySAM, table 2", text, "hierarchical", "grid", "miou", 0.0076)
    # the grid is ahead in the time it takes
    text = "the hierarchical strategy takes less time"
    yield Claim("TinySAM, table 2", text, "grid", "hierarchical", "seconds")


def _generations() -> Iterator[Claim]:
    for measure, words in (("box", "a box"), ("point", "one point"), ("point_multimask", "one point, three masks")):
        yield Claim(OURS, f"nano is ahead of nano-vit by {words}", "nano", "nano-vit", measure)


CLAIMS: dict[str, tuple[Claim, ...]] = {
    "slimming": tuple(_slimsam()),
    "pruning": tuple(_pruning()),
    "distillation": tuple(_distillation()),
    "quantization": tuple(_quantization()),
    "everything": tuple(_everything()),
    "generations": tuple(_generations()),
}
"""By the file of results that tells."""


def pairs(name: str) -> list[tuple[str, str, str]]:
    """The comparisons that a file's claims need: two arms and a measure."""
    return [(claim.mine, claim.other, claim.measure) for claim in CLAIMS[name]]
