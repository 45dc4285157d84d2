"""What a pipeline can draw from when the rows are not one batch in memory: rows by index, rows in a stream, batches.

An item is a mapping: keys that name a modality are data, where an absent key, None or all NaN means unobserved; all
other keys go to `Batch.extra`, where numbers and arrays of one shape become a tensor and anything else a list with None
for rows that lack it. Items are copied when they are read, so that a dataset may use its buffers again.
"""

from __future__ import annotations

import copy
import itertools
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import attrs
import numpy as np
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.validation import as_tensor
from mvkit.errors import NothingObserved, ShapeError


@runtime_checkable
class Source(Protocol):
    """Rows that are gathered by index, a batch at a time: all that a pipeline asks for.

    `__getitems__` gives a `Batch` of the rows at the indices, in their order, or a list of items (see the module's
    docstring). It must be a pure function of the indices: workers call it at the same time, for any batch.

    Example:
        >>> import torch
        >>> from mvkit import Batch, Pipeline
        >>> class Squares:
        ...     def __len__(self): return 10
        ...     def __getitems__(self, indices): return Batch({"a": torch.tensor(indices)[:, None] ** 2.0})
        >>> [batch.data["a"].flatten().tolist() for batch in Pipeline(Squares(), batch_size=4, shuffle=False)]
        [[0.0, 1.0, 4.0, 9.0], [16.0, 25.0, 36.0, 49.0], [64.0, 81.0]]
    """

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int], /) -> Any: ...


@runtime_checkable
class Ordered(Protocol):
    """A source with an order of its own, which `shuffle` then asks for."""

    def epoch_order(self, *, seed: int, epoch: int) -> Tensor:
        """Indices of the rows in an epoch, (b,): a pure function of its arguments."""
        ...


@runtime_checkable
class Described(Protocol):
    """Rows of which masks (b, m) and `extra` are known before they are read: what grouped batches need."""

    @property
    def mask(self) -> Tensor | None: ...

    @property
    def extra(self) -> dict[str, Any]: ...


@attrs.frozen(eq=False)
class Items:
    """A source from anything with a length and items by index, such as a `torch.utils.data.Dataset` of dicts.

    Args:
        dataset: gives an item for each index.
        names: the modalities, in the model's order; other keys go to `extra`.

    Example:
        >>> from mvkit.data.sources import Items
        >>> rows = [{"a": [1.0, 2.0], "label": 0}, {"b": [3.0], "label": 1}]
        >>> Items(rows, ("a", "b")).__getitems__([0, 1]).mask.tolist()
        [[True, False], [False, True]]
    """

    dataset: Any
    names: tuple[str, ...]

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

    Resuming at batch k reads and drops the rows before it. Every rank reads all rows and keeps its share of each batch,
    so that the batches are the same on any number of ranks.

    Args:
        items: an iterable of items (see the module's docstring), the same at each pass.
        names: the modalities, in the model's order; other keys go to `extra`.
    """

    items: Iterable[Any]
    names: tuple[str, ...]

    def batches(self, size: int, start: int) -> Iterator[list[dict[str, Any]]]:
        """Lists of so many items, from batch `start` on."""
        rows = enumerate(self.items)
        for _ in itertools.islice(rows, start * size):
            pass
        while batch := [self._read(i, item) for i, item in itertools.islice(rows, size)]:
            yield batch

    def _read(self, i: int, item: Any) -> dict[str, Any]:
        try:
            return read(item, self.names)
        except Exception as error:
            error.add_note(f"at row {i} of the stream")
            raise


@attrs.frozen(eq=False)
class Loaded:
    """Batches that somebody else made, an epoch a pass: batches or mappings of arrays, such as a `DataLoader` gives.

    Args:
        batches: an iterable of them. Resuming at batch k makes and drops those before it.
    """

    batches: Iterable[Any]


def read(item: Any, names: Sequence[str]) -> dict[str, Any]:
    """A copy of an item without what it lacks; values of modalities as tensors."""
    if not isinstance(item, Mapping):
        raise ShapeError(
            f"an item is a {type(item).__name__}; expected a dict from modality to values"
        )
    return {
        name: as_tensor(value, repr(name)).reshape(np.shape(value)).clone()
        if name in names
        else copy.deepcopy(value)
        for name, value in item.items()
        if value is not None
    }


def gather(source: Source, index: list[int], names: Sequence[str] | None) -> Batch:
    """The rows of a source at some indices, as a batch."""
    found = source.__getitems__(index)
    if isinstance(found, Batch):
        return found
    if not isinstance(found, list) or names is None:
        raise ShapeError(
            f"{type(source).__name__}.__getitems__ gave a {type(found).__name__}; expected a Batch, or a list of items "
            "and schema=model.schema, which says what are modalities"
        )
    return collate([read(item, names) for item in found], names)


def collate(items: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Batch:
    """Items that were read, as a batch with a mask (b, m)."""
    data: dict[str, Tensor] = {}
    mask = torch.zeros(len(items), len(names), dtype=torch.bool)
    for i, name in enumerate(names):
        present = [name in item for item in items]
        if not any(present):
            continue
        first = items[present.index(True)][name]
        values = [item.get(name, torch.zeros_like(first)) for item in items]
        odd = next((r for r, value in enumerate(values) if value.shape != first.shape), None)
        if odd is not None:
            raise ShapeError(
                f"{name!r}: row {odd} of the batch has shape {tuple(values[odd].shape)}, row {present.index(True)} "
                f"{tuple(first.shape)}; expected one shape in all rows; pad or crop them"
            )
        data[name] = torch.stack(values)
        flat = data[name].reshape(len(items), -1)
        mask[:, i] = torch.tensor(present) & ~torch.isnan(flat).all(1)
    if not data:
        raise NothingObserved(0)
    keys = dict.fromkeys(key for item in items for key in item if key not in names)
    return Batch(
        data, mask, extra={key: _column([item.get(key) for item in items]) for key in keys}
    )


def observed(batch: Batch, names: Sequence[str]) -> Tensor:
    """What each row of a batch observes, (b, m): its mask, or what elements and NaN say."""
    if batch.mask is not None:
        if batch.mask.shape[1] != len(names):
            raise ShapeError(
                f"batch.mask: shape {tuple(batch.mask.shape)}; expected {(len(batch), len(names))}, columns "
                f"{', '.join(names)}"
            )
        return batch.mask
    given, columns = batch.elements or {}, []
    for name in names:
        value = batch.data.get(name)
        if value is None:
            columns.append(torch.zeros(len(batch), dtype=torch.bool))
        else:
            present = given[name] if name in given else ~torch.isnan(value)
            columns.append(present.reshape(len(value), -1).any(1))
    return torch.stack(columns, dim=1)


def split(rows: Batch, indices: Sequence[Tensor]) -> Iterator[Batch]:
    """`rows.take` at each of some indices (n,); what follows from the mask is found in a few steps for all of them.

    Values are gathered when a batch is asked for: gathered ahead, they leave the processor's cache.
    """
    if rows.schema is None or rows.mask is None:
        yield from map(rows.take, indices)
        return
    sizes = [len(index) for index in indices]
    mask = rows.mask.index_select(0, torch.cat(list(indices)))
    tensors = {name: value for name, value in rows.extra.items() if isinstance(value, Tensor)}
    lists = Batch(
        {},
        rows.mask,
        extra={name: value for name, value in rows.extra.items() if name not in tensors},
    )

    def pick(values: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        return {name: value.index_select(0, index) for name, value in values.items()}

    for index, part, known in zip(indices, mask.split(sizes), _indices(mask, sizes), strict=True):
        extra = pick(tensors, index) | (lists.take(index).extra if lists.extra else {})
        elements = rows.elements and pick(rows.elements, index)
        yield Batch(
            pick(rows.data, index),
            part,
            elements,
            extra,
            schema=rows.schema,
            hidden=rows.hidden,
            **known,
        )


def _indices(mask: Tensor, sizes: list[int]) -> Iterator[dict[str, Any]]:
    """What `mvkit.core.batch.indices_of` says of each part of a mask (n, m), with few steps a part."""
    flags = np.ascontiguousarray(mask.numpy().T)
    every, some = np.logical_and.reduce(flags), np.logical_or.reduce(flags)
    columns, no_gap, start = [*flags, every], bool(some.all()), 0
    if every.all():
        complete = {
            "observed_rows": (None,) * len(flags),
            "complete_rows": None,
            "first_empty_row": None,
        }
        yield from (complete for _ in sizes)
        return
    for size in sizes:
        stop = start + size
        found = [column[start:stop].nonzero()[0] for column in columns]
        *rows, whole = [None if index.size == size else torch.from_numpy(index) for index in found]
        nothing = None if no_gap or some[start:stop].all() else int(some[start:stop].argmin())
        yield {"observed_rows": tuple(rows), "complete_rows": whole, "first_empty_row": nothing}
        start = stop


def _column(values: list[Any]) -> Any:
    """A tensor from numbers or arrays of one shape; anything else as it is."""
    if not all(
        isinstance(value, numbers.Number | np.ndarray | np.generic | Tensor) for value in values
    ):
        return values
    tensors = [value if isinstance(value, Tensor) else torch.as_tensor(value) for value in values]
    return torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else values
