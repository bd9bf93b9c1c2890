"""Exported graphs in the form that another tool opens: nodes before and behind the same encoder and decoder.

So every precision comes along. Frames, embeddings and masks of another size than the tool's are adapted by nodes that
lose nothing: pixels are resized as segment-anything resizes them, embeddings padded and cut back, masks enlarged
linearly and brought back by that map's inverse.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxscript import ir
from onnxscript.ir.passes.common import ShapeInferencePass

from sam_edge.errors import ExportError
from sam_edge.export.layouts import CPP_SIZE, Layout
from sam_edge.runtimes.clipping import without_sign
from sam_edge.runtimes.folder import ExportedFolder, graph_sha256
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.prompts import ABSENT, BACKGROUND, BOX_START, FOREGROUND, NOT_A_POINT
from sam_edge.segment.scaling import interpolated

FREQUENCIES = "positional_encoding_gaussian_matrix"
"""End of the name of the decoder's constant that positions are encoded with."""
LEAST = -1e9
"""Added to a predicted IoU, leaves its mask out."""
OPSET, IR_VERSION = 18, 8
"""What graphs are written in: ONNX Runtime reads it since 1.14, with which tools may have been built (the C++ wrapper
is). Of what came later our graphs have Gelu alone."""
LARGEST_FILE = 1_800_000_000
"""Bytes from which weights lie beside the graph."""

Shape = Sequence[int | str]


class Nodes:
    """Nodes in the order in which they are asked for: `nodes("Add", x, y)`; arrays become constants."""

    def __init__(self, name: str) -> None:
        """`name` begins those of its values, which the model's own must not have."""
        self._name = name
        self._tape = ir.tape.Tape()

    def __call__(self, operator: str, *inputs: ir.Value | np.ndarray | None, **attributes: Any) -> ir.Value:
        """The one output of a new node."""
        values = [self.constant(x) if isinstance(x, np.ndarray) else x for x in inputs]
        return self._tape.op(operator, values, attributes=attributes)

    def constant(self, array: np.ndarray) -> ir.Value:
        """A value that is always `array`."""
        return self._tape.op("Constant", [], attributes={"value": ir.tensor(array)})

    def cast(self, x: ir.Value, to: ir.DataType) -> ir.Value:
        """In another type."""
        return self("Cast", x, to=int(to))

    def resized(self, x: ir.Value, sizes: ir.Value | np.ndarray, antialias: bool = False) -> ir.Value:
        """Linear interpolation of the last two axes by pixel centres; with `antialias` as Pillow does it."""
        return self("Resize", x, None, None, sizes, mode="linear", axes=[2, 3], antialias=int(antialias))

    def recorded(self) -> list[ir.Node]:
        """All of them."""
        nodes = list(self._tape.nodes)
        for number, node in enumerate(nodes):
            node.name = f"{self._name}_{number}"
            # outputs have theirs
            node.outputs[0].name = node.outputs[0].name or node.name
        return nodes


def write_graphs(folder: ExportedFolder, layout: Layout, out: Path) -> dict[str, dict[str, Any]]:
    """Write an exported folder's encoder and decoder in a layout's form; returns file, hash and shapes of each.

    Integers of the cpu dialect are written without signs, since no tool looks at the processor (`runtimes.clipping`):
    right on every x86, and slower than with them on those that have VNNI. Weights of layers that compute in float are
    float.
    """
    described = {}
    for name, file in zip(("encoder", "decoder"), layout.graph_files(folder.precision), strict=True):
        model = _load(folder, name)
        if name == "encoder":
            _adapt_encoder(model, layout, folder.config, _frequencies(folder) if layout.positions else None)
        else:
            _adapt_decoder(model, layout, folder.config)
        _lower(model)
        path = out / file
        path.parent.mkdir(parents=True, exist_ok=True)
        large = sum(tensor.nbytes for tensor in _weights(model)) > LARGEST_FILE
        ir.save(model, path, external_data=f"{path.name}.data" if large else None)
        described[name] = {
            "file": file,
            "sha256": graph_sha256(path),
            "inputs": {value.name: _described(value) for value in model.graph.inputs},
            "outputs": {value.name: _described(value) for value in model.graph.outputs},
        }
    return described


def _load(folder: ExportedFolder, name: str) -> ir.Model:
    """A graph as any program may open it, with ONNX Runtime's own settings on any CPU."""
    entry, file = folder.graphs[name], folder.graph_file(name)
    if folder.dialect == "cpu" and "unsigned" in entry:
        return ir.from_proto(onnx.load_from_string(without_sign(file, entry["unsigned"])))
    model = ir.load(file)
    if folder.precision == "int8" and not entry["integers"]:
        # left to itself ONNX Runtime rounds the activations of some of these products, and is slow in the others
        _dequantize(model.graph)
    return model


def _lower(model: ir.Model) -> None:
    """Say in `OPSET` what a graph of a later one says; ONNX Runtime fuses the parts of a GELU again."""
    # for the types of what GELUs are given
    ShapeInferencePass()(model)
    for number, node in enumerate([node for node in model.graph.all_nodes() if node.op_type == "Gelu"]):
        nodes, (x,), (y,) = Nodes(f"gelu_{number}"), node.inputs, node.outputs
        assert node.graph is not None
        assert x is not None
        assert x.dtype is not None
        half, one, root = (np.array(value, x.dtype.numpy()) for value in (0.5, 1, 2**0.5))
        share = nodes("Add", nodes("Erf", nodes("Div", x, root)), one)
        product = nodes("Mul", nodes("Mul", x, share), half)
        product.type, product.shape = y.type, y.shape
        ir.convenience.replace_nodes_and_values(node.graph, node, [node], nodes.recorded(), [y], [product])
    model.opset_imports[""], model.ir_version = OPSET, IR_VERSION


def _dequantize(graph: ir.Graph) -> None:
    """Store constants that are dequantized as the floats that come of it."""
    nodes = [node for node in graph if node.op_type == "DequantizeLinear"]
    for node in nodes:
        tensors = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs]
        if any(tensor is None for tensor in tensors):
            continue
        integers, scale, *zero = (tensor.numpy() for tensor in tensors if tensor is not None)
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        along = [-1 if scale.ndim and at == axis % integers.ndim else 1 for at in range(integers.ndim)]
        steps = integers.astype(np.int32) - (zero[0].astype(np.int32).reshape(along) if zero else 0)
        weights = (steps * scale.reshape(along)).astype(scale.dtype)
        tensor = ir.tensor(weights)
        folded = ir.Value(
            name=f"{node.outputs[0].name}_folded",
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(weights.shape),
            const_value=tensor,
        )
        graph.register_initializer(folded)
        node.outputs[0].replace_all_uses_with(folded)
    graph.remove([node for node in nodes if not node.outputs[0].uses()], safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _weights(model: ir.Model) -> list[Any]:
    return [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]


def _frequencies(folder: ExportedFolder) -> np.ndarray:
    """2 x C/2 frequencies of the decoder's positional encoding, which its file holds."""
    for name, value in ir.load(folder.graph_file("decoder")).graph.initializers.items():
        if name.endswith(FREQUENCIES) and value.const_value is not None:
            return np.asarray(value.const_value.numpy(), np.float32)
    raise ExportError(f"{folder.graph_file('decoder')} does not hold the frequencies of its positions: export again.")


def _described(value: ir.Value) -> dict[str, Any]:
    sizes = [size if isinstance(size, int) else str(size) for size in value.shape or ()]
    return {"type": value.dtype.name.lower() if value.dtype else None, "shape": sizes}


# --- The two graphs


def _adapt_encoder(model: ir.Model, layout: Layout, config: ModelConfig, frequencies: np.ndarray | None) -> None:
    before, behind = Nodes("before"), Nodes("behind")
    batch = "batch" if layout.batched else 1
    side = layout.side or config.image_size
    if layout.pixels == "normalised":
        image = _value(layout.image, ir.DataType.FLOAT, (batch, 3, side, side))
        pixels = image
        if side != config.image_size:
            square = np.full(2, config.image_size, np.int64)
            if layout.engines and side % config.image_size == 0:
                pixels = _shrunk(before, image, side // config.image_size)
            else:
                pixels = before.resized(image, square, antialias=side > config.image_size)
    elif layout.pixels == "rows":
        image = _value(layout.image, ir.DataType.FLOAT, ("height", "width", 3))
        # no Transpose: ONNX Runtime 1.15 moves one behind the Resize, whose axes it takes for all
        planes = before("Unsqueeze", before("Einsum", image, equation="hwc->chw"), _integers(0))
        pixels = _normalised(before, planes, config)
    else:
        image = _value(layout.image, ir.DataType.UINT8, (1, 3, *CPP_SIZE))
        pixels = _normalised(before, before.cast(image, ir.DataType.FLOAT), config)
    (embeddings,) = model.graph.outputs
    shape = (config.decoder.dim, config.grid, config.grid)
    given = embeddings
    if layout.embedding is not None and layout.embedding != shape:
        ends = [wanted - have for wanted, have in zip(layout.embedding, shape, strict=True)]
        given = behind("Pad", embeddings, _integers(0, 0, 0, 0, 0, *ends))
        shape = layout.embedding
    outputs = [_told(behind("Identity", given), layout.embeddings, ir.DataType.FLOAT, (batch, *shape))]
    if frequencies is not None and layout.positions is not None:
        positions = _positions(behind, frequencies, config)
        sizes = behind("Concat", behind("Shape", given, start=0, end=1), _integers(*shape), axis=0)
        expanded = behind("Expand", positions, sizes)
        outputs.append(_told(expanded, layout.positions, ir.DataType.FLOAT, (batch, *shape)))
    _rebuilt(model, [image], {"pixels": pixels}, outputs, before, behind)


def _adapt_decoder(model: ir.Model, layout: Layout, config: ModelConfig) -> None:
    before, behind = Nodes("before"), Nodes("behind")
    sizes: Shape = ("batch", "sets") if layout.batched else (1,)
    given = {role: _prompt_value(role, name, layout, config, sizes) for role, name in layout.inputs.items()}
    # one image and one set, where the tool knows of no more
    coords, labels = given["coords"], before.cast(given["labels"], ir.DataType.INT64)
    if not layout.batched:
        coords, labels = (before("Unsqueeze", x, _integers(0)) for x in (coords, labels))
    coords, labels = _prompts(before, coords, labels, (config.image_size / layout.side) if layout.side else 1.0)
    mask, has_mask = _mask_prompt(before, given, labels, layout, config)
    embeddings = given["embeddings"]
    dim, grid = config.decoder.dim, config.grid
    if layout.embedding not in (None, (dim, grid, grid)):
        embeddings = before("Slice", embeddings, _integers(0, 0, 0), _integers(dim, grid, grid), _integers(1, 2, 3))
    logits, iou = model.graph.outputs
    outputs = _answers(behind, logits, iou, labels, has_mask, given.get("size"), layout, config)
    inside = {
        "embeddings": embeddings,
        "point_coords": coords,
        "point_labels": labels,
        "mask_input": mask,
        "has_mask_input": has_mask,
    }
    _rebuilt(model, list(given.values()), inside, outputs, before, behind)


def _rebuilt(
    model: ir.Model,
    inputs: Sequence[ir.Value],
    inside: Mapping[str, ir.Value],
    outputs: Sequence[ir.Value],
    before: Nodes,
    behind: Nodes,
) -> None:
    """Give a graph other inputs and outputs: `inside` says what its own inputs become."""
    graph = model.graph
    names = {value.name for value in (*inputs, *outputs)}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in names:
                # the tool's names are free for the tool's values
                value.name = f"{value.name}_of_the_model"
    for value in list(graph.inputs):
        value.replace_all_uses_with(inside[str(value.name)])
        value.name = f"{value.name}_of_the_model"
    graph.inputs[:] = inputs
    graph.insert_before(next(iter(graph)), before.recorded())
    graph.extend(behind.recorded())
    graph.outputs[:] = outputs


# --- Pixels


def _normalised(nodes: Nodes, planes: ir.Value, config: ModelConfig) -> ir.Value:
    """Raw 1 x 3 x H x W as the model's square: resized as by `segment.frame`, to whole numbers, normalised, padded."""
    size = nodes.cast(nodes("Shape", planes, start=2, end=4), ir.DataType.FLOAT)
    inside = _fitted(nodes, size, config.image_size)
    whole = nodes("Round", nodes.resized(planes, inside, antialias=True))
    mean, std = (np.array(part, np.float32).reshape(3, 1, 1) for part in (config.pixel_mean, config.pixel_std))
    normal = nodes("Div", nodes("Sub", whole, mean), std)
    ends = nodes("Sub", _integers(config.image_size, config.image_size), inside)
    return nodes("Pad", normal, nodes("Concat", _integers(0, 0, 0, 0, 0, 0), ends, axis=0))


def _shrunk(nodes: Nodes, planes: ir.Value, times: int) -> ir.Value:
    """1 x 3 x H x W at a whole fraction of its size, as by antialiased interpolation, which TensorRT does not know."""
    taken = 2 * times - times % 2
    weights = 1 - np.abs(np.arange(taken) - (taken - 1) / 2) / times
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    edge = (len(weights) - times) // 2
    padded = nodes("Pad", planes, _integers(0, 0, edge, edge, 0, 0, edge, edge), mode="edge")
    taps = np.tile(kernel.astype(np.float32), (3, 1, 1, 1))
    return nodes("Conv", padded, taps, group=3, strides=[times, times])


def _fitted(nodes: Nodes, size: ir.Value, side: int) -> ir.Value:
    """Height and width whose longer one is `side`, of a height and width in float32."""
    scale = nodes("Div", np.array(side, np.float32), nodes("ReduceMax", size, keepdims=0))
    rounded = nodes("Floor", nodes("Add", nodes("Mul", size, scale), np.array(0.5, np.float32)))
    return nodes.cast(nodes("Max", rounded, np.array(1, np.float32)), ir.DataType.INT64)


def _positions(nodes: Nodes, frequencies: np.ndarray, config: ModelConfig) -> ir.Value:
    """1 x C x g x g: segment-anything's `PromptEncoder.get_dense_pe`, computed where it is asked for."""
    centres = ((np.arange(config.grid) + 0.5) / config.grid * 2 - 1).astype(np.float32)
    phases = []
    for axis, shape in ((0, (1, -1, 1)), (1, (-1, 1, 1))):
        turns = (2 * np.pi * frequencies[axis]).astype(np.float32)
        phases.append(nodes("Mul", centres.reshape(shape), turns.reshape(1, 1, -1)))
    phase = nodes("Add", *phases)
    both = nodes("Concat", nodes("Sin", phase), nodes("Cos", phase), axis=2)
    return nodes("Unsqueeze", nodes("Transpose", both, perm=[2, 0, 1]), _integers(0))


# --- Prompts


def _prompt_value(role: str, name: str, layout: Layout, config: ModelConfig, sizes: Shape) -> ir.Value:
    """An input of the tool's decoder."""
    shape = layout.embedding or (config.decoder.dim, config.grid, config.grid)
    mask = layout.mask_side or config.mask_size
    shapes: dict[str, Shape] = {
        "embeddings": (sizes[0], *shape),
        "positions": (sizes[0], *shape),
        "coords": (*sizes, "num_points", 2),
        "labels": (*sizes, "num_points"),
        "mask": (1, 1, mask, mask),
        "has_mask": (1,),
        "size": (2,),
    }
    integer = role == "labels" and layout.batched
    return _value(name, ir.DataType.INT64 if integer else ir.DataType.FLOAT, shapes[role])


def _prompts(nodes: Nodes, coords: ir.Value, labels: ir.Value, scale: float) -> tuple[ir.Value, ir.Value]:
    """B x N x P prompts as `Prompts.build` makes them: one "not a point" where there is no box.

    Some tools pad every prompt, some none, and segment-anything only points; here what they pad with is absent.
    """
    if scale != 1:
        coords = nodes("Mul", coords, np.array(scale, np.float32))
    boxed = nodes("ReduceMax", nodes.cast(nodes("Equal", labels, np.array(BOX_START)), ir.DataType.INT64), _integers(2))
    # ABSENT is one less
    last = nodes("Sub", np.array(NOT_A_POINT), boxed)
    known = nodes("Where", nodes("Less", labels, np.array(BACKGROUND)), np.array(ABSENT), labels)
    pads = _integers(0, 0, 0, 0, 0, 0, 1, 0)
    return nodes("Pad", coords, pads), nodes("Concat", known, last, axis=2)


def _mask_prompt(
    nodes: Nodes, given: Mapping[str, ir.Value], labels: ir.Value, layout: Layout, config: ModelConfig
) -> tuple[ir.Value, ir.Value]:
    """B x N x 1 x m x m masks of the model's own size, and 1 for each set that has one."""
    side = config.mask_size
    if "mask" not in given:
        sizes = nodes("Shape", labels, start=0, end=2)
        zero = ir.tensor(np.zeros(1, np.float32))
        masks = nodes("ConstantOfShape", nodes("Concat", sizes, _integers(1, side, side), axis=0), value=zero)
        return masks, nodes("ConstantOfShape", sizes, value=zero)
    mask = given["mask"]
    if layout.mask_side not in (None, side):
        back = np.linalg.pinv(_enlarging(side, layout.mask_side)).astype(np.float32)
        mask = nodes("MatMul", nodes("MatMul", back, mask), np.ascontiguousarray(back.T))
    # osam says -1 where it has none
    has_mask = nodes.cast(nodes("Greater", given["has_mask"], np.array(0, np.float32)), ir.DataType.FLOAT)
    return nodes("Unsqueeze", mask, _integers(0)), nodes("Unsqueeze", has_mask, _integers(0))


def _enlarging(side: int, wanted: int | None) -> np.ndarray:
    """The linear map of `side` cells to `wanted`."""
    return np.asarray(interpolated(np.eye(side, dtype=np.float32), int(wanted or side)), np.float32)


# --- Masks


def _answers(
    nodes: Nodes,
    logits: ir.Value,
    iou: ir.Value,
    labels: ir.Value,
    has_mask: ir.Value,
    size: ir.Value | None,
    layout: Layout,
    config: ModelConfig,
) -> list[ir.Value]:
    """The tool's outputs, of B x N x 4 logits and IoU."""
    if layout.masks == "three":
        logits, iou = (nodes("Slice", x, _integers(1), _integers(4), _integers(2)) for x in (logits, iou))
    else:
        if layout.masks == "best":
            logits, iou = _best(nodes, logits, iou, labels, has_mask)
        logits, iou = (nodes("Squeeze", x, _integers(0)) for x in (logits, iou))
    sizes: Shape = {"all": (1, 4), "best": (1, 1), "three": ("batch", "sets", 3)}[layout.masks]
    side = layout.mask_side or config.mask_size
    low_res = logits
    if side != config.mask_size:
        enlarging = _enlarging(config.mask_size, side)
        low_res = nodes("MatMul", nodes("MatMul", enlarging, logits), np.ascontiguousarray(enlarging.T))
    found = {"iou": (iou, ir.DataType.FLOAT, sizes), "low_res": (low_res, ir.DataType.FLOAT, (*sizes, side, side))}
    if "square" in layout.outputs:
        square = _square_side(layout, config)
        found["square"] = (_squared(nodes, logits, square, config), ir.DataType.FLOAT, (*sizes, square, square))
    if size is not None:
        masks = _at_size(nodes, logits, size, _square_side(layout, config), config)
        found["masks"] = (masks, ir.DataType.FLOAT, (*sizes, "height", "width"))
        if "cropped" in layout.outputs:
            found |= _cropped(nodes, masks, sizes)
    # an output that is also another's input, or twice an output, would lose its name
    return [_told(nodes("Identity", found[role][0]), name, *found[role][1:]) for role, name in layout.outputs.items()]


def _best(
    nodes: Nodes, logits: ir.Value, iou: ir.Value, labels: ir.Value, has_mask: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Of 1 x 1 x 4 masks the one to show: `Prompts.single_points` says when the last three compete."""

    def count(which: ir.Value) -> ir.Value:
        return nodes("ReduceSum", nodes.cast(which, ir.DataType.INT64), _integers(2))

    one = np.array(1)
    marks = count(nodes("GreaterOrEqual", labels, np.array(BACKGROUND)))
    clicks = count(nodes("Equal", labels, np.array(FOREGROUND)))
    alone = nodes("And", nodes("Equal", marks, one), nodes("Equal", clicks, one))
    masked = nodes("Unsqueeze", nodes("Greater", has_mask, np.array(0, np.float32)), _integers(2))
    alone = nodes("And", alone, nodes("Not", masked))
    single, several = (np.array([[row]], np.float32) for row in ([0.0] + [LEAST] * 3, [LEAST] + [0.0] * 3))
    scores = nodes("Add", iou, nodes("Where", alone, several, single))
    best = nodes("Reshape", nodes("ArgMax", scores, axis=2), _integers(1))
    return nodes("Gather", logits, best, axis=2), nodes("Gather", iou, best, axis=2)


def _square_side(layout: Layout, config: ModelConfig) -> int:
    """Side of the square that pictures were fitted to: the tool's, unless the graph fits them to its own."""
    return layout.side if layout.side and layout.pixels == "normalised" else config.image_size


def _squared(nodes: Nodes, logits: ir.Value, side: int, config: ModelConfig) -> ir.Value:
    """Logits at a square's size, by way of the model's own, as its pixels came to it."""
    own = nodes.resized(logits, _integers(config.image_size, config.image_size))
    return own if side == config.image_size else nodes.resized(own, _integers(side, side))


def _at_size(nodes: Nodes, logits: ir.Value, size: ir.Value, side: int, config: ModelConfig) -> ir.Value:
    """Masks at the picture's size, which fills a square of `side`: segment-anything's `postprocess_masks`."""
    used = nodes(
        "Slice", _squared(nodes, logits, side, config), _integers(0, 0), _fitted(nodes, size, side), _integers(2, 3)
    )
    return nodes.resized(used, nodes.cast(size, ir.DataType.INT64))


def _cropped(nodes: Nodes, masks: ir.Value, sizes: Shape) -> dict[str, tuple[ir.Value, ir.DataType, Shape]]:
    """A mask cut to its box as 0 and 1, and the box's first and last pixels; of an empty mask one pixel is left."""
    inside = nodes.cast(nodes("Greater", masks, np.array(0, np.float32)), ir.DataType.INT32)
    found: dict[str, tuple[ir.Value, ir.DataType, Shape]] = {}
    filled = nodes.cast(nodes("ReduceMax", inside, keepdims=0), ir.DataType.INT64)
    starts, ends = [], []
    for axis, first, last in ((2, "top", "bottom"), (3, "left", "right")):
        touched = nodes("Reshape", nodes("ReduceMax", inside, _integers(5 - axis), keepdims=0), _integers(-1))
        start = nodes("ArgMax", touched, axis=0)
        end = nodes("Mul", nodes("ArgMax", touched, axis=0, select_last_index=1), filled)
        starts.append(start)
        ends.append(nodes("Add", end, np.array(1)))
        for name, value in ((first, start), (last, end)):
            found[name] = (nodes.cast(value, ir.DataType.INT32), ir.DataType.INT32, (1,))
    corners = (nodes("Concat", *parts, axis=0) for parts in (starts, ends))
    cut = nodes("Slice", inside, *corners, _integers(2, 3))
    shape = (*sizes, "box_height", "box_width")
    found["cropped"] = (nodes.cast(cut, ir.DataType.UINT8), ir.DataType.UINT8, shape)
    return found


# --- Values


def _integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _value(name: str, dtype: ir.DataType, shape: Shape) -> ir.Value:
    return _told(ir.Value(), name, dtype, shape)


def _told(value: ir.Value, name: str, dtype: ir.DataType, shape: Shape) -> ir.Value:
    """A value as an input or output: with a name, a type and a shape."""
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
    return value
