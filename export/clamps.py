"""A convolution, the clamp behind it (ReLU6) and rounding as one.

Of convolutions runtimes compute in integers those that are rounded right behind, so all of ours are. Where a clamp
follows, and then the next layer's own rounding, which reaches no further than the clamp lets pass, the first rounding
is there for nothing: without it the convolution is rounded once, by the second, which saturates where the clamp would.
"""

from onnxscript import ir


def fold_clamps(graph: ir.Graph) -> int:
    """Take the rounding between convolutions and their clamps out, where the next rounding implies the clamp, in place;
    returns how many were taken."""
    taken = 0
    for node in list(graph):
        if node.op_type != "QuantizeLinear":
            continue
        value = node.inputs[0]
        after = _only_user(node.outputs[0])
        if value is None or after is None or after.op_type != "DequantizeLinear" or _only_user(value) is not node:
            continue
        clamp = _only_user(after.outputs[0])
        next_rounding = None if clamp is None or clamp.op_type != "Clip" else _only_user(clamp.outputs[0])
        producer = value.producer()
        if producer is None or producer.op_type != "Conv" or next_rounding is None or clamp is None:
            continue
        if next_rounding.op_type == "QuantizeLinear" and _implies(next_rounding, clamp):
            clamp.replace_input_with(0, value)
            graph.remove([node, after], safe=True)
            taken += 1
    return taken


def _implies(rounding: ir.Node, clamp: ir.Node) -> bool:
    """Whether a rounding saturates within what a clamp lets pass."""
    scale, zero = (_number(rounding, index) for index in (1, 2))
    least, most = (_number(clamp, index) for index in (1, 2))
    kind = rounding.inputs[2].dtype if len(rounding.inputs) > 2 and rounding.inputs[2] is not None else None
    if None in (scale, zero, least, most) or kind not in (ir.DataType.UINT8, ir.DataType.INT8):
        return False
    first, last = (0, 255) if kind == ir.DataType.UINT8 else (-128, 127)
    low, high = (scale * (code - zero) for code in (first, last))
    # a float's rounding of the scale is no reach
    margin = 1e-6 * (high - low)
    return bool(least - margin <= low and high <= most + margin)


def _number(node: ir.Node, index: int) -> float | None:
    """An input's constant value, where it is one number."""
    value = node.inputs[index] if index < len(node.inputs) else None
    constant = None if value is None else value.const_value
    return float(constant.numpy()) if constant is not None and constant.size == 1 else None


def _only_user(value: ir.Value) -> ir.Node | None:
    """The one node that takes a value, where nothing else does."""
    users = list(value.consumers())
    return users[0] if len(users) == 1 and not value.is_graph_output() else None
