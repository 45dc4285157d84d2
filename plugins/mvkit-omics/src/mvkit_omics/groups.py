"""Groups of cells that are compared: by the values of a column, or by picks of rows."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

import mvkit
from mvkit.errors import RequestError, suggest
from mvkit_omics.asking import Data, column_of, extra_of

REST = "rest"  # all cells that are not in the first group


@attrs.frozen(eq=False)
class Groups:
    """Two groups of cells.

    Args:
        cells: their positions, (b,) each.
        titles: what tables call them.
    """

    cells: tuple[Tensor, Tensor]
    titles: tuple[str, str]


def groups_of(rows: Data, by: object, first: object, second: object, where: str) -> list[Groups]:
    """The pairs of groups that a question is about.

    Args:
        rows: cells.
        by: a name in the data's extra, or values (b,); None: groups are picks of rows.
        first: the first group; None: each value of `by` in turn.
        second: the second; `rest`: all other cells.
        where: what errors begin with.

    Raises:
        RequestError: groups that nobody has, or that are empty.
    """
    if by is None:
        if first is None:
            raise RequestError(
                f"{where}: no groups; expected by=…, the name of a column, or two picks of cells"
            )
        return [_of_picks(rows, first, second, where)]
    if isinstance(by, str):
        column = column_of(rows, by, where)
    else:
        column = _column(rows, by, where)
        by = str(getattr(by, "name", None) or "by")
    values = [first]
    if first is None:
        values = _known_values(column)
        if len(values) < 2:
            raise RequestError(f"{where}: all cells have one {by!r}; expected two values at least")
    return [_of_column(column, by, value, second, where) for value in values]


def _column(rows: Data, values: Any, where: str) -> NDArray[Any]:
    """Values of rows as a column.

    Raises:
        RequestError: as many as there are rows are expected.
    """
    column = np.asarray(values)
    if column.shape != (len(rows),):
        raise RequestError(
            f"{where}: by has values of shape {column.shape}; expected {(len(rows),)}, one for "
            "each cell, or the name of a column"
        )
    return column


def _known_values(column: NDArray[Any]) -> list[Any]:
    """The values of a column in order, without those that are missing."""
    values = {value for value in column.tolist() if not pd.isna(value)}
    return sorted(values, key=str)


def _of_column(column: NDArray[Any], by: str, first: object, second: object, where: str) -> Groups:
    inside = _has(column, by, first, where)
    is_rest = isinstance(second, str) and second == REST and REST not in column.tolist()
    other = ~inside if is_rest else _has(column, by, second, where)
    title = REST if is_rest else _title(second)
    return _checked(inside, other, (_title(first), title), where)


def _listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set | np.ndarray) else [value]


def _title(value: object) -> str:
    return " or ".join(map(str, _listed(value)))


def _has(column: NDArray[Any], by: str, value: object, where: str) -> NDArray[np.bool_]:
    """Which cells have a value, or one of several, (b,)."""
    flags = np.zeros(len(column), dtype=bool)
    for wanted in _listed(value):
        same = np.asarray(column == wanted)
        if same.shape != column.shape or not same.any():
            known = [str(known) for known in _known_values(column)]
            raise RequestError(
                f"{where}: no cell has {by!r} {wanted!r}; {suggest(str(wanted), known)}"
            )
        flags |= same
    return flags


def _of_picks(rows: Data, first: Any, second: Any, where: str) -> Groups:
    inside = _flags(rows, first)
    is_rest = isinstance(second, str) and second == REST
    other = ~inside if is_rest else _flags(rows, second)
    return _checked(inside, other, ("group1", REST if is_rest else "group2"), where)


def _flags(rows: Data, pick: Any) -> NDArray[np.bool_]:
    """Which rows a pick takes, (b,)."""
    ids = extra_of(rows).get("id")
    extra = {} if ids is None else {"id": ids}
    positions = mvkit.Batch({"position": torch.arange(len(rows))}, extra=extra)
    flags = np.zeros(len(rows), dtype=bool)
    flags[positions.take(pick).data["position"].numpy()] = True
    return flags


def _checked(
    first: NDArray[np.bool_], second: NDArray[np.bool_], titles: tuple[str, str], where: str
) -> Groups:
    for flags, title in zip((first, second), titles, strict=True):
        if not flags.any():
            raise RequestError(f"{where}: group {title!r} has no cell; expected one at least")
    first_cells = torch.from_numpy(first.nonzero()[0])
    return Groups((first_cells, torch.from_numpy(second.nonzero()[0])), titles)
