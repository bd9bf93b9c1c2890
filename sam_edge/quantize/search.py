"""The search for scales (TinySAM, sec. 3.3; PTQ4ViT): a grid of candidates for each operand in turn.

A candidate is a share of the min-max range, one of 100 from 0.01 to 1.2; what it costs is the error it makes in the
product e = a^ b^ - a b: the sum over rows of e^T e for `mse`, of e^T G e for `hessian`. G is the mean over rows of
g g^T, which is damped (`Curvature`), and g the task's gradient there, of one draw (see `task_loss.draw`). So the second
derivative of the task loss is taken apart as in K-FAC (Martens and Grosse 2015, sec. 3): which directions matter, and
which rows there are. Of an activation's grid the terms between channels count, for one clipped value shifts a whole row
along one column of weights, often the direction that matters. A weight errs in its own channel alone, whose G_nn weighs
every scale and every way of rounding alike, so that rows decide there (`rounding`). By each row's own g, as PTQ4ViT has
it, which is one direction of chance, masks agree less, by inputs' grids and by outputs' as by weights'.

Candidates are visited coarse to fine: every fifth, then the neighbours of the best; min-max itself is always one.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sam_edge.models.clamps import CLAMP
from sam_edge.models.grids import Grid, TwinGrid
from sam_edge.models.quantized import LayerQuantization
from sam_edge.quantize.samples import Seen, by_column, columns_per_channel, weight_matrix
from sam_edge.quantize.scales import symmetric_scale

Metric = Literal["hessian", "mse", "minmax"]

LOWEST, HIGHEST, CANDIDATES, STRIDE, ROUNDS = 0.01, 1.2, 100, 5, 3
"""alpha, beta and n of the paper; every STRIDE-th candidate is visited first; rounds over the two operands."""
OUTPUT_BITS = 8
"""Of a convolution's output, whatever the bits of inputs: it is an operand of no product, only rounded since runtimes
ask for it, and all of the container is there. Six bits cost a residual stream more than all other layers do."""
DAMPING = 0.3
"""Share of a gradient's mean square that is added to the diagonal of g g^T. Without it masks agree less with float's
than those of `mse` do; between 0.1 and 3 it matters little."""
GELU_LOWEST = -0.17005
"""A little below the least value of GELU: an input that ends between it and 0 is taken for GELU's."""


def best_shares(
    error: Callable[[Tensor], Tensor], count: int, *, refine: bool = True
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """For each of `count` independent ranges the best share and its error; `error` maps shares to errors.

    Without `refine` only every fifth candidate is visited.
    """
    shares = torch.cat([torch.linspace(LOWEST, HIGHEST, CANDIDATES), torch.ones(1)])
    at = torch.full((count,), CANDIDATES)
    best = error(shares[at])

    def visit(index: Tensor) -> None:
        nonlocal at, best
        found = error(shares[index])
        better = found < best
        at, best = torch.where(better, index, at), torch.where(better, found, best)

    for index in range(STRIDE // 2, CANDIDATES, STRIDE):
        visit(torch.full((count,), index))
    if not refine:
        return shares[at], best
    # min-max lies between two candidates: its neighbours are theirs
    middle = torch.where(at == CANDIDATES, int((1 - LOWEST) / (HIGHEST - LOWEST) * (CANDIDATES - 1)), at)
    for offset in (o for o in range(1 - STRIDE, STRIDE) if o):
        visit((middle + offset).clamp(0, CANDIDATES - 1))
    return shares[at], best


def on_grid(x: Tensor, grid: Grid | TwinGrid) -> Tensor:
    """The nearest values on a grid."""
    if isinstance(grid, TwinGrid):
        low, high = grid.branches(x)
        return low + high
    top = 2**grid.bits - 1 - grid.zero_point
    return (x / grid.scale).round_().clamp_(-grid.zero_point, top).mul_(grid.scale)


def on_steps(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The nearest multiples of a scale, symmetric."""
    top = 2 ** (bits - 1) - 1
    return (x / scale).round_().clamp_(-top, top).mul_(scale)


class Curvature:
    """An estimate of the task loss's second derivative in rows of an output: g g^T + damping mean(g^2) I.

    g is a row's gradient. One draw of it says little of the directions it happens not to have, which the damping keeps
    from being free (Martens and Grosse 2015, sec. 6; here with one strength for all, relative to the mean).
    """

    def __init__(self, gradient: Float[Tensor, "g *t n"], mean_over: tuple[int, ...], damping: float) -> None:
        """The mean is taken over these axes, the last among them."""
        self.gradient = gradient
        self.damping = damping * gradient.square().mean(mean_over, keepdim=True)

    def of_rows(self, off: Float[Tensor, "g *t n"]) -> Float[Tensor, "g *t"]:
        """e^T C e of each row's error e."""
        squares = off.square().sum(-1, keepdim=True)
        return ((off * self.gradient).sum(-1, keepdim=True).square_() + squares.mul_(self.damping)).squeeze(-1)

    def pooled(self, off: Float[Tensor, "g t n"]) -> Float[Tensor, "g t"]:
        """The same with the mean of g g^T over all rows in place of a row's own: K-FAC's factor (ibid., sec. 3)."""
        moment = self._moment
        along = (off @ moment).mul_(off) if moment.shape[-2] == moment.shape[-1] else (off @ moment).square_()
        return along.sum(-1).add_(off.square().sum(-1).mul_(self.damping.squeeze(-1)))

    @cached_property
    def _moment(self) -> Float[Tensor, "g n m"]:
        """The mean of g g^T; or where rows are fewer than channels, and it would be larger, a root of it."""
        rows = self.gradient * self.gradient.shape[-2] ** -0.5
        return rows.mT if rows.shape[-2] < rows.shape[-1] else rows.mT @ rows


class LayerSearch:
    """One layer's samples, and the errors of candidates on them."""

    def __init__(
        self,
        module: nn.Module,
        seen: Seen,
        bits: tuple[int, int],
        metric: Metric,
        per_layer: bool,
        damping: float = DAMPING,
    ) -> None:
        """`bits` of weights and activations; `per_layer` shares one weight scale among all channels."""
        self.module, self.seen, self.metric = module, seen, metric
        self.weight_bits, self.activation_bits = bits
        rows = seen.joined()
        self.a, self.b = rows.a, weight_matrix(module)
        self.y = self.a @ self.b
        gradient = rows.grad if metric == "hessian" else None
        self.curvature = None if gradient is None else Curvature(gradient, (0, 1, 2), damping)
        self.columns = columns_per_channel(module)
        by_channel = self.b.transpose(1, 2).reshape(-1, self.columns * self.b.shape[1])
        self.peak_scale = symmetric_scale(by_channel, self.weight_bits)
        if per_layer:
            self.peak_scale = self.peak_scale.max().expand_as(self.peak_scale)
        self.per_layer = per_layer
        self.scale = self.peak_scale
        self.grid: Grid | TwinGrid = self.shrunk(1.0)
        self.b_hat = self.rounded_weight(self.scale)
        self.a_hat = on_grid(self.a, self.grid)

    def shrunk(self, share: float) -> Grid:
        """The grid over a share of the range seen."""
        return Grid.of_range(self.seen.input_low * share, self.seen.input_high * share, self.activation_bits)

    def rounded_weight(self, scale: Float[Tensor, "out"]) -> Float[Tensor, "g k n"]:
        """The weight matrix with these scales per channel."""
        return on_steps(self.b, by_column(self.module, scale), self.weight_bits)

    def error(self, a: Tensor, b: Tensor) -> Float[Tensor, "out"]:
        """Squared error of a product, per channel: of `hessian`, up to the factor G_nn."""
        return torch.matmul(a, b).sub_(self.y).square_().sum(1).reshape(-1, self.columns).sum(1)

    def row_error(self, a: Tensor, b: Tensor) -> Float[Tensor, "1"]:
        """Error of a product with the terms between its channels."""
        off = torch.matmul(a, b).sub_(self.y)
        return (off.square_() if self.curvature is None else self.curvature.pooled(off)).sum()[None]

    def search_input(self) -> float:
        """Choose the input's plain grid; returns its error."""

        # taken for ReLU6's: codes beyond are of no use, and a grid that ends there stands for it
        clamped = self.seen.input_low >= 0 and self.seen.input_high == CLAMP
        highest = 1.0 if clamped else HIGHEST

        def grid(shares: Tensor) -> Grid:
            return self.shrunk(min(shares.item(), highest))

        def error(shares: Tensor) -> Tensor:
            return self.row_error(on_grid(self.a, grid(shares)), self.b_hat)

        shares, best = best_shares(error, 1)
        self.grid = grid(shares)
        self.a_hat = on_grid(self.a, self.grid)
        return best.item()

    def search_weight(self) -> float:
        """Choose the weights' scales; returns the error."""

        def error(shares: Tensor) -> Tensor:
            found = self.error(self.a_hat, self.rounded_weight(self.peak_scale * shares))
            return found.sum()[None] if self.per_layer else found

        shares, best = best_shares(error, 1 if self.per_layer else len(self.peak_scale))
        self.scale = self.peak_scale * shares
        self.b_hat = self.rounded_weight(self.scale)
        return best.sum().item()

    def search_twin(self, plain_error: float) -> TwinGrid | None:
        """The best twin grid, where it beats the plain one."""
        low, high, half = self.seen.input_low, self.seen.input_high, 2 ** (self.activation_bits - 1)
        if not GELU_LOWEST <= low < 0 < high:
            return None
        # the shift at which the fine codes just reach the lowest value, and one more
        found = [(plain_error, None)]
        for further in (0, 1):

            def twin(share: float, further: int = further) -> TwinGrid:
                coarse = share * high / (half - 1)
                reach = torch.tensor(half * coarse / -low).log2().floor().item()
                return TwinGrid.signed(coarse, max(0, int(reach)) + further, self.activation_bits)

            def error(shares: Tensor, twin: Callable[[float], TwinGrid] = twin) -> Tensor:
                return self.row_error(on_grid(self.a, twin(shares.item())), self.b_hat)

            shares, best = best_shares(error, 1)
            found.append((best.item(), twin(shares.item())))  # type: ignore[arg-type]
        return min(found, key=lambda pair: pair[0])[1]

    def output_grid(self) -> Grid:
        """The grid of the layer's output, by the plain error: so fine that no direction stands out.

        Its ends are the activation's behind it, which saturating integers then are: of a ReLU6 alone what lies in
        [0, 6] is worth steps.
        """
        least, most = self.seen.clamp
        low, high = max(self.seen.output_low, least), min(self.seen.output_high, most)
        bias = cast(Tensor | None, self.module.bias)
        y = self.y if bias is None else self.y + by_column(self.module, bias.detach().cpu())
        y = y.clamp(least, most)
        if self.metric == "minmax":
            return Grid.of_range(low, high, OUTPUT_BITS)

        def error(shares: Tensor) -> Tensor:
            off = on_grid(y, Grid.of_range(low * shares.item(), high * shares.item(), OUTPUT_BITS)).sub_(y)
            return off.square_().sum()[None]

        share = best_shares(error, 1)[0].item()
        return Grid.of_range(low * share, high * share, OUTPUT_BITS)


def search_layer(
    module: nn.Module,
    seen: Seen,
    *,
    bits: tuple[int, int],
    metric: Metric,
    twin: bool,
    per_layer: bool = False,
    rounds_output: bool = False,
) -> tuple[LayerQuantization, Float[Tensor, "out"]]:
    """Grids of a layer's input (and of its output, where asked to) and scales of its weights.

    `bits` of weights and activations.
    """
    search = LayerSearch(module, seen, bits, metric, per_layer and isinstance(module, nn.Linear))
    error = search.error(search.a_hat, search.b_hat).sum().item()
    if metric != "minmax":
        for _ in range(ROUNDS):
            search.search_input()
            before, error = error, search.search_weight()
            if error > before * (1 - 1e-3):
                break
    plain = search.grid
    twin_grid = None
    if twin and metric != "minmax" and not isinstance(module, nn.Conv2d):
        twin_grid = search.search_twin(search.row_error(search.a_hat, search.b_hat).item())
        if twin_grid is not None:
            search.a_hat = on_grid(search.a, twin_grid)
            search.search_weight()
    assert isinstance(plain, Grid)
    plan = LayerQuantization(
        input=plain,
        bits=bits[0],
        axis=1 if isinstance(module, nn.ConvTranspose2d) else 0,
        output=search.output_grid() if rounds_output else None,
        twin=twin_grid,
    )
    return plan, search.scale
