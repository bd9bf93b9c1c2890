"""Each kind of quantized layer alone: ONNX Runtime's integers, graph optimised, are torch's simulation."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sam_edge.export import to_onnx
from sam_edge.export.graphs import GraphSpec
from sam_edge.export.unsigned import note_signs
from sam_edge.models.attention import AttentionProducts
from sam_edge.models.quantized import rounds_output, set_dialect
from sam_edge.quantize.ptq import QuantizeOptions, Quantizer
from sam_edge.quantize.samples import Chance, Seen, watch_attention, watch_layer
from sam_edge.runtimes.clipping import clips_products, without_sign

SHAPES = {
    "linear": (nn.Linear(24, 10), (3, 40, 24)),
    "gelu, twin": (nn.Linear(24, 10), (3, 40, 24)),
    "padded": (nn.Conv2d(8, 6, 3, padding=1), (2, 8, 9, 8)),
    "depthwise": (nn.Conv2d(8, 8, 3, padding=1, groups=8), (2, 8, 9, 8)),
    "patches": (nn.Conv2d(3, 6, 4, 4), (2, 3, 16, 12)),
    "image_encoder.neck.2": (nn.Conv2d(8, 6, 3, padding=1, bias=False), (2, 8, 9, 8)),
    "upscale": (nn.ConvTranspose2d(12, 3, 2, 2), (2, 12, 6, 5)),
}
DIALECTS = [("cpu", 8), ("cpu", 6), ("tensorrt", 8), ("tensorrt", 6)]


class Alone(nn.Module):
    """A layer as the whole of a graph."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        """The layer's output."""
        return self.layer(*given)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def searched(name: str, layer: nn.Module, bits: int, *given: torch.Tensor) -> nn.Module:
    """The layer's quantized form, by the search and the rounding that `quantize` does by default."""
    seen, chance, inputs = Seen(), Chance(torch.Generator().manual_seed(1), 256), [x.requires_grad_() for x in given]
    out = layer(*inputs)
    if isinstance(layer, AttentionProducts):
        watch_attention(seen, tuple(inputs), out, chance)
    else:
        watch_layer(seen, layer, inputs[0], out, chance)
    (out * random(*out.shape, seed=2)).sum().backward()
    model = nn.Sequential(layer) if list(layer.parameters()) else nn.Linear(1, 1)
    return Quantizer(model, {name: layer}, {name: seen}, QuantizeOptions(), 1).integer(name, (bits, bits))


def in_onnxruntime(layer: nn.Module, folder, *given: torch.Tensor) -> np.ndarray:
    """What the layer's graph gives, with all of ONNX Runtime's optimisations."""
    names = tuple("abc"[: len(given)])
    spec = GraphSpec("layer", Alone(layer).eval(), tuple(x.detach() for x in given), names, ("y",), {})
    file = folder / to_onnx._write(spec, folder)["file"]
    graph = without_sign(file, note_signs(file)) if clips_products() else file
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(None, {name: x.detach().numpy() for name, x in zip(names, given, strict=True)})[0]


@pytest.mark.parametrize(("dialect", "bits"), DIALECTS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_layer_agrees_within_one_step(tmp_path, name, dialect, bits):
    layer, shape = SHAPES[name]
    for number, value in enumerate(layer.parameters()):
        value.data.copy_(0.3 * random(*value.shape, seed=number + 5))
    x = random(*shape)
    if "twin" in name:
        # nearly all lies below zero, and nothing cancels: two steps pay
        x = F.gelu(x - 1.5)
        x[0, :2] += 9.0
        layer.weight.data.abs_()
    quantized = searched(name, layer, bits, x)
    assert (quantized.twin is not None) == ("twin" in name)
    set_dialect(quantized, dialect)
    with torch.inference_mode():
        wanted = quantized(x.detach()).numpy()
    got = in_onnxruntime(quantized, tmp_path, x)
    off = np.abs(got - wanted)
    if rounds_output(name, layer):
        step = float(quantized.output.scale)
        assert off.max() < 1.001 * step
        # a value on the edge of two steps falls to either side
        assert (off > 0.5 * step).mean() < 0.01
    else:
        # one step of the accumulator: the integers are the same
        step = float(quantized.input.scale) * quantized.weight_scale.min().item()
        assert off.max() < 0.01 * step + 1e-6 * np.abs(wanted).max()
    assert np.abs(wanted - layer(x).detach().numpy()).max() > 0.1 * step


@pytest.mark.parametrize(("dialect", "bits"), DIALECTS)
def test_attention_agrees_within_one_step_of_its_weights(tmp_path, dialect, bits):
    q, k, v = random(2, 3, 12, 8), random(2, 3, 20, 8, seed=1), random(2, 3, 20, 8, seed=2)
    quantized = searched("products", AttentionProducts(), bits, q, k, v)
    set_dialect(quantized, dialect)
    with torch.inference_mode():
        wanted = quantized(q.detach(), k.detach(), v.detach()).numpy()
    off = np.abs(in_onnxruntime(quantized, tmp_path, q, k, v) - wanted)
    # a weight on the edge of two steps falls to either side
    step = float(quantized.plan.weights.scale) * v.abs().max().item()
    assert off.max() < 1.001 * step
    assert (off > 0.01 * step).mean() < 0.05
