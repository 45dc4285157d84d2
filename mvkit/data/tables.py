"""Tables of pandas and polars read as tensors."""

from __future__ import annotations

import itertools
import numbers
import re
from collections.abc import Hashable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.raw_values import Columns, annotated
from mvkit.data.align import Table, align, check_ids, library, objects
from mvkit.data.id_matches import transposed_shape
from mvkit.errors import DataError, suggest

if TYPE_CHECKING:
    from pandas import DataFrame, Series
# what pandas calls the types of polars that can have gaps
NULLABLE = {
    f"{sign}Int{bits}": f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)
}
NULLABLE["Boolean"] = "boolean"
_IDS = re.compile(r"(?i:(\b|_)(id|ids|key|index)$|patient|subject|sample|barcode)|[a-z]I[Dd]$")


def is_table(value: object) -> bool:
    """Whether a value is a DataFrame or a Series of pandas or polars, or of a kind of them."""
    for kind in type(value).__mro__:
        package = kind.__module__.partition(".")[0]
        if kind.__name__ in ("DataFrame", "Series") and package in ("pandas", "polars"):
            return True
    return False


def _as_pandas(table: Any) -> DataFrame:
    frame = table.to_frame() if type(table).__name__ == "Series" else table
    return _from_polars(frame) if library(table) == "polars" else frame


def _from_polars(table: Any) -> DataFrame:
    """A DataFrame of polars as one of pandas; whole numbers and bits with gaps stay what they are.

    Polars would make floats and objects of them.
    """
    from pandas import array

    frame: DataFrame = table.to_pandas()
    for name, kind in table.schema.items():
        nullable = NULLABLE.get(str(kind))
        if nullable and table[name].null_count():
            frame[name] = array(table[name].to_list(), dtype=nullable)
    return frame


def frame_of(name: str, table: object, id: str | None, *, where: str | None = None) -> DataFrame:
    """A table of pandas or polars as a pandas DataFrame whose index holds the ids.

    Args:
        name: its modality.
        table: of pandas or polars.
        id: the column that holds ids; None: its index.
        where: how messages call it; None: `tables[name]`.

    Raises:
        DataError: no ids where there must be some, or a name of a column that is not there.
    """
    where = where or f"tables[{name!r}]"
    if library(table) in ("anndata", "mudata"):
        raise DataError(
            f"{where}: got {type(table).__name__}; expected a pandas or polars DataFrame; "
            f"{annotated(table)}"
        )
    if not is_table(table):
        lazy = type(table).__name__ == "LazyFrame"
        raise DataError(
            f"{where}: got {type(table).__name__}; expected a pandas or polars DataFrame; "
            f"{'give .collect()' if lazy else 'use from_arrays for arrays'}"
        )
    if library(table) == "polars" and id is None:
        raise DataError(
            f"{where}: a polars table has no index; expected ids in a column; give id='column'"
        )
    try:
        frame = _as_pandas(table)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise DataError(
            f"{where}: pandas cannot hold it: {error}; expected numbers, text or days; cast the "
            "column, such as to Float64"
        ) from None
    _check_columns(frame, where)
    if id is not None and frame.index.name != id:
        if id not in frame.columns:
            raise DataError(
                f"{where}: no column {id!r} of ids; {suggest(id, map(str, frame.columns))}"
            )
        frame = frame.set_index(id)
    check_ids(where, frame.index)
    return frame


def _check_columns(frame: DataFrame, where: str) -> None:
    """Raises DataError for two columns of one name, where 1 and "1" are one."""
    seen = set()
    for column in frame.columns:
        if str(column) in seen:
            raise DataError(
                f"{where}: two columns are called {column!r}; expected names that differ; rename "
                "one"
            )
        seen.add(str(column))


def read_table(name: str, frame: DataFrame, *, text: bool) -> Table:
    """A DataFrame (see `frame_of`) as numbers, or as numbered words.

    Words are numbered where all columns hold categories, or any text and `text` is welcome.
    Columns of dtype object are what their values are.

    Raises:
        DataError: text or other things among numbers: with column, row and value.
    """
    from pandas import CategoricalDtype
    from pandas.api.types import is_numeric_dtype

    if not len(frame.columns):
        raise DataError(
            f"tables[{name!r}]: it has no columns beside ids; expected one at least; leave it out"
        )
    names = tuple(map(str, frame.columns))
    ids = frame.index.tolist()
    odd = []
    for column, kind in frame.dtypes.items():
        if not is_numeric_dtype(kind) or kind.kind == "c":
            odd.append(column)
    if len(odd) == len(names) > 0:
        declared = [isinstance(kind, CategoricalDtype) for kind in frame.dtypes]
        if all(declared) or (text and not _all_numbers(frame)):
            codes, words = _numbered(frame)
            return Table(codes, ids, Columns(names, words))
    for column in odd:
        _check_numbers(name, frame[column])
    single = all(kind == np.float32 for kind in frame.dtypes)
    kind = np.float32 if single else np.float64
    try:
        values = numbers_of(frame, kind)
    except OverflowError:
        raise DataError(
            f"tables[{name!r}]: a column holds a whole number of more than 308 digits; expected "
            "what float64 holds; drop it, or give its logarithm"
        ) from None
    return Table(torch.from_numpy(np.ascontiguousarray(values)), ids, Columns(names))


def numbers_of(frame: DataFrame, dtype: Any = np.float64) -> np.ndarray:
    """The numbers (b, k) in a table as floats, NaN where there are none."""
    mixed = [column for column, kind in frame.dtypes.items() if kind.kind == "O"]
    if mixed:  # NA may be among objects
        frame = frame.copy(deep=False)
        frame[mixed] = frame[mixed].astype(object).where(frame[mixed].notna(), np.nan)
    values: np.ndarray = frame.to_numpy(dtype=dtype, na_value=np.nan, copy=True)
    return values


def _numbered(frame: DataFrame) -> tuple[Tensor, tuple[str, ...]]:
    """Words numbered in alphabetical order, NaN where there is none, and the words."""
    from pandas import Series

    texts = [texts_of(frame[column]) for column in frame.columns]
    codes, words = Series(np.stack(texts, 1).ravel()).factorize(sort=True)
    codes = np.where(codes < 0, np.nan, codes).reshape(frame.shape)
    return torch.from_numpy(codes), tuple(words)


def texts_of(column: Series) -> np.ndarray:
    """Values (b,) as text, None where there is none.

    A category is called as it is in the dtype, so that gaps change no name: 8 does not become 8.0.
    """
    from pandas import CategoricalDtype

    if isinstance(column.dtype, CategoricalDtype):
        categories = column.cat.categories.tolist()
        words = objects([*map(str, categories), None])
        texts: np.ndarray = words[column.cat.codes.to_numpy()]
        return texts
    gaps = column.isna()
    return objects([None if gap else str(x) for x, gap in zip(column, gaps, strict=True)])


def is_number(value: object) -> bool:
    """Whether a value is a number or a bit."""
    return isinstance(value, numbers.Real | Decimal | np.bool_)


def _all_numbers(frame: DataFrame) -> bool:
    """Whether nothing but numbers and bits is in a table, whatever its dtypes."""
    columns = (frame[column].astype(object).dropna() for column in frame.columns)
    return all(map(is_number, itertools.chain.from_iterable(columns)))


def _check_numbers(name: str, column: Series) -> None:
    """Raises DataError for a value of a column that is no number."""
    strange = [(row, value) for row, value in column.dropna().items() if not is_number(value)]
    if strange:
        # "n/a" says more than the "1.5" before it
        row, value = min(strange, key=lambda pair: _reads_as_number(pair[1]))
        raise DataError(
            f"tables[{name!r}]: column {column.name!r}, row {row!r}: {value!r} is no number; "
            "expected numbers; convert the column (pandas.to_numeric), drop it, or, if it holds "
            "categories, give text columns a table of their own and "
            "modalities={name: 'categorical'}"
        )


def _reads_as_number(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def only_counts_rows(frame: DataFrame) -> bool:
    """Whether the index merely counts rows, as that of a table that nobody gave ids."""
    from pandas import RangeIndex

    index = frame.index
    return isinstance(index, RangeIndex) and index.name is None and index.start == 0


def check_lengths(frames: Mapping[str, DataFrame]) -> None:
    """Raises DataError for tables of different lengths whose indices only count rows."""
    lengths = {name: len(frame) for name, frame in frames.items()}
    if len(set(lengths.values())) > 1 and all(map(only_counts_rows, frames.values())):
        shapes = {name: frame.shape for name, frame in frames.items()}
        raise DataError(
            f"tables: no ids, and lengths that differ: {lengths}; expected an index of ids, by "
            f"which rows are aligned; use set_index, or give id='column'{transposed_shape(shapes)}"
        )


def looks_like_ids(name: str) -> bool:
    """Whether a column's name says that it holds ids, such as `patient` or `sample_id`."""
    return _IDS.search(name) is not None


def check_no_ids_left(frames: Mapping[str, DataFrame]) -> None:
    """Raises DataError where rows merely count, and every table has its ids in a column."""
    if len(frames) < 2 or not all(map(only_counts_rows, frames.values())):
        return
    first, *others = frames.values()
    for name in first.columns:
        if not looks_like_ids(str(name)) or not all(name in frame.columns for frame in others):
            continue
        columns = [frame[name] for frame in frames.values()]
        if all(column.dtype.kind in "iu" and column.is_unique for column in columns):
            raise DataError(
                f"tables: no ids, and a column {name!r} of whole numbers that differ in each; "
                f"expected ids, by which rows are aligned; give id={name!r}, or drop or rename "
                "the column if it is none"
            )


def from_frames(tables: Mapping[str, object], id: str | None = None) -> Batch:
    """Tables that a model is given directly, aligned by index."""
    frames = {name: frame_of(name, table, id) for name, table in tables.items()}
    check_lengths(frames)
    numbered = {name: read_table(name, frame, text=True) for name, frame in frames.items()}
    return align(numbered, disjoint=True)


def pop_label(frames: dict[str, DataFrame], label: str) -> dict[Hashable, object]:
    """Takes the column `label` out of every table that has it; labels by id.

    A table that holds nothing else is taken out, too.

    Raises:
        DataError: no table has it, two tables disagree on a row, or nothing but labels is there.
    """
    holders = [name for name, frame in frames.items() if label in frame.columns]
    if not holders:
        columns = itertools.chain.from_iterable(frames.values())
        raise DataError(
            f"label: no table has a column {label!r}; {suggest(label, map(str, columns))}"
        )
    labels: dict[Hashable, object] = {}
    for name in holders:
        for id, value in frames[name][label].dropna().items():
            if labels.setdefault(id, value) != value:
                raise DataError(
                    f"tables[{name!r}]: column {label!r}, row {id!r}: {value!r}, but another "
                    f"table says {labels[id]!r}; expected one label per row; correct one"
                )
        frames[name] = frames[name].drop(columns=label)
        if not len(frames[name].columns):
            del frames[name]
    if not frames:
        raise DataError(
            f"tables: there is nothing but the label {label!r}; expected columns of data; add them"
        )
    return labels
