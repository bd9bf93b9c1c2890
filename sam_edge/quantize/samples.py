"""What the search for scales needs to know of a layer: some rows of its input, and how much its output matters.

Every layer is seen as matrix products a @ b, G x T x K by G x K x N: a linear layer has one group; a convolution has
its groups, with the patches under T output pixels as rows; a 2 x 2 transposed convolution is a linear layer with four
columns per output channel.
"""

from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sam_edge.models.attention import Bias, summed
from sam_edge.models.quantized_attention import biased
from sam_edge.models.timm_encoder import padding_of

LARGEST_SAMPLE = 2**23
"""Floats kept per layer, 32 MB; then what is kept is a fair draw of all calls (see `Kept`)."""
LARGEST_ATTENTION = 2**22
"""The same of an attention, whose every row needs all of its keys: with 4096 keys of nano, two pictures."""
LARGEST_ROWS = 2**16
"""Attention weights kept of a call."""
QUERIES = 8
"""Rows of q kept of a call, for each row that a layer keeps: without their keys they are small, and the few that are
long, which look most sharply, must be among them: 4 rows of a picture's 4096 had q of nano's last attention clipped to
0.7 of its range, by which alone the embedding was off by 0.008 of its norm (0.001 without)."""


@dataclass
class Chance:
    """What rows are drawn with."""

    generator: torch.Generator
    rows: int
    """Rows kept of a call."""

    def of(self, count: int, most: int) -> Tensor:
        """Up to `most` of `count` indices."""
        return torch.randperm(count, generator=self.generator)[:most]


@dataclass
class Rows:
    """Rows of a layer's input, and the gradient of its output there, if there was a backward pass."""

    a: Float[Tensor, "g t k"]
    grad: Float[Tensor, "g t n"] | None = None


@dataclass
class AttentionRows:
    """A few rows of an attention, all heads and keys: its float products, and the gradient of its output."""

    q: Float[Tensor, "b heads t d"]
    k: Float[Tensor, "b heads m d"]
    v: Float[Tensor, "b heads m dv"]
    bias: Bias
    grad: Float[Tensor, "b heads t dv"] | None = None
    k_grad: Float[Tensor, "b heads m d"] | None = None
    """Gradient of k, which every row of the call reads."""
    v_grad: Float[Tensor, "b heads m dv"] | None = None
    """The same of v."""

    @property
    def positions(self) -> Float[Tensor, "b heads t hw"]:
        """Relative positions of these rows, those along columns after those along rows."""
        assert isinstance(self.bias, tuple)
        return torch.cat(self.bias, -1)

    def added(self, positions: Float[Tensor, "b heads t hw"]) -> Float[Tensor, "b heads t m"]:
        """What relative positions add to the logits."""
        assert isinstance(self.bias, tuple)
        return summed(*positions.split([part.shape[-1] for part in self.bias], -1))

    @property
    def weights(self) -> Float[Tensor, "b heads t m"]:
        """Attention weights of these rows."""
        return torch.softmax(biased(self.q @ self.k.transpose(-2, -1) * self.q.shape[-1] ** -0.5, self.bias), -1)

    def product_grad(self) -> Float[Tensor, "b heads t m"] | None:
        """Gradient with respect to q k^T, from that of the output."""
        if self.grad is None:
            return None
        weights = self.weights
        wanted = self.grad @ self.v.transpose(-2, -1)
        return weights * (wanted - (weights * wanted).sum(-1, keepdim=True)) * self.q.shape[-1] ** -0.5


@dataclass
class Queries:
    """Rows of an attention's q, and the gradient there, if there was a backward pass."""

    q: Float[Tensor, "1 heads t d"]
    grad: Float[Tensor, "1 heads t d"] | None = None


Sample = TypeVar("Sample")


class Kept(list[Sample]):
    """What is kept of a layer's calls: everything, until it is more than `most` floats, and then a fair draw.

    Every call is as likely to be among them as any other (algorithm R: Vitter 1985): those of the first pictures are no
    better than later ones, nor points, which are prompted first, than boxes.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.floats, self.calls = most, 0, 0

    def place(self, chance: Chance) -> int | None:
        """Where the sample of one more call goes: behind the others, in the place of one, or nowhere."""
        self.calls += 1
        if self.floats <= self.most:
            return len(self)
        place = int(torch.randint(self.calls, (1,), generator=chance.generator))
        return place if place < len(self) else None

    def put(self, place: int, sample: Sample, floats: int) -> None:
        """Put a sample of so many floats there."""
        if place == len(self):
            self.floats += floats
        self[place : place + 1] = [sample]


@dataclass
class Seen:
    """All that is kept of a layer: extremes of everything that went through it, and samples."""

    input_low: float = float("inf")
    input_high: float = float("-inf")
    output_low: float = float("inf")
    output_high: float = float("-inf")
    clamp: tuple[float, float] = (float("-inf"), float("inf"))
    """Bounds of the activation that alone reads the output: what lies outside of them nothing sees."""
    heads: dict[str, Tensor] = field(default_factory=dict)
    """Of an attention: per head, the largest magnitude of q, k, v and relative positions."""
    rows: Kept[Rows] = field(default_factory=lambda: Kept(LARGEST_SAMPLE))
    attention: Kept[AttentionRows] = field(default_factory=lambda: Kept(LARGEST_ATTENTION))
    queries: Kept[Queries] = field(default_factory=lambda: Kept(LARGEST_SAMPLE))
    total: int = 0
    """Rows that went through the layer in all."""

    def widen(self, x: Tensor, y: Tensor) -> None:
        """Widen the extremes to hold an input and its output."""
        low, high = (value.item() for value in torch.aminmax(x.detach()))
        self.input_low, self.input_high = min(low, self.input_low), max(high, self.input_high)
        low, high = (value.item() for value in torch.aminmax(y.detach()))
        self.output_low, self.output_high = min(low, self.output_low), max(high, self.output_high)

    def widen_heads(self, name: str, x: Float[Tensor, "b heads n d"]) -> None:
        """Widen what an operand of attention reaches in each head."""
        peak = x.abs().amax((0, 2, 3)).cpu()
        self.heads[name] = torch.maximum(self.heads[name], peak) if name in self.heads else peak

    def take_gradients(self, other: "Seen") -> None:
        """Use the gradients of another model's walk, which took the same rows."""
        for mine, its in zip(self.rows, other.rows, strict=True):
            mine.grad = its.grad
        for sample, another in zip(self.attention, other.attention, strict=True):
            sample.grad, sample.k_grad, sample.v_grad = another.grad, another.k_grad, another.v_grad
        for queries, others in zip(self.queries, other.queries, strict=True):
            queries.grad = others.grad

    def joined(self) -> Rows:
        """All rows in one."""
        grads = [rows.grad for rows in self.rows if rows.grad is not None]
        return Rows(torch.cat([rows.a for rows in self.rows], 1), torch.cat(grads, 1) if grads else None)


def watch_layer(seen: Seen, module: nn.Module, x: Tensor, y: Tensor, chance: Chance) -> None:
    """Take some random rows of a layer's input and, once there is one, of its output's gradient."""
    seen.widen(x, y)
    places = x.shape[:-1].numel() if isinstance(module, nn.Linear) else x.shape[0] * x.shape[2:].numel()
    if isinstance(module, nn.Conv2d):
        places = y.shape[0] * y.shape[2:].numel()
    seen.total += places
    place = seen.rows.place(chance)
    if place is None:
        return
    at = chance.of(places, chance.rows).to(x.device)
    sample = Rows(_input_rows(module, x.detach(), y.shape, at).cpu())
    seen.rows.put(place, sample, sample.a.numel() + len(at) * y.numel() // max(places, 1))
    if y.requires_grad:

        def keep(grad: Tensor) -> None:
            sample.grad = _output_rows(module, grad, at).cpu()

        y.register_hook(keep)


def _input_rows(module: nn.Module, x: Tensor, out: torch.Size, at: Tensor) -> Float[Tensor, "g t k"]:
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])[at][None]
    if isinstance(module, nn.ConvTranspose2d):
        return x.movedim(1, -1).reshape(-1, x.shape[1])[at][None]
    assert isinstance(module, nn.Conv2d)
    kh, kw = module.kernel_size
    padded = F.pad(x, padding_of(module, (x.shape[2], x.shape[3])))
    image, row, column = (index[:, None, None] for index in _unravel(at, out))
    ys = row * module.stride[0] + (torch.arange(kh, device=x.device) * module.dilation[0])[:, None]
    xs = column * module.stride[1] + torch.arange(kw, device=x.device) * module.dilation[1]
    patches = padded.movedim(1, -1)[image, ys, xs]
    by_group = patches.unflatten(-1, (module.groups, -1))
    return by_group.permute(3, 0, 4, 1, 2).flatten(2)


def _output_rows(module: nn.Module, grad: Tensor, at: Tensor) -> Float[Tensor, "g t n"]:
    if isinstance(module, nn.Linear):
        return grad.reshape(-1, grad.shape[-1])[at][None]
    if isinstance(module, nn.ConvTranspose2d):
        cells = grad.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 1, 3, 5)
        return cells.reshape(-1, 4 * grad.shape[1])[at][None]
    assert isinstance(module, nn.Conv2d)
    rows = grad.movedim(1, -1).reshape(-1, grad.shape[1])[at]
    return rows.unflatten(-1, (module.groups, -1)).transpose(0, 1)


def _unravel(at: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Image, row and column of output pixels counted through a batch."""
    height, width = shape[-2:]
    return at // (height * width), at // width % height, at % width


def weight_matrix(module: nn.Module, weight: Tensor | None = None) -> Float[Tensor, "g k n"]:
    """A layer's weights, or others in their place, as the right-hand matrix of its product."""
    weight = (cast(Tensor, module.weight) if weight is None else weight).detach().cpu()
    if isinstance(module, nn.ConvTranspose2d):
        return weight.flatten(1)[None]
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    return weight.flatten(1).unflatten(0, (groups, -1)).transpose(1, 2)


def from_matrix(module: nn.Module, matrix: Tensor) -> Tensor:
    """`weight_matrix` undone: in the layout of the layer's weights."""
    rows = matrix if isinstance(module, nn.ConvTranspose2d) else matrix.transpose(1, 2)
    return rows.reshape(cast(Tensor, module.weight).shape)


def columns_per_channel(module: nn.Module) -> int:
    """Columns of `weight_matrix` that share one scale."""
    return 4 if isinstance(module, nn.ConvTranspose2d) else 1


def by_column(module: nn.Module, scale: Float[Tensor, "out"]) -> Float[Tensor, "g 1 n"]:
    """Scales per output channel as those of `weight_matrix`'s columns."""
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    return scale.repeat_interleave(columns_per_channel(module)).view(groups, 1, -1)


def watch_attention(seen: Seen, given: tuple, out: Tensor, chance: Chance) -> None:
    """Take some random query rows of a few batch items of an attention, with all their keys."""
    q, k, v = (x.detach() for x in given[:3])
    for name, x in zip("qkv", (q, k, v), strict=True):
        seen.widen_heads(name, x)
    if len(given) > 3 and isinstance(given[3], tuple):
        for x in given[3]:
            seen.widen_heads("positions", x.detach())
    seen.total += q.shape[0] * q.shape[2]
    _watch_queries(seen.queries, given[0], chance)
    place = seen.attention.place(chance)
    if place is None:
        return
    row = q.shape[1] * k.shape[2]
    at = chance.of(q.shape[2], max(4, min(LARGEST_ROWS // row, chance.rows))).to(q.device)
    # with few keys, as where image tokens attend to prompts, every item says something of its own
    items = chance.of(q.shape[0], max(1, LARGEST_ROWS // (row * len(at)))).to(q.device)
    kept = (q[items][:, :, at].cpu(), k[items].cpu(), v[items].cpu(), _bias_rows(given[3:], items, at))
    sample = AttentionRows(*kept)
    weights = sample.q.shape[:3].numel() * sample.k.shape[2]
    seen.attention.put(place, sample, sample.k.numel() + sample.v.numel() + weights)
    if out.requires_grad:

        def keep(grad: Tensor) -> None:
            sample.grad = grad[items][:, :, at].cpu()

        out.register_hook(keep)
        given[1].register_hook(lambda grad: setattr(sample, "k_grad", grad[items].cpu()))
        given[2].register_hook(lambda grad: setattr(sample, "v_grad", grad[items].cpu()))


def _watch_queries(kept: Kept[Queries], q: Float[Tensor, "b heads n d"], chance: Chance) -> None:
    place = kept.place(chance)
    if place is None:
        return
    at = chance.of(q.shape[0] * q.shape[2], QUERIES * chance.rows).to(q.device)

    def rows(x: Tensor) -> Float[Tensor, "1 heads t d"]:
        return x.detach().transpose(1, 2).flatten(0, 1)[at].transpose(0, 1)[None].cpu()

    queries = Queries(rows(q))
    kept.put(place, queries, queries.q.numel())
    if q.requires_grad:
        q.register_hook(lambda grad: setattr(queries, "grad", rows(grad)))


def _bias_rows(bias: tuple, items: Tensor, at: Tensor) -> Bias:
    if not bias or bias[0] is None:
        return None
    if isinstance(bias[0], tuple):
        rel_h, rel_w = (x.detach()[items][:, :, at].cpu() for x in bias[0])
        return rel_h, rel_w
    mask = bias[0].detach()
    # one table for every window; or one row for every query
    mask = mask[None] if mask.ndim == 3 else mask[items]
    return (mask if mask.shape[2] == 1 else mask[:, :, at]).cpu()
