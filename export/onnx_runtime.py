"""Exported folders, and ONNX Runtime as a runtime."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sam_edge.errors import BackendUnavailableError, CheckpointError
from sam_edge.export.split_graphs import SplitGraphs
from sam_edge.export.unsigned import for_this_cpu
from sam_edge.files import sha256_of
from sam_edge.models.config import ModelConfig
from sam_edge.models.prompts import Prompts

MANIFEST = "model.json"


@dataclass(frozen=True)
class ExportedFolder:
    """What `model.json` says of a folder of graphs."""

    path: Path
    config: ModelConfig
    precision: str
    dialect: str | None
    graphs: dict[str, dict[str, Any]]
    """Per graph: file, sha256, inputs, outputs, and whether it rounds any activation to integers."""
    integer_products: tuple[str, ...] = ()
    """Attention products that the graphs compute in integers."""

    @classmethod
    def read(cls, path: str | Path) -> "ExportedFolder":
        """Read and check an exported folder.

        Raises:
            CheckpointError: no `model.json`, a broken one, or a graph that is missing or not the one described.
        """
        path = Path(path)
        try:
            values = json.loads((path / MANIFEST).read_text())
            files = [(path / graph["file"], graph["sha256"]) for graph in values["graphs"].values()]
            config = ModelConfig.from_dict(values["config"])
            left = (values.get("integer_form") or {}).get("float_products", ())
            products = [name for name, entry in (config.quantization or {}).items() if "heads" in entry]
            folder = cls(
                path,
                config,
                values["precision"],
                values["dialect"],
                values["graphs"],
                tuple(name for name in products if name not in left),
            )
        except OSError as error:
            raise CheckpointError(f"{path / MANIFEST} cannot be read: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path / MANIFEST} does not describe an exported model: {error}.") from error
        for file, sha256 in files:
            if not file.is_file() or graph_sha256(file) != sha256:
                raise CheckpointError(f"{file} is missing or was changed since it was exported: export again.")
        return folder

    def graph_file(self, name: str) -> Path:
        """Path of a graph's ONNX file."""
        return self.path / self.graphs[name]["file"]

    def graph_for_this_cpu(self, name: str) -> Path | bytes:
        """A graph as this machine's CPU computes it rightly."""
        return for_this_cpu(self.graph_file(name), self.precision)


def graph_sha256(file: Path) -> str:
    """Hash of a graph: its file's, or, for weights kept beside it, that of both files' hashes."""
    data = file.with_name(f"{file.name}.data")
    if not data.is_file():
        return sha256_of(file)
    return hashlib.sha256((sha256_of(file) + sha256_of(data)).encode()).hexdigest()


def is_exported_folder(path: str | Path) -> bool:
    """True for a folder that holds exported graphs."""
    return (Path(path) / MANIFEST).is_file()


def decoder_inputs(config: ModelConfig, prompts: Prompts) -> dict[str, np.ndarray]:
    """The decoder graph's prompt inputs, by name."""
    batch, sets = prompts.labels.shape[:2]
    if prompts.masks is None:
        masks = np.zeros((batch, sets, 1, config.mask_size, config.mask_size), np.float32)
    else:
        masks = prompts.masks.float().cpu().numpy()
    return {
        "point_coords": prompts.coords.float().cpu().numpy(),
        "point_labels": prompts.labels.cpu().numpy().astype(np.int64),
        "mask_input": masks,
        "has_mask_input": np.full((batch, sets), prompts.masks is not None, np.float32),
    }


class OnnxRuntime(SplitGraphs):
    """An exported folder in ONNX Runtime, on the CPU or a CUDA device."""

    def __init__(self, folder: str | Path, device: str = "cpu", threads: int = 0) -> None:
        """`threads` 0 leaves the choice to ONNX Runtime.

        Raises:
            BackendUnavailableError: `cuda` without the CUDA provider.
        """
        import onnxruntime as ort

        self.name = "onnxruntime"
        self.folder = ExportedFolder.read(folder)
        self.config = self.folder.config
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        if provider not in ort.get_available_providers():
            raise BackendUnavailableError(f"ONNX Runtime has no {provider} here: use --device cpu.")
        load = self.folder.graph_for_this_cpu if device == "cpu" else self.folder.graph_file
        self._sessions = {
            name: ort.InferenceSession(load(name), session_options(graph, threads), providers=[provider])
            for name, graph in self.folder.graphs.items()
        }
        for session in self._sessions.values():
            # without its libraries ONNX Runtime falls back to the CPU and says nothing
            if session.get_providers()[0] != provider:
                raise BackendUnavailableError(
                    f"ONNX Runtime could not start its {provider}: install the CUDA libraries, or use --device cpu."
                )

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
        names = list(self.folder.graphs[graph]["outputs"])
        return dict(zip(names, self._sessions[graph].run(names, dict(inputs)), strict=True))


def session_options(graph: Mapping[str, Any], threads: int = 0) -> Any:
    """ONNX Runtime's options for a graph by its entry in `model.json`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # torch resizes and up-scales on the same cores: spinning threads would keep them from it (measured: twice the
    # time from picture to mask)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not graph.get("integers", True):
        # weights of float layers are dequantized when they are loaded: left to itself ONNX Runtime makes MatMulNBits of
        # some, which rounds activations its own way, and dequantizes the others in every call
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options
