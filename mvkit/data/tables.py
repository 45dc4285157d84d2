"""Tables and arrays with row ids: read, aligned by id, and written back. The only place that knows pandas and polars.

Axes: b rows of all modalities together, n rows of one, k columns.
"""

from __future__ import annotations

import itertools
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.validation import Columns
from mvkit.errors import DataError, ShapeError, suggest

READERS = {
    ".csv": ("read_csv", ","),
    ".tsv": ("read_csv", "\t"),
    ".parquet": ("read_parquet", None),
}


@attrs.frozen(eq=False)
class Table:
    """Rows of one modality.

    Args:
        values: (n, *shape), NaN where missing if they are floats.
        ids: an id for each row; None: rows of all modalities correspond.
        columns: what the columns are called, if they have names.
        seen: which rows, (n,), or elements, (n, *shape), are observed, bool; None: what is not NaN.
    """

    values: Tensor
    ids: list[Any] | None = None
    columns: Columns | None = None
    seen: Tensor | None = None

    def called(self, row: int) -> str:
        """How messages call a row."""
        return f"row {row}" if self.ids is None else f"row {self.ids[row]!r}"


def is_table(value: Any) -> bool:
    """Whether a value is a DataFrame or a Series of pandas or polars."""
    return library(value) in ("pandas", "polars")


def library(value: Any) -> str:
    """The package that the type of a value comes from."""
    return type(value).__module__.partition(".")[0]


def frame_of(name: str, table: Any, id: str | None) -> Any:
    """A table as a pandas DataFrame whose index holds the ids.

    Raises:
        DataError: no ids where there must be some, or a name of a column that is not there.
    """
    where = f"tables[{name!r}]"
    if library(table) == "polars":
        if id is None:
            raise DataError(
                f"{where}: a polars table has no index; expected ids in a column; give id='column'"
            )
        frame = (
            table.to_frame().to_pandas() if type(table).__name__ == "Series" else table.to_pandas()
        )
    elif library(table) == "pandas":
        frame = table.to_frame() if type(table).__name__ == "Series" else table
    else:
        kind = type(table).__name__
        raise DataError(
            f"{where}: got {kind}; expected a pandas or polars DataFrame; use from_arrays for arrays"
        )
    if id is not None and frame.index.name != id:
        if id not in frame.columns:
            raise DataError(
                f"{where}: no column {id!r} of ids; {suggest(id, map(str, frame.columns))}"
            )
        frame = frame.set_index(id)
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(
            f"{where}: two columns are called {twice[0]!r}; expected names that differ; rename one"
        )
    if frame.index.hasnans:
        row = int(np.flatnonzero(frame.index.isna())[0])
        raise DataError(
            f"{where}: row {row} has no id; expected one for each; fill it in, or drop the row"
        )
    return frame


def read_table(name: str, frame: Any, *, text: bool) -> Table:
    """A DataFrame (see `frame_of`) as numbers, or as numbered words where all columns are text and `text` is welcome.

    Raises:
        DataError: text or other things among numbers: with column, row and value.
    """
    import pandas

    names, ids = tuple(map(str, frame.columns)), frame.index.tolist()
    numeric = pandas.api.types.is_numeric_dtype
    odd = [c for c, kind in frame.dtypes.items() if not numeric(kind) or kind.kind == "c"]
    declared = [c for c in odd if isinstance(frame[c].dtype, pandas.CategoricalDtype)]
    if odd and len(odd) == frame.shape[1] and (text or len(declared) == len(odd)):
        flat = pandas.Series(frame.to_numpy(dtype=object).ravel())
        flat = flat.map(str, na_action="ignore")
        words = tuple(sorted(flat.dropna().unique()))
        codes = pandas.Categorical(flat, categories=words).codes.astype(float).reshape(frame.shape)
        return Table(
            torch.from_numpy(np.where(codes < 0, np.nan, codes)), ids, Columns(names, words)
        )
    for column in odd:
        _refuse_text(name, column, frame[column])
    single = all(dtype == np.float32 for dtype in frame.dtypes)
    values = frame.to_numpy(dtype=np.float32 if single else np.float64, na_value=np.nan, copy=True)
    return Table(torch.from_numpy(np.ascontiguousarray(values)), ids, Columns(names))


def _refuse_text(name: str, column: Any, values: Any) -> None:
    """Raises DataError for the first value of a column that is no number."""
    strange = [
        (row, value)
        for row, value in zip(values.index, values, strict=True)
        if not isinstance(value, numbers.Real | Decimal | np.bool_) and not _null(value)
    ]
    # "n/a" says more than the "1.5" before it
    for row, value in sorted(
        strange, key=lambda pair: isinstance(pair[1], str) and _reads_as_number(pair[1])
    ):
        raise DataError(
            f"tables[{name!r}]: column {column!r}, row {row!r}: {value!r} is no number; expected numbers; convert the "
            "column (pandas.to_numeric), drop it, or, if it holds categories, give text columns a table of their own "
            "and modalities={name: 'categorical'}"
        )


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _null(value: Any) -> bool:
    import pandas

    return bool(pandas.api.types.is_scalar(value) and pandas.isna(value))


def read_files(files: Mapping[str, str | os.PathLike[str]], id: str | None) -> dict[str, Any]:
    """DataFrames from one CSV, TSV or Parquet file a modality, indexed by the column `id`.

    Raises:
        DataError: an unknown kind of file, or several files without ids.
    """
    import pandas

    frames = {}
    for name, path in files.items():
        suffix = next((s for s in reversed(Path(path).suffixes) if s in READERS), None)
        if suffix is None:
            raise DataError(
                f"files[{name!r}]: got {str(path)!r}; expected a file ending in {', '.join(READERS)}"
            )
        reader, separator = READERS[suffix]
        # ids stay text in text files: 007 is not 7
        options = (
            {} if separator is None else {"sep": separator, "dtype": {id: str} if id else None}
        )
        frames[name] = frame_of(name, getattr(pandas, reader)(path, **options), id)
        if id is None and len(files) > 1 and _counted(frames[name]):
            raise DataError(
                f"files[{name!r}]: several files, and no ids to align them by; give id='column'"
            )
    return frames


def _counted(frame: Any) -> bool:
    """Whether the index merely counts rows, as that of a table that nobody gave ids."""
    import pandas

    return (
        isinstance(frame.index, pandas.RangeIndex)
        and frame.index.name is None
        and frame.index.start == 0
    )


def check_lengths(frames: Mapping[str, Any]) -> None:
    """Raises DataError for tables of different lengths whose indices only count rows."""
    lengths = {name: len(frame) for name, frame in frames.items()}
    if len(set(lengths.values())) > 1 and all(map(_counted, frames.values())):
        raise DataError(
            f"tables: no ids, and lengths that differ: {lengths}; expected an index of ids, by which rows are aligned; "
            "use set_index, or give id='column'"
        )


def align(tables: Mapping[str, Table], *, disjoint: bool = False) -> Batch:
    """One batch of all tables: rows by id, in order of first appearance; rows that a table lacks are unobserved.

    Args:
        tables: by modality.
        disjoint: whether a table may share no id with any other.

    Raises:
        DataError: ids that stand twice, or that no other table has; lengths that differ without ids.
    """
    if not tables or not any(len(table.values) for table in tables.values()):
        raise DataError("data: it is empty; expected one row of one modality at least")
    named = {name: table.ids for name, table in tables.items() if table.ids is not None}
    if named and len(named) < len(tables):
        lacking = next(name for name in tables if name not in named)
        raise DataError(
            f"data[{lacking!r}]: it has no ids, others have; give ids for each modality, or for none"
        )
    lengths = {name: len(table.values) for name, table in tables.items()}
    if not named:
        if len(set(lengths.values())) > 1:
            raise ShapeError(
                f"data: {lengths} rows, and no ids; expected as many in each; give ids={{name: ids}}"
            )
        return _joined(tables, max(lengths.values()), {}, None)
    every = {name: _places(name, ids, lengths[name]) for name, ids in named.items()}
    if not disjoint:
        _refuse_disjoint(every)
    ids = list(dict.fromkeys(itertools.chain.from_iterable(every.values())))
    place = {one: i for i, one in enumerate(ids)}
    rows = {
        name: torch.tensor([place[one] for one in own], dtype=torch.long)
        for name, own in every.items()
    }
    return _joined(tables, len(ids), rows, ids)


def _places(name: str, ids: Sequence[Any], rows: int) -> dict[Any, int]:
    """Where each id stands."""
    if len(ids) != rows:
        raise ShapeError(f"ids[{name!r}]: {len(ids)} for {rows} rows; expected one for each")
    places = {one: i for i, one in enumerate(ids)}
    if len(places) < rows:
        row = next(i for i, one in enumerate(ids) if places[one] != i)
        raise DataError(
            f"data[{name!r}]: id {ids[row]!r} stands twice, in rows {row} and {places[ids[row]]}; expected each once; "
            "drop or merge one"
        )
    return places


def _refuse_disjoint(every: Mapping[str, Mapping[Any, int]]) -> None:
    for name, places in every.items():
        others = [other for other in every if other != name]
        if others and places and all(places.keys().isdisjoint(every[other]) for other in others):
            mine, theirs = next(iter(places)), next(iter(every[others[0]]), None)
            raise DataError(
                f"data[{name!r}]: none of its ids, such as {mine!r} ({type(mine).__name__}), is in another modality, "
                f"such as {theirs!r} ({type(theirs).__name__}) of {others[0]!r}; make them alike, or say disjoint=True"
            )


def _joined(
    tables: Mapping[str, Table], b: int, rows: Mapping[str, Tensor], ids: list[Any] | None
) -> Batch:
    data, elements, mask = {}, {}, torch.zeros(b, len(tables), dtype=torch.bool)
    for i, (name, table) in enumerate(tables.items()):
        x, index = table.values, rows.get(name, torch.arange(len(table.values)))
        whole = len(index) == b and bool((index == torch.arange(b)).all())
        seen = presence(x) if table.seen is None else table.seen
        flat = seen.reshape(len(x), -1)
        mask[index, i] = flat.any(1)
        if table.seen is not None and seen.ndim > 1 and not bool(flat.all()):
            elements[name] = (
                seen
                if whole
                else torch.zeros(b, *seen.shape[1:], dtype=torch.bool).index_copy(0, index, seen)
            )
        filler = torch.nan if x.is_floating_point() else 0
        data[name] = x if whole else x.new_full((b, *x.shape[1:]), filler).index_copy(0, index, x)
    columns = {name: table.columns for name, table in tables.items() if table.columns is not None}
    extra = {} if ids is None else {"id": objects(ids)}
    return Batch(data, mask, elements or None, extra, order=tuple(tables), columns=columns)


def objects(values: Sequence[Any]) -> NDArray[Any]:
    """An array of any objects, which is gathered faster than a list."""
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


def presence(x: Tensor) -> Tensor:
    """Where values are not NaN, shaped like x."""
    return ~torch.isnan(x) if x.is_floating_point() else torch.ones_like(x, dtype=torch.bool)


def from_frames(tables: Mapping[str, Any], id: str | None = None) -> Batch:
    """Tables that a model is given directly, aligned by index."""
    frames = {name: frame_of(name, table, id) for name, table in tables.items()}
    check_lengths(frames)
    return align(
        {name: read_table(name, frame, text=True) for name, frame in frames.items()}, disjoint=True
    )


def labels_of(label: Any, ids: Sequence[Any] | None, b: int) -> Any:
    """Labels in the order of the rows: a tensor of numbers, an array of words; NaN or None where there is none.

    Args:
        label: a Series or a mapping by id, or a sequence in the order of the rows.
        ids: the rows' ids.
        b: how many rows there are.
    """
    if library(label) == "pandas" or isinstance(label, Mapping):
        known = dict(label.items())
        if ids is None or not any(one in known for one in ids):
            raise DataError(
                "label: none of its ids is an id of a row; give labels by the same ids, or as a plain list"
            )
        values: Any = [known.get(one) for one in ids]
    else:
        values = label.tolist() if isinstance(label, Tensor | np.ndarray) else list(label)
        if len(values) != b:
            raise ShapeError(
                f"label: {len(values)} for {b} rows; expected one for each, or a mapping from id to label"
            )
    if any(isinstance(one, str) for one in values):
        return objects(values)
    lacking = any(one is None for one in values)
    return torch.tensor(
        [float("nan") if one is None else one for one in values] if lacking else values
    )


def pop_label(frames: dict[str, Any], label: str) -> dict[Any, Any]:
    """Takes the column `label` out of every table that has it; labels by id.

    Raises:
        DataError: no table has it, or two tables disagree on a row.
    """
    found: dict[Any, Any] = {}
    holders = [name for name, frame in frames.items() if label in frame.columns]
    if not holders:
        raise DataError(
            f"label: no table has a column {label!r}; {suggest(label, _all_columns(frames))}"
        )
    for name in holders:
        for one, value in frames[name][label].dropna().items():
            if found.setdefault(one, value) != value:
                raise DataError(
                    f"tables[{name!r}]: column {label!r}, row {one!r}: {value!r}, but another table says {found[one]!r}"
                    "; expected one label a row; correct one"
                )
        frames[name] = frames[name].drop(columns=label)
    return found


def _all_columns(frames: Mapping[str, Any]) -> Iterable[str]:
    return (str(column) for frame in frames.values() for column in frame.columns)
