"""Packages that are called: `sam_edge.compress(...)` is a verb, and `sam_edge.compress.slimming` lies in it.

One name can be but one object, whichever of the two was asked for first; so the package itself is callable.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class Verb(ModuleType):
    """A package that calls the function of its name in `sam_edge.api`."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """See the function."""
        return self._function(*args, **options)

    @property
    def _function(self) -> Any:
        return getattr(import_module("sam_edge.api"), self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> Any:
        """What `help` and editors show."""
        import inspect

        return inspect.signature(self._function)


def make_callable(package: str) -> None:
    """Turn a package into a verb; for its own `__init__`."""
    sys.modules[package].__class__ = Verb
