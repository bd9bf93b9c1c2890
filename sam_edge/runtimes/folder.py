"""Exported folders: what `model.json` says, checked against the graphs beside it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_edge.errors import CheckpointError, ExportError
from sam_edge.files import parse_json, sha256_of
from sam_edge.runtimes.clipping import clips_products, without_sign
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.cost import Cost
from sam_edge.segment.known import KNOWN, shipped_folder

MANIFEST = "model.json"
SPLIT = ("prepare", "predict", "upscale")
"""The decoder again, in three parts for everything mode."""


@dataclass(frozen=True)
class ExportedFolder:
    """What `model.json` says of a folder of graphs."""

    path: Path
    config: ModelConfig
    precision: str
    dialect: str | None
    graphs: dict[str, dict[str, Any]]
    """Per graph: file, sha256, inputs, outputs, whether it rounds any activation to integers, and where its bytes
    change without signs."""
    integer_products: tuple[str, ...] = ()
    """Attention products that the graphs compute in integers."""
    cost: Cost | None = None
    """Parameters and MACs; None in folders of earlier versions."""

    @classmethod
    def read(cls, path: str | Path) -> "ExportedFolder":
        """Read and check an exported folder.

        Raises:
            CheckpointError: no `model.json`, a broken one, or a graph that is missing or not the one described.
        """
        path = Path(path)
        try:
            values = parse_json((path / MANIFEST).read_bytes())
            files = [(path / own_file(graph["file"]), graph["sha256"]) for graph in values["graphs"].values()]
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
                None if values.get("cost") is None else Cost(**values["cost"]),
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
        """A graph as this machine's CPU computes it rightly: its file, or the same without signs."""
        places = self.graphs[name].get("unsigned")
        file = self.graph_file(name)
        if self.precision != "int8" or not self.graphs[name].get("integers", True) or not clips_products():
            return file
        if places is None:
            raise ExportError(
                f"{file} was exported by an earlier version, without what this processor needs, which has no VNNI: "
                "export again."
            )
        return without_sign(file, places)

    def require_split(self) -> None:
        """Raises ExportError for a folder without the split decoder's graphs."""
        missing = [name for name in SPLIT if name not in self.graphs]
        if missing:
            raise ExportError(
                f"{self.path} has no {missing[0]}.onnx, which everything mode needs: it was exported by an earlier "
                "version, export again."
            )


def own_file(name: str) -> str:
    """The name of a file that a manifest says lies beside it. Raises ValueError for a path that leaves its folder."""
    if Path(name).name != name or name in ("", ".."):
        raise ValueError(f"{name!r} is no file beside it")
    return name


def graph_sha256(file: Path) -> str:
    """Hash of a graph: its file's, or, for weights kept beside it, that of both files' hashes."""
    data = file.with_name(f"{file.name}.data")
    if not data.is_file():
        return sha256_of(file)
    return hashlib.sha256((sha256_of(file) + sha256_of(data)).encode()).hexdigest()


def is_exported_folder(path: str | Path) -> bool:
    """True for a folder that holds exported graphs."""
    return (Path(path) / MANIFEST).is_file()


def names_exported_folder(spec: str | Path) -> bool:
    """True for an exported folder; a bare known name is the known model even beside a folder of that name."""
    return not (isinstance(spec, str) and spec in KNOWN) and is_exported_folder(Path(spec).expanduser())


def shipped_graphs(name: str | Path) -> Path | None:
    """The exported folder of a known model that ships as graphs too."""
    folder = shipped_folder(f"{name}-onnx")
    return folder if str(name) in KNOWN and is_exported_folder(folder) else None
