"""Help texts from the option dataclasses, read from their source: importing them would import torch."""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path


def doc(module: str, name: str, field: str) -> str:
    """The line under a dataclass's field: `doc("sam_edge.compress.prune", "PruneOptions", "ratio")`."""
    return _fields(module, name)[field]


@cache
def _fields(module: str, name: str) -> dict[str, str]:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    # the class alone: whole modules would be a tenth of a short command's time
    _, _, rest = Path(spec.origin).read_text(encoding="utf-8").partition(f"\nclass {name}")
    (found,) = ast.parse(re.split(r"\n(?=[^\s)])", f"class {name}{rest}", maxsplit=1)[0]).body
    assert isinstance(found, ast.ClassDef)
    texts: dict[str, str] = {}
    for statement, after in zip(found.body, found.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            value = after.value if isinstance(after, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts[statement.target.id] = value.value
    return texts
