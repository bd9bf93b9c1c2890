"""The search for the scales of attention's products: as of a layer, with a scale per head (TinySAM, sec. 4.1).

First q and k, alternating, by the error of q k^T; then v and the grid of the attention weights by the error of the
output. Of q, whose longest rows are rare and look most sharply, many rows are searched by: the error of one that is off
by e is e K^T K e^T in the product with all keys. Under `hessian` q, k and v are searched by their own gradients: every
row reads the same k and v, so that their errors add up over rows, which the errors of a few rows, squared one by one,
do not show. Relative positions reach as far as any seen. A twin grid of the weights is searched over every shift, that
is over every power-of-two split point.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sam_edge.models.grids import Grid, TwinGrid
from sam_edge.models.quantized_attention import AttentionQuantization, shares_of_peak, unit_grid
from sam_edge.quantize.samples import AttentionRows, Seen
from sam_edge.quantize.search import DAMPING, ROUNDS, Curvature, Metric, best_shares, on_grid, on_steps


class HeadSearch:
    """One attention's samples, and the errors of candidates on them."""

    def __init__(self, seen: Seen, bits: int, metric: Metric, damping: float = DAMPING) -> None:
        self.samples, self.queries, self.bits = seen.attention, seen.queries, bits
        self.metric, self.damping = metric, damping
        self.peaks = {name: peak.clamp(min=1e-12) for name, peak in seen.heads.items()}
        self.ends = dict(self.peaks)
        rows = [shares_of_peak(sample.weights) for sample in self.samples]
        self.shares, self.row_peaks = [shares for shares, _ in rows], [peak for _, peak in rows]

    def rounded(
        self, x: Float[Tensor, "b heads n d"], ends: Float[Tensor, "heads"], bits: int = 0
    ) -> Float[Tensor, "b heads n d"]:
        """q, k or v with these ends of its heads; other operands may have `bits` of their own."""
        bits = bits or self.bits
        return on_steps(x, ends[:, None, None] * unit_grid(bits).scale, bits)

    def search_ends(self, name: str, product: Callable[[AttentionRows, int, Tensor], Tensor], wanted: list) -> None:
        """Choose the ends of `name`: `product(sample, index, rounded)` is what the rounded operand gives.

        `wanted` holds, per sample, the float product and its curvature.
        """
        operands = [getattr(sample, name) for sample in self.samples]
        curvatures = [self.curvature(getattr(sample, f"{name}_grad", None)) for sample in self.samples]
        own = list(zip(operands, curvatures, strict=True))
        shared = all(curvature is not None for curvature in curvatures)

        def error(shares: Tensor) -> Tensor:
            rounded = [self.rounded(x, self.peaks[name] * shares) for x in operands]
            if shared:
                return self.error(rounded, own)
            return self.error([product(s, i, rounded[i]) for i, s in enumerate(self.samples)], wanted)

        shares, _ = best_shares(error, len(self.peaks[name]))
        self.ends[name] = self.peaks[name] * shares

    def search_queries(self, keys: list[Float[Tensor, "b heads m d"]]) -> None:
        """Choose the ends of q, which is to be multiplied by `keys`."""
        moments = torch.stack([(k.mT @ k).sum(0) for k in keys]).sum(0)
        curvatures = [self.curvature(rows.grad) for rows in self.queries]

        def error(shares: Tensor) -> Tensor:
            total = torch.zeros(len(self.peaks["q"]))
            for rows, curvature in zip(self.queries, curvatures, strict=True):
                off = self.rounded(rows.q, self.peaks["q"] * shares).sub_(rows.q)
                squared = (off @ moments).mul_(off).sum(3) if curvature is None else curvature.of_rows(off)
                total += squared.sum((0, 2))
            return total

        shares, _ = best_shares(error, len(self.peaks["q"]))
        self.ends["q"] = self.peaks["q"] * shares

    def search_grid(
        self, candidate: Callable[[float], Grid | TwinGrid], values: list[Tensor], wanted: list, *, refine: bool = True
    ) -> tuple[float, Grid | TwinGrid]:
        """The best share of a family of grids for the attention weights, and its error."""

        def error(shares: Tensor) -> Tensor:
            grid = candidate(shares.item())
            found = [self.output(i, on_grid(rows, grid), values[i]) for i, rows in enumerate(self.shares)]
            return self.error(found, wanted).sum()[None]

        share, least = best_shares(error, 1, refine=refine)
        return least.item(), candidate(share.item())

    def output(self, sample: int, shares: Tensor, v: Tensor) -> Tensor:
        """The output of a sample's rows, whose weights are given as shares of the row's largest."""
        return (shares @ v).mul_(self.row_peaks[sample])

    def outputs(self) -> list[tuple[Tensor, Curvature | None]]:
        """Of each sample the float output of its rows, and the curvature there."""
        return [(self.output(i, self.shares[i], s.v), self.curvature(s.grad)) for i, s in enumerate(self.samples)]

    @staticmethod
    def error(found: list[Tensor], wanted: list[tuple[Tensor, Curvature | None]]) -> Float[Tensor, "heads"]:
        """Squared error per head, of rows weighted by their curvature (see `search`); `found` is overwritten."""
        total = torch.zeros(found[0].shape[1])
        for got, (right, curvature) in zip(found, wanted, strict=True):
            off = got.sub_(right)
            total += (off.square_().sum(3) if curvature is None else curvature.of_rows(off)).sum((0, 2))
        return total

    def curvature(self, grad: Tensor | None) -> Curvature | None:
        """What weighs an error, under `hessian`; a head's damping is its own."""
        return Curvature(grad, (0, 2, 3), self.damping) if self.metric == "hessian" and grad is not None else None


def search_attention(seen: Seen, *, bits: int, metric: Metric, twin: bool) -> AttentionQuantization:
    """Per head the ends of q, k and v, and the grid of the attention weights."""
    search = HeadSearch(seen, bits, metric)
    plain, twin_grid = Grid.of_range(0.0, 1.0, bits), None
    if metric != "minmax":
        logits = [(s.q @ s.k.mT, search.curvature(s.product_grad())) for s in search.samples]
        for _ in range(ROUNDS):
            before = search.ends["q"]
            search.search_queries([search.rounded(s.k, search.ends["k"]) for s in search.samples])
            queries = [search.rounded(s.q, search.ends["q"]) for s in search.samples]
            search.search_ends("k", lambda s, i, k, queries=queries: queries[i] @ k.mT, logits)  # type: ignore[misc]
            if torch.equal(before, search.ends["q"]):
                break
        plain, twin_grid = _search_weights(search, bits, twin)
    ends = {name: tuple(end.tolist()) for name, end in search.ends.items()}
    return AttentionQuantization(**ends, weights=plain, twin=twin_grid, bits=bits)


def _search_weights(search: HeadSearch, bits: int, twin: bool) -> tuple[Grid, TwinGrid | None]:
    """The ends of v and the grid of the weights, alternating; and the twin grid, where it errs less."""
    outputs = search.outputs()
    plain: Grid | TwinGrid = Grid.of_range(0.0, 1.0, bits)
    least = torch.inf
    for _ in range(ROUNDS):
        rounded = [on_grid(rows, plain) for rows in search.shares]
        search.search_ends("v", lambda s, i, v, rounded=rounded: search.output(i, rounded[i], v), outputs)  # type: ignore[misc]
        values = [search.rounded(s.v, search.ends["v"]) for s in search.samples]
        before = least
        least, plain = search.search_grid(lambda share: Grid.of_range(0.0, share, bits), values, outputs)
        if least > before * (1 - 1e-3):
            break
    assert isinstance(plain, Grid)
    if not twin:
        return plain, None

    def family(shift: int) -> Callable[[float], TwinGrid]:
        return lambda share: TwinGrid.unsigned(share / (2 ** (bits - 1) - 1), shift, bits)

    shifts = range(1, bits)
    errors = [search.search_grid(family(shift), values, outputs, refine=False)[0] for shift in shifts]
    found, grid = search.search_grid(family(shifts[errors.index(min(errors))]), values, outputs)
    return plain, grid if found < least and isinstance(grid, TwinGrid) else None
