"""`mvkit init`: a commented run file for a user's own tables, which runs as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvkit.core.safe_file import write_whole
from mvkit.data.column_kinds import KINDS, UNMODELLED
from mvkit.data.datasets.own_files import OwnFiles
from mvkit.data.files import read_files
from mvkit.data.table_layout import TableLayout
from mvkit.data.tables import looks_like_ids
from mvkit.errors import RequestError
from mvkit.tables.choices import choose

if TYPE_CHECKING:
    from pandas import DataFrame

TEMPLATE = """\
# A run of mvkit on your own files, written by `mvkit init`. It runs as it is:
#   mvkit train {path}
#   mvkit report {folder}
# Lines that begin with # are options that you may want.

[data]
name = "files"
{id}
# label = "diagnosis"            # a column that is never modelled: for colours, and metrics
# covariates = ["site", "age"]   # columns that the model is conditioned on, not modelled
# row_weight = "weight"          # a column of how much each row counts
splits = [0.8, 0.1, 0.1]         # train, valid and test, rows at random
# split_by = "part"              # or a column that says train, valid or test
seed = 0

[data.files]                     # paths from the folder of this file; .csv, .tsv or .parquet
{files}

# What columns were taken for: {kinds}.
# {unmodelled} columns are not modelled.
{columns}
[data.transforms]                # numbers are standardised where nothing is said
# {first} = ["log1p", "standardise"]

[model]                          # a recipe and its options, or what `Model` takes
recipe = "mopoe"                 # `mvkit list recipe` has them all
latent_dim = {latent_dim}
seed = 0
# covariates = ["site", "age"]   # of those above
{modalities}
[train]                          # what `fit` takes
epochs = {epochs}
batch_size = {batch_size}
lr = 1e-3
seed = 0
"""


def find_files(data: dict[str, Any], folder: Path) -> None:
    """Makes paths in a table [data] of a run file those from its folder.

    A table that has files, and no name, is of the dataset `files`.

    Args:
        data: the table, which is changed.
        folder: of the run file.
    """
    paths = data.get("files")
    if not isinstance(paths, dict):
        return
    data.setdefault("name", "files")
    for name, file in paths.items():
        if isinstance(file, str):
            paths[name] = str((folder / file).resolve())


def write_run_file(paths: Sequence[Path], output: Path, *, id: str | None = None) -> str:
    """Writes a run file for tables; returns its text.

    Args:
        paths: of CSV, TSV or Parquet files.
        output: the run file, which must not be there yet.
        id: the column of ids; None: with several files the one that looks like it.

    Raises:
        RequestError: the file is there already; several files without a column of ids.
        DataError: files that cannot be read or aligned.
    """
    if output.exists():
        raise RequestError(f"{output}: is there already; expected a new file; give another -o")
    named = named_files(paths)
    if id is None and len(named) > 1:
        id = common_ids(named, "init")
    files = {name: str(path) for name, path in named.items()}
    source = OwnFiles(files=files, id=id)
    layouts = source.layouts()
    rows = len(source.load().train)
    text = _text(named, output, id, layouts, rows)
    write_whole(output, text.encode())
    return text


def named_files(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by their names without endings.

    Raises:
        RequestError: two of one name, or a folder.
    """
    named: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            raise RequestError(f"{path}: a folder; expected files; give {path / '*.csv'}")
        name = path.name.partition(".")[0]
        if name in named:
            raise RequestError(
                f"{path}: another file is called {name!r} too; expected names that differ; rename "
                "one"
            )
        named[name] = path
    return named


def common_ids(named: Mapping[str, Path], command: str) -> str:
    """The column of ids that all files have.

    Args:
        named: the files by name.
        command: which asks, for messages.

    Raises:
        RequestError: none has a name that says so, with a value for each row.
    """
    frames: list[DataFrame] = []
    for name, path in named.items():
        frames += read_files({name: path}, None).values()
    for column in frames[0].columns:
        shared = all(column in frame.columns and frame[column].is_unique for frame in frames)
        if shared and looks_like_ids(str(column)):
            return str(column)
    raise RequestError(
        f"{command}: several files, and no column of ids that all have; expected one, by which "
        "rows are aligned; give --id COLUMN"
    )


def _text(
    named: Mapping[str, Path],
    output: Path,
    id: str | None,
    layouts: Mapping[str, TableLayout],
    rows: int,
) -> str:
    choices = choose(rows)
    groups = [group for layout in layouts.values() for group in layout.groups]
    return TEMPLATE.format(
        path=output,
        folder=Path("runs") / output.stem,
        id='# id = "patient"               # the column of ids'
        if id is None
        else f"id = {_q(id)}",
        files="\n".join(f"{_q(name)} = {_q(_from(path, output))}" for name, path in named.items()),
        kinds=", ".join(KINDS),
        unmodelled=", ".join(UNMODELLED),
        columns="\n".join(_columns(name, layout) for name, layout in layouts.items()),
        first=groups[0],
        latent_dim=max(2, min(16, sum(len(layout.columns) for layout in layouts.values()) // 2)),
        modalities="\n".join(f"# [model.modalities.{_q(group)}]" for group in groups),
        epochs=min(100, choices["epochs"]),
        batch_size=choices["batch_size"],
    )


def _columns(name: str, layout: TableLayout) -> str:
    """A table of the kinds of the columns of a file."""
    lines = [f"[data.kinds.{_q(name)}]"]
    for column in layout.columns:
        lines.append(f"{_q(column.name)} = {_q(column.kind)}")
    return "\n".join([*lines, ""])


def _from(path: Path, output: Path) -> str:
    """A path as it is from the folder of the run file."""
    return Path(os.path.relpath(path.resolve(), output.resolve().parent)).as_posix()


def _q(text: str) -> str:
    """Text in quotes, as TOML has it."""
    return json.dumps(text, ensure_ascii=False)
