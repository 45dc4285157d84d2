"""Columns of tables that are no features: covariates, exposures and weights of rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from mvkit.core.given import ROW_WEIGHT
from mvkit.data.align import library
from mvkit.data.row_columns import COVARIATES, RowColumn, merged, row_column
from mvkit.data.tables import frame_of, is_table
from mvkit.errors import DataError, suggest

if TYPE_CHECKING:
    from pandas import DataFrame

    Frames: TypeAlias = Mapping[str, DataFrame]
    # a table, columns by name, or names of columns of other tables
    Covariates: TypeAlias = DataFrame | Mapping[str, object] | tuple[str, ...]


def read_covariates(covariates: object, id: str | None) -> Covariates:
    """Covariates as users give them: a table gets its ids as its index, a mapping stays, and
    anything else must be names of columns.

    Raises:
        DataError: as `frame_of`; something else.
    """
    if is_table(covariates) or library(covariates) in ("anndata", "mudata"):
        return frame_of(COVARIATES, covariates, id, where=COVARIATES)
    return covariates if isinstance(covariates, Mapping) else _names(covariates)


def with_table(frames: Frames, covariates: Covariates) -> Frames:
    """All tables that rows are aligned by: with that of the covariates, if it is one."""
    if isinstance(covariates, Mapping | tuple):
        return frames
    return {**frames, COVARIATES: covariates}


def columns_of_tables(
    frames: Frames, covariates: Covariates, row_weight: object
) -> list[RowColumn]:
    """What tables, or a caller, tell of rows beside features.

    Args:
        frames: by modality.
        covariates: from `read_covariates`.
        row_weight: name of a column, or a Series or a mapping by id.

    Raises:
        DataError: a column that no table has, or two tables that disagree on a row.
    """
    columns = []
    if isinstance(covariates, tuple):
        for name in covariates:
            columns.append(_column(frames, name, name, COVARIATES))
    else:
        columns += given_columns(covariates)
    if isinstance(row_weight, str):
        column = _column(frames, row_weight, ROW_WEIGHT, ROW_WEIGHT)
        return [*columns, _numeric(column)]
    return columns + given_weights(row_weight)


def given_weights(row_weight: object) -> list[RowColumn]:
    """Weights of rows as a column, if there are any.

    Raises:
        DataError: weights that are no numbers.
    """
    if row_weight is None:
        return []
    column = row_column(ROW_WEIGHT, row_weight, ROW_WEIGHT)
    return [_numeric(column)]


def _numeric(column: RowColumn) -> RowColumn:
    """The column, if it holds numbers; raises DataError otherwise."""
    if column.levels:
        raise DataError(
            f"{column.where}: it holds {column.kind}, such as {column.levels[0]!r}; expected "
            "numbers, at least 0; convert it"
        )
    return column


def given_columns(covariates: object) -> list[RowColumn]:
    """Columns by name, from a table or a mapping.

    Raises:
        DataError: anything else.
    """
    if covariates is None:
        return []
    if not (is_table(covariates) or isinstance(covariates, Mapping)):
        raise DataError(
            f"covariates: got a {type(covariates).__name__}; expected a mapping from name to one "
            "value for each row, or a table; give {'site': values}"
        )
    columns = []
    table: Any = covariates
    for name in table.columns if is_table(table) else table:
        _check_name(name)
        column = row_column(name, table[name], f"covariates[{name!r}]")
        columns.append(merged([column]) if column.ids is not None else column)
    return columns


def _names(covariates: object) -> tuple[str, ...]:
    """Names of columns that are covariates.

    Raises:
        DataError: one name that is no list, or things that are no names.
    """
    if covariates is None:
        return ()
    if isinstance(covariates, str) or not isinstance(covariates, Iterable):
        raise DataError(
            f"covariates: got {covariates!r}; expected names of columns, or a table of "
            f"covariates; give a list, such as [{covariates!r}]"
        )
    names = []
    for name in covariates:
        _check_name(name)
        names.append(str(name))
    return tuple(dict.fromkeys(names))


def _check_name(name: object) -> None:
    """Raises DataError for what cannot be a covariate's name."""
    if not isinstance(name, str) or not name:
        raise DataError(f"covariates: got {name!r} as a name; expected text; rename the column")
    if name in ("id", ROW_WEIGHT):
        what = "ids" if name == "id" else "weights"
        raise DataError(
            f"covariates: {name!r} is what {what} of rows are kept as; expected another name; "
            "rename it"
        )


def _column(frames: Mapping[str, DataFrame], column: str, name: str, where: str) -> RowColumn:
    """A column of the tables that have it."""
    columns = []
    for table, frame in frames.items():
        if column in frame.columns:
            place = f"tables[{table!r}]: column {column!r}"
            columns.append(row_column(name, frame[column], place))
    if not columns:
        every = itertools.chain.from_iterable(frame.columns for frame in frames.values())
        raise DataError(
            f"{where}: no table has a column {column!r}; {suggest(column, map(str, every))}"
        )
    return merged(columns)


def popped(arrays: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options `covariates` and `row_weight` with the arrays that they name, which are taken
    out of `arrays`.

    Raises:
        DataError: a name that no array has.
    """
    covariates = options.get(COVARIATES)
    row_weight = options.get(ROW_WEIGHT)
    changed: dict[str, Any] = {}
    if not (is_table(covariates) or isinstance(covariates, Mapping)):
        names = _names(covariates)
        changed[COVARIATES] = {name: _pop(arrays, name, COVARIATES) for name in names}
    if isinstance(row_weight, str):
        changed[ROW_WEIGHT] = _pop(arrays, row_weight, ROW_WEIGHT)
    return changed


def _pop(arrays: dict[str, Any], name: str, where: str) -> Any:
    if name not in arrays:
        raise DataError(f"{where}: the file has no array {name!r}; {suggest(name, arrays)}")
    return arrays.pop(name)


def without_columns(
    frames: Frames, covariates: Covariates, row_weight: object
) -> dict[str, DataFrame]:
    """The tables without columns that are no features; one that holds nothing else is left out.

    Raises:
        DataError: nothing but such columns is there.
    """
    names = list(covariates) if isinstance(covariates, tuple) else []
    if isinstance(row_weight, str):
        names.append(row_weight)
    kept = {}
    for table, frame in frames.items():
        own = [name for name in names if name in frame.columns]
        rest = frame.drop(columns=own) if own else frame
        if len(rest.columns) or not own:
            kept[table] = rest
    if frames and not kept:
        raise DataError(
            f"tables: there is nothing but {', '.join(map(repr, names))}; expected columns of "
            "data; add them"
        )
    return kept
