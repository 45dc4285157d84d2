"""One pass over a folder of shards, with its shards read ahead.

Axes: b rows of a batch, r rows of a slot, n shards.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvkit.data.mapped_shard import check_uncut
from mvkit.data.read_ahead import Ints, Plan, ReadAhead
from mvkit.data.shard_index import Json, Kind, tensors_at
from mvkit.errors import DataError

Rows = dict[str, Tensor]
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number
MOST = 2**26  # bytes of one read


class ShardPass:
    """The rows of shards in the order of a pass: bit for bit those of `Shards.__getitems__`.

    A thread reads whole shards, from front to back, into slots of one buffer per tensor, from
    which each batch is gathered in one step.

    Args:
        plan: of the pass.
        shards: what the index says of each.
        kinds: the tensors that a shard may have.
        opened: from the number of a shard to its file, once it was looked at.
        slots: how many shards are in memory.
        spare: buffers of an earlier pass, which are used again if they fit: new ones cost as much
            time as half a pass over rows that the system has in its cache.
    """

    def __init__(
        self,
        plan: Plan,
        shards: Sequence[Json],
        kinds: Mapping[str, Kind],
        opened: Callable[[int], Path],
        slots: int,
        spare: Rows | None = None,
    ) -> None:
        self.shards = shards
        self.kinds = kinds
        self.opened = opened
        self.turns = plan.turns.tolist()
        counts = [shard["rows"] for shard in shards]
        self.ends = np.cumsum(counts)
        self.starts = self.ends - counts
        self.rows = max((counts[i] for i in self.turns), default=0)  # of a slot
        length = slots * self.rows
        if spare is None or any(len(buffer) != length for buffer in spare.values()):
            spare = {}
            for key, (dtype, shape) in kinds.items():
                spare[key] = torch.empty(length, *shape, dtype=dtype)
        self.buffers = spare
        self.ahead = ReadAhead(plan, slots, self._load)

    def gather(self, index: Ints) -> Rows:
        """The tensors of some rows of all shards, (b, …) each."""
        shard = np.searchsorted(self.ends, index, side="right")
        needed, place = np.unique(shard, return_inverse=True)
        slots = self.ahead.slots_of(needed)
        rows = torch.from_numpy(slots[place] * self.rows + index - self.starts[shard])
        tensors = {key: _picked(value, rows) for key, value in self.buffers.items()}
        self.ahead.release(needed)
        return tensors

    def close(self) -> Rows:
        """Ends the pass, and returns its buffers."""
        self.ahead.close()
        buffers = self.buffers
        self.buffers = {}
        return buffers

    def _load(self, i: int, slot: int) -> None:
        """Reads shard i into a slot; zeros for data that it lacks, ones for elements."""
        path = self.opened(i)
        rows = self.shards[i]["rows"]
        start = slot * self.rows
        with open(path, "rb", buffering=0) as file:
            _announce(file.fileno())
            places = _places(file.fileno(), path, rows, self.kinds)
            # in the order of the file, so that the disk is read from front to back
            for key in sorted(places, key=lambda key: places[key][0]):
                part = self.buffers[key][start : start + rows]
                _read_into(file.fileno(), path, part, places[key][0])
        for key, value in self.buffers.items():
            if key not in places:
                value[start : start + rows] = key.startswith("elements/")


def _picked(values: Tensor, rows: Tensor) -> Tensor:
    """Some rows of values, whatever their type: torch picks none of uint64 or float8."""
    whole = values.view(WHOLE.get(values.itemsize, values.dtype))
    return whole.index_select(0, rows).view(values.dtype)


def room_for(
    plan: Plan, shards: Sequence[Json], kinds: Mapping[str, Kind], memory: int
) -> int | None:
    """How many shards a pass may hold in so many bytes; None: too few to read ahead.

    One more at least than the pass needs at a time, unless it needs all.
    """
    numbers = [kind[0].itemsize * math.prod(kind[1]) for kind in kinds.values()]
    most = max((shards[i]["rows"] for i in plan.turns.tolist()), default=0)
    slot = max(1, most * sum(numbers))
    slots = min(memory // slot, len(plan.turns))
    least = min(plan.peak + 1, len(plan.turns))
    return slots if slots and slots >= least else None


def _announce(file: int) -> None:
    """Tells the system that all of a file is read soon, from front to back."""
    if hasattr(os, "posix_fadvise"):  # not on every system
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)


def _places(
    file: int, path: Path, rows: int, kinds: Mapping[str, Kind]
) -> dict[str, tuple[int, int]]:
    """Where the tensors of an open shard are, by its header."""
    size = os.fstat(file).st_size
    header = os.pread(file, 8, 0)
    length = int.from_bytes(header, "little")
    if len(header) == 8 and length <= size:
        header += os.pread(file, length, 8)
    return tensors_at(header, path, rows, kinds, size)


def _read_into(file: int, path: Path, part: Tensor, start: int) -> None:
    """Fills a contiguous tensor with the bytes of a file from `start` on."""
    if not part.numel():
        return
    values: Any = part.reshape(-1).view(torch.uint8).numpy()
    raw = memoryview(values)
    done = 0
    while done < len(raw):
        count = os.preadv(file, [raw[done : done + MOST]], start + done)
        if not count:
            check_uncut(path, os.fstat(file).st_size, start + len(raw))
            raise DataError(
                f"{path}: nothing can be read at byte {start + done}; expected the shard as it "
                "was saved; take another copy"
            )
        done += count
