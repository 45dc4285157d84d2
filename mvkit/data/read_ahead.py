"""Chunks of rows that a thread reads before they are needed, into a bounded number of slots.

The order of a pass is known before it begins, so that what is read next is no guess. Axes: b rows
of a batch, n chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvkit.errors import DataError

Ints = NDArray[np.int64]
BATCHES = 256  # batches that are planned together: as one array, all rows would be memory for once


@attrs.frozen(eq=False)
class Plan:
    """Which chunks a pass reads, and how many of them it needs at a time.

    Args:
        turns: the chunks in the order in which they are first needed.
        uses: how many batches need each chunk, (n,).
        peak: the most chunks that are in use at a time: from their first batch to their last.
    """

    turns: Ints
    uses: Ints
    peak: int

    @classmethod
    def of(cls, counts: Sequence[int], batches: Sequence[Tensor]) -> Plan:
        """The plan of a pass.

        Args:
            counts: rows of each chunk, (n,).
            batches: the rows of each batch, in order, (b,) each.
        """
        n = len(counts)
        ends = np.cumsum(counts)
        uses = np.zeros(n, dtype=np.int64)
        first = np.full(n, len(batches), dtype=np.int64)
        last = np.full(n, -1, dtype=np.int64)
        for start in range(0, len(batches), BATCHES):
            part = batches[start : start + BATCHES]
            sizes = [len(index) for index in part]
            number = np.repeat(np.arange(start, start + len(part)), sizes)
            chunk = np.searchsorted(ends, torch.cat(list(part)).numpy(), side="right")
            pairs = np.unique(number * n + chunk)
            np.add.at(uses, pairs % n, 1)
            np.minimum.at(first, pairs % n, pairs // n)
            np.maximum.at(last, pairs % n, pairs // n)
        needed = uses.nonzero()[0]
        changes = np.zeros(len(batches) + 1, dtype=np.int64)
        np.add.at(changes, first[needed], 1)
        np.add.at(changes, last[needed] + 1, -1)
        turns = needed[np.argsort(first[needed], kind="stable")]
        return cls(turns, uses, int(changes.cumsum().max(initial=0)))


class ReadAhead:
    """The chunks of one pass, read by a thread of its own; each is freed after its last batch.

    Every batch of the plan asks once, `slots_of` first and `release` when its rows are copied; in
    any order and from any thread.

    Args:
        plan: of the pass.
        slots: how many chunks may be in memory; at least as many as the pass needs at a time.
        load: reads a chunk into a slot.

    Example:
        >>> import numpy, torch
        >>> from mvkit.data.read_ahead import Plan, ReadAhead
        >>> plan = Plan.of([2, 2], [torch.tensor([0, 1]), torch.tensor([2, 3])])
        >>> read = []
        >>> ahead = ReadAhead(plan, 1, lambda chunk, slot: read.append(chunk))
        >>> for chunk in (0, 1):
        ...     _ = ahead.slots_of(numpy.array([chunk]))
        ...     ahead.release(numpy.array([chunk]))
        >>> ahead.close()
        >>> read
        [0, 1]
    """

    def __init__(self, plan: Plan, slots: int, load: Callable[[int, int], None]) -> None:
        if slots < plan.peak:
            raise ValueError(f"slots: {slots}; expected {plan.peak}, which the pass needs at once")
        self._plan = plan
        self._load = load
        self._free = list(range(slots))
        self._slot = np.full(len(plan.uses), -1, dtype=np.int64)
        self._left = plan.uses.copy()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._closed = False

    def slots_of(self, chunks: Ints) -> Ints:
        """Where the chunks (n,) are, once they were read.

        Raises:
            DataError: as reading them does; the pass is over.
        """
        with self._changed:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._read, daemon=True)
                self._thread.start()
            while (self._slot[chunks] < 0).any():
                if self._error is not None:
                    raise self._error
                if self._closed:
                    raise DataError(
                        "this pass over the rows is over; expected one that goes on; begin another"
                    )
                self._changed.wait()
            return self._slot[chunks]

    def release(self, chunks: Ints) -> None:
        """Says that a batch needs its chunks (n,) no longer."""
        with self._changed:
            self._left[chunks] -= 1
            for chunk in chunks[self._left[chunks] == 0].tolist():
                self._free.append(int(self._slot[chunk]))
                self._slot[chunk] = -1
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the pass, and waits until nothing more is read."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _read(self) -> None:
        """Reads the chunks in turn; what goes wrong is kept for who needs them."""
        try:
            for chunk in self._plan.turns.tolist():
                slot = self._next_slot()
                if slot is None:
                    return
                self._load(chunk, slot)
                with self._changed:
                    self._slot[chunk] = slot
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next_slot(self) -> int | None:
        """A free slot, once there is one; None: the pass is over."""
        with self._changed:
            while not self._free and not self._closed:
                self._changed.wait()
            return None if self._closed else self._free.pop()
