"""Long arrays in files, of which entries are taken by position: mapped, or read block by block.

Axes: n entries of an array.
"""

from __future__ import annotations

import collections
import contextlib
import mmap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mvkit.errors import DataError

AROUND = 2**16  # bytes that the kernel maps around one that is read
BLOCK = 2**16  # bytes of a block, about
Array = NDArray[Any]
Positions = NDArray[np.int64]


class Stored(Protocol):
    """An array of which entries are taken by position."""

    def take(self, positions: Positions) -> Array:
        """The entries at ascending positions (n,), in the byte order of the machine."""
        ...


class InMemory:
    """An array in memory.

    Args:
        array: its entries are on the first axis.
    """

    def __init__(self, array: Array) -> None:
        self.array = array

    def take(self, positions: Positions) -> Array:
        return _native(self.array[positions])


class MappedFile:
    """A file mapped for reading: its pages are the system's cache, not memory of the process.

    Args:
        path: where it is.
        memory: bytes that stay mapped; beyond, all are given back to the system, which keeps them
            in its cache while it has room.
    """

    def __init__(self, path: Path, memory: int) -> None:
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.path = path
        self.limit = memory
        self.touched = 0  # bytes that may have been read since
        self._lock = threading.Lock()

    def check_whole(self) -> None:
        """Raises DataError if the file was cut since it was mapped.

        To read what is gone would end the process (SIGBUS).
        """
        size = self.map.size()  # of the file, now
        if size < len(self.map):
            raise DataError(
                f"{self.path}: it was cut to {size} bytes of {len(self.map)} while it was in use; "
                "expected it as it was opened; take another copy"
            )

    def count(self, read: int) -> None:
        """Counts bytes that were read, and gives pages back if they are too many."""
        with self._lock:
            self.touched += read
            if self.touched > self.limit:
                self.map.madvise(mmap.MADV_DONTNEED)
                self.touched = 0


class Mapped:
    """An array that lies uncompressed in a mapped file, in one piece or in chunks.

    Args:
        file: the file.
        starts: the first byte of each chunk, (chunks,).
        size: entries of a chunk; the last may have fewer.
        shape: of the array.
        dtype: of its entries, in either byte order.
    """

    def __init__(
        self,
        file: MappedFile,
        starts: Positions,
        size: int,
        *,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self.file = file
        self.size = size
        self.shape = shape
        self.dtype = dtype
        # as bytes: numpy copies an array whole, before it takes of it, that begins at an odd byte
        width = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        odd = int(starts[0]) % width
        count = (len(file.map) - odd) // width
        self.entries = np.frombuffer(file.map, np.uint8, count * width, odd).reshape(count, width)
        before = (starts - odd) // width  # entries of the file before each chunk
        self.shifts = before - np.arange(len(starts)) * size

    @staticmethod
    def fits(starts: Positions, width: int) -> bool:
        """Whether chunks that begin at some bytes are a whole number of entries apart."""
        return not ((starts - starts[0]) % width).any()

    def take(self, positions: Positions) -> Array:
        self.file.check_whole()
        shift = self.shifts[0] if len(self.shifts) == 1 else self.shifts[positions // self.size]
        raw = self.entries.take(positions + shift, axis=0)
        pieces = 1 + int(np.count_nonzero(positions[1:] - positions[:-1] > 1))
        self.file.count(raw.nbytes + 2 * AROUND * pieces)
        values = raw.reshape(-1).view(self.dtype)
        return _native(values.reshape(len(positions), *self.shape[1:]))


class BlockCache:
    """Blocks of arrays that were read last, for several arrays and threads.

    Args:
        memory: bytes that they may take together; one block stays in any case.
    """

    def __init__(self, memory: int) -> None:
        self.limit = memory
        self._blocks: collections.OrderedDict[tuple[int, int], Array] = collections.OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def block(self, array: InBlocks, number: int) -> Array:
        """A block of an array, read unless it is there."""
        key = (id(array), number)
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
            values = array.read(number)
            self._blocks[key] = values
            self._held += values.nbytes
            while self._held > self.limit and len(self._blocks) > 1:
                _, dropped = self._blocks.popitem(last=False)
                self._held -= dropped.nbytes
            return values


class InBlocks:
    """An array that is compressed, or lies in chunks, read block by block.

    Args:
        array: of h5py or zarr.
        path: its file, for messages.
        cache: where blocks are kept.
    """

    def __init__(self, array: Any, path: Path, cache: BlockCache) -> None:
        self.array = array
        self.path = path
        self.cache = cache
        self.shape = tuple(array.shape)
        self.dtype = np.dtype(array.dtype)
        row = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        chunk = array.chunks[0] if array.chunks else 1
        self.size = chunk * max(1, BLOCK // max(1, row * chunk))  # entries of a block

    def read(self, number: int) -> Array:
        """A block, from the file."""
        with reading(self.path):
            return np.asarray(self.array[number * self.size : (number + 1) * self.size])

    def take(self, positions: Positions) -> Array:
        values = np.empty((len(positions), *self.shape[1:]), self.dtype)
        block = positions // self.size
        blocks = block[np.append(True, block[1:] > block[:-1])] if len(block) else block
        ends = np.searchsorted(positions, (blocks + 1) * self.size)
        start = 0
        for number, end in zip(blocks.tolist(), ends.tolist(), strict=True):
            places = positions[start:end] - number * self.size
            values[start:end] = self.cache.block(self, number)[places]
            start = end
        return _native(values)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Inside, what fails in reading a file is a DataError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected one that is there") from None
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); expected a whole HDF5 "
            "file or zarr folder; take another copy"
        ) from None


def _native(values: Array) -> Array:
    """Values in the byte order of the machine, which torch needs."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)
