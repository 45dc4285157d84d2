"""Rows of several modalities aligned by their ids.

Ids may be any hashable objects, and arrays have ids too, without pandas: hence plain Python. Axes:
b rows of all modalities together, n rows of one.
"""

from __future__ import annotations

import itertools
import numbers
import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.raw_values import Columns, values_in
from mvkit.errors import DataError, ShapeError

Ids = Sequence[Hashable]


@attrs.frozen(eq=False)
class Table:
    """Rows of one modality.

    Args:
        values: (n, *shape), NaN where missing if they are floats.
        ids: an id for each row; None: rows of all modalities correspond.
        columns: what the columns are called, if they have names.
        seen: which rows, (n,), or elements, (n, *shape), are observed, bool; None: what is not
            NaN.
    """

    values: Tensor
    ids: Ids | None = None
    columns: Columns | None = None
    seen: Tensor | None = None


def align(tables: Mapping[str, Table], *, disjoint: bool = False) -> Batch:
    """One batch of all tables: rows by id, in order of first appearance.

    Rows that a table lacks are unobserved.

    Args:
        tables: by modality.
        disjoint: whether a table may share no id with any other.

    Raises:
        DataError: ids that occur twice, that no other table has, or that only look alike.
        ShapeError: lengths that differ without ids.
    """
    lengths = {name: len(table.values) for name, table in tables.items()}
    if not any(lengths.values()):
        raise DataError("data: it is empty; expected one row of one modality at least")
    if all(table.ids is None for table in tables.values()):
        if len(set(lengths.values())) > 1:
            raise ShapeError(
                f"data: {lengths} rows, and no ids; expected as many in each; give "
                "ids={name: ids}"
            )
        return _joined(tables, {}, max(lengths.values()))
    named = {name: _ids(name, table) for name, table in tables.items()}
    if not disjoint:
        _check_overlap(named)
        _check_lookalikes(named)
    ids = list(dict.fromkeys(itertools.chain.from_iterable(named.values())))
    places = {id: place for place, id in enumerate(ids)}
    rows = {}
    for name, own in named.items():
        if own != ids:
            rows[name] = torch.tensor([places[id] for id in own], dtype=torch.long)
    batch = _joined(tables, rows, len(ids))
    batch.extra["id"] = objects(ids)
    return batch


def _ids(name: str, table: Table) -> Ids:
    """The ids of a table, checked."""
    if table.ids is None:
        raise DataError(
            f"data[{name!r}]: it has no ids, others have; give ids for each modality, or for none"
        )
    if len(table.ids) != len(table.values):
        raise ShapeError(
            f"ids[{name!r}]: {len(table.ids)} for {len(table.values)} rows; expected one for each"
        )
    check_ids(f"data[{name!r}]", table.ids)
    places: dict[Hashable, int] = {}
    for row, id in enumerate(table.ids):
        first = places.setdefault(id, row)
        if first != row:
            raise DataError(
                f"data[{name!r}]: id {id!r} stands twice, in rows {first} and {row}; expected "
                "each once; drop or merge one"
            )
    return table.ids


def check_ids(where: str, ids: Iterable[object]) -> None:
    """Raises DataError for an id that is missing, or that is no single value."""
    for row, id in enumerate(ids):
        if type(id) is str or type(id) is int:  # as most are
            continue
        try:
            hash(id)
        except TypeError:
            raise DataError(
                f"{where}: row {row} has the {type(id).__name__} {id!r} as its id; expected one "
                "value for each row, such as a number or text; give ids of one axis"
            ) from None
        if is_missing(id):
            raise DataError(
                f"{where}: row {row} has no id; expected one for each; fill it in, or drop the row"
            )


def is_missing(value: object) -> bool:
    """Whether a value is None, NaN, NaT or NA, or a tuple that holds one of them."""
    if isinstance(value, tuple):
        return any(map(is_missing, value))
    if value is None or type(value).__name__ == "NAType":
        return True
    return bool(value != value)  # noqa: PLR0124 - of all values, only NaN and NaT


def _check_overlap(ids: Mapping[str, Ids]) -> None:
    sets = {name: set(own) for name, own in ids.items()}
    for name, own in sets.items():
        others = [other for other in sets if other != name]
        if others and own and all(own.isdisjoint(sets[other]) for other in others):
            mine = ids[name][0]
            theirs = next(iter(ids[others[0]]), None)
            raise DataError(
                f"data[{name!r}]: none of its ids, such as {mine!r} ({type(mine).__name__}), is "
                f"in another modality, such as {theirs!r} ({type(theirs).__name__}) of "
                f"{others[0]!r}; make them alike, or say disjoint=True"
            )


def _check_lookalikes(ids: Mapping[str, Ids]) -> None:
    """Raises DataError for ids that differ by nothing that one sees, so would be two rows."""
    seen: dict[str, tuple[str, str]] = {}
    for name, own in ids.items():
        for id in own:
            if not isinstance(id, str):
                continue
            plain = id.strip()
            if not plain.isascii():
                plain = unicodedata.normalize("NFC", plain)
            other, place = seen.setdefault(plain, (id, name))
            if other != id:
                raise DataError(
                    f"data[{name!r}]: id {id!r} ({id!a}) looks like {other!r} "
                    f"({other!a}) of {place!r}, and differs by spaces or the encoding of "
                    "accents; make them alike (str.strip, unicodedata.normalize), or say "
                    "disjoint=True"
                )


def _joined(tables: Mapping[str, Table], rows: Mapping[str, Tensor], b: int) -> Batch:
    """Tables as a batch of b rows; those without an entry in `rows` have all of them, in order."""
    data = {}
    elements = {}
    columns = {}
    masks = []
    for name, table in tables.items():
        x = table.values
        index = rows.get(name)
        seen = presence(x) if table.seen is None else table.seen
        flat = seen.reshape(len(x), -1)
        masks.append(_spread(flat.any(1), index, b, 0))
        if table.seen is not None and seen.ndim > 1 and not flat.all():
            elements[name] = _spread(seen, index, b, 0)
        data[name] = _spread(x, index, b, torch.nan if x.is_floating_point() else 0)
        if table.columns is not None:
            columns[name] = table.columns
    mask = torch.stack(masks, 1)
    return Batch(data, mask, elements or None, order=tuple(tables), columns=columns)


def _spread(x: Tensor, index: Tensor | None, b: int, filler: float) -> Tensor:
    """Values at `index` of b rows, `filler` in the others; None: they are all the rows."""
    if index is None:
        return x
    return x.new_full((b, *x.shape[1:]), filler).index_copy(0, index, x)


def presence(x: Tensor) -> Tensor:
    """Where values are not NaN, shaped like x."""
    return ~torch.isnan(x)


def check_values(
    bad: Tensor,
    where: str,
    fault: str,
    names: Sequence[str],
    *,
    x: Tensor | None = None,
    ids: Ids | None = None,
) -> None:
    """Raises DataError at the first `bad` element (n, *shape), with its value in x, if given."""
    if bad.any():
        row, *place = bad.nonzero()[0].tolist()
        called = row if ids is None else repr(ids[row])
        at = f"column {names[place[0]]!r}" if names else f"element {tuple(place)}"
        value = "" if x is None else f"{x[(row, *place)].item()} "
        raise DataError(f"{where}: row {called}, {at}: {value}{fault}")


def objects(values: Sequence[object]) -> np.ndarray:
    """An array of any objects, which is gathered faster than a list."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def as_list(values: Any) -> list[Hashable]:
    """An array or any other sequence as a list of plain values."""
    return values.tolist() if isinstance(values, np.ndarray | Tensor) else list(values)


def in_order(values: Any, where: str) -> list[Hashable]:
    """Ids or labels as a list; raises ShapeError, beginning with `where`, if there is no order."""
    if not isinstance(values, Iterator):
        values_in(values, where)
    return as_list(values)


def library(value: object) -> str:
    """The package that the type of a value comes from."""
    return type(value).__module__.partition(".")[0]


def labels_of(label: Any, ids: Ids | None, b: int) -> Tensor | np.ndarray:
    """Labels in the order of the rows: a tensor of numbers, an array of words.

    NaN or None where there is none.

    Args:
        label: a Series or a mapping by id, or a sequence in the order of the rows.
        ids: the rows' ids.
        b: how many rows there are.
    """
    if library(label) == "pandas" or isinstance(label, Mapping):
        known = _by_id(label)
        if ids is None or known.keys().isdisjoint(ids):
            raise DataError(
                "label: none of its ids is an id of a row; give labels by the same ids, or as a "
                "plain list"
            )
        labels = [known.get(id) for id in ids]
    else:
        labels = in_order(label, "label")
        if len(labels) != b:
            raise ShapeError(
                f"label: {len(labels)} for {b} rows; expected one for each, or a mapping from id "
                "to label"
            )
    labels = [x.tolist() if isinstance(x, np.ndarray | Tensor) else x for x in labels]
    if not all(map(_is_numeric, labels)):
        return objects([None if is_missing(value) else value for value in labels])
    return torch.tensor([_number(value) for value in labels])


def _by_id(label: Any) -> dict[Hashable, object]:
    """Labels by id of a mapping or a Series, in which an id may stand twice.

    Raises:
        DataError: an id with two labels.
    """
    labels: dict[Hashable, object] = {}
    for id, value in label.items():
        before = labels.get(id)
        if is_missing(before):
            labels[id] = value
        elif not is_missing(value) and before != value:
            raise DataError(
                f"label: id {id!r} has two, {before!r} and {value!r}; expected one per id; "
                "correct one"
            )
    return labels


def _is_numeric(value: object) -> bool:
    """Whether a tensor of labels can hold a value, or the numbers in a list."""
    if isinstance(value, list):
        return all(map(_is_numeric, value))
    return is_missing(value) or isinstance(value, numbers.Real | np.bool_ | Decimal)


def _number(value: Any) -> Any:
    if is_missing(value):
        return torch.nan
    return float(value) if isinstance(value, Decimal) else value
