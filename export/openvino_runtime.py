"""OpenVINO as a runtime, on the CPU, reading the same ONNX files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sam_edge.errors import BackendUnavailableError, ExportError
from sam_edge.export.onnx_runtime import ExportedFolder, decoder_inputs
from sam_edge.export.split_graphs import SplitGraphs
from sam_edge.models.prompts import Prompts

PrecisionHint = Literal["f32", "bf16", "f16"]

_CAPABILITIES: dict[str, str] = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
"""What OpenVINO calls a processor's ability to compute in each precision."""


class OpenVinoRuntime(SplitGraphs):
    """An exported folder in OpenVINO, on the CPU."""

    def __init__(self, folder: str | Path, precision_hint: PrecisionHint = "f32", threads: int = 0) -> None:
        """`f32` computes as the graphs say; `bf16` and `f16` let float layers be computed in halves.

        Left to itself OpenVINO takes bfloat16 wherever the processor has it, and results differ between machines.
        `threads` 0 leaves the choice to OpenVINO.

        Raises:
            BackendUnavailableError: OpenVINO is absent, or this processor does not compute in that precision.
            ExportError: a graph that OpenVINO refuses, or computes wrongly.
        """
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise BackendUnavailableError("openvino is not installed: pip install 'sam-edge[openvino]'.") from error
        self.name = "openvino" if precision_hint == "f32" else f"openvino-{precision_hint}"
        self.folder = ExportedFolder.read(folder)
        self.config = self.folder.config
        if self.folder.integer_products:
            # measured on nano: embeddings off by 0.66 of their norm, with its integer kernels and without them
            raise ExportError(
                f"{folder} has attention in integers ({', '.join(self.folder.integer_products)}), which OpenVINO does "
                "not compute rightly: export again with --products none."
            )
        core = openvino.Core()
        if _CAPABILITIES[precision_hint] not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            # OpenVINO would take the hint and silently compute in float32
            raise BackendUnavailableError(
                f"this processor does not compute in {precision_hint}: use --runtime openvino."
            )
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision_hint}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        self._requests = {name: _request(core, self.folder, name, options) for name in self.folder.graphs}

    def encode(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[np.ndarray, "b c g g"]:
        """Image embeddings."""
        return self._run("encoder", {"pixels": pixels.float().cpu().numpy()})["embeddings"]

    def decode(
        self, embeddings: Float[np.ndarray, "b c g g"], prompts: Prompts
    ) -> tuple[Float[Tensor, "b n 4 h w"], Float[Tensor, "b n 4"]]:
        """Mask logits and predicted IoU."""
        found = self._run("decoder", {"embeddings": embeddings, **decoder_inputs(self.config, prompts)})
        return torch.from_numpy(found["logits"]), torch.from_numpy(found["iou"])

    def _run(self, graph: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        # inputs are only read; outputs are copied, since the next call overwrites the request's own
        found = self._requests[graph].infer(dict(inputs), share_inputs=True, share_outputs=False)
        return {name: found[name] for name in self.folder.graphs[graph]["outputs"]}


def _request(core: Any, folder: ExportedFolder, name: str, options: dict[str, Any]) -> Any:
    """A graph compiled for the CPU, ready to be called."""
    try:
        model = core.read_model(folder.graph_for_this_cpu(name))
        return core.compile_model(model, "CPU", options).create_infer_request()
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # its first lines name OpenVINO's own source files
        reason = next((line for line in lines if not line.startswith("Exception from")), "no reason given")
        raise ExportError(f"OpenVINO refuses {folder.graph_file(name).name}: {reason}.") from error
