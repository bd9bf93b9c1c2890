"""Exported folders of tiny models."""

from tests.exported import (  # noqa: F401 - fixtures
    export,
    fp16,
    fp32,
    fp32_small,
    int8,
    int8_decoder,
    int8_tensorrt,
    int8_whole,
    small_config,
    timm_fp32,
    timm_int8,
    tiny_vit_fp32,
    tiny_vit_int8,
)
