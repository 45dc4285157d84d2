"""What is known of cells beside their measurements: columns of `obs`, by names of cells."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mvkit.core.covariates import Covariate
from mvkit.errors import DataError, suggest
from mvkit_omics.measured import few

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    Tables = Mapping[str, DataFrame]  # what messages call them: their rows are cells

MANY = 20  # whole numbers that differ: so few may well be labels


def names_of(option: str, names: object) -> tuple[str, ...]:
    """Names of columns as a tuple.

    Raises:
        DataError: one name that is no list, or what is no name.
    """
    if names is None:
        return ()
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise DataError(
            f"{option}: got {names!r}; expected names of columns of obs; give a list, such as "
            f"[{names!r}]"
        )
    listed = tuple(names)
    for name in listed:
        if not isinstance(name, str):
            raise DataError(f"{option}: got {name!r}; expected names of columns of obs; give text")
    return listed


def column_of(tables: Tables, name: str, option: str) -> Series:
    """A column of the tables that have it, one value for each cell.

    Args:
        tables: `obs` of the whole and of its modalities, by what messages call them.
        name: of the column.
        option: that named it, for messages.

    Raises:
        DataError: no table has it, or two disagree on a cell.
    """
    columns = {where: table[name] for where, table in tables.items() if name in table.columns}
    if not columns:
        known: set[str] = set()
        for table in tables.values():
            known.update(map(str, table.columns))
        raise DataError(f"{option}: no obs has a column {name!r}; {suggest(name, known)}")
    (first, merged), *others = columns.items()
    for where, column in others:
        _check_agreement(name, (first, merged), (where, column))
        merged = _joined(merged, column)
    return merged


def _check_agreement(name: str, one: tuple[str, Series], other: tuple[str, Series]) -> None:
    """Raises DataError for a cell of which two columns say different things."""
    (here, mine), (there, theirs) = one, other
    shared = mine.index.intersection(theirs.index)
    own = mine.loc[shared].astype(object)
    their = theirs.loc[shared].astype(object)
    differs = own.notna() & their.notna() & (own != their)
    if differs.any():
        cell = shared[differs.to_numpy().argmax()]
        raise DataError(
            f"{here}[{name!r}]: cell {cell!r} has {own[cell]!r}, but {there} says "
            f"{their[cell]!r}; expected one value for each cell; correct one of them"
        )


def _joined(column: Series, other: Series) -> Series:
    """A column with the cells of another that it lacks, or has no value for.

    Categories stay: first those of the column, then others of the other.
    """
    from pandas import CategoricalDtype, concat

    cells = column.index.union(other.index, sort=False)
    values = column.astype(object).reindex(cells)
    values = values.where(values.notna(), other.astype(object).reindex(cells))
    if not all(isinstance(each.dtype, CategoricalDtype) for each in (column, other)):
        return values.infer_objects()
    categories = concat(
        [column.cat.categories.to_series(), other.cat.categories.to_series()]
    ).unique()
    return values.astype(CategoricalDtype(categories))


def warn_of_numbers(name: str, column: Series, *, stacklevel: int) -> None:
    """Warns of whole numbers that look like labels, which would be taken for sizes.

    Args:
        name: of the column.
        column: its values.
        stacklevel: of the warning, as seen from the caller.
    """
    if column.dtype.kind not in "iu":
        return
    number = column.nunique()
    if number <= min(MANY, len(column) / 2):
        warnings.warn(
            f"covariates: obs[{name!r}] holds whole numbers, {number} different ones, which are "
            f"taken for sizes; if they are labels, say obs[{name!r}].astype('category'), else "
            ".astype(float)",
            stacklevel=stacklevel + 1,
        )


def check_known(name: str, column: Series, covariate: Covariate) -> None:
    """Checks a column against a covariate of a trained model.

    Raises:
        DataError: a cell without a value where the model needs one, or with a level that the
            model does not know.
    """
    missing = column.isna()
    if covariate.missing == "error" and missing.any():
        raise DataError(
            f"obs[{name!r}]: cell {column.index[missing.to_numpy().argmax()]!r} has no value, as "
            f"{int(missing.sum()):,} of {len(column):,} cells; expected one for each cell; fill "
            "it in, leave the cells out, or train with Covariate(missing='average')"
        )
    if not covariate.levels:
        return
    kind = type(covariate.levels[0])
    for value in column.dropna().unique().tolist():
        if isinstance(value, kind) and value not in covariate.levels:
            cell = column.index[(column == value).to_numpy().argmax()]
            raise _of_unknown_level(name, cell, value, covariate)


def _of_unknown_level(name: str, cell: str, value: Any, covariate: Covariate) -> DataError:
    levels = few(str(level) for level in covariate.levels)
    return DataError(
        f"obs[{name!r}]: cell {cell!r} has {value!r}, which is none of the "
        f"{len(covariate.levels)} levels of the model, {levels}; expected one of them; relabel "
        f"it, or add the level: model.add_level({name!r}, {value!r}, like='average')"
    )
