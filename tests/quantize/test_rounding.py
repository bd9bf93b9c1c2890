"""sam_edge.quantize.rounding: weights yet to be rounded make up for those that are."""

import pytest
import torch
from torch import nn

from sam_edge.quantize import rounding
from sam_edge.quantize.ptq import QuantizeOptions
from sam_edge.quantize.rounding import RIDGE, compensated_weight, round_in_turn
from sam_edge.quantize.samples import Chance, Seen, by_column, watch_layer, weight_matrix
from sam_edge.quantize.search import LayerSearch, on_grid, search_layer

BITS = (4, 8)
LAYERS = {
    "linear": (nn.Linear(24, 10), (300, 24)),
    "conv": (nn.Conv2d(16, 6, 3, padding=1, groups=2), (4, 16, 8, 8)),
    "upscale": (nn.ConvTranspose2d(12, 3, 2, 2), (2, 12, 6, 6)),
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mixed(*shape: int, seed: int = 0) -> torch.Tensor:
    """Inputs whose channels depend on each other: else nothing makes up for an error."""
    return torch.einsum("nc...,cd->nd...", random(*shape, seed=seed), random(shape[1], shape[1], seed=seed + 1))


def by_definition(b: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Round input after input; before each, solve anew for those left, given the errors made so far."""
    top, count = 2 ** (bits - 1) - 1, len(b)
    hessian = hessian.double() + RIDGE * hessian.diagonal().double().mean() * torch.eye(count)
    order = hessian.diagonal().argsort(descending=True)
    integers = torch.zeros_like(b)
    for at in range(count):
        done, left = order[:at], order[at:]
        owed = hessian[left][:, done] @ (integers[done] * scale - b[done]).double()
        best = b[left].double() - torch.linalg.solve(hessian[left][:, left], owed)
        integers[left[0]] = (best[0].float() / scale[0]).round().clamp(-top, top)
    return integers


@pytest.mark.parametrize("block", [7, 128])
def test_it_is_the_least_squares_answer_to_the_errors_made_so_far(monkeypatch, block):
    monkeypatch.setattr(rounding, "BLOCK", block)
    x, b = torch.stack([mixed(90, 30), mixed(90, 30, seed=5)]), random(2, 30, 7, seed=2)
    scale, hessian = b.abs().amax(1, keepdim=True) / 7, x.mT @ x
    found = round_in_turn(b, hessian, scale, 4).float()
    for group in range(2):
        wanted = by_definition(b[group], hessian[group], scale[group], 4)
        nearest = (b[group] / scale[group]).round()
        off = [((q * scale[group] - b[group]).T @ x[group].T).square().sum(1) for q in (found[group], wanted, nearest)]
        assert (off[0] <= off[2] * (1 + 1e-5)).all()
        taken = off[1] < off[2]
        assert taken.sum() > 4
        # what lies halfway between two integers may fall to either side
        assert (found[group] == wanted)[:, taken].float().mean() > 0.97


def test_inputs_that_have_nothing_to_do_with_each_other_are_rounded_to_the_nearest():
    b = random(1, 9, 5)
    scale = b.abs().amax(1, keepdim=True) / 7
    found = round_in_turn(b, torch.diag(torch.arange(9.0)).expand(1, -1, -1), scale, 4)
    assert torch.equal(found.float(), (b / scale).round())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("metric", ["mse", "hessian"])
def test_every_kind_of_layer_errs_less_than_with_the_nearest_integers(name, metric):
    module, shape = LAYERS[name]
    module.weight.data.copy_(random(*module.weight.shape, seed=11))
    x = mixed(*shape, seed=3)
    y = module(x)
    seen = Seen()
    watch_layer(seen, module, x, y, Chance(torch.Generator().manual_seed(0), 4096))
    (y * random(*y.shape, seed=7)).sum().backward()
    plan, scale = search_layer(module, seen, bits=BITS, metric=metric, twin=False)
    integers = compensated_weight(module, seen, plan, scale)
    assert integers.shape == module.weight.shape
    assert integers.dtype == torch.int8
    assert integers.abs().max() <= 7
    search = LayerSearch(module, seen, BITS, metric, False)
    rows = on_grid(search.a, plan.input)
    found = weight_matrix(module, integers.float()) * by_column(module, scale)
    assert search.error(rows, found).sum() < 0.9 * search.error(rows, search.rounded_weight(scale)).sum()


@pytest.mark.parametrize(
    ("rounding", "in_turn"), [("auto", {"hessian"}), ("nearest", set()), ("compensated", {"hessian", "mse", "minmax"})]
)
def test_only_hessian_compensates_unless_told_otherwise(rounding, in_turn):
    options = QuantizeOptions(rounding=rounding)
    assert {metric for metric in ("hessian", "mse", "minmax") if options.rounds_in_turn(metric)} == in_turn
