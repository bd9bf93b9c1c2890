"""The encoder of a quantized checkpoint against its float parent's, exported as each runtime likes them best, in turn.

    sam-edge study integers slim slim-int8 --images photos/

In ONNX Runtime its own static and dynamic quantization of the parent take part; in OpenVINO bfloat16 does, alone and
for the float rest of the integer graph, and NNCF's quantization, where that is installed.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from rich.console import Console
from torch import Tensor

from sam_edge.api import SYNTHETIC
from sam_edge.bench.encoder_turn import opened
from sam_edge.bench.integers import (
    Contender,
    Turns,
    as_dict,
    quantize_by_nncf,
    quantize_by_onnxruntime,
    race,
    race_table,
    ratios,
)
from sam_edge.bench.provenance import provenance, used_sha256
from sam_edge.commands.common import sample_others, sample_pictures
from sam_edge.errors import BenchError
from sam_edge.export.parity import answers, compare
from sam_edge.export.to_onnx import OnnxOptions, write_encoder
from sam_edge.files import atomic_file
from sam_edge.models.registry import load_model
from sam_edge.models.sam import EdgeSam
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.runtimes.threads import cpu_threads
from sam_edge.segment.frame import to_pixels
from sam_edge.studies.measuring import parser_of, say, whole

RUNTIMES = ("onnxruntime", "openvino")


def encoder_race(
    parent: str,
    integers: str,
    images: str,
    *,
    runtimes: Sequence[str] = RUNTIMES,
    pictures: int = 2,
    turns: int = 3,
    seed: int = 0,
) -> dict[str, Turns]:
    """Race the encoders, opened as this CPU computes them rightly.

    ONNX Runtime's static quantization and NNCF's are calibrated on `pictures`; how far each one's masks are the float
    parent's is measured on `pictures` others.

    Raises:
        BenchError: `integers` is not a quantized checkpoint, `parent` is one, or OpenVINO is absent.
    """
    model = load_model(parent)
    side = model.config.image_size
    if model.config.quantization is not None or load_model(integers).config.quantization is None:
        raise BenchError("the race is between a float MODEL and a quantized one, in this order.")
    if "openvino" in runtimes and find_spec("openvino") is None:
        raise BenchError(
            "openvino is not installed: pip install 'sam-edge[openvino]', or choose --runtime onnxruntime."
        )
    inputs = [to_pixels(picture, model.config)[0] for picture in sample_pictures(images, pictures, seed)]
    with tempfile.TemporaryDirectory() as scratch:

        def write(name: str, spec: str, options: OnnxOptions) -> Path:
            folder = Path(scratch) / name
            folder.mkdir()
            write_encoder(load_model(spec), folder, options)
            return folder

        graph = write("float", parent, OnnxOptions())
        contenders = {}
        if "onnxruntime" in runtimes:
            own = quantize_by_onnxruntime(graph / "encoder.onnx", Path(scratch), inputs)
            contenders["onnxruntime float"] = Contender("onnxruntime", graph)
            contenders["onnxruntime int8"] = Contender("onnxruntime", write("ort", integers, OnnxOptions("int8")))
            contenders |= {f"onnxruntime {name}": Contender("onnxruntime", file) for name, file in own.items()}
        if "openvino" in runtimes:
            plain = write("openvino", integers, OnnxOptions("int8", products="none"))
            contenders["openvino float"] = Contender("openvino", graph)
            contenders["openvino bf16"] = Contender("openvino-bf16", graph)
            contenders["openvino int8"] = Contender("openvino", plain)
            contenders["openvino int8 and bf16"] = Contender("openvino-bf16", plain)
            if find_spec("nncf") is not None:
                nncf = quantize_by_nncf(graph / "encoder.onnx", Path(scratch), inputs)
                contenders["openvino nncf"] = Contender("openvino", nncf)
        found = race(contenders, side=side, threads=cpu_threads(), turns=turns, on_turn=_say_turn)
        others = sample_others(images, pictures, seed, pictures)
        agree = {name: mask_agreement(model, contender, others) for name, contender in contenders.items()}
    return {name: replace(timed, agreement=agree[name]) for name, timed in found.items()}


class _Behind(TorchRuntime):
    """A model whose encoder is another's."""

    def __init__(self, model: EdgeSam, contender: Contender) -> None:
        super().__init__(model, "cpu")
        self._encoder = opened(contender.runtime, contender.file, cpu_threads())

    def encode(self, pixels: Float32[np.ndarray, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        """The other's embeddings."""
        return torch.from_numpy(np.array(self._encoder(pixels)))


def mask_agreement(model: EdgeSam, contender: Contender, pictures: Sequence[np.ndarray]) -> float:
    """Mean IoU of a model's masks with those that its decoder gives behind a contender's encoder."""
    wanted = answers(TorchRuntime(model, "cpu"), pictures)
    return compare(wanted, answers(_Behind(model, contender), pictures)).mask_iou


def _say_turn(done: int, total: int, name: str) -> None:
    say(f"{done + 1}/{total} {name}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, race, write, print."""
    parser = parser_of("integers", __doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a float MODEL")
    add("quantized", metavar="QUANTIZED", help="the quantized checkpoint made of MODEL")
    add("--images", default=SYNTHETIC, metavar="DIR", help="photos, without labels")
    add("--runtime", action="append", choices=RUNTIMES, help="to race in; repeat for more; both by default")
    add("--turns", type=whole(1), default=3, help="turns that every contender takes")
    add("--out", type=Path, help="JSON file of times and ratios")
    add("--json", action="store_true", help="print one JSON object")
    add("--seed", type=whole(0), default=0, help="of the choice of pictures")
    args = parser.parse_args(arguments)
    given = {"turns": args.turns, "seed": args.seed}
    found = encoder_race(args.model, args.quantized, args.images, runtimes=args.runtime or RUNTIMES, **given)
    specs = {"model": args.model, "quantized": args.quantized}
    told = provenance({spec: used_sha256(spec) for spec in specs.values()})
    result = {"settings": {**specs, **given}, **as_dict(found), "provenance": told}
    if args.out is not None:
        with atomic_file(args.out) as part:
            part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(result))
        return
    Console().print(race_table(found))
    for key, value in ratios(found).items():
        print(f"{key.replace('_', ' ')}: {value:.2f} x")


if __name__ == "__main__":
    main()
