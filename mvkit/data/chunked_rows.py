"""Rows that are stored in chunks, which are read whole: row groups of Parquet, chunks of Zarr.

Axes: b rows, n chunks.
"""

from __future__ import annotations

import contextlib
import copy
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, Self, runtime_checkable

import attrs
import numpy as np
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.modality import Modality
from mvkit.data.batch_order import order, windowed
from mvkit.data.joined_batches import joined_batches
from mvkit.data.one_pass import fit_in_passes
from mvkit.data.read_ahead import Plan, ReadAhead
from mvkit.data.sources import Source
from mvkit.data.transforms import Steps
from mvkit.errors import DataError, check_whole_number


@runtime_checkable
class Chunks(Protocol):
    """Rows in chunks: all that `ChunkedRows` asks of a file format.

    Invariants: `read` is a pure function of its argument, may be called by several threads at
    once, and returns as many rows as `counts` says; all chunks hold the same modalities, of the
    same types, and the same `extra`.

    Example:
        >>> import torch, mvkit
        >>> from mvkit.data.chunked_rows import ChunkedRows
        >>> class Squares:
        ...     counts = [3, 3]
        ...     modalities = {"a": mvkit.Modality((1,))}
        ...     def read(self, chunk):
        ...         numbers = torch.arange(3.0) + 3 * chunk
        ...         return mvkit.Batch({"a": numbers[:, None] ** 2})
        >>> rows = ChunkedRows(Squares())
        >>> [batch.data["a"].flatten().tolist() for batch in mvkit.Pipeline(rows, shuffle=False)]
        [[0.0, 1.0, 4.0, 9.0, 16.0, 25.0]]
    """

    @property
    def counts(self) -> Sequence[int]:
        """Rows of each chunk, (n,)."""
        ...

    @property
    def modalities(self) -> Mapping[str, Modality]:
        """What the modalities are, in the order of masks, if the chunks have any."""
        ...

    def read(self, chunk: int, /) -> Batch:
        """All rows of a chunk, in the user's units."""
        ...


class ChunkedRows:
    """Rows of chunks as a `Source`: shuffled window by window, the next chunks read ahead.

    Args:
        chunks: where the rows are.
        window: how `shuffle` works: chunks in random order, rows shuffled within each window of so
            many chunks; None: rows in fully random order, for chunks that memory holds.
        memory: bytes of chunks to hold; two windows and a chunk should fit.

    Raises:
        DataError: no rows; a chunk that holds other rows than it should.

    Example:
        See `Chunks`.
    """

    def __init__(
        self, chunks: Chunks, *, window: int | None = 4, memory: int = 200_000_000
    ) -> None:
        self.chunks = chunks
        self.window = None if window is None else check_whole_number("window", window, 1)
        self.memory = memory
        self.modalities = dict(chunks.modalities)
        self._ends = np.cumsum(chunks.counts)
        self._held: dict[int, Batch] = {}
        self._lock = threading.Lock()
        if not len(self):
            raise DataError(
                f"{type(chunks).__name__}: it has no rows; expected one at least; look at its file"
            )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def epoch_order(self, *, seed: int, epoch: int) -> Tensor:
        """Indices of the rows in an epoch, (b,): window-shuffled, or fully random."""
        if self.window is None:
            return order(len(self), shuffle=True, seed=seed, epoch=epoch)
        counts = list(self.chunks.counts)
        return windowed(counts, window=self.window, seed=seed, epoch=epoch)

    def __getitems__(self, indices: Sequence[int], /) -> Batch:
        index = np.asarray(indices, dtype=np.int64)
        needed = np.unique(np.searchsorted(self._ends, index, side="right"))
        return self._gathered(index, {chunk: self._chunk(chunk) for chunk in needed.tolist()})

    def _chunk(self, chunk: int) -> Batch:
        """A chunk; those that were used last are kept."""
        with self._lock:
            held = self._held.pop(chunk, None)
        batch = self.read(chunk) if held is None else held
        with self._lock:
            self._held[chunk] = batch
            while len(self._held) > 1 and sum(map(_bytes, self._held.values())) > self.memory:
                self._held.pop(next(iter(self._held)))
        return batch

    def read(self, chunk: int) -> Batch:
        """All rows of a chunk, with as many rows as it should have."""
        batch = self.chunks.read(chunk)
        expected = self.chunks.counts[chunk]
        if len(batch) != expected:
            raise DataError(
                f"{type(self.chunks).__name__}: chunk {chunk} has {len(batch)} rows; expected "
                f"{expected}, as it says; was its file written meanwhile? Open it again"
            )
        return batch

    def _gathered(self, index: np.ndarray, chunks: Mapping[int, Batch]) -> Batch:
        """The rows at `index` (b,) of chunks that were read."""
        if not len(index):
            return self._chunk(0).take(slice(0, 0))
        chunk = np.searchsorted(self._ends, index, side="right")
        local = index - (self._ends - self.chunks.counts)[chunk]
        parts = []
        places = []
        for number, batch in chunks.items():
            own = np.flatnonzero(chunk == number)
            parts.append(batch.take(torch.from_numpy(local[own])))
            places.append(own)
        turns = np.argsort(np.concatenate(places), kind="stable")
        return joined_batches(parts).take(torch.from_numpy(turns))

    @contextlib.contextmanager
    def read_ahead(self, batches: Sequence[Tensor]) -> Iterator[Source]:
        """These rows for one pass over known batches; see `mvkit.data.sources.ReadsAhead`."""
        plan = Plan.of(self.chunks.counts, batches)
        slots = min(self._slots(plan), len(plan.turns))
        if slots < min(plan.peak + 1, len(plan.turns)) or not slots:
            yield self
            return
        with self._lock:
            self._held.clear()
        rows = _RowsOfPass(self, plan, slots)
        try:
            yield rows
        finally:
            rows.ahead.close()

    def _slots(self, plan: Plan) -> int:
        """How many of the chunks of a pass fit into memory, as large as the largest of them."""
        if not len(plan.turns):
            return 0
        first = int(plan.turns[0])
        row = _bytes(self._chunk(first)) / self.chunks.counts[first]
        most = max(self.chunks.counts[chunk] for chunk in plan.turns.tolist())
        slots: int = math.floor(self.memory / max(1.0, most * row))
        return slots

    def fit_transforms(self, transforms: Mapping[str, Steps]) -> Self:
        """These rows with transforms fitted to all of them, a block at a time, in `modalities`;
        see `mvkit.data.one_pass.fit_in_passes`.
        """
        rows = copy.copy(self)
        rows.modalities = fit_in_passes(self, self.modalities, transforms)
        rows._held = {}
        rows._lock = threading.Lock()
        return rows


@attrs.define(eq=False)
class _RowsOfPass:
    """The rows of chunks during a pass that reads them ahead."""

    rows: ChunkedRows
    plan: Plan
    slots: int
    held: dict[int, Batch] = attrs.field(factory=dict, init=False)  # by slot
    ahead: ReadAhead = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.ahead = ReadAhead(self.plan, self.slots, self._load)

    def _load(self, chunk: int, slot: int) -> None:
        self.held.pop(slot, None)
        self.held[slot] = self.rows.read(chunk)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int], /) -> Batch:
        index = np.asarray(indices, dtype=np.int64)
        needed = np.unique(np.searchsorted(self.rows._ends, index, side="right"))
        slots = self.ahead.slots_of(needed).tolist()
        chunks = {
            chunk: self.held[slot] for chunk, slot in zip(needed.tolist(), slots, strict=True)
        }
        batch = self.rows._gathered(index, chunks)
        self.ahead.release(needed)
        return batch


def _bytes(batch: Batch) -> int:
    """What the values of a batch take."""
    values = [*batch.data.values(), *(batch.elements or {}).values()]
    return max(1, sum(value.nbytes for value in values))
