"""What each layer's rounding adds to the task loss, to second order."""

import torch

from sam_edge.errors import QuantizationError
from sam_edge.models.quantized import QuantizedLayer
from sam_edge.models.quantized_attention import POSITION_BITS, QuantizedProducts
from sam_edge.quantize.ptq import Quantizer
from sam_edge.quantize.samples import weight_matrix
from sam_edge.quantize.search import LayerSearch, on_grid
from sam_edge.quantize.search_attention import HeadSearch


def sensitivity(quantizer: Quantizer, name: str) -> float:
    """1/2 sum over rows of (error . gradient)^2 of a layer's output, in nats of the task loss per calibration picture.

    The gradients must be those of outcomes drawn at the float model, whose squares are the loss's second derivatives.
    Layers' errors are taken alone, and different rows' as independent.

    Raises:
        QuantizationError: a walk without gradients.
    """
    seen, module = quantizer.seen[name], quantizer.model.get_submodule(name)
    grads = [rows.grad for rows in seen.rows] + [sample.grad for sample in seen.attention]
    if all(grad is None for grad in grads):
        raise QuantizationError(f"{name} was calibrated without gradients: --metric hessian takes them.")
    if isinstance(module, QuantizedLayer):
        plan = module.plan
        bits = plan.bits, plan.input.bits
        search = LayerSearch(quantizer.layers[name], seen, bits, "hessian", False, damping=0.0)
        b_hat = weight_matrix(quantizer.layers[name], module.dequantized())
        assert search.curvature is not None
        off = on_grid(search.a, plan.twin or plan.input) @ b_hat - search.y
        error = search.curvature.of_rows(off).sum().item()
        kept = search.a.shape[1]
    elif isinstance(module, QuantizedProducts):
        error, kept = _attention_error(HeadSearch(seen, module.plan.bits, "hessian", damping=0.0), module)
    else:
        return 0.0
    return 0.5 * error * seen.total / kept / quantizer.pictures


def _attention_error(search: HeadSearch, module: QuantizedProducts) -> tuple[float, int]:
    """Summed error of both products of the rows kept, and how many rows those are."""
    plan = module.plan
    rounded = {
        name: [search.rounded(getattr(s, name), ends) for s in search.samples]
        for name, ends in (
            ("q", module.q.ends.flatten()),
            ("k", module.k.ends.flatten()),
            ("v", module.v.ends.flatten()),
        )
    }
    grid = plan.twin or plan.weights
    logits = [q @ k.mT for q, k in zip(rounded["q"], rounded["k"], strict=True)]
    if plan.positions:
        ends = torch.tensor(plan.positions)
        for product, s in zip(logits, search.samples, strict=True):
            # the product is taken before it is scaled, positions are added behind
            off = search.rounded(s.positions, ends, POSITION_BITS) - s.positions
            product += s.added(off) * s.q.shape[-1] ** 0.5
    outputs = [search.output(i, on_grid(rows, grid), rounded["v"][i]) for i, rows in enumerate(search.shares)]
    wanted = [(s.q @ s.k.mT, search.curvature(s.product_grad())) for s in search.samples]
    error = search.error(logits, wanted).sum()
    error = error + search.error(outputs, search.outputs()).sum()
    return error.item(), sum(s.q.shape[0] * s.q.shape[2] for s in search.samples)
