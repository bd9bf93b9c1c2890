"""OpenVINO as a runtime, on the CPU, reading the same ONNX files."""

from pathlib import Path
from typing import Any, Literal

from sam_edge.errors import BackendUnavailableError, ExportError
from sam_edge.halves import missing
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.runtimes.graphs import GraphRuntime, Values

PrecisionHint = Literal["f32", "bf16", "f16"]

CAPABILITIES: dict[str, str] = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
"""What OpenVINO calls a processor's ability to compute in each precision."""


def load_openvino() -> Any:
    """The module.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise missing(error, "OpenVINO") from error
    return openvino


def float_runtimes() -> list[str]:
    """What this machine's CPU runs a float model by, of what is installed: the rivals of any smaller model.

    bfloat16 is among them where the processor computes in it.
    """
    try:
        core = load_openvino().Core()
    except BackendUnavailableError:
        return ["onnxruntime"]
    halves = CAPABILITIES["bf16"] in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ["onnxruntime", "openvino", *(["openvino-bf16"] if halves else [])]


class OpenVinoRuntime(GraphRuntime):
    """An exported folder in OpenVINO, on the CPU; a graph is compiled when it is first called."""

    def __init__(self, folder: str | Path, precision_hint: PrecisionHint = "f32", threads: int = 0) -> None:
        """`f32` computes as the graphs say; `bf16` and `f16` let float layers be computed in halves.

        Left to itself OpenVINO takes bfloat16 wherever the processor has it, and results differ between machines.
        `threads` 0 leaves the choice to OpenVINO.

        Raises:
            BackendUnavailableError: OpenVINO is absent, or this processor does not compute in that precision.
            ExportError: graphs that OpenVINO computes wrongly.
            CheckpointError: no exported folder.
        """
        openvino = load_openvino()
        super().__init__(ExportedFolder.read(folder))
        self.name = "openvino" if precision_hint == "f32" else f"openvino-{precision_hint}"
        if self.folder.integer_products:
            # measured on nano: embeddings off by 0.66 of their norm, with its integer kernels and without them
            raise ExportError(
                f"{folder} has attention in integers ({', '.join(self.folder.integer_products)}), which OpenVINO does "
                "not compute rightly: export again with --products none."
            )
        self._core = openvino.Core()
        if CAPABILITIES[precision_hint] not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            # OpenVINO would take the hint and silently compute in float32
            raise BackendUnavailableError(
                f"this processor does not compute in {precision_hint}: use --runtime openvino."
            )
        self._options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision_hint}
        if threads:
            self._options["INFERENCE_NUM_THREADS"] = threads
        self._requests: dict[str, Any] = {}

    def _run(self, graph: str, inputs: Values) -> Values:
        if graph not in self._requests:
            self._requests[graph] = _request(self._core, self.folder, graph, self._options)
        # inputs are only read; outputs are copied, since the next call overwrites the request's own
        found = self._requests[graph].infer(dict(inputs), share_inputs=True, share_outputs=False)
        return {name: found[name] for name in self.folder.graphs[graph]["outputs"]}


def _request(core: Any, folder: ExportedFolder, name: str, options: dict[str, Any]) -> Any:
    """A graph compiled for the CPU, ready to be called.

    Raises:
        ExportError: OpenVINO refuses it.
    """
    try:
        model = core.read_model(folder.graph_for_this_cpu(name))
        return core.compile_model(model, "CPU", options).create_infer_request()
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # its first lines name OpenVINO's own source files
        reason = next((line for line in lines if not line.startswith("Exception from")), "no reason given")
        raise ExportError(f"OpenVINO refuses {folder.graph_file(name).name}: {reason}.") from error
