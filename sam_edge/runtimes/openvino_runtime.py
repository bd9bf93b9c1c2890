"""OpenVINO as a runtime, on the CPU, reading the same ONNX files."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sam_edge.errors import BackendUnavailableError, ExportError
from sam_edge.halves import missing
from sam_edge.kernels.library import library_file
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.runtimes.graphs import GraphRuntime, Values
from sam_edge.runtimes.kernels import unrounded, with_kernels
from sam_edge.runtimes.openvino_kernels import add_kernels, taken

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


def core(threads: int = 0) -> Any:
    """OpenVINO's `Core`, with sam-edge's kernels on that many threads: one for as long as the process lives.

    Its CPU plugin gives the thread that first asks it a stack to handle signals on, and takes that back when the core
    goes. Where another core was opened in between, a stack that is no longer there stays, and the next signal with a
    handler, a child's end or Ctrl-C, kills the process.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    return _kept_core(load_openvino(), threads)


@cache
def _kept_core(openvino: Any, threads: int) -> Any:
    found = openvino.Core()
    add_kernels(found, threads)
    return found


def float_runtimes() -> list[str]:
    """What this machine's CPU runs a float model by, of what is installed: the rivals of any smaller model.

    bfloat16 is among them where the processor computes in it.
    """
    try:
        capabilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except BackendUnavailableError:
        return ["onnxruntime"]
    return ["onnxruntime", "openvino", *(["openvino-bf16"] if CAPABILITIES["bf16"] in capabilities else [])]


class OpenVinoRuntime(GraphRuntime):
    """An exported folder in OpenVINO, on the CPU; a graph is compiled when it is first called."""

    def __init__(
        self, folder: str | Path, precision_hint: PrecisionHint = "f32", threads: int = 0, *, kernels: bool = True
    ) -> None:
        """`f32` computes as the graphs say; `bf16` and `f16` let float layers be computed in halves.

        Left to itself OpenVINO takes bfloat16 wherever the processor has it, and results differ between machines.
        `threads` 0 leaves the choice to OpenVINO. sam-edge's own kernels compute what they are faster at, where they
        are installed and if `kernels`.

        Raises:
            BackendUnavailableError: OpenVINO is absent, or this processor does not compute in that precision.
            ExportError: graphs that OpenVINO computes wrongly.
            CheckpointError: no exported folder.
        """
        self._core = core(threads)
        super().__init__(ExportedFolder.read(folder))
        self.name = "openvino" if precision_hint == "f32" else f"openvino-{precision_hint}"
        if self.folder.integer_products:
            # measured on nano: embeddings off by 0.66 of their norm, with its integer kernels and without them
            raise ExportError(
                f"{folder} has attention in integers ({', '.join(self.folder.integer_products)}), which OpenVINO does "
                "not compute rightly: export again with --products none."
            )
        if CAPABILITIES[precision_hint] not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            # OpenVINO would take the hint and silently compute in float32
            raise BackendUnavailableError(
                f"this processor does not compute in {precision_hint}: use --runtime openvino."
            )
        self._options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision_hint}
        if threads:
            self._options["INFERENCE_NUM_THREADS"] = threads
        self._requests: dict[str, Any] = {}
        self._kernels = kernels and library_file() is not None
        if self._kernels:
            # a kernel's threads inherit the core that the calling one is tied to
            self._options["ENABLE_CPU_PINNING"] = False

    @property
    def with_kernels(self) -> tuple[str, ...]:
        """The graphs in which sam-edge's own kernels compute."""
        return tuple(name for name in self.folder.graphs if self._taken(name))

    def _taken(self, graph: str) -> list[Mapping[str, Any]]:
        """What kernels compute of a graph."""
        if not self._kernels or self._lies_in_two(graph):
            return []
        entry = self.folder.graphs[graph]
        return taken(entry.get("kernels", []), integers=bool(entry.get("integers")))

    def _lies_in_two(self, graph: str) -> bool:
        """Whether weights are kept beside a graph, which OpenVINO reads as it lies."""
        file = self.folder.graph_file(graph)
        return file.with_name(f"{file.name}.data").exists()

    def _graph(self, name: str) -> Path | bytes:
        file, entry = self.folder.graph_for_this_cpu(name), self.folder.graphs[name]
        roundings = [] if self._lies_in_two(name) else unrounded(entry.get("roundings", []))
        if not (notes := [*self._taken(name), *roundings]):
            return file
        # what is computed in integers, or in bfloat16 as asked, has 8 bits already
        rounded = bool(entry.get("integers")) or self.name == "openvino-bf16"
        return with_kernels(file if isinstance(file, bytes) else file.read_bytes(), notes, rounded=rounded)

    def _run(self, graph: str, inputs: Values) -> Values:
        if graph not in self._requests:
            self._requests[graph] = _request(
                self._core, self._graph(graph), self.folder.graph_file(graph).name, self._options
            )
        # inputs are only read; outputs are copied, since the next call overwrites the request's own
        found = self._requests[graph].infer(dict(inputs), share_inputs=True, share_outputs=False)
        return {name: found[name] for name in self.folder.graphs[graph]["outputs"]}


def _request(core: Any, graph: Path | bytes, name: str, options: dict[str, Any]) -> Any:
    """A graph compiled for the CPU, ready to be called.

    Raises:
        ExportError: OpenVINO refuses it.
    """
    try:
        return core.compile_model(core.read_model(graph), "CPU", options).create_infer_request()
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # its first lines name OpenVINO's own source files
        reason = next((line for line in lines if not line.startswith("Exception from")), "no reason given")
        raise ExportError(f"OpenVINO refuses {name}: {reason}.") from error
