"""A recipe: the settings of a whole lineage, as TOML. Each table holds options of the step that it is named after."""

import dataclasses
import importlib.resources
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sam_edge.compress.slimming import SlimOptions
from sam_edge.errors import RecipeError
from sam_edge.export.to_tensorrt import TrtOptions
from sam_edge.quantize.ptq import QuantizeOptions

ALIASES = {"importance_images": "images"}
"""Entries that have, as on the command line, a longer name than their field."""
_LONGER = {name: entry for entry, name in ALIASES.items()}


@dataclass(frozen=True)
class QuantizeRecipe(QuantizeOptions):
    """Options of `quantize`."""

    calibration_images: int = 8
    """Pictures that scales are searched on."""


@dataclass(frozen=True)
class EvaluateRecipe:
    """Options of `eval`."""

    limit: int | None = None
    """Pictures, drawn by the seed; all of the val split without it."""


@dataclass(frozen=True)
class BenchRecipe:
    """Options of `bench`."""

    warmup: int = 2
    """Runs before any is counted."""
    runs: int = 10
    """Counted runs of each measurement."""


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
    compress: SlimOptions = field(default_factory=SlimOptions)
    """Pruning and distillation."""
    quantize: QuantizeRecipe = field(default_factory=QuantizeRecipe)
    """Integers."""
    engine: TrtOptions = field(default_factory=lambda: TrtOptions(targets=("sm86", "sm89")))
    """Engines; without targets none are built."""
    evaluate: EvaluateRecipe = field(default_factory=EvaluateRecipe)
    """Accuracy."""
    bench: BenchRecipe = field(default_factory=BenchRecipe)
    """Times."""


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
    values |= overrides
    recipe = Recipe()
    found: dict[str, Any] = {}
    hints = get_type_hints(Recipe)
    for name, value in values.items():
        if name not in hints:
            raise RecipeError(f"{source}: unknown entry {name!r}; allowed: {', '.join(hints)}.")
        if not dataclasses.is_dataclass(hints[name]):
            found[name] = _checked(name, value, hints[name], str(source))
        elif not isinstance(value, dict):
            raise RecipeError(f"{source}: [{name}] must be a table, got {value!r}.")
    for name in hints:
        default = getattr(recipe, name)
        if dataclasses.is_dataclass(default):
            # a field that has a longer name has that one alone
            table = {
                ALIASES.get(key, key + "?" * (key in _LONGER)): value for key, value in values.get(name, {}).items()
            }
            found[name] = _filled(default, table, f"{source} [{name}]", found.get("seed", recipe.seed))
    return dataclasses.replace(recipe, **found)


def _filled(options: Any, table: dict[str, Any], where: str, seed: int) -> Any:
    """Options with the entries of a table, which options inside them share, and with the recipe's seed."""
    allowed = _entries(type(options)) - {"seed"}
    if unknown := sorted(table.keys() - allowed):
        told = ", ".join(sorted(_LONGER.get(name, name) for name in allowed))
        raise RecipeError(f"{where}: unknown entry {unknown[0].rstrip('?')!r}; allowed: {told}.")
    changed: dict[str, Any] = {}
    for name, hint in get_type_hints(type(options)).items():
        if dataclasses.is_dataclass(hint):
            inside = getattr(options, name)
            own = {key: value for key, value in table.items() if key in _entries(type(inside))}
            changed[name] = _filled(inside, own, where, seed)
        elif name == "seed":
            changed[name] = seed
        elif name in table:
            changed[name] = _checked(name, table[name], hint, where)
    return dataclasses.replace(options, **changed)


def _entries(kind: Any) -> set[str]:
    """Names that a table of these options may have: of plain fields, at whatever depth."""
    hints = get_type_hints(kind)
    nested = (_entries(hint) for hint in hints.values() if dataclasses.is_dataclass(hint))
    return {name for name, hint in hints.items() if not dataclasses.is_dataclass(hint)}.union(*nested)


def _checked(name: str, value: Any, hint: Any, where: str) -> Any:
    """A value of the type that a field has."""
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise RecipeError(f"{where}: {name} must be a list of strings, got {value!r}.")
        return tuple(value)
    kinds = [kind for kind in (get_args(hint) if NoneType in get_args(hint) else (hint,)) if kind is not NoneType]
    if float in kinds and type(value) is int:
        return float(value)
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    if words and value not in words:
        raise RecipeError(f"{where}: {name} must be one of {', '.join(map(str, words))}, got {value!r}.")
    if not words and type(value) not in kinds:
        raise RecipeError(f"{where}: {name} must be {kinds[0].__name__}, got {value!r}.")
    return value
