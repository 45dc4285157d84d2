"""Runs the cells of a tutorial, in a process and a folder of its own, and keeps what they show.

    python run_cells.py CELLS.json OUTPUTS.json

The first file holds a list of sources. The second gets, of each, what it printed, and the names of
the pictures that it wrote into the folder.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any


def run(sources: list[str]) -> list[dict[str, Any]]:
    """Runs sources in turn, with the names of those before; errors are raised."""
    space: dict[str, Any] = {"__name__": "__main__"}
    return [_outputs(source, space) for source in sources]


def _outputs(source: str, space: dict[str, Any]) -> dict[str, Any]:
    before = {path: path.stat().st_mtime_ns for path in Path().glob("*.png")}
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        _execute(source, space)
    pictures = sorted(Path().glob("*.png"), key=lambda path: path.stat().st_mtime_ns)
    new = [path.name for path in pictures if before.get(path) != path.stat().st_mtime_ns]
    return {"text": shown.getvalue(), "pictures": new}


def _execute(source: str, space: dict[str, Any]) -> None:
    """Runs a source; its last expression is shown, as a notebook does."""
    tree = ast.parse(source)
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        tree.body.pop()
        exec(compile(tree, "<cell>", "exec"), space)
        value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), space)
        if value is not None:
            print(repr(value))
        return
    exec(compile(tree, "<cell>", "exec"), space)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    outputs = run(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(outputs))
