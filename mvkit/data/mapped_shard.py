"""One shard, mapped into memory."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mvkit.data.shard_index import Kind, tensors_at
from mvkit.errors import DataError

AROUND = 2**16  # bytes that the kernel maps around one that is read


def check_uncut(path: Path, size: int, whole: int) -> None:
    """Raises DataError if a file in use has fewer bytes now than the whole had."""
    if size < whole:
        raise DataError(
            f"{path}: it was cut to {size} bytes of {whole} while it was in use; expected it as "
            "it was saved; take another copy, and replace files by renaming instead of writing "
            "into them"
        )


class MappedShard:
    """A mapped shard: its tensors as bytes, (rows, bytes per row).

    Args:
        path: its file.
        rows: number of its rows.
        whole: read it now, in one go instead of page by page.
        kinds: the tensors that it may have.

    Raises:
        DataError: a file that is no shard, or not the one of the index.
    """

    def __init__(self, path: Path, rows: int, whole: bool, kinds: Mapping[str, Kind]) -> None:
        flags = mmap.MAP_SHARED
        if whole:
            flags |= getattr(mmap, "MAP_POPULATE", 0)  # only Linux has it
        with path.open("rb") as file:
            self.memory = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
        if not whole:
            self.memory.madvise(mmap.MADV_RANDOM)
        self.touched = len(self.memory) if whole else 0  # bytes that may have been read
        self.path = path
        self._check_whole()
        self.tensors = {}
        for key, (start, row) in tensors_at(self.memory, path, rows, kinds).items():
            flat = np.frombuffer(self.memory, np.uint8, rows * row, start)
            self.tensors[key] = flat.reshape(rows, row)

    def _check_whole(self) -> None:
        """Raises DataError if the file was cut since it was mapped.

        To read what is gone would end the process (SIGBUS). One that is cut in the moment between
        this and the reading still does.
        """
        check_uncut(self.path, self.memory.size(), len(self.memory))

    def copy(self, rows: np.ndarray, into: Mapping[str, np.ndarray], places: np.ndarray) -> None:
        """Copies rows (n,) of each tensor, as bytes, to `places` (n,).

        Of a tensor that the shard lacks: zeros for data, ones for elements.
        """
        self._check_whole()
        for key, out in into.items():
            if key in self.tensors:
                out[places] = self.tensors[key].take(rows, axis=0)
            else:
                out[places] = key.startswith("elements/")
        touched = self.touched + 2 * len(rows) * len(into) * AROUND  # a row may lie across two
        self.touched = min(touched, len(self.memory))
