"""A module as an ONNX graph: PyTorch's exporter, spared the work that a SAM does not need.

The exporter's decompositions trace an exported program a second time, half of an export's time, to change a dozen nodes
of a SAM's; `functional` replaces those where they stand. Its optimizer tries sixty patterns on every node; `tidy` tries
those that a SAM has.
"""

import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any

import onnx_ir.passes.common as passes
import torch
from onnxscript import ir, opset18, optimizer
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules
from torch import fx, nn
from torch._dynamo.exc import UserError
from torch.export import ExportedProgram

from sam_edge.errors import ExportError
from sam_edge.export.banded import SHAPE_KEPT, banded_attention
from sam_edge.export.graphs import GraphSpec
from sam_edge.export.kernel_notes import mark, note_kernels, note_roundings, take_marks

OPSET = 20
"""The first that has Gelu: in steps it stays five passes over memory where a runtime does not know them again, as ONNX
Runtime behind integers, which it dequantizes once for each step."""
LARGEST_FOLDED = 4096
"""Constants of more elements than this are computed in the graph: stored, they would outweigh int8 weights."""
ALWAYS_FOLDED = ("Transpose", "Reshape", "Flatten")
"""Folded at any size: they add nothing, and TensorRT takes int8 weights only straight before DequantizeLinear."""

_ATEN = torch.ops.aten
_Arguments = Callable[..., tuple[Any, ...]]
_OTHER_FORMS: dict[Any, tuple[Any, _Arguments]] = {
    _ATEN.__and__.Tensor: (_ATEN.bitwise_and.Tensor, lambda x, y: (x, y)),
    _ATEN.__and__.Scalar: (_ATEN.bitwise_and.Scalar, lambda x, y: (x, y)),
    _ATEN.__or__.Tensor: (_ATEN.bitwise_or.Tensor, lambda x, y: (x, y)),
    _ATEN.square.default: (_ATEN.mul.Tensor, lambda x: (x, x)),
    _ATEN.rsub.Scalar: (_ATEN.sub.Tensor, lambda x, number: (number, x)),
    _ATEN.numpy_T.default: (_ATEN.permute.default, lambda x: (x, list(range(x.meta["val"].ndim))[::-1])),
    _ATEN.to.dtype: (torch.ops.prims.convert_element_type.default, lambda x, dtype: (x, dtype)),
    _ATEN.conv_transpose2d.input: (
        _ATEN.convolution.default,
        lambda x, weight, bias=None, stride=(1, 1): (x, weight, bias, stride, [0, 0], [1, 1], True, [0, 0], 1),
    ),
}
"""Operators that the exporter has no translation of, as one that it has: that, and its arguments by those given."""
_IN_PLACE = {
    _ATEN.add_.Tensor: _ATEN.add.Tensor,
    _ATEN.baddbmm_.default: _ATEN.baddbmm.default,
    _ATEN.clamp_.default: _ATEN.clamp.default,
    _ATEN.mul_.Tensor: _ATEN.mul.Tensor,
}
_PATTERNS = (
    rules.flatten_to_reshape_rule,
    rules.squeeze_reshape_1d_rule,
    rules.no_op_cast_rule,
    rules.no_op_transpose_rule,
    rules.no_op_expand_rule,
    rules.mul_by_1_rule,
    rules.add_0_rule,
    rules.cast_cast_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.reshape_reshape_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.remove_optional_bias_from_conv_rule,
    # where a convolution pads as TensorFlow's: a pass of its own, and in the way of integers
    rules.fuse_pad_into_conv_rule,
)
_NOTHING = {_ATEN.detach_.default, _ATEN.dropout.default}
"""What hands a tensor of a model in evaluation mode on as it is."""


def translate(spec: GraphSpec, whole: bool = False) -> tuple[torch.onnx.ONNXProgram, dict[str, list[dict[str, Any]]]]:
    """The ONNX graph of a module, its constants folded and its free axes named, and what runtimes put in place of some
    of its nodes: see `kernel_notes`. Attention is in bands, or `whole`.

    Raises:
        ExportError: no graph came.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            written = _quickly(spec, whole)
        except (UserError, torch.onnx.errors.OnnxExporterError):
            # a loop over heads, which PyTorch traces for one batch alone unless its exporter does; or an operator that
            # is not in our table
            written = _to_onnx(spec.module, spec, whole, args=spec.example, dynamic_shapes=_free_shapes(spec))
    if written is None:
        raise ExportError(f"torch.onnx.export gave no graph for the {spec.name}.")
    tidy(written.model)
    marked, graph = take_marks(written.model), written.model.graph
    noted = {"kernels": note_kernels(graph, marked), "roundings": note_roundings(graph)}
    # last: what is put in an output's place brings the exporter's names along
    _name_axes(written.model, spec)
    _strip_notes(written.model)
    return written, noted


def _quickly(spec: GraphSpec, whole: bool) -> torch.onnx.ONNXProgram | None:
    """The graph of a module by a program that is traced once."""
    # sizes of 0 and 1 need no graphs of their own
    with fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(spec.module, spec.example, dynamic_shapes=_free_shapes(spec), strict=False)
        if functional(program):
            program.run_decompositions = lambda *_: program  # type: ignore[method-assign, unused-ignore]
        return _to_onnx(program, spec, whole)


def _to_onnx(
    what: ExportedProgram | nn.Module, spec: GraphSpec, whole: bool, **given: Any
) -> torch.onnx.ONNXProgram | None:
    return torch.onnx.export(
        what,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(spec.inputs),
        output_names=list(spec.outputs),
        custom_translation_table=_translations(whole),
        optimize=False,
        verbose=False,
        **given,
    )


def functional(program: ExportedProgram) -> bool:
    """Bring the operators of a program to ones that the exporter translates, in place; False where a tensor is changed
    that another may share memory with."""
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, fx.GraphModule)]
    return all(_made_functional(graph) for graph in graphs)


def _made_functional(graph: fx.Graph) -> bool:
    place = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.target in _OTHER_FORMS:
            node.target, arguments = _OTHER_FORMS[node.target]
            node.args, node.kwargs = arguments(*node.args, **node.kwargs), {}
        elif node.target in _NOTHING:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in _IN_PLACE:
            changed = node.args[0]
            shared = _sharing(changed, place, before=place[node])
            if shared is None or any(place[user] > place[node] for other in shared for user in other.users):
                return False
            later = {user for user in changed.users if place[user] > place[node]}
            changed.replace_all_uses_with(node, delete_user_cb=lambda user, later=later: user in later)
            node.target = _IN_PLACE[node.target]
    return True


def _sharing(node: fx.Node, place: dict[fx.Node, int], before: int) -> set[fx.Node] | None:
    """The other tensors in a node's memory, of those given before a place; None where that is an input's or unknown."""
    root = node
    while _shares_memory(root):
        if root.op != "call_function" or not root.args or not isinstance(root.args[0], fx.Node):
            return None
        root = root.args[0]
    found, waiting = {root}, [root]
    while waiting:
        views = {user for user in waiting.pop().users if _shares_memory(user) and place[user] < before} - found
        found |= views
        waiting += views
    return found - {node}


def _shares_memory(node: fx.Node) -> bool:
    """Whether what a node gives may lie in another's memory."""
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(value.alias_info is not None for value in schema.returns)


def tidy(model: ir.Model) -> None:
    """Fold constants and drop what does nothing, in place."""
    passes.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants_ir(
            model,
            onnx_shape_inference=True,
            output_size_limit=LARGEST_FOLDED,
            should_fold=lambda node: True if node.op_type in ALWAYS_FOLDED else None,
        )
        RewritePass(_PATTERNS)(model)
        passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.OutputFixPass()(model)
    passes.NameFixPass()(model)


def _free_shapes(spec: GraphSpec) -> tuple[Any, ...]:
    """Each input's free axes; those of a variable number of inputs are one tuple to the exporter."""
    free = torch.export.Dim.DYNAMIC
    shapes = tuple(dict.fromkeys(spec.dynamic.get(name, ()), free) for name in spec.inputs)
    kinds = [parameter.kind for parameter in inspect.signature(spec.module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return shapes
    single = len(kinds) - 1
    return (*shapes[:single], shapes[single:])


def _translations(whole: bool) -> dict[Any, Any]:
    """ONNX's own operators for the two that quantized layers are made of, and attention with positions."""

    def quantize(x, scale, zero_point):
        return opset18.QuantizeLinear(x, scale, zero_point)

    def dequantize(q, scale, zero_point, axis: int):
        return opset18.DequantizeLinear(q, scale, zero_point, axis=axis)

    def banded(q, k, v, rel_h, rel_w):
        # the exporter reads annotations as an operator's types, and warns of any others
        return banded_attention(q, k, v, rel_h, rel_w, whole)

    def marked(x, role: str):
        return mark(x, role)

    ops = torch.ops.sam_edge
    return {
        ops._marked.default: marked,
        ops.quantize.default: quantize,
        ops.dequantize.default: dequantize,
        ops.banded_attention.default: banded,
    }


def _name_axes(model: ir.Model, spec: GraphSpec) -> None:
    """Give free sizes their names instead of the exporter's s20, s0, ..."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        sizes = [str(size) for size in value.shape or ()]
        names |= {sizes[axis]: name for axis, name in spec.dynamic.get(value.name or "", {}).items()}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape(
            [size if isinstance(size, int) else _renamed(str(size), names) for size in value.shape or ()]
        )


def _renamed(size: str, names: dict[str, str]) -> str:
    """A free size, or an expression of some, in our names."""
    return re.sub(r"[A-Za-z_]\w*", lambda symbol: names.get(symbol[0], symbol[0]), size)


def _strip_notes(model: ir.Model) -> None:
    """Drop stack traces and the shapes of inner values: for a small model they would be a tenth of the file.

    Every runtime infers those shapes itself, but for free sizes behind a Reshape: where bands of an attention are not
    known to be of one size, ONNX Runtime plans memory for each, and takes twice as long to load them.
    """
    kept = set(model.graph.outputs)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for node in model.graph:
        for value in node.outputs:
            if value not in kept and SHAPE_KEPT not in value.metadata_props:
                value.shape = value.type = None
            value.metadata_props.clear()
            value.doc_string = None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
