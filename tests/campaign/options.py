"""What the command line takes, read from it: a command that comes is tried too."""

from dataclasses import dataclass
from enum import Enum
from functools import cache
from inspect import unwrap
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

ENDLESS = ("serve",)
"""Commands that end only when they are told to."""


@dataclass(frozen=True)
class Option:
    """One of a command's."""

    names: tuple[str, ...]
    """As `--out`, the first first, and what says the opposite."""
    takes_value: bool
    repeats: bool
    kind: type
    """Of the value."""
    choices: tuple[str, ...] = ()
    """All that it may be, where that is a list."""


@cache
def commands() -> dict[str, list[Option]]:
    """Per command, its options; studies, which parse their own, are not among them."""
    from sam_edge.cli import application

    group: Any = typer.main.get_command(application())
    return {
        name: [_option(parameter, command) for parameter in command.params if _is_option(parameter)]
        for name, command in group.commands.items()
        if name not in (*ENDLESS, "study")
    }


def _is_option(parameter: Any) -> bool:
    return parameter.opts[0].startswith("--") and parameter.opts[0] != "--help"


def _option(parameter: Any, command: Any) -> Option:
    kind = get_type_hints(unwrap(command.callback))[parameter.name]
    while get_origin(kind) in (Union, UnionType, list):
        kind = get_args(kind)[0]
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if isinstance(kind, type) and issubclass(kind, Enum):
        choices = tuple(member.value for member in kind)
    names = (*parameter.opts, *parameter.secondary_opts)
    return Option(names, not parameter.is_flag, parameter.multiple, str if choices else kind, choices)
