"""The README.md of an exported folder: what model it is, what it costs, how it is run, and what each file is for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sam_edge.export.parity import Parity
from sam_edge.export.typed_graphs import TypedGraphs
from sam_edge.runtimes.engines import MODULES, Engine
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.cost import Cost
from sam_edge.segment.known import KNOWN

FILES = {
    "encoder": "a picture, resized, normalised and padded, to its embedding; once per picture",
    "decoder": "embedding and prompts to mask logits at a quarter of the model's size, and predicted IoU",
    "prepare": "the decoder's first part, for everything mode: what depends on the picture alone",
    "predict": "its second part: predicted IoU of prompts",
    "upscale": "its third part: logits of the masks that are wanted",
}
RUN = """import numpy as np
import sam_edge
from PIL import Image

predictor = sam_edge.SamPredictor(sam_edge.load("{folder}"))
predictor.set_image(np.array(Image.open("photo.jpg").convert("RGB")))
masks, iou, _ = predictor.predict(box=np.array([40, 60, 300, 280]), multimask_output=False)
"""


@dataclass(frozen=True)
class Accuracy:
    """What was measured of the graphs on labelled pictures when they were exported."""

    data: str
    images: int
    masks: int
    point: float
    """mIoU by one point, the best of three masks by predicted IoU."""
    box: float
    """mIoU by boxes."""
    machine: str
    """Processor and runtime."""


def folder_readme(
    name: str,
    source: str,
    precision: str,
    config: ModelConfig,
    counted: Cost,
    graphs: Mapping[str, Mapping[str, Any]],
    parity: Parity,
    accuracy: Accuracy | None,
) -> str:
    """Markdown for people who find the folder."""
    parts = [
        f"# {name}",
        f"A Segment Anything model in {precision}, exported from `{source}` by sam-edge: pictures of "
        f"{config.image_size} px, {counted.parameters / 1e6:.1f} M parameters, "
        f"{counted.encoder_macs_with_attention / 1e9:.1f} GMAC per picture. {licence(source, config)}",
        f"Masks agree with the torch model's to a mean IoU of {parity.mask_iou:.4f} "
        f"({parity.images} pictures, {parity.prompts} prompts each). {_accuracy(accuracy)}",
        "## Run it",
        "With `pip install 'sam-edge[cpu]'`, which needs no torch:",
        f"```python\n{RUN.format(folder=name)}```",
        f"or `sam-edge segment {name} photo.jpg --box 40,60,300,280 --out masks`.",
        "## Files",
        *(["\n".join(_files(graphs))]),
        "## How it was made",
        _lineage(config.lineage),
    ]
    return "\n\n".join(parts) + "\n"


def licence(source: str, config: ModelConfig) -> str:
    """A sentence about the weights' licence: that of the known model they go back to, if they say so."""
    names = [source, *(str(step.get("parent", "")) for step in reversed(config.lineage))]
    known = next((KNOWN[name] for name in names if name in KNOWN), None)
    if known is None:
        return "The licence is that of the checkpoint it was made of, which is not recorded here."
    return f"Weights that go back to `{known.name}`: {known.licence}."


def _accuracy(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "Accuracy on labelled pictures was not measured: `sam-edge eval` does."
    return (
        f"On {accuracy.images} pictures of {accuracy.data}'s val split with {accuracy.masks} masks: mIoU "
        f"{accuracy.point:.3f} by one point, by the most confident of three masks, and {accuracy.box:.3f} by a box "
        f"({accuracy.machine})."
    )


def _files(graphs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| file | what it does | computes in |", "| --- | --- | --- |"]
    for graph, entry in graphs.items():
        arithmetic = "integers" if entry["integers"] else "float"
        lines.append(f"| `{entry['file']}` | {FILES[graph]} | {arithmetic} |")
    return [*lines, "| `model.json` | inputs, outputs, hashes, thresholds and the whole lineage | |"]


def _lineage(lineage: Sequence[Mapping[str, Any]]) -> str:
    if not lineage:
        return "No lineage is recorded."
    shown = [str(step.get("step")) + (f" ({step['date'][:10]})" if step.get("date") else "") for step in lineage]
    counted: list[str] = []
    for step in shown:
        last = counted[-1] if counted else ""
        if last.split(" x ")[-1] == step:
            times = int(last.split(" x ")[0]) if " x " in last else 1
            counted[-1] = f"{times + 1} x {step}"
        else:
            counted.append(step)
    return f"{', then '.join(counted)}. The settings of every step are in `model.json`."


def engines_readme(name: str, config: ModelConfig, engines: Sequence[Engine], typed: TypedGraphs) -> str:
    """Markdown for people who find a folder of engines."""
    first = engines[0]
    targets = ", ".join(dict.fromkeys(engine.target for engine in engines))
    library = f"{MODULES[first.flavor].replace('_', '-')} {first.version}"
    lines = ["| engine | bytes | built in | state |", "| --- | --- | --- | --- |"]
    lines += [f"| `{one.file}` | {one.bytes} | {one.build_seconds:.1f} s | {one.state} |" for one in engines]
    kept = sum(map(len, typed.float32.values()))
    agreement = "They compute in float32 (TF32 where TensorRT chooses it)."
    if typed.parity is not None:
        agreement = (
            f"Walked on a CPU in {typed.precision}, each result rounded to its type, masks agree with float32 to a "
            f"mean IoU of {typed.parity.mask_iou:.4f}; {kept} nodes keep float32, which `engine.json` names with why."
        )
    return (
        "\n\n".join(
            [
                f"# {name}",
                f"TensorRT engines of a Segment Anything model for pictures of {config.image_size} px, in "
                f"{typed.precision}, for {targets}. {agreement}",
                f"They run in {library} alone, on these GPUs alone, with pycuda: `sam-edge segment {name} photo.jpg "
                "--runtime tensorrt`. The graphs in float beside them, of `model.json`, run anywhere.",
                "\n".join(lines),
                "`engine.json` says what each engine takes, `build.log` what the library said.",
            ]
        )
        + "\n"
    )
