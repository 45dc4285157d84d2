"""What is known of rows beside their modalities: covariates, exposures and weights by id.

Ids may be any hashable objects, hence plain Python, as in `align`. Axes: b rows.
"""

from __future__ import annotations

import datetime
import numbers
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

import attrs
import numpy as np
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.covariates import Covariate, Level
from mvkit.core.given import ROW_WEIGHT
from mvkit.core.modality import Modality
from mvkit.core.raw_values import is_missing
from mvkit.data.align import in_order, library, objects
from mvkit.data.id_matches import Ids
from mvkit.errors import DataError, ShapeError

Kind = Literal["words", "whole numbers", "numbers"]
Levels = Mapping[str, tuple[Level, ...]]
COVARIATES = "covariates"  # how messages call a table of them
MANY = 20  # levels; so few may well differ in as few rows
FLAGS = ("False", "True")
EPOCH = datetime.datetime(1970, 1, 1)
DAY = datetime.timedelta(days=1)


@attrs.frozen(eq=False)
class RowColumn:
    """A covariate as it came: a value for each row that has one.

    Args:
        name: of the covariate.
        values: words, whole numbers of a category, or floats; None where missing.
        ids: of the rows; None: the values are in the order of the rows.
        levels: what words, or whole numbers of a category, can be; none: they are numbers.
        where: the table that it came from, for messages.
    """

    name: str
    values: list[Any]
    ids: Ids | None
    levels: tuple[Level, ...]
    where: str

    @property
    def kind(self) -> Kind:
        """What the values are."""
        if not self.levels:
            return "numbers"
        return "words" if isinstance(self.levels[0], str) else "whole numbers"

    @property
    def lacks_all(self) -> bool:
        """Whether no row has a value, so that nothing tells what values are."""
        return not self.levels and all(value is None for value in self.values)

    def aligned(self, ids: Ids | None, b: int) -> Tensor | np.ndarray[Any, Any]:
        """The values in the order of the rows: numbers in float64, NaN where missing, (b,); or an
        array of words or whole numbers, None where missing, (b,).

        Args:
            ids: the rows'; None: they have none.
            b: how many rows there are.

        Raises:
            DataError: none of its ids is an id of a row.
            ShapeError: another number of values than rows, and no ids.
        """
        values = self.values
        if self.ids is not None:
            ids = range(b) if ids is None else ids
            by_id = dict(zip(self.ids, self.values, strict=True))
            if by_id.keys().isdisjoint(ids):
                raise DataError(
                    f"{self.where}: none of its ids is an id of a row; expected the same ids; "
                    f"they are {next(iter(by_id), None)!r}, …, and the rows' {ids[0]!r}, …"
                )
            values = [by_id.get(id) for id in ids]
        if len(values) != b:
            raise ShapeError(
                f"{self.where}: {len(values)} values for {b} rows; expected one for each, or a "
                "mapping from id to value"
            )
        if self.levels:
            return objects(values)
        floats = [np.nan if value is None else float(value) for value in values]
        return torch.tensor(floats, dtype=torch.float64)


def row_column(name: str, raw: Any, where: str) -> RowColumn:
    """A column from what users give: a Series or a mapping by id, or values in order.

    Words are words, also those of categories, which keep the order of the category; flags are the
    words False and True; days are numbers, counted from 1970 (with fractions for the time of day).

    Raises:
        DataError: values of several kinds, or of a kind that no covariate has.
    """
    ids: Ids | None = None
    if library(raw) == "pandas":
        raw, ids = _series(raw)
        categories = _categories(raw)
        if categories is not None:
            values, levels = _of_categories(raw, categories)
            return RowColumn(name, values, ids, levels, where)
        listed = raw.tolist()
    elif isinstance(raw, Mapping):
        ids = list(raw)
        listed = list(raw.values())
    else:
        listed = _listed(raw, where)
    values, levels = _plain(listed, ids, where)
    return RowColumn(name, values, ids, levels, where)


def _series(raw: Any) -> tuple[Any, Ids | None]:
    """Something of pandas as a Series, and its ids; arrays and indices have none."""
    from pandas import Series

    if isinstance(raw, Series):
        return raw, raw.index.tolist()
    return Series(raw), None


def _listed(raw: Any, where: str) -> list[Any]:
    """Values in order as a list."""
    if isinstance(raw, np.ndarray | Tensor) and raw.ndim == 2 and raw.shape[1] == 1:
        raw = raw[:, 0]
    if isinstance(raw, np.ndarray) and raw.dtype.kind in "Mm":
        return list(raw)
    return list(in_order(raw, where))


def _categories(column: Any) -> list[Any] | None:
    """The categories of a pandas Series, in their order; None: it has another dtype."""
    from pandas import CategoricalDtype

    declared = isinstance(column.dtype, CategoricalDtype)
    return column.cat.categories.tolist() if declared else None


def _of_categories(column: Any, categories: list[Any]) -> tuple[list[Any], tuple[Level, ...]]:
    """The values and levels of a column of categories."""
    whole = all(type(category) is int for category in categories)
    levels = tuple(categories) if whole else tuple(map(str, categories))
    codes = column.cat.codes.tolist()
    values = [None if code < 0 else levels[code] for code in codes]
    return values, levels


def _plain(raw: Sequence[Any], ids: Ids | None, where: str) -> tuple[list[Any], tuple[Level, ...]]:
    """Values as words or floats, None where missing, and the levels of words in sorted order."""
    values: list[Any] = []
    rows_by_kind: dict[str, list[int]] = {}
    for row, item in enumerate(raw):
        value = _unpacked(item)
        if not isinstance(value, np.ndarray | Tensor) and is_missing(value):
            values.append(None)
            continue
        kind, plain = _plain_value(value)
        values.append(plain)
        rows_by_kind.setdefault(kind, []).append(row)
    if len(rows_by_kind) > 1 or "" in rows_by_kind:
        raise _of_several_kinds(raw, ids, rows_by_kind, where)
    if "flag" in rows_by_kind:
        return values, FLAGS
    if "word" in rows_by_kind:
        known = {value for value in values if value is not None}
        return values, tuple(sorted(known))
    return values, ()


def _plain_value(value: Any) -> tuple[str, Any]:
    """The kind of a value, empty if no covariate can have it, and the value as a word or float."""
    if isinstance(value, str):
        return "word", str(value)
    if isinstance(value, bool):
        return "flag", FLAGS[value]
    if isinstance(value, datetime.date | datetime.timedelta):
        return _days(value)
    if not isinstance(value, numbers.Real | Decimal):
        return "", value
    try:
        return "number", float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return "", value


def _days(value: datetime.date | datetime.timedelta) -> tuple[str, float]:
    """The kind of a day or a span of time, and its number of days."""
    if isinstance(value, datetime.timedelta):
        return "span", value / DAY
    if not isinstance(value, datetime.datetime):
        return "day", (value - EPOCH.date()) / DAY
    if value.tzinfo is not None:
        value = value.astimezone(datetime.UTC).replace(tzinfo=None)
    return "day", float((value - EPOCH) / DAY)


def _unpacked(item: Any) -> Any:
    """A value of numpy or torch as one of Python."""
    if isinstance(item, np.datetime64 | np.timedelta64):  # of nanoseconds, `item` is a number
        return item.astype(f"{item.dtype.kind}8[us]").item()
    if isinstance(item, np.generic | Tensor) and not item.ndim:
        return item.item()
    return item


def _of_several_kinds(
    raw: Sequence[Any], ids: Ids | None, rows_by_kind: Mapping[str, list[int]], where: str
) -> DataError:
    """The error of a column that mixes kinds: it names a value of the rarest."""
    rarest = "" if "" in rows_by_kind else min(rows_by_kind, key=lambda k: len(rows_by_kind[k]))
    row = rows_by_kind[rarest][0]
    others = [rows[0] for kind, rows in rows_by_kind.items() if kind != rarest]
    called = row if ids is None else repr(ids[row])
    among = f" among values such as {raw[others[0]]!r}" if others else ""
    return DataError(
        f"{where}: row {called} has {raw[row]!r}{among}; expected words, numbers, flags or days, "
        "of one kind in all rows; correct it, or make all of them text"
    )


def merged(columns: Sequence[RowColumn]) -> RowColumn:
    """One column of the same covariate in several tables.

    Raises:
        DataError: two tables disagree on a row, or on what values are.
    """
    columns = [column for column in columns if not column.lacks_all] or columns[:1]
    first = columns[0]
    by_id: dict[Hashable, Any] = {}
    for column in columns:
        if column.kind != first.kind:
            raise DataError(
                f"{column.where}: it holds {column.kind}, but {first.where} {first.kind}; "
                "expected the same in both; convert one, or drop it"
            )
        _update(by_id, column)
    levels = first.levels
    if any(column.levels != levels for column in columns):
        levels = tuple(sorted({level for column in columns for level in column.levels}))
    return RowColumn(first.name, list(by_id.values()), list(by_id), levels, first.where)


def _update(by_id: dict[Hashable, Any], column: RowColumn) -> None:
    """Adds the values of a column to those that are known by id."""
    for id, value in zip(column.ids or (), column.values, strict=True):
        before = by_id.get(id)
        if before is None or value is None:
            by_id[id] = value if before is None else before
        elif before != value:
            raise DataError(
                f"{column.where}, row {id!r}: {value!r}, but it is {before!r} elsewhere; expected "
                "one value for each row; correct one"
            )


def with_columns(
    batch: Batch, columns: Sequence[RowColumn], modalities: Iterable[str]
) -> dict[str, tuple[Level, ...]]:
    """Puts columns into the `extra` of a batch; the levels of those that are covariates.

    Warns of words that are nearly all different, such as days or numbers as text.

    Raises:
        DataError: a name that is that of a modality, or that labels have.
    """
    levels = {}
    for column in columns:
        if column.name in modalities:
            raise DataError(
                f"covariates: {column.name!r} is a modality too; expected another name; rename one"
            )
        if column.name == "label" and "label" in batch.extra:
            raise DataError(
                "covariates: 'label' is what labels are kept as; expected another name; rename "
                "it, or leave out label=, which then are the same"
            )
        batch.extra[column.name] = column.aligned(batch.extra.get("id"), len(batch))
        if column.name != ROW_WEIGHT:
            levels[column.name] = column.levels
            _warn_if_all_differ(column)
    return levels


def _warn_if_all_differ(column: RowColumn) -> None:
    known = [value for value in column.values if value is not None]
    if len(column.levels) > MANY and len(column.levels) > len(known) / 2:
        warnings.warn(
            f"{column.where}: {len(column.levels):,} different words in {len(known):,} rows, such "
            f"as {known[0]!r}; little can be learnt of a level that one or two rows have; if they "
            "are days or numbers, convert them (pandas.to_datetime, pandas.to_numeric)",
            stacklevel=5,  # of whoever called from_tables
        )


def declared(levels: Levels, modalities: Mapping[str, Modality]) -> dict[str, Covariate]:
    """Covariates as a model takes them; those that are exposures of modalities are left out.

    Raises:
        DataError: all rows have the same level.
    """
    exposures = {modality.exposure for modality in modalities.values()}
    covariates = {}
    for name, known in levels.items():
        if name in exposures:
            continue
        if len(known) == 1:
            raise DataError(
                f"covariate {name!r}: all rows that have it are {known[0]!r}; expected two levels "
                "at least, since nothing can be learnt of one; leave it out of covariates=, or "
                f"declare the levels that there are: Covariate(({known[0]!r}, …))"
            )
        covariates[name] = Covariate(known)
    return covariates
