"""Exported folders of tiny models."""

from tests.exported import export, fp32  # noqa: F401 - fixtures
