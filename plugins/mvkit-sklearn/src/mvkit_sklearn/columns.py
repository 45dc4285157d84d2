"""Which columns of a table make up which modality."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mvkit import SpecError

ALL = "x"  # the modality of all columns, where none was named
Columns = dict[str, list[int]]  # positions by modality
Spelling = str | Iterable[Any] | Callable[[np.ndarray], Any]
ModalitiesLike = Mapping[str, Spelling] | None


def read_columns(modalities: ModalitiesLike, names: Sequence[str] | None, count: int) -> Columns:
    """The positions of the columns of each modality.

    Args:
        modalities: by modality, a list of names or positions of columns, flags (k,), a prefix of
            names, or a function of all names (of positions, where columns have no names) that
            returns names, positions or flags. None: all columns are one modality, `x`.
        names: of the columns; None: they have none.
        count: how many columns there are, k.

    Raises:
        SpecError: a column that is not there, that belongs to two modalities or to none, or a
            modality without columns.
    """
    if modalities is None:
        return {ALL: list(range(count))}
    if not isinstance(modalities, Mapping) or not modalities:
        raise SpecError(
            f"got {modalities!r}; expected a mapping from modality to columns, such as "
            "{'rna': ['g1', 'g2'], 'protein': 'adt_'}, or None",
            "modalities",
        )
    columns = {}
    for name, spelling in modalities.items():
        positions = _positions(spelling, names, count, f"modalities.{name}")
        if not positions:
            raise SpecError(
                f"{spelling!r} picks no column; expected one at least; leave the modality out",
                f"modalities.{name}",
            )
        columns[name] = positions
    _check_once(columns, names, count)
    return columns


def _positions(spelling: Any, names: Sequence[str] | None, count: int, where: str) -> list[int]:
    """The positions of the columns that one modality names."""
    if isinstance(spelling, str):
        if names is None:
            raise SpecError(
                f"{spelling!r} is a prefix of names, and the columns have none; expected a table "
                "with names of columns, or positions, such as [0, 1]",
                where,
            )
        return [i for i, name in enumerate(names) if name.startswith(spelling)]
    if callable(spelling):
        spelling = spelling(np.asarray(range(count) if names is None else names))
    if isinstance(spelling, slice):
        return list(range(count))[spelling]
    listed = np.asarray(spelling)
    if listed.dtype == bool:
        if listed.shape != (count,):
            raise SpecError(f"flags of shape {listed.shape}; expected ({count},)", where)
        return [int(i) for i in listed.nonzero()[0]]
    return [_position(item, names, count, where) for item in listed.ravel().tolist()]


def _position(item: Any, names: Sequence[str] | None, count: int, where: str) -> int:
    """The position of one column, named or numbered."""
    if isinstance(item, int) and -count <= item < count:
        return item % count
    if isinstance(item, str) and names is not None and item in names:
        return list(names).index(item)
    known = f"positions below {count}" if names is None else _some(names)
    raise SpecError(f"no column {item!r}; expected one of {known}", where)


def _check_once(columns: Columns, names: Sequence[str] | None, count: int) -> None:
    """Raises SpecError unless every column belongs to one modality."""
    owners: dict[int, str] = {}
    for name, positions in columns.items():
        for i in positions:
            column = i if names is None else names[i]
            if i in owners:
                raise SpecError(
                    f"column {column!r} is in {owners[i]!r} and in {name!r}; expected every "
                    "column in one modality",
                    "modalities",
                )
            owners[i] = name
    left = [i for i in range(count) if i not in owners]
    if left:
        listed = _some([i if names is None else names[i] for i in left])
        raise SpecError(
            f"columns {listed} are in none; expected every column in one modality; add them to "
            "one, or drop them before, such as by a ColumnTransformer",
            "modalities",
        )


def _some(names: Sequence[object], most: int = 5) -> str:
    """Some names, for a message."""
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown}, …" if len(names) > most else shown
