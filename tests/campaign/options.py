"""What the command line takes, read from it: a command that comes is tried too."""

from functools import cache
from typing import Any

import typer

ENDLESS = ("serve",)
"""Commands that end only when they are told to."""


@cache
def options_of() -> dict[str, list[tuple[str, bool]]]:
    """Per command, its options and whether each takes a value."""
    from sam_edge.cli import app

    group: Any = typer.main.get_command(app)
    return {
        name: [
            (parameter.opts[0], not parameter.is_flag)
            for parameter in command.params
            if parameter.opts[0].startswith("--") and parameter.opts[0] != "--help"
        ]
        for name, command in group.commands.items()
        if name not in ENDLESS
    }
