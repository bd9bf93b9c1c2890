"""The models known by name: what they are made of, and where their weights come from."""

import importlib.resources
from dataclasses import dataclass
from pathlib import Path

from sam_edge.segment.config import BackboneConfig, DecoderConfig, ModelConfig, StageConfig, uniform_blocks

PACKAGED = "packaged with sam-edge"
WEIGHTS = "model.safetensors"


TINY_VIT_5M_STAGES = (
    StageConfig(embed=64, depth=2, heads=0, window=0, stride=1),
    StageConfig(embed=128, depth=2, heads=4, window=7, stride=2),
    StageConfig(embed=160, depth=6, heads=5, window=14, stride=2),
    StageConfig(embed=320, depth=2, heads=10, window=7, stride=1),
)
"""The 5 M parameter TinyViT of MobileSAM and TinySAM."""


@dataclass(frozen=True)
class KnownModel:
    """A model with a name: what it is made of, and where its weights come from."""

    name: str
    """What users type."""
    config: ModelConfig
    """Its architecture."""
    summary: str
    """One line for listings."""
    source: str
    """A URL, a Hugging Face repository (`owner/name`), or `PACKAGED`."""
    file_name: str
    """The weights' file there."""
    licence: str
    """SPDX identifier of the weights' licence."""
    sha256_prefix: str | None = None
    """How the file's sha256 begins; None where the hub reports it or nobody published one."""

    @property
    def is_url(self) -> bool:
        """True when the weights come from a plain URL."""
        return self.source.startswith(("http://", "https://"))


def _vit(depth: int, embed: int, heads: int, global_at: tuple[int, ...], mlp: int | None = None) -> ModelConfig:
    return ModelConfig("vit", 1024, uniform_blocks(depth, embed, heads, global_at, window=14, mlp=mlp))


NANO_CONFIG = ModelConfig(
    arch="timm",
    image_size=512,
    patch_size=8,
    backbone=BackboneConfig("tf_efficientnet_lite2"),
    decoder=DecoderConfig(dim=128, mlp=512, iou_hidden=128, draws_boxes=True, draws_points=True),
)
"""The architecture of `nano`; a test holds the packaged weights to it."""

NANO_VIT_CONFIG = ModelConfig(
    arch="slim_vit",
    image_size=512,
    patch_size=8,
    blocks=uniform_blocks(8, 160, 5, (3, 7), window=8),
    decoder=NANO_CONFIG.decoder,
)
"""The architecture of `nano-vit`, the first `nano`: SAM's own ViT, small, for what is shown on ViTs."""

_OFFICIAL = "https://dl.fbaipublicfiles.com/segment_anything/"
_MOBILE_SAM = "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/f706ad9c4eb7f219c00d9050e46328518ffb65d2/"

_MODELS = (
    KnownModel(
        "vit_b",
        _vit(12, 768, 12, (2, 5, 8, 11)),
        "Segment Anything's smallest, 94 M parameters",
        f"{_OFFICIAL}sam_vit_b_01ec64.pth",
        "sam_vit_b_01ec64.pth",
        "Apache-2.0",
        "01ec64",
    ),
    KnownModel(
        "vit_l",
        _vit(24, 1024, 16, (5, 11, 17, 23)),
        "Segment Anything's middle size, 312 M parameters",
        f"{_OFFICIAL}sam_vit_l_0b3195.pth",
        "sam_vit_l_0b3195.pth",
        "Apache-2.0",
        "0b3195",
    ),
    KnownModel(
        "vit_h",
        _vit(32, 1280, 16, (7, 15, 23, 31)),
        "Segment Anything's largest and most accurate, 641 M parameters",
        f"{_OFFICIAL}sam_vit_h_4b8939.pth",
        "sam_vit_h_4b8939.pth",
        "Apache-2.0",
        "4b8939",
    ),
    KnownModel(
        "vit_t",
        ModelConfig("tiny_vit", 1024, stages=TINY_VIT_5M_STAGES),
        "MobileSAM: a TinyViT encoder distilled from vit_h, 10 M parameters",
        f"{_MOBILE_SAM}weights/mobile_sam.pt",
        "mobile_sam.pt",
        "Apache-2.0",
    ),
    KnownModel(
        "slimsam-50",
        _vit(12, 384, 12, (2, 5, 8, 11)),
        "SlimSAM: vit_b with half of its channels, 28 M parameters",
        "Zigeng/SlimSAM-uniform-50",
        "model.safetensors",
        "Apache-2.0",
    ),
    KnownModel(
        "slimsam-77",
        _vit(12, 168, 12, (2, 5, 8, 11), mlp=696),
        "SlimSAM: vit_b with 77 % of its channels removed, 10 M parameters",
        "Zigeng/SlimSAM-uniform-77",
        "model.safetensors",
        "Apache-2.0",
    ),
    KnownModel(
        "nano",
        NANO_CONFIG,
        "sam-edge's own small model for 512 px, needs no download",
        PACKAGED,
        WEIGHTS,
        "Apache-2.0",
    ),
    KnownModel(
        "nano-vit",
        NANO_VIT_CONFIG,
        "the first nano: a small ViT as SAM's, of sam-edge's repository alone",
        PACKAGED,
        WEIGHTS,
        "Apache-2.0",
    ),
)

KNOWN: dict[str, KnownModel] = {model.name: model for model in _MODELS}
"""Every known model by name."""


def shipped_folder(name: str) -> Path:
    """A folder that ships with sam-edge: `nano` holds weights, `nano-onnx` graphs in integers; `nano-vit` holds weights
    in the repository, and is left out of packages."""
    return Path(str(importlib.resources.files("sam_edge") / "shipped" / name))
