"""One table of mixed columns as several modalities, one for each kind of column, and back.

Axes: b rows, k columns of a modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.modality import Modality
from mvkit.data.column_kinds import UNMODELLED, Array, Bools, Column, column_of, values_of
from mvkit.data.column_kinds import with_days as dates_with
from mvkit.data.tables import texts_of
from mvkit.data.transforms import OneHot
from mvkit.data.write_tables import written
from mvkit.errors import DataError, suggest
from mvkit.parts.likelihoods import Bernoulli, Categorical, Normal, Ordinal

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Kinds = Mapping[str, str]  # kinds of columns, by their names
NUMBERS = "numbers"
BITS = "bits"
ORDERED = "ordered"


@attrs.frozen
class TableLayout:
    """How the columns of a table are shared out among modalities.

    Numbers of all sorts are one modality, `numbers`; columns of yes and no are `bits`; ordered
    categories `ordered`; each column of categories is one of its own, called like the column.

    Args:
        columns: what the columns hold, in the order of the table.
        groups: names of columns by modality.

    Example:
        >>> import pandas
        >>> from mvkit.data.table_layout import layout_of
        >>> columns = {"age": [31, None, 64], "smokes": [True, None, False], "site": list("ABA")}
        >>> table = pandas.DataFrame(columns)
        >>> layout = layout_of(table)
        >>> layout.groups
        {'numbers': ('age',), 'bits': ('smokes',), 'site': ('site',)}
        >>> filled = layout.split(table)
        >>> filled["numbers"].loc[1, "age"] = 40.3
        >>> float(layout.join(table, filled).loc[1, "age"])
        40.0
    """

    columns: tuple[Column, ...]
    groups: dict[str, tuple[str, ...]]

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of each column, by its name."""
        return {column.name: column.kind for column in self.columns}

    def column(self, name: str) -> Column:
        """What a column holds."""
        return next(column for column in self.columns if column.name == name)

    def modalities(self) -> dict[str, Modality]:
        """What the modalities are, with the likelihoods of their kinds.

        Numbers are normal with a trained scale of each column, bits Bernoulli, categories
        categorical, and ordered ones ordinal, with as many levels as that with most has.
        """
        return {group: self._modality(group) for group in self.groups}

    def _modality(self, group: str) -> Modality:
        names = self.groups[group]
        columns = [self.column(name) for name in names]
        shape: tuple[int, ...] = (len(names),)
        kind = columns[0].kind
        if kind == "category":
            step = OneHot(categories=columns[0].levels)
            shape = (1, len(columns[0].levels))
            return Modality(shape, Categorical(), features=names, transform=(step,))
        if kind == "bits":
            return Modality(shape, Bernoulli(), features=names)
        if kind == "ordered":
            levels = max(len(column.levels) for column in columns)
            return Modality(shape, Ordinal(levels=levels), features=names)
        likelihood = Normal(scale="trained", by="feature", outputs="standardised")
        return Modality(shape, likelihood, features=names)

    def split(self, table: DataFrame) -> dict[str, DataFrame]:
        """The table as one table for each modality, as a model of them takes it.

        Numbers, bits, days since 1970 and the numbers of ordered categories, from 0, are float64;
        categories are texts. Gaps are NaN or None.

        Raises:
            DataError: a column that is missing, or a value that is not of its kind.
        """
        from pandas import DataFrame

        series = self._series(table)
        tables = {}
        for group, names in self.groups.items():
            values = {}
            for name in names:
                column = self.column(name)
                if column.kind == "category":
                    values_of(series[name], column, f"column {name!r}")  # refuses new categories
                    values[name] = texts_of(series[name])
                else:
                    values[name] = values_of(series[name], column, f"column {name!r}")
            tables[group] = DataFrame(values, index=table.index, columns=list(names))
        return tables

    def join(
        self, table: DataFrame, filled: Mapping[str, DataFrame], *, replace: bool = False
    ) -> DataFrame:
        """The table with values of the modalities' tables in its gaps.

        Index, columns and dtypes stay: whole numbers stay whole, and no number leaves the range
        of those that were observed. Columns with one value have it in their gaps.

        Args:
            table: with gaps.
            filled: tables as `split` returns them.
            replace: write into observed cells too.
        """
        from pandas import concat

        series = self._series(table)
        places = {name: group for group, names in self.groups.items() for name in names}
        pieces = []
        for column in self.columns:
            old = series[column.name]
            changed = np.ones(len(old), bool) if replace else old.isna().to_numpy()
            if column.kind == "constant" and old.notna().any():
                only = old.dropna().iloc[0]
                pieces.append(old if not changed.any() else old.where(~changed, only))
            elif column.kind in UNMODELLED or not changed.any():
                pieces.append(old)
            else:
                new = filled[places[column.name]][column.name]
                pieces.append(_with_values(old, column, new, changed))
        joined = concat(pieces, axis=1)
        joined.columns = table.columns
        return joined

    def _series(self, table: DataFrame) -> dict[str, Series]:
        """The columns of a table by their names as text.

        Raises:
            DataError: one is missing.
        """
        series = {str(name): table[name] for name in table.columns}
        for column in self.columns:
            if column.name not in series:
                raise DataError(
                    f"table: no column {column.name!r}; {suggest(column.name, series)}"
                )
        return series


def layout_of(
    table: DataFrame, *, kinds: Kinds | None = None, name: str = "", where: str = "table"
) -> TableLayout:
    """How the columns of a table are shared out, from what they hold; see `column_of`.

    Args:
        table: one row for each id.
        kinds: of columns that are something else than they look like.
        name: of the table, before the names of its modalities, where there are several tables.
        where: how messages call it.

    Raises:
        DataError: `kinds` of a column that there is not, or that its values are not of.
    """
    given = dict(kinds or {})
    names = [str(column) for column in table.columns]
    for unknown in given.keys() - set(names):
        raise DataError(f"kinds: {where} has no column {unknown!r}; {suggest(unknown, names)}")
    columns = []
    for label, called in zip(table.columns, names, strict=True):
        place = f"{where}: column {called!r}"
        columns.append(column_of(table[label], given.get(called), place))
    return TableLayout(tuple(columns), _groups(columns, name))


def _groups(columns: Sequence[Column], prefix: str) -> dict[str, tuple[str, ...]]:
    """Names of columns by modality, in the order of the table."""
    shared: dict[str, list[str]] = {NUMBERS: [], BITS: [], ORDERED: []}
    alone = []
    for column in columns:
        if column.numeric:
            shared[NUMBERS].append(column.name)
        elif column.kind in shared:
            shared[column.kind].append(column.name)
        elif column.kind == "category":
            alone.append(column.name)
    groups: dict[str, tuple[str, ...]] = {}
    for kind, names in shared.items():
        if names:
            groups[_free_name(kind, prefix, groups)] = tuple(names)
    for name in alone:
        groups[_free_name(name, prefix, groups)] = (name,)
    return groups


def _free_name(name: str, prefix: str, taken: Mapping[str, object]) -> str:
    """A name for a modality that is not taken yet and holds no dot, as modules' names must."""
    called = f"{prefix}_{name}" if prefix else name
    called = called.replace(".", "_") or "column"
    free = called
    number = 2
    while free in taken or _is_of_modules(free):
        free = f"{called}_{number}"
        number += 1
    return free


def _is_of_modules(name: str) -> bool:
    """Whether torch modules have an attribute of this name, which none of theirs may have."""
    from torch import nn

    return hasattr(nn.ModuleDict(), name)


def _with_values(old: Series, column: Column, new: Series, changed: Bools) -> Series:
    """A column with new values, as a modality's table has them, where it changed (b,)."""
    values = _as_numbers(column, new)
    if column.kind == "date":
        return dates_with(old, values, changed)
    words = column.levels
    if column.kind == "bits" and old.dtype.kind == "O":
        return _with_bits(old, values, changed)
    rows = np.arange(len(old))
    frame = old.to_frame().set_axis(rows)
    options: dict[str, Any] = {"id": None, "words": words}
    filled = written(values[:, None], changed[:, None], rows.tolist(), frame, **options)
    series: Series = filled.iloc[:, 0].set_axis(old.index)
    return series


def _with_bits(old: Series, values: Array, changed: Bools) -> Series:
    """A column of objects with bits of their type where it changed: True among True and False."""
    from pandas import Series

    kind = type(old.dropna().iloc[0])
    filled = old.tolist()
    for row in changed.nonzero()[0].tolist():
        filled[row] = kind(values[row])
    return Series(filled, old.index, dtype=old.dtype, name=old.name)


def _as_numbers(column: Column, new: Series) -> Array:
    """Values of a modality's table as numbers (b,) that the column may hold."""
    if column.kind == "category":
        places = {text: i for i, text in enumerate(column.levels)}
        values = np.array([places.get(text, np.nan) for text in new])
    else:
        values = new.to_numpy(np.float64)
    return column.bounded(values)


def observing(batch: Batch) -> Tensor:
    """Which rows of a batch of tables observe something, (b,) bool."""
    seen = [~x.isnan().flatten(1).all(1) for x in batch.data.values()]
    return torch.stack(seen).any(0)
