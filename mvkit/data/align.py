"""Rows of several modalities aligned by their ids.

Ids may be any hashable objects, and arrays have ids too, without pandas: hence plain Python. Axes:
b rows of all modalities together, n rows of one.
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.raw_values import Columns, is_missing, values_in
from mvkit.data.id_matches import Ids, check_matches, transposed_shape
from mvkit.errors import DataError, ShapeError

NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SHOWN = 12  # modalities that are counted one by one


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
            shapes = {name: tuple(table.values.shape) for name, table in tables.items()}
            raise ShapeError(
                f"data: {lengths} rows, and no ids; expected as many in each; give "
                f"ids={{name: ids}}{transposed_shape(shapes)}"
            )
        return _joined(tables, {}, max(lengths.values()))
    named = {name: _ids(name, table) for name, table in tables.items()}
    columns = {name: table.columns.names for name, table in tables.items() if table.columns}
    # of whoever called from_arrays or from_tables
    check_matches(named, columns, disjoint=disjoint, stacklevel=4)
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
        hint = ""
        if table.values.ndim > 1 and table.values.shape[1] == len(table.ids):
            hint = "; it has as many columns, so it looks transposed: give its transpose"
        raise ShapeError(
            f"ids[{name!r}]: {len(table.ids)} for {len(table.values)} rows; expected one for each"
            f"{hint}"
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
        if lacks_part(id):
            raise DataError(
                f"{where}: row {row} has no id; expected one for each; fill it in, or drop the row"
            )


def lacks_part(id: object) -> bool:
    """Whether an id is missing, or a tuple with a part that is."""
    return any(map(lacks_part, id)) if isinstance(id, tuple) else is_missing(id)


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


def alignment(mask: Tensor, names: Sequence[str]) -> str:
    """How many rows have all modalities, and how many each, in words.

    Args:
        mask: what each row observes, (b, m) bool.
        names: of the modalities.

    Example:
        >>> alignment(torch.tensor([[True, True], [True, False]]), ["a", "b"])
        '1 of 2 rows in both: a 2, b 1'
    """
    counts = mask.sum(0).tolist()
    if len(names) == 1:
        return f"{counts[0]:,} of {len(mask):,} rows have {names[0]}"
    count = NUMBERS[len(names)] if len(names) < len(NUMBERS) else f"{len(names):,}"
    every = "both" if len(names) == 2 else f"all {count}"
    listed = [f"{name} {n:,}" for name, n in zip(names[:SHOWN], counts, strict=False)]
    if len(names) > SHOWN:
        listed.append(f"{len(names) - SHOWN:,} more")
    complete = int(mask.all(1).sum())
    return f"{complete:,} of {len(mask):,} rows in {every}: {', '.join(listed)}"


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
