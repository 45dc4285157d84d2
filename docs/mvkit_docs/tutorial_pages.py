"""Tutorials as notebooks, each run once at reduced size, with what it printed and drew.

Runs are kept in `docs/_build/tutorials`, and made anew when a tutorial, mvkit or torch changes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import torch

from mvkit_docs.files import write_if_changed

ROOT = Path(__file__).parent.parent.parent
DATA = Path(os.environ.get("MVKIT_DATA", ROOT.parent / "shared" / "data"))
SECONDS = 1200  # after which a tutorial is stopped; a minute is usual
SHORT_RUN = """
```{{note}}
What is shown below comes from a short run that was made with this page: {what}. Figures and
numbers are therefore worse than those of the tutorial as it is written: `python {path}`.
```
"""
NOT_RUN = """
```{{note}}
This tutorial was not run for this page, and shows no output: {reason}. Run it with
`python {path}`.
```
"""
EPOCHS, ROWS = 3, 600  # at most, in short runs
FEWER = {"09_compare": (2, 256)}  # of the tutorial that trains twelve models


@attrs.frozen
class Tutorial:
    """A file of cells, in jupytext's percent format."""

    path: Path

    @property
    def source(self) -> str:
        """The text of the file."""
        return self.path.read_text()

    @property
    def cells(self) -> list[tuple[str, str]]:
        """Kind, `markdown` or `code`, and source of each cell."""
        cells = []
        for piece in re.split(r"^# %%", self.source, flags=re.MULTILINE)[1:]:
            head, _, body = piece.partition("\n")
            if "[markdown]" in head:
                lines = [re.sub(r"^# ?", "", line) for line in body.strip("\n").splitlines()]
                cells.append(("markdown", "\n".join(lines)))
            else:
                cells.append(("code", body.strip("\n")))
        return cells

    @property
    def title(self) -> str:
        """Its heading."""
        match = re.search(r"^# # (.+)$", self.source, re.MULTILINE)
        return match[1] if match else self.path.stem

    @property
    def relative(self) -> str:
        """The path from the root of the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def most(self) -> tuple[int, int]:
        """Epochs and rows of its short run, at most."""
        return FEWER.get(self.path.stem, (EPOCHS, ROWS))

    def lacks(self) -> str | None:
        """What it needs and is not there; None if it can be run."""
        for module in re.findall(r"^(?:from|import) (mvkit_\w+|scanpy|optuna)", self.source, re.M):
            if find_spec(module) is None:
                return f"it needs {module.replace('_', '-')}, which was not installed"
        folders = set(re.findall(r'"MVKIT_DATA".*/ "(\w+)"', self.source))
        if "MVKIT_DATA" in self.source and not folders:
            folders = {"mnist", "fsdd"}
        for folder in sorted(folders):
            if not (DATA / folder).is_dir():
                return f"it needs the data `{folder}`, which were not there"
        return None


def tutorials() -> list[Tutorial]:
    """Those of mvkit and of the packages beside it, by number."""
    paths = [*ROOT.glob("tutorials/[0-9]*.py"), *ROOT.glob("plugins/*/tutorials/[0-9]*.py")]
    return [Tutorial(path) for path in sorted(paths, key=lambda path: path.name)]


def shortened(source: str, most: int = EPOCHS, rows: int = ROWS) -> str:
    """A source with few epochs, trials, draws and rows."""
    source = re.sub(
        r'(epochs=|"epochs": |trials=)(\d+)',
        lambda match: f"{match[1]}{min(int(match[2]), most)}",
        source,
    )
    source = re.sub(r"slice\(0, ([4-9]\d\d|\d{4,})\)", "slice(0, 300)", source)
    source = re.sub(r"data\.train\b(?!\.)", f"data.train.batch.take(slice(0, {rows}))", source)
    source = re.sub(r"slice\(0, \d{4,}\)", f"slice(0, {rows})", source)
    return re.sub(r"\bn=\d{3,}", "n=20", source)


@functools.cache
def code_digest() -> str:
    """A digest of everything that what a tutorial shows depends on, but the tutorial."""
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted(ROOT.glob("mvkit/**/*.py")):
        digest.update(_without_docstrings(path.read_text()).encode())
    for name in ("run_cells.py", "tutorial_pages.py"):
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def _without_docstrings(source: str) -> str:
    """What a source does, without what stands between three quotes."""
    return re.sub(r'""".*?"""', "", source, flags=re.DOTALL)


def outputs_of(tutorial: Tutorial, kept: Path) -> list[dict[str, Any]]:
    """What its code cells show in a short run, pictures in base64; from an earlier run if kept."""
    digest = hashlib.sha256((code_digest() + tutorial.source).encode()).hexdigest()[:16]
    path = kept / f"{tutorial.path.stem}-{digest}.json"
    if not path.is_file():
        kept.mkdir(parents=True, exist_ok=True)
        for older in kept.glob(f"{tutorial.path.stem}-*.json"):
            older.unlink()
        path.write_text(json.dumps(_run(tutorial)))
    outputs: list[dict[str, Any]] = json.loads(path.read_text())
    return outputs


def _run(tutorial: Tutorial) -> list[dict[str, Any]]:
    code = [source for kind, source in tutorial.cells if kind == "code"]
    sources = [shortened(source, *tutorial.most) for source in code]
    modules = re.findall(r"^from (mvkit_\w+)", tutorial.source, re.MULTILINE)
    environment = os.environ | {
        "MPLBACKEND": "Agg",
        "MVKIT_DATA": str(DATA.absolute()),
        "MVKIT_PLUGINS": ",".join(modules).replace("_", "-"),
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cells, results = folder / "cells.json", folder / "outputs.json"
        cells.write_text(json.dumps(sources))
        program = Path(__file__).parent / "run_cells.py"
        done = subprocess.run(
            [sys.executable, str(program), str(cells), str(results)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{tutorial.relative} failed:\n{done.stderr}")
        outputs: list[dict[str, Any]] = json.loads(results.read_text())
        for output in outputs:
            pictures = [(folder / picture).read_bytes() for picture in output["pictures"]]
            output["pictures"] = [base64.b64encode(each).decode() for each in pictures]
    return outputs


def write_tutorials(folder: Path, kept: Path, *, execute: bool = True) -> list[str]:
    """Writes a notebook for each tutorial, and a page that lists them; returns their names."""
    every = tutorials()
    reasons = {each.path: "the site was built without running them" for each in every}
    if execute:
        reasons = {each.path: reason for each in every if (reason := each.lacks())}
    runnable = [each for each in every if each.path not in reasons]
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        outputs = list(pool.map(lambda each: outputs_of(each, kept), runnable))
    by_path = {each.path: shown for each, shown in zip(runnable, outputs, strict=True)}
    folder.mkdir(exist_ok=True)
    for each in every:
        notebook = _notebook(each, by_path.get(each.path), reasons.get(each.path, ""))
        write_if_changed(folder / f"{each.path.stem}.ipynb", json.dumps(notebook, indent=1))
    write_if_changed(folder / "index.md", _index(every))
    return [each.path.stem for each in every]


def _index(every: Iterable[Tutorial]) -> str:
    page = "# Tutorials\n\nEach is a Python file that runs as it is, and opens as a notebook with "
    page += "jupytext.\nPages show what a short run printed and drew, and say so.\n\n"
    page += "```{toctree}\n:maxdepth: 1\n\n"
    return page + "".join(f"{each.path.stem}\n" for each in every) + "```\n"


def _notebook(
    tutorial: Tutorial, outputs: list[dict[str, Any]] | None, reason: str
) -> dict[str, Any]:
    """The notebook, with outputs if there are any, and a note on where these come from."""
    if outputs is None:
        note = NOT_RUN.format(reason=reason, path=tutorial.relative)
    else:
        epochs, rows = tutorial.most
        what = f"no more than {epochs} epochs, {rows} rows and 20 draws"
        note = SHORT_RUN.format(what=what, path=tutorial.relative)
    cells: list[dict[str, Any]] = []
    shown = iter(outputs or [])
    for kind, source in tutorial.cells:
        if kind == "markdown":
            text = _with_note(source, note) if not cells else source
            cells.append({"cell_type": "markdown", "metadata": {}, "source": text})
        else:
            output = next(shown, {"text": "", "pictures": []})
            cells.append(_code_cell(source, output))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _with_note(source: str, note: str) -> str:
    heading, _, text = source.partition("\n")
    return f"{heading}\n{note}\n{text}"


def _code_cell(source: str, output: dict[str, Any]) -> dict[str, Any]:
    outputs: list[dict[str, Any]] = []
    if output["text"]:
        outputs.append({"output_type": "stream", "name": "stdout", "text": output["text"]})
    for picture in output["pictures"]:
        data = {"image/png": picture, "text/plain": "a picture"}
        outputs.append({"output_type": "display_data", "metadata": {}, "data": data})
    return {
        "cell_type": "code",
        "metadata": {},
        "execution_count": None,
        "source": source,
        "outputs": outputs,
    }
