"""What the command line takes, read from it: a command that comes is tried too."""

from functools import cache
from typing import Any

import typer

ENDLESS = ("serve",)
"""Commands that end only when they are told to."""


@cache
def options_of() -> dict[str, list[tuple[str, bool]]]:
    """Per command, its options and whether each takes a value; studies that parse their own are not among them."""
    from sam_edge.cli import application
    from sam_edge.cli.study import MODULES

    group: Any = typer.main.get_command(application())
    studies = group.commands.pop("study").commands.items()
    commands = {f"study {name}": command for name, command in studies if name not in MODULES}
    return {
        name: [
            (parameter.opts[0], not parameter.is_flag)
            for parameter in command.params
            if parameter.opts[0].startswith("--") and parameter.opts[0] != "--help"
        ]
        for name, command in {**group.commands, **commands}.items()
        if name not in ENDLESS
    }
