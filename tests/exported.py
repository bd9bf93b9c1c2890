"""Exported folders of tiny models, each written once in a run and used by many tests.

What makes models is imported when the first is wanted: without torch there is none, and these tests are skipped.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.segment.config import DecoderConfig, ModelConfig, uniform_blocks
from sam_edge.segment.prompts import Prompts

if TYPE_CHECKING:
    from sam_edge.export.parity import Parity
    from sam_edge.export.to_onnx import OnnxOptions
    from sam_edge.models.sam import EdgeSam
    from sam_edge.models.torch_runtime import TorchRuntime

LARGEST_FOLDED = 512
"""As low for a tiny model as the real limit is for a real one."""


@dataclass(frozen=True)
class Exported:
    """A folder, the runtime on it, and the model it should agree with."""

    path: Path
    parity: "Parity"
    runtime: OnnxRuntime
    model: "EdgeSam"
    torch: "TorchRuntime"

    def embeddings(self, batch: int = 1, seed: int = 4) -> np.ndarray:
        """Random embeddings of the model's size."""
        import torch

        config = self.model.config
        shape = (batch, config.decoder.dim, config.grid, config.grid)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()

    def decode(self, prompts: Prompts, seed: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
        """Logits and IoU by torch and by ONNX Runtime, on the same random embeddings."""
        import torch

        embeddings = self.embeddings(len(prompts.labels), seed)
        return [
            self.torch.decode(torch.from_numpy(embeddings), prompts),
            self.runtime.decode(embeddings, prompts),
        ]


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Of the workers of one run, one at a time; the others wait for what it writes."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


Export = Callable[..., Exported]


@pytest.fixture(scope="session")
def small_config() -> ModelConfig:
    """A ViT SAM whose export takes seconds: one windowed block, one decoder layer."""
    return ModelConfig(
        arch="vit",
        image_size=64,
        # as many positions as the exporter's own limits tell from a small table
        patch_size=4,
        blocks=uniform_blocks(1, 40, 2, (), window=3, mlp=48),
        decoder=DecoderConfig(dim=32, depth=1, mlp=48, mask_channels=8, iou_hidden=24),
    )


@pytest.fixture(scope="session")
def export(request, photo, tmp_path_factory) -> Export:
    """Exports a config at a precision, once for all workers of a run, and opens the result."""
    pytest.importorskip("torch", reason="torch is not installed")
    make_sam = request.getfixturevalue("make_sam")
    from sam_edge.export import to_onnx, translate
    from sam_edge.export.graphs import halve_positions
    from sam_edge.export.parity import Parity
    from sam_edge.models.quantized import QuantizedLayer, set_dialect, set_integers
    from sam_edge.models.torch_runtime import TorchRuntime
    from sam_edge.quantize.ptq import QuantizeOptions, quantize_model

    def build(config: ModelConfig, options: "OnnxOptions") -> "EdgeSam":
        model = make_sam(config)
        if options.precision == "int8":
            quantize_model(model, [photo, photo[::-1].copy()], QuantizeOptions(metric="minmax", prompts_per_image=4))
        return model

    def write(config: ModelConfig, precision: str, dialect: str = "cpu", decoder: str = "float") -> Exported:
        key = (config.to_json(), precision, dialect, decoder)
        options = to_onnx.OnnxOptions(precision, dialect, decoder=decoder)
        base = tmp_path_factory.getbasetemp()
        root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
        path = root / hashlib.sha256("".join(key).encode()).hexdigest()[:16]
        proof = path.with_suffix(".json")
        with alone(path.with_suffix(".lock")), pytest.MonkeyPatch.context() as patch:
            if not proof.exists():
                patch.setattr(translate, "LARGEST_FOLDED", LARGEST_FOLDED)
                _, parity = to_onnx.export_onnx(build(config, options), path, [photo], options)
                proof.write_text(json.dumps(asdict(parity)))
        parity = Parity(**json.loads(proof.read_text()))
        # never what the exporter had in its hands
        model = build(config, options)
        if precision == "int8":
            set_dialect(model, options.dialect)
            layers = {name for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}
            set_integers(model, {name for name in layers if decoder == "integers" or "image_encoder" in name})
            halve_positions(model)
        return Exported(path, parity, OnnxRuntime(path, threads=1), model, TorchRuntime(model))

    return write


@pytest.fixture(scope="session")
def fp32(export, tiny_config) -> Exported:
    """The ViT in float."""
    return export(tiny_config, "fp32")


@pytest.fixture(scope="session")
def int8(export, small_config) -> Exported:
    """A quantized ViT in the CPU dialect."""
    return export(small_config, "int8")


@pytest.fixture(scope="session")
def int8_decoder(export, small_config) -> Exported:
    """The same, its decoder in integers too."""
    return export(small_config, "int8", decoder="integers")


@pytest.fixture(scope="session")
def fp16(export, small_config) -> Exported:
    """A ViT in halves."""
    return export(small_config, "fp16")


@pytest.fixture(scope="session")
def fp32_small(export, small_config) -> Exported:
    """The same in float."""
    return export(small_config, "fp32")


@pytest.fixture(scope="session")
def int8_tensorrt(export, small_config) -> Exported:
    """A quantized ViT in TensorRT's dialect, decoder and all."""
    return export(small_config, "int8", "tensorrt", "integers")


@pytest.fixture(scope="session")
def int8_whole(export, tiny_config) -> Exported:
    """A quantized ViT of two blocks and two decoder layers, in integers too."""
    return export(tiny_config, "int8", decoder="integers")


@pytest.fixture(scope="session")
def timm_fp32(export, timm_config) -> Exported:
    """A backbone of timm's in float."""
    return export(timm_config, "fp32")


@pytest.fixture(scope="session")
def timm_int8(export, timm_config) -> Exported:
    """The same, pruned and quantized, in the CPU dialect."""
    from sam_edge.compress.prune import PruneOptions, prune_encoder
    from sam_edge.export import to_onnx
    from sam_edge.models.sam import EdgeSam

    pruned = EdgeSam(timm_config)
    prune_encoder(pruned, PruneOptions(0.3, "random"))
    with pytest.MonkeyPatch.context() as patch:
        # as for TinyViT
        patch.setitem(to_onnx.SMALLEST_IOU, "int8", 0.85)
        return export(pruned.config, "int8")


@pytest.fixture(scope="session")
def tiny_vit_fp32(export, tiny_vit_config) -> Exported:
    """A TinyViT in float."""
    return export(tiny_vit_config, "fp32")


@pytest.fixture(scope="session")
def tiny_vit_int8(export, tiny_vit_config) -> Exported:
    """A quantized TinyViT in the CPU dialect.

    Twenty convolutions in a row round anew: in integers some values fall a step to the other side, which moves
    random weights' masks, whose logits are near zero, more than the exporter allows a trained model.
    """
    from sam_edge.export import to_onnx

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(to_onnx.SMALLEST_IOU, "int8", 0.85)
        return export(tiny_vit_config, "int8")
