"""sam_edge.export.translate: the exporter's graphs, without its second tracing."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from sam_edge.export.graphs import GraphSpec, graphs
from sam_edge.export.translate import functional, translate


class Changing(nn.Module):
    """Changes tensors in place: one of its own, seen through a view, and one that is looked at before."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two results."""
        product = (x @ x.mT).flatten(0, 1)
        before = product.sum(-1)
        changed = product.mul_(2.0).add_(1.0)
        return before, changed.square() + product


class ChangingShared(nn.Module):
    """Changes a tensor that is read afterwards through a view of it."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two results."""
        product = x @ x.mT
        view = product[:, 0]
        return product.mul_(2.0), view + 1.0


class ChangingInput(nn.Module):
    """Changes what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input, changed."""
        return x.mul_(2.0) + x


class Convolutions(nn.Module):
    """A GELU between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Both."""
        return self.second(nn.functional.gelu(self.first(x)))


def spec_of(module: nn.Module, x: torch.Tensor, outputs: int) -> GraphSpec:
    return GraphSpec("graph", module.eval(), (x,), ("x",), tuple("ab"[:outputs]), {"x": {0: "batch"}})


@pytest.mark.parametrize(("module", "outputs"), [(Changing(), 2), (ChangingShared(), 2), (ChangingInput(), 1)])
def test_a_module_that_changes_tensors_in_place_gives_what_torch_gives(tmp_path, module, outputs):
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    translate(spec_of(module, x.clone(), outputs))[0].save(tmp_path / "graph.onnx")
    other = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    got = ort.InferenceSession(tmp_path / "graph.onnx").run(None, {"x": other.numpy()})[:outputs]
    wanted = module(other.clone())
    for one, found in zip(wanted if outputs > 1 else (wanted,), got, strict=True):
        np.testing.assert_allclose(found, one.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("module", "safe"), [(Changing(), True), (ChangingShared(), False), (ChangingInput(), False)])
def test_in_place_operators_are_replaced_only_where_nothing_else_sees_the_change(module, safe):
    program = torch.export.export(module, (torch.randn(2, 3, 4),), strict=False)
    assert functional(program) == safe


def test_no_graph_of_a_sam_is_traced_twice(tiny_slim, monkeypatch):
    def traced(*_: object) -> None:
        raise AssertionError("decomposed by tracing")

    monkeypatch.setattr(ExportedProgram, "run_decompositions", traced)
    for spec in graphs(tiny_slim):
        if spec.name in ("predict", "upscale"):
            assert len(translate(spec)[0].model.graph) > 10


def test_gelu_is_one_operator(tmp_path):
    translate(spec_of(Convolutions(), torch.randn(2, 3, 4, 4), 1))[0].save(tmp_path / "graph.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "graph.onnx").graph.node]
    assert kinds == ["Conv", "Gelu", "Conv"]
