"""Tables that are written a block of rows at a time, as Parquet, CSV or AnnData's h5ad.

Axes: b rows of a block.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from mvkit.core import safe_file
from mvkit.data.h5ad_file import H5adFile
from mvkit.errors import RequestError

ROWS = 2**16  # that are written together: readers of Parquet take as many at a time
CELLS = 2**23  # and no more cells than these, where rows are wide
FilePath = str | os.PathLike[str]
Columns = Mapping[str, Any]  # by name, (b,) each


class _Writer(Protocol):
    """What writes tables into a file, one below the other."""

    def write(self, frame: Any) -> None: ...

    def close(self) -> None: ...


class TableFile:
    """A table that is being written; see `table_file`."""

    def __init__(self, writer: _Writer) -> None:
        self._writer = writer
        self._frames: list[Any] = []

    def write(self, columns: Columns) -> None:
        """Adds rows, the columns of which are called as ever."""
        from pandas import DataFrame

        self._frames.append(DataFrame(dict(columns)))
        rows = sum(map(len, self._frames))
        if rows >= min(ROWS, CELLS / max(1, len(columns))):
            self.flush()

    def flush(self) -> None:
        """Writes what was added."""
        from pandas import concat

        if self._frames:
            self._writer.write(concat(self._frames, ignore_index=True))
            self._frames = []


@contextlib.contextmanager
def table_file(path: FilePath, door: str) -> Iterator[TableFile]:
    """A table that appears under its name at the end, whole or not at all.

    Args:
        path: of a file that ends in .parquet, .csv or .h5ad.
        door: what was called, for messages.

    Raises:
        RequestError: another ending, or .h5ad where h5py is not installed.
        OSError: when it cannot be written.
    """
    target = Path(path)
    if target.suffix not in WRITERS:
        raise RequestError(
            f"{door}: into={str(path)!r}; expected a file that ends in {' or '.join(WRITERS)}; "
            "rename it"
        )
    with safe_file.replacing(target) as temporary:
        writer = WRITERS[target.suffix](temporary)
        try:
            table = TableFile(writer)
            yield table
            table.flush()
        finally:
            writer.close()


class _Parquet:
    """Row groups of a Parquet file, of the types that the first has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: Any = None

    def write(self, frame: Any) -> None:
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        schema = None if self.writer is None else self.writer.schema
        table = pyarrow.Table.from_pandas(frame, schema, preserve_index=False)
        if self.writer is None:
            self.writer = ParquetWriter(self.path, table.schema)
        self.writer.write_table(table)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class _Csv:
    """Lines of a CSV file, below the names of the columns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun = False

    def write(self, frame: Any) -> None:
        frame.to_csv(self.path, mode="a", header=not self.begun, index=False)
        self.begun = True

    def close(self) -> None:
        """Nothing is open between blocks."""


WRITERS: dict[str, Callable[[Path], _Writer]] = {
    ".parquet": _Parquet,
    ".csv": _Csv,
    ".h5ad": H5adFile,
}
