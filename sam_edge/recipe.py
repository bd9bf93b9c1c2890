"""A recipe: the settings of a whole lineage, as TOML."""

import dataclasses
import importlib.resources
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam_edge.errors import RecipeError


@dataclass(frozen=True)
class CompressRecipe:
    """Settings of `compress`."""

    ratio: float = 0.5
    schedule: str = "alternate"
    importance: str = "disturbed-taylor"
    importance_images: int = 1000
    ranking: str = "global"
    epochs: int | None = None
    batch_size: int = 4
    learning_rate: float = 1e-4
    views: int = 1


@dataclass(frozen=True)
class QuantizeRecipe:
    """Settings of `quantize`."""

    weights: int = 8
    activations: int = 8
    calibration_images: int = 8


@dataclass(frozen=True)
class EngineRecipe:
    """Settings of `export-trt`; no targets build no engine."""

    flavor: str = "rtx"
    targets: tuple[str, ...] = ("sm86", "sm89")


@dataclass(frozen=True)
class EvaluateRecipe:
    """Settings of `eval`."""

    limit: int | None = None
    """Pictures, drawn by the seed; all of the val split without it."""


@dataclass(frozen=True)
class BenchRecipe:
    """Settings of `bench`."""

    warmup: int = 2
    runs: int = 10


@dataclass(frozen=True)
class Recipe:
    """A lineage from a model to engines and a report."""

    title: str = "sam-edge"
    """Heading of the report."""
    model: str = "nano"
    """What is compressed."""
    images: str = "synthetic:160:1"
    """Unlabelled pictures for distillation, calibration and parity."""
    data: str = "synthetic:160:2"
    """Labelled pictures for mIoU."""
    seed: int = 0
    """Seed of every step."""
    compress: CompressRecipe = field(default_factory=CompressRecipe)
    quantize: QuantizeRecipe = field(default_factory=QuantizeRecipe)
    engine: EngineRecipe = field(default_factory=EngineRecipe)
    evaluate: EvaluateRecipe = field(default_factory=EvaluateRecipe)
    bench: BenchRecipe = field(default_factory=BenchRecipe)


def read_recipe(path: Path | None, overrides: dict[str, Any]) -> Recipe:
    """A recipe file, or the packaged one, with some of its top-level entries replaced.

    Raises:
        RecipeError: unreadable, not TOML, or entries that a recipe does not have.
    """
    source = Path(str(importlib.resources.files("sam_edge") / "demo.toml")) if path is None else path
    try:
        values = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{source} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        # which numbers of many digits, and tables nested by the thousand, end in as well as what is no TOML
        raise RecipeError(f"{source} is not TOML: {error}.") from error
    return _build(Recipe, {**values, **overrides}, str(source))


def _build(kind: type, values: dict[str, Any], where: str) -> Any:
    """A dataclass from a table; its nested tables likewise, and every value of the type of its default."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(values.keys() - fields.keys())
    if unknown:
        raise RecipeError(f"{where}: unknown entry {unknown[0]!r}; allowed: {', '.join(fields)}.")
    defaults = kind()
    built: dict[str, Any] = {}
    for name, value in values.items():
        default = getattr(defaults, name)
        if dataclasses.is_dataclass(default):
            if not isinstance(value, dict):
                raise RecipeError(f"{where}: [{name}] must be a table, got {value!r}.")
            built[name] = _build(type(default), value, f"{where} [{name}]")
        else:
            built[name] = _checked(name, value, default, where)
    return kind(**built)


def _checked(name: str, value: Any, default: Any, where: str) -> Any:
    if isinstance(default, tuple):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise RecipeError(f"{where}: {name} must be a list of strings, got {value!r}.")
        return tuple(value)
    wanted = int if default is None else type(default)
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise RecipeError(f"{where}: {name} must be {wanted.__name__}, got {value!r}.")
    return value
