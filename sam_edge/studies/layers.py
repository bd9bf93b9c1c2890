"""Where integers pay: each kind of layer in ONNX Runtime as `export-onnx` writes it, against the same in float.

`sam-edge study layers` measures this processor and writes its rows into the table that `export-onnx --layers`
reads. A layer is timed with float on either side, as its neighbours in a SAM are: rounding the input counts, and
bringing the result back. Both forms take turns in one process on one thread; a time is the least of several, in
processor time, since another's work on the machine can only add to it.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper

from sam_edge.files import atomic_file
from sam_edge.runtimes.clipping import clips_products
from sam_edge.runtimes.onnx_runtime import session_options
from sam_edge.runtimes.paying import TABLE, Kind, Row, family, read_table
from sam_edge.studies.measuring import parser_of

SHAPES: tuple[tuple[Kind, int, int, int], ...] = (
    ("linear", 64, 64, 64),
    ("linear", 64, 168, 168),
    ("linear", 64, 160, 640),
    ("linear", 64, 640, 160),
    ("linear", 64, 320, 1280),
    ("linear", 64, 768, 768),
    ("linear", 64, 768, 3072),
    ("convolution", 256, 32, 64),
    ("convolution", 64, 256, 256),
    ("pointwise", 256, 64, 256),
    ("pointwise", 256, 256, 64),
    ("pointwise", 128, 128, 512),
    ("pointwise", 64, 320, 320),
    ("depthwise", 256, 64, 64),
    ("depthwise", 128, 256, 256),
    ("depthwise", 64, 320, 320),
)
"""Kind, side of the grid, channels of the input and of the output: those of TinyViT, nano, SlimSAM-77 and SAM-B."""
STEP, MIDDLE = 0.05, 128
"""Of every activation's grid; how long a product takes depends on neither."""


@dataclass(frozen=True)
class _Builder:
    """The nodes of one layer, and the values that it is made of."""

    integers: bool
    nodes: list
    values: list
    unsigned: bool

    def value(self, name: str, array: np.ndarray) -> str:
        self.values.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, inputs: list[str], out: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [out], **attributes))
        return out

    def rounded(self, x: str, name: str) -> str:
        """An activation on its grid, and back."""
        if not self.integers:
            return x
        grid = [
            self.value(f"{name}_step", np.array(STEP, np.float32)),
            self.value(f"{name}_middle", np.array(MIDDLE, np.uint8)),
        ]
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [x, *grid], f"{name}_q"), *grid], name)

    def weight(self, shape: tuple[int, ...], axis: int) -> str:
        """Random weights, of the one form or the other."""
        integers = np.random.default_rng(0).integers(-127, 128, shape)
        if not self.integers:
            return self.value("weight", (integers * np.float32(0.01)).astype(np.float32))
        kind, zero = (np.uint8, 128) if self.unsigned else (np.int8, 0)
        count = shape[axis]
        parts = [
            self.value("weight_q", (integers + zero).astype(kind)),
            self.value("weight_step", np.full(count, 0.01, np.float32)),
            self.value("weight_zero", np.full(count, zero, kind)),
        ]
        return self.node("DequantizeLinear", parts, "weight", axis=axis)


def layer(kind: Kind, side: int, inputs: int, outputs: int, *, integers: bool) -> ModelProto:
    """One layer as a graph, `x` to `y`: 1 x side^2 x inputs tokens of a linear layer, else 1 x inputs x side x side."""
    make = _Builder(integers, [], [], clips_products())
    bias = make.value("bias", np.zeros(outputs, np.float32))
    shape: list[str | int | None]
    x = make.rounded("x", "x_rounded")
    if kind == "linear":
        product = make.node("MatMul", [x, make.weight((inputs, outputs), 1)], "product")
        # the batch is free as in an export: of a fixed one ONNX Runtime makes a Gemm, which has no integer form there
        y, shape = make.node("Add", [product, bias], "sum"), ["batch", side**2, inputs]
    else:
        size, groups = (1, 1) if kind == "pointwise" else (3, inputs if kind == "depthwise" else 1)
        weight = make.weight((outputs, inputs // groups, size, size), 0)
        pads = [size // 2] * 4
        found = make.node("Conv", [x, weight, bias], "conv", pads=pads, group=groups)
        y, shape = make.rounded(found, "y_rounded"), ["batch", inputs, side, side]
    make.node("Identity", [y], "y")
    given, result = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", None)))
    graph = helper.make_graph(make.nodes, "layer", [given], [result], make.values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def measure(rounds: int = 3) -> Iterator[Row]:
    """A row for each shape: how many times as fast as in float its integer form is on this processor."""
    for kind, side, inputs, outputs in SHAPES:
        forms = [_timed(layer(kind, side, inputs, outputs, integers=form), integers=form) for form in (False, True)]
        times = np.array([[form() for form in forms] for _ in range(rounds)]).min(0)
        yield Row(kind, inputs, outputs, round(float(times[0] / times[1]), 2))


def _timed(model: ModelProto, *, integers: bool) -> Callable[[], float]:
    options = session_options({"integers": integers})
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    feed = {"x": np.random.default_rng(1).normal(size=(1, *given.shape[1:])).astype(np.float32)}
    session.run(None, feed)

    def run() -> float:
        start = time.process_time()
        session.run(None, feed)
        return time.process_time() - start

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write this processor's part of the table."""
    parser = parser_of("layers", __doc__)
    parser.add_argument("--out", type=Path, default=TABLE, help="the table, whose other processors are kept")
    out = parser.parse_args(arguments).out
    rows = []
    for row in measure():
        print(f"{row.kind:12} {row.inputs:5} -> {row.outputs:5}  {row.ratio:.2f} x as fast in integers", flush=True)
        rows.append(row)
    table = read_table(out) if out.exists() else {}
    table.setdefault("onnxruntime", {})[family()] = rows
    plain = {
        runtime: {name: [asdict(row) for row in found] for name, found in part.items()}
        for runtime, part in table.items()
    }
    with atomic_file(out) as work:
        work.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
