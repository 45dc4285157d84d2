"""Fingerprints of data, by which a run that resumes, and every process of a run, knows them again.

Axes: b rows, n of them.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from mvkit.core.batch import Batch
from mvkit.core.digests import digest
from mvkit.core.noise import kept_global
from mvkit.data.dataset import as_batch
from mvkit.data.lengths import known_length
from mvkit.data.pipeline import Pipeline
from mvkit.data.shards import Shards
from mvkit.data.sources import Loaded, Source, Stream, collate, gather

ROWS = 64  # rows of a source that are read
VARIES = "differs at each reading"
Digest = dict[str, str]
Json = dict[str, Any]  # what JSON can hold


def fingerprint(pipeline: Pipeline) -> Json:
    """What tells data from other data, as plain JSON data; reading draws on no global generator.

    In memory: all values, masks, ids and labels. Shards: the checksums in their index, with masks
    and labels. Other sources, such as a torch `Dataset`: their length, and 64 rows spread evenly.
    Streams and loaders: the first batch. What two readings in a row return differently, such as
    augmented images or a loader that shuffles, is known by its length alone.

    Not seen are: the other rows of a source or a stream, a transform, an iterator that can be read
    but once, and a shard whose file was altered behind its index (`Shards(verify=True)` sees it).

    Args:
        pipeline: placed for its model, with a schema.

    Returns:
        `kind`, `rows` and `batches` where they are known, the `order`, and `values` by name.
    """
    rows = pipeline.rows
    order: Json = {"batch_size": pipeline.batch_size, "seed": pipeline.seed}
    order |= {"shuffle": pipeline.shuffle, "group": pipeline.group}
    known: Json = {"kind": type(rows).__name__, "rows": None}
    if isinstance(rows, Batch | Source):
        known["rows"] = len(rows)
    known["batches"] = known_length(pipeline)
    known["order"] = order
    with _generators_put_back():
        values = _values(pipeline)
        if not _in_memory(rows) and values != _values(pipeline):
            values = {"all": VARIES}
    return {**known, "values": values}


def _in_memory(rows: object) -> bool:
    """Whether every value is there to be hashed, and the same each time."""
    if isinstance(rows, Loaded):
        return isinstance(rows.batches, list | tuple)
    return isinstance(rows, Batch | Shards)


def _values(pipeline: Pipeline) -> Digest:
    """Digests of values by the names of what holds them."""
    rows = pipeline.rows
    if isinstance(rows, Batch):
        return _of_batch(rows)
    if isinstance(rows, Shards):
        digests = [shard["digest"] for shard in rows.shards]
        order = {"window": rows.window}
        parts = {"shards": digests, "mask": rows.mask, "extra": rows.extra, "order": order}
        return {name: digest(part) for name, part in parts.items()}
    if isinstance(rows, Loaded | Stream):
        return _of_first(pipeline)
    count = len(rows)
    index = torch.linspace(0, count - 1, min(count, ROWS), dtype=torch.float64).long()
    names = None if pipeline.schema is None else pipeline.schema.names
    return _of_batch(gather(rows, index.tolist(), names))


def _of_first(pipeline: Pipeline) -> Digest:
    """Digests of the first batch of a stream; of all batches of a list."""
    rows = pipeline.rows
    if isinstance(rows, Stream):
        if isinstance(rows.items, Iterator):  # what is read is gone
            return {}
        for items in rows.batches(pipeline.batch_size, 0):
            return _of_batch(collate(items, rows.names))
    if not isinstance(rows, Loaded) or isinstance(rows.batches, Iterator):
        return {}
    if isinstance(rows.batches, list | tuple):
        batches = [_of_batch(as_batch(batch)) for batch in rows.batches]
        return {f"batch {place}": digest(batch) for place, batch in enumerate(batches)}
    for batch in itertools.islice(rows.batches, 1):
        return _of_batch(as_batch(batch))  # type: ignore[arg-type]
    return {}


def _of_batch(batch: Batch) -> Digest:
    parts: dict[str, object] = dict(batch.data)
    parts |= {f"elements of {name}": value for name, value in (batch.elements or {}).items()}
    parts |= {f"extra {name}": value for name, value in batch.extra.items()}
    parts["mask"] = batch.mask
    return {name: digest(value) for name, value in parts.items()}


@contextlib.contextmanager
def _generators_put_back() -> Iterator[None]:
    """Puts the global generators back on exit: whoever reads data may draw from them."""
    states = random.getstate(), np.random.get_state()
    try:
        with kept_global():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def difference(then: object, now: object) -> str:
    """Where two plain values first differ."""
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        then = dict(enumerate(then))
        now = dict(enumerate(now))
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            if then.get(key) != now.get(key):
                return f"{key}: {difference(then.get(key), now.get(key))}"
    return f"{then!r}, got {now!r}"
