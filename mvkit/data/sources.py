"""What a pipeline can draw from: rows by index, rows in a stream, or batches.

An item is a mapping: keys that name a modality are data, where an absent key, None or all NaN
means unobserved; all other keys go to `Batch.extra`, where numbers and arrays of one shape become
a tensor and anything else a list with None for rows that lack it. Items are copied when they are
read, so that a dataset may use its buffers again.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Protocol, runtime_checkable

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from mvkit.core.batch import Batch
from mvkit.core.batch_fields import mask_columns
from mvkit.core.raw_values import as_tensor
from mvkit.core.validation import Schema
from mvkit.errors import NothingObserved, ShapeError

Item = Mapping[str, Any]
Names = tuple[str, ...]


@runtime_checkable
class Source(Protocol):
    """Rows that are gathered by index, a batch at a time: all that a pipeline asks for.

    `__getitems__` returns a `Batch` of the rows at the indices, in their order, or a list of items
    (see the module's docstring). It must be a pure function of the indices: workers call it at the
    same time, for any batch.

    Example:
        >>> import torch
        >>> from mvkit import Batch, Pipeline
        >>> class Squares:
        ...     def __len__(self): return 10
        ...     def __getitems__(self, indices):
        ...         return Batch({"a": torch.tensor(indices)[:, None] ** 2.0})
        >>> pipeline = Pipeline(Squares(), batch_size=4, shuffle=False)
        >>> [batch.data["a"].flatten().tolist() for batch in pipeline]
        [[0.0, 1.0, 4.0, 9.0], [16.0, 25.0, 36.0, 49.0], [64.0, 81.0]]
    """

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int], /) -> Batch | Sequence[Item]: ...


@runtime_checkable
class Ordered(Protocol):
    """A source with an order of its own, which `shuffle` then asks for."""

    def epoch_order(self, *, seed: int, epoch: int) -> Tensor:
        """Indices of the rows in an epoch, (b,): a pure function of its arguments."""
        ...


@runtime_checkable
class Described(Protocol):
    """Rows whose masks (b, m) and `extra` are known before they are read, for grouped batches."""

    @property
    def mask(self) -> Tensor | None: ...

    @property
    def extra(self) -> Mapping[str, object]: ...


@runtime_checkable
class ReadsAhead(Protocol):
    """A source that can read what a pass will ask for before it does."""

    def read_ahead(
        self, batches: Sequence[Tensor], /
    ) -> contextlib.AbstractContextManager[Source]:
        """The source for one pass over the rows of known batches, (b,) each, in this order."""
        ...


@runtime_checkable
class Conforming(Protocol):
    """A source that knows what its rows are like, and conforms them to a schema by itself."""

    def conform(self, batch: Batch, schema: Schema, /) -> Batch:
        """What `mvkit.core.batch.conform` with `compact=True` returns."""
        ...


def reading_ahead(
    source: Source, batches: Sequence[Tensor]
) -> contextlib.AbstractContextManager[Source]:
    """The source for one pass over known batches, read ahead if it can."""
    if isinstance(source, ReadsAhead):
        return source.read_ahead(batches)
    return contextlib.nullcontext(source)


@attrs.frozen(eq=False)
class Items:
    """A source from anything with a length and items by index, such as a torch `Dataset` of dicts.

    Args:
        dataset: holds an item for each index.
        names: the modalities, in the model's order; other keys go to `extra`.

    Example:
        >>> from mvkit.data.sources import Items
        >>> rows = [{"a": [1.0, 2.0], "label": 0}, {"b": [3.0], "label": 1}]
        >>> Items(rows, ("a", "b")).__getitems__([0, 1]).mask.tolist()
        [[True, False], [False, True]]
    """

    dataset: Any
    names: Names

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        items = []
        for i in indices:
            try:
                items.append(read(self.dataset[i], self.names))
            except Exception as error:
                error.add_note(f"at row {i} of the data")
                raise
        return collate(items, self.names)


@attrs.frozen(eq=False)
class Stream:
    """Rows one after another, from an iterable or an `IterableDataset`; an epoch is one pass.

    Resuming at batch k reads and drops the rows before it. Every rank reads all rows and keeps its
    share of each batch, so that the batches are the same on any number of ranks.

    Args:
        items: an iterable of items (see the module's docstring), the same at each pass.
        names: the modalities, in the model's order; other keys go to `extra`.
    """

    items: Iterable[object]
    names: Names

    def batches(self, size: int, start: int) -> Iterator[list[Item]]:
        """Lists of `size` items, from batch `start` on."""
        rows = enumerate(self.items)
        for _ in itertools.islice(rows, start * size):
            pass
        while batch := [self._read(i, item) for i, item in itertools.islice(rows, size)]:
            yield batch

    def _read(self, i: int, item: object) -> Item:
        try:
            return read(item, self.names)
        except Exception as error:
            error.add_note(f"at row {i} of the stream")
            raise


@attrs.frozen(eq=False)
class Loaded:
    """Batches that somebody else made, one epoch per pass, such as those of a `DataLoader`.

    Args:
        batches: an iterable of batches or mappings of arrays. Resuming at batch k makes and drops
            those before it.
    """

    batches: Iterable[object]


def read(item: object, names: Names) -> Item:
    """A copy of an item without what it lacks; values of modalities as tensors."""
    if not isinstance(item, Mapping):
        raise ShapeError(
            f"an item is a {type(item).__name__}; expected a dict from modality to values"
        )
    copied = {}
    for name, value in item.items():
        if value is not None and name in names:
            copied[name] = as_tensor(value, repr(name)).reshape(np.shape(value)).clone()
        elif value is not None:
            copied[name] = copy.deepcopy(value)
    return copied


def gather(source: Source, index: list[int], names: Names | None) -> Batch:
    """The rows of a source at some indices, as a batch."""
    rows = source.__getitems__(index)
    if isinstance(rows, Batch):
        return rows
    if not isinstance(rows, list) or names is None:
        raise ShapeError(
            f"{type(source).__name__}.__getitems__ returned a {type(rows).__name__}; expected a "
            "Batch, or a list of items and schema=model.schema, which says what are modalities"
        )
    return collate([read(item, names) for item in rows], names)


def collate(items: Sequence[Item], names: Names) -> Batch:
    """Items that were read, as a batch with a mask (b, m)."""
    data = {}
    mask = torch.zeros(len(items), len(names), dtype=torch.bool)
    for i, name in enumerate(names):
        present = [name in item for item in items]
        if any(present):
            data[name] = _stacked(name, items, present.index(True))
            nan = torch.isnan(data[name].reshape(len(items), -1))
            mask[:, i] = torch.tensor(present) & ~nan.all(1)
    keys: dict[str, None] = {}
    for item in items:
        keys |= dict.fromkeys(item)
    others = [key for key in keys if key not in names]
    _check_spelling(others, [name for name in names if name not in data])
    if not data:
        raise NothingObserved(0)
    extra = {key: _column([item.get(key) for item in items]) for key in others}
    return Batch(data, mask, extra=extra)


def _check_spelling(others: Sequence[str], absent: Sequence[str]) -> None:
    """Raises ShapeError for a key of items that is an absent modality, spelt in another way."""
    plain = {_plainly(name): name for name in absent}
    for key in others:
        name = plain.get(_plainly(key))
        if name is not None:
            raise ShapeError(
                f"items: the key {key!r} looks like the modality {name!r}, which they lack; "
                "expected the names of the model; rename the key"
            )


def _plainly(name: object) -> str:
    """A name in lower case, without spaces, dots and dashes."""
    return "".join(filter(str.isalnum, str(name).lower()))


def _stacked(name: str, items: Sequence[Item], first: int) -> Tensor:
    """Values of a modality that item number `first` has, (b, *shape), zeros where it is absent."""
    shape = items[first][name].shape
    blank = torch.zeros_like(items[first][name])
    values = [item.get(name, blank) for item in items]
    for row, value in enumerate(values):
        if value.shape != shape:
            raise ShapeError(
                f"{name!r}: row {row} of the batch has shape {tuple(value.shape)}, row {first} "
                f"{tuple(shape)}; expected one shape in all rows; pad or crop them"
            )
    return torch.stack(values)


def _column(values: Sequence[object]) -> object:
    """A tensor from numbers or arrays of one shape; anything else as it is."""
    numeric = numbers.Number | np.ndarray | np.generic | Tensor
    if not all(isinstance(value, numeric) for value in values):
        return values
    tensors = [torch.as_tensor(value) for value in values]
    same = len({tensor.shape for tensor in tensors}) == 1
    return torch.stack(tensors) if same else values


def observed(batch: Batch, names: Names) -> Tensor:
    """What each row of a batch observes, (b, m): its mask, or what elements and NaN say.

    Raises:
        ShapeError: a mask of another dtype or shape.
    """
    shape = (len(batch), len(names))
    if batch.mask is not None:
        order = (batch.order if batch.schema is None else batch.schema.names) or names
        columns = mask_columns(batch.mask, order, names, len(batch))
        if order == names:
            return batch.mask
        return torch.stack([columns[name] for name in names], dim=1)
    mask = torch.zeros(shape, dtype=torch.bool)
    elements = batch.elements or {}
    for i, name in enumerate(names):
        if name in batch.data:
            present = elements[name] if name in elements else ~torch.isnan(batch.data[name])
            mask[:, i] = present.reshape(len(batch), -1).any(1)
    return mask


def split(rows: Batch, indices: Sequence[Tensor]) -> Iterator[Batch]:
    """`rows.take` at each of some indices (n,), with what follows from the mask found for all.

    Values are gathered when a batch is asked for: gathered ahead, they leave the CPU's cache.
    """
    if rows.schema is None or rows.mask is None:
        yield from map(rows.take, indices)
        return
    sizes = [len(index) for index in indices]
    mask = rows.mask.index_select(0, torch.cat(list(indices)))
    tensors = {name: value for name, value in rows.extra.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in rows.extra.items() if name not in tensors}
    rest = Batch({}, extra=others)

    def pick(values: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        return {name: value.index_select(0, index) for name, value in values.items()}

    for index, part, known in zip(indices, mask.split(sizes), _indices(mask, sizes), strict=True):
        extra = pick(tensors, index)
        if others:
            extra |= rest.take(index).extra
        elements = rows.elements and pick(rows.elements, index)
        given: dict[str, Any] = {"exposure": pick(rows.exposure, index)}
        given["covariates"] = pick(rows.covariates, index)
        if rows.row_weight is not None:
            given["row_weight"] = rows.row_weight.index_select(0, index)
        given |= {"schema": rows.schema, "hidden": rows.hidden, "classes": rows.classes}
        yield Batch(pick(rows.data, index), part, elements, extra, **given, **known)


def _indices(mask: Tensor, sizes: list[int]) -> Iterator[dict[str, Any]]:
    """What `mvkit.core.row_picks.indices_of` says of each part of a mask (n, m), in few steps."""
    columns = np.ascontiguousarray(mask.numpy().T)
    if columns.all():
        complete: dict[str, Any] = {"observed_rows": (None,) * len(columns)}
        complete |= {"complete_rows": None, "first_empty_row": None}
        yield from itertools.repeat(complete, len(sizes))
        return
    some = np.logical_or.reduce(columns)
    flags = np.vstack([columns, columns.all(0)])
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        rows = []
        for flag in flags:
            index = flag[part].nonzero()[0]
            rows.append(None if len(index) == size else torch.from_numpy(index))
        *observed_rows, every = rows
        empty = None if some[part].all() else int(some[part].argmin())
        indices = {"observed_rows": tuple(observed_rows), "complete_rows": every}
        yield {**indices, "first_empty_row": empty}
        start += size


def kind_of_items(rows: object) -> Callable[..., Items | Stream] | None:
    """What holds items: by index, one after another, or None for what has none."""
    if isinstance(rows, Dataset | list | tuple):
        by_index = isinstance(rows, Sized) and not isinstance(rows, IterableDataset)
        return Items if by_index else Stream
    return Stream if isinstance(rows, Iterable) and not isinstance(rows, Sized) else None
