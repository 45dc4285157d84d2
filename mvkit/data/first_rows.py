"""The first rows of data that come as a stream."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TypeVar

import attrs

from mvkit.core.batch import Batch, conform
from mvkit.data.dataset import as_batch
from mvkit.data.pipeline import Pipeline
from mvkit.data.sources import Loaded, Stream, collate

Item = TypeVar("Item")


def first_of_stream(data: Pipeline, n: int) -> list[Batch]:
    """The first rows of a stream, or of a loader's batches, conformed; n at least, if there are.

    They come again in the next pass: an iterable is begun once more, and to an iterator they are
    given back.

    Args:
        data: a pipeline with a schema.
        n: how many rows.

    Raises:
        DataError: as `conform`.
    """
    rows = data.rows
    batches: list[Batch] = []
    if isinstance(rows, Stream):
        items, every_item = _taken(rows.items, n)
        data.rows = attrs.evolve(rows, items=every_item)
        for block in Stream(items, rows.names).batches(n, 0):
            batches.append(collate(block, rows.names))
    elif isinstance(rows, Loaded):
        loaded, every_batch = _taken_rows(rows.batches, n)
        data.rows = Loaded(every_batch)
        batches = loaded
    if data.transform is not None:
        batches = [data.transform(batch) for batch in batches]
    if data.schema is None:
        return batches
    return [conform(batch, data.schema) for batch in batches]


def _taken(items: Iterable[Item], n: int) -> tuple[list[Item], Iterable[Item]]:
    """The first n of some items, and all of them."""
    iterator = iter(items)
    taken = list(itertools.islice(iterator, n))
    return taken, itertools.chain(taken, iterator) if iterator is items else items


def _taken_rows(batches: Iterable[object], n: int) -> tuple[list[Batch], Iterable[object]]:
    """The first batches, of n rows at least, and all of them."""
    iterator = iter(batches)
    taken: list[object] = []
    read: list[Batch] = []
    while sum(map(len, read)) < n:
        raw = next(iterator, None)
        if raw is None:
            break
        taken.append(raw)
        read.append(as_batch(raw))  # type: ignore[arg-type]
    return read, itertools.chain(taken, iterator) if iterator is batches else batches
