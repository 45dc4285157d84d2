"""`mvkit embed`: what a trained model makes of the rows of files."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mvkit.apps.html_report import folder_of, weights_of
from mvkit.apps.init_file import common_ids, named_files
from mvkit.core.safe_file import write_whole
from mvkit.data.column_kinds import Column
from mvkit.data.datasets.own_files import OwnFiles
from mvkit.data.files import read_files
from mvkit.data.table_layout import TableLayout
from mvkit.errors import DataError, RequestError, suggest
from mvkit.models.checkpoint import load_model
from mvkit.models.embedding import embed
from mvkit.registry.spec import as_part

if TYPE_CHECKING:
    from pandas import DataFrame

LAYOUTS = "layouts.json"


def embed_files(
    folder: Path, paths: Sequence[Path], output: Path, *, id: str | None = None
) -> DataFrame:
    """Writes a table of the rows' ids and posterior means, and returns it.

    Args:
        folder: of a run on a user's own files, or what `mvkit impute` wrote; or the file of a
            model in it.
        paths: files called as those of training, not necessarily all of them.
        output: the CSV file to write.
        id: the column of ids; None: with several files the one that looks like it.

    Raises:
        DataError: a folder of other data, a file that training had not, or columns that differ.
        RequestError: an output that is no CSV file.
    """
    if output.suffix != ".csv":
        raise RequestError(f"{output}: expected a name that ends in .csv; choose another with -o")
    model = load_model(weights_of(folder))
    layouts = layouts_of(folder_of(folder))
    parts: dict[str, DataFrame] = {}
    named = named_files(paths)
    if id is None and len(named) > 1:
        id = common_ids(named, "embed")
    for name, frame in read_files(named, id).items():
        parts |= _layout(name, layouts).split(frame)
    z: DataFrame = embed(model, parts, empty="prior")
    table = z.reset_index(names=id or "row")
    write_whole(output, table.to_csv(index=False).encode())
    return table


def _layout(name: str, layouts: Mapping[str, TableLayout]) -> TableLayout:
    """The layout of a file; one file needs no name where there was one."""
    if name in layouts:
        return layouts[name]
    if len(layouts) == 1:
        return next(iter(layouts.values()))
    raise DataError(f"files: training had none called {name!r}; {suggest(name, layouts)}")


def write_layouts(layouts: Mapping[str, TableLayout], path: Path) -> None:
    """Writes how the columns of tables are shared out, as JSON."""
    plain = {}
    for name, layout in layouts.items():
        columns = [attrs.asdict(column) for column in layout.columns]
        plain[name] = {"columns": columns, "groups": layout.groups}
    write_whole(path, f"{json.dumps(plain, indent=1)}\n".encode())


def layouts_of(folder: Path) -> dict[str, TableLayout]:
    """How the columns of the tables were shared out that a folder's model was trained on.

    Raises:
        DataError: neither a run on a user's own files nor what `mvkit impute` wrote.
    """
    if (folder / LAYOUTS).is_file():
        plain = json.loads((folder / LAYOUTS).read_text("utf-8"))
        return {name: _read_layout(layout) for name, layout in plain.items()}
    if (folder / "run.toml").is_file():
        options = tomllib.loads((folder / "run.toml").read_text("utf-8")).get("data", {})
        if options.get("name") == "files":
            source: OwnFiles = as_part("dataset", options)
            return source.layouts()
    raise DataError(
        f"{folder}: its model was not trained on files of your own; expected a run whose [data] "
        "has files, or a folder that mvkit impute wrote; use mvkit.embed in Python"
    )


def _read_layout(plain: dict[str, Any]) -> TableLayout:
    columns = []
    for options in plain["columns"]:
        columns.append(Column(**{**options, "levels": tuple(options["levels"])}))
    groups = {name: tuple(names) for name, names in plain["groups"].items()}
    return TableLayout(tuple(columns), groups)
