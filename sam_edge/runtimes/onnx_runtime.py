"""ONNX Runtime as a runtime, on the CPU or on whichever of its execution providers is chosen by name."""

import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from sam_edge.errors import BackendUnavailableError
from sam_edge.halves import missing
from sam_edge.kernels.gpu import DeviceArray
from sam_edge.kernels.library import library_file
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.runtimes.graphs import GraphRuntime, Values
from sam_edge.runtimes.kernels import with_kernels
from sam_edge.segment.runtime import Prediction
from sam_edge.segment.upscaled import Acceleration

if TYPE_CHECKING:
    from sam_edge.kernels.launcher import Gpu

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
"""What `--runtime onnxruntime-NAME` chooses, and what ONNX Runtime calls it."""
ON_GPU = ("cuda", "tensorrt")
"""Providers that keep what they compute on a CUDA device."""
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
WEIGHTS = "session.model_external_initializers_file_folder_path"
"""What ONNX Runtime calls the folder that a graph's weights lie in, if it is not given the graph's file."""
GPU_SETS = 32
"""Prompt sets in one call on a GPU."""


def load_onnxruntime() -> Any:
    """The module.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise missing(error, "ONNX Runtime") from error
    return onnxruntime


def clash() -> str | None:
    """What is wrong where both of ONNX Runtime's distributions are installed: they own one folder, and mix in it."""
    found = []
    for name in DISTRIBUTIONS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if len(found) < len(DISTRIBUTIONS):
        return None
    return (
        f"{' and '.join(found)} are both installed and overwrite each other: pip uninstall --yes "
        f"{' '.join(DISTRIBUTIONS)}, then install sam-edge with one of [cpu], [gpu] and [workshop]"
    )


class OnnxRuntime(GraphRuntime):
    """An exported folder in ONNX Runtime; a graph is loaded when it is first called."""

    def __init__(
        self,
        folder: str | Path,
        provider: str = "cpu",
        threads: int = 0,
        *,
        kernels: bool = True,
        profile: Path | None = None,
    ) -> None:
        """`provider` is a key of `PROVIDERS`; `threads` 0 leaves the choice to ONNX Runtime. With `profile` it times
        every node, into a file whose name begins so (see `end_profile`).

        On the CPU, sam-edge's own kernels compute what they are faster at, where they are installed and if `kernels`.

        Raises:
            BackendUnavailableError: ONNX Runtime is absent, or has or starts no such provider here; or see
                `sam_edge.kernels.library.library_file`.
            CheckpointError: no exported folder.
        """
        self._library = load_onnxruntime()
        if (wrong := clash()) is not None:
            warnings.warn(wrong, stacklevel=2)
        super().__init__(ExportedFolder.read(folder))
        self.name = "onnxruntime" if provider == "cpu" else f"onnxruntime-{provider}"
        self.device = "cuda" if provider in ON_GPU else "cpu"
        self._provider, self._threads = PROVIDERS[provider], threads
        self._profile = profile
        self._kernels = library_file() if kernels and provider == "cpu" else None
        self._sessions: dict[str, Any] = {}
        self._shrinking = None
        if provider == "cpu":
            self._shrinking = self._library.RunOptions()
            self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        # on a GPU, embeddings and what follows from them stay there
        self.keeps_arrays = provider not in ON_GPU
        if not self.keeps_arrays:
            self.sets_at_once = GPU_SETS
        if self._provider not in self._library.get_available_providers():
            raise BackendUnavailableError(f"ONNX Runtime has no {self._provider} here: {self._remedy()}.")
        if provider != "cpu":
            # what cannot start says so now, not after a picture
            self._session("encoder")
        self._gpu: "Gpu | None" = None
        self.acceleration: Acceleration | None = None
        """Pictures and masks by sam-edge's CUDA kernels, where they can be had."""
        if provider in ON_GPU:
            # what a GPU needs is a tenth of the time that a CPU takes to start
            from sam_edge.runtimes.acceleration import acceleration, open_gpu

            self._gpu = open_gpu()
            self.acceleration = acceleration(self._gpu, self.config, self._parts)

    def end_profile(self, graph: str) -> str:
        """The file of a graph's times, which are of all runs so far; no more are counted."""
        return self._sessions[graph].end_profiling()

    @property
    def with_kernels(self) -> tuple[str, ...]:
        """The graphs in which sam-edge's own kernels compute."""
        return tuple(name for name, entry in self.folder.graphs.items() if self._kernels and entry.get("kernels"))

    def _run(self, graph: str, inputs: Values) -> Values:
        session, names = self._session(graph), list(self.folder.graphs[graph]["outputs"])
        if self.keeps_arrays:
            # what an encoder worked in is of no use to what follows
            options = self._shrinking if graph == "encoder" else None
            return dict(zip(names, session.run(names, dict(inputs), options), strict=True))
        binding = session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, value)
            elif isinstance(value, DeviceArray):
                binding.bind_input(name, self.device, 0, value.dtype.type, value.shape, value.address)
            else:
                binding.bind_ortvalue_input(name, value)
        if self._gpu is not None:
            # what a kernel made is there before another stream reads it
            self._gpu.synchronise()
        for name in names:
            binding.bind_output(name, self.device)
        session.run_with_iobinding(binding)
        return dict(zip(names, binding.get_outputs(), strict=True))

    def _host(self, value: Any) -> np.ndarray:
        return value if isinstance(value, np.ndarray) else value.numpy()

    def _parts(
        self, prediction: Prediction, sets: Int[np.ndarray, "k"], masks: Int[np.ndarray, "k"]
    ) -> Iterator[tuple[Int[np.ndarray, "m"], DeviceArray]]:
        for here, value in self._upscaled(prediction, sets, masks):
            # finished: a bound run waits for its outputs, which live as long as they are referred to
            kind = np.float16 if "float16" in value.data_type() else np.float32
            yield here, DeviceArray(tuple(value.shape()), np.dtype(kind), value.data_ptr(), value)

    def _session(self, graph: str) -> Any:
        if graph not in self._sessions:
            options = session_options(self.folder.graphs[graph], self._threads)
            if self._profile is not None:
                options.enable_profiling = True
                options.profile_file_prefix = str(self._profile)
            # other providers leave to the CPU what they do not know
            on_cpu = self.device == "cpu"
            file = self.folder.graph_for_this_cpu(graph) if on_cpu else self.folder.graph_file(graph)
            if self._kernels is not None and (notes := self.folder.graphs[graph].get("kernels")):
                options.register_custom_ops_library(str(self._kernels))
                # where weights are that lie beside the graph
                options.add_session_config_entry(WEIGHTS, str(self.folder.path.resolve()))
                # an integer model's activations have 8 bits, and so has bfloat16
                rounded = bool(self.folder.graphs[graph].get("integers"))
                file = with_kernels(file if isinstance(file, bytes) else file.read_bytes(), notes, rounded=rounded)
            session = self._library.InferenceSession(file, options, providers=[self._provider])
            # without its libraries ONNX Runtime falls back to the CPU and says nothing
            if session.get_providers()[0] != self._provider:
                raise BackendUnavailableError(f"ONNX Runtime could not start its {self._provider}: {self._remedy()}.")
            # kept for other providers to try, of which there are none: as much memory as the file is long
            session._model_bytes = None
            self._sessions[graph] = session
        return self._sessions[graph]

    def _remedy(self) -> str:
        there = [name for name, known in PROVIDERS.items() if known in self._library.get_available_providers()]
        on_gpu = "install sam-edge[gpu] and NVIDIA's CUDA libraries, or " if "cuda" in self.name else ""
        return f"{on_gpu}use another (--runtime onnxruntime-NAME with NAME in {', '.join(there)}), or --device cpu"


def session_options(graph: Mapping[str, Any], threads: int = 0) -> Any:
    """ONNX Runtime's options for a graph by its entry in `model.json`."""
    options = load_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # a pattern sets the whole of a graph's memory aside at once; the arena alone grows as far as is needed (measured on
    # nano in INT8: 0.18 GB, with a pattern 0.28, and without an arena 0.45, in holes between what the system gives)
    options.enable_mem_pattern = False
    # resizing and up-scaling want the same cores: spinning threads would keep them from it (measured with torch beside
    # it: twice the time from picture to mask)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not graph.get("integers", True):
        # weights of float layers are dequantized when they are loaded: left to itself ONNX Runtime makes MatMulNBits of
        # some, which rounds activations its own way, and dequantizes the others in every call
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options
