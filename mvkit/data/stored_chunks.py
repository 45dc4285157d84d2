"""Chunks of files and arrays that others wrote: row groups of Parquet, chunks of Zarr.

Axes: b rows of a chunk, n chunks, k columns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import attrs
import numpy as np
import torch
from einops import rearrange

from mvkit.core.batch import Batch
from mvkit.core.modality import Modality
from mvkit.core.raw_values import Columns as Names
from mvkit.core.raw_values import as_tensor
from mvkit.data.align import Table
from mvkit.data.door_checks import check_mapping
from mvkit.data.files import readable
from mvkit.data.infer_modality import Given, inferred
from mvkit.errors import DataError, ShapeError, check_whole_number, suggest

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Wanted = Mapping[str, str | Sequence[str]]


class ParquetChunks:
    """Row groups of Parquet files, for `mvkit.data.chunked_rows.ChunkedRows`.

    Needs pyarrow, of the extra `mvkit[tables]`. A null is a gap.

    Args:
        files: one, or several with the same columns, whose rows follow each other.
        columns: by modality the columns that are its features; or the name of one, which may hold
            lists of one length.
        modalities: what a modality is, where it is not as the first row group looks (see
            `MultimodalDataset`): a `Modality`, a dict of its options, or the name of a likelihood.
        extra: columns for `Batch.extra`: labels, covariates, weights.
        id: the column of ids.

    Raises:
        DataError: no such column; a file that cannot be read.
        OSError: no such file.

    Example:
        >>> import pandas, tempfile, mvkit
        >>> from mvkit.data.chunked_rows import ChunkedRows
        >>> from mvkit.data.stored_chunks import ParquetChunks
        >>> columns = {"x": [1.5, 2.5, None], "y": [0.5, 1.0, 4.0], "label": [0, 1, 1]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/rows.parquet"
        ...     pandas.DataFrame(columns).to_parquet(file, row_group_size=2)
        ...     chunks = ParquetChunks(file, {"a": ["x", "y"]}, extra=["label"])
        ...     batch = ChunkedRows(chunks).__getitems__([2, 0])
        >>> batch.data["a"].tolist(), batch.extra["label"].tolist()
        ([[nan, 4.0], [1.5, 0.5]], [1, 0])
    """

    def __init__(
        self,
        files: Paths,
        columns: Wanted,
        modalities: Mapping[str, Given] | None = None,
        *,
        extra: Sequence[str] = (),
        id: str | None = None,
    ) -> None:
        from pyarrow.parquet import ParquetFile

        check_mapping(columns, "ParquetChunks", "its columns")
        several = [files] if isinstance(files, str | os.PathLike) else files
        self.files = [Path(path) for path in several]
        self.columns = columns
        self.extra = tuple(extra)
        self.id = id
        self.counts: list[int] = []
        self._groups: list[tuple[Path, int]] = []
        for path in self.files:
            remedy = "expected a Parquet file; write it again"
            with readable(str(path), remedy), ParquetFile(path) as file:
                self._check_columns(path, file.schema_arrow.names)
                for group in range(file.num_row_groups):
                    self.counts.append(file.metadata.row_group(group).num_rows)
                    self._groups.append((path, group))
        self._given = dict(modalities or {})

    def _check_columns(self, path: Path, known: Sequence[str]) -> None:
        for name in self._names():
            if name not in known:
                raise DataError(f"{path}: no column {name!r}; {suggest(name, known)}")

    def _names(self) -> list[str]:
        names = [*self.extra, *([] if self.id is None else [self.id])]
        for wanted in self.columns.values():
            names += [wanted] if isinstance(wanted, str) else wanted
        return list(dict.fromkeys(names))

    @cached_property
    def modalities(self) -> dict[str, Modality]:
        """As they are given, or as the first row group looks."""
        if not sum(self.counts):
            raise DataError(f"{self.files}: no rows; expected one at least; write them again")
        first = self.read(0)
        kinds = {}
        for name in self.columns:
            table = Table(first.data[name], None, first.columns.get(name))
            kinds[name], _ = inferred(name, table, self._given.get(name))
        return kinds

    def read(self, chunk: int) -> Batch:
        """All rows of a row group."""
        from pyarrow.parquet import ParquetFile

        path, group = self._groups[chunk]
        remedy = "expected the Parquet file that was opened; write it again"
        with readable(str(path), remedy), ParquetFile(path) as file:
            table = file.read_row_group(group, columns=self._names(), use_threads=False)
        data = {}
        columns = {}
        for name, wanted in self.columns.items():
            data[name] = as_tensor(_values(table, wanted, f"{path}: {name!r}"), name)
            if not isinstance(wanted, str):
                columns[name] = Names(tuple(wanted))
        extra: dict[str, Any] = {}
        for name in self.extra:
            values = table.column(name).to_numpy()
            extra[name] = torch.tensor(values) if values.dtype.kind in "iufb" else values.tolist()
        if self.id is not None:
            extra["id"] = table.column(self.id).to_pylist()
        return Batch(data, extra=extra, columns=columns)


def _values(table: Any, wanted: str | Sequence[str], where: str) -> np.ndarray:
    """Numbers of columns, (b, k), or of a column of lists; NaN where null."""
    if not isinstance(wanted, str):
        return np.stack([_numbers(table.column(name), f"{where}, {name!r}") for name in wanted], 1)
    import pyarrow
    from pyarrow import compute

    column = table.column(wanted).combine_chunks()
    kind = column.type
    if not (pyarrow.types.is_list(kind) or pyarrow.types.is_fixed_size_list(kind)):
        return rearrange(_numbers(column, where), "b -> b 1")
    known = ~compute.is_null(column).to_numpy(zero_copy_only=False)
    lengths = compute.list_value_length(column).drop_null().unique().to_pylist()
    if len(lengths) != 1:
        raise ShapeError(
            f"{where}: lists of {sorted(lengths)} numbers; expected one length in all rows; pad "
            "or crop them"
        )
    flat = _numbers(compute.list_flatten(column.drop_null()), where)
    floats = flat if flat.dtype.kind == "f" else flat.astype(float)
    values = np.full((len(known), lengths[0]), np.nan, dtype=floats.dtype)
    values[known] = floats.reshape(-1, lengths[0])
    return values


def _numbers(column: Any, where: str) -> np.ndarray:
    """A column of numbers, (b,); NaN where null."""
    values: np.ndarray = np.asarray(column)
    if values.dtype.kind not in "iufb":
        raise DataError(
            f"{where}: values of type {column.type}; expected numbers; give words as extra=, or "
            "number them"
        )
    return values


class ChunkedArray(Protocol):
    """What is asked of a chunked array, as Zarr and h5py have them."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def chunks(self) -> Any:
        """The shape of a chunk; None: there are none."""
        ...

    def __getitem__(self, rows: slice, /) -> Any: ...


@attrs.frozen(eq=False)
class ArrayChunks:
    """Chunks of arrays, such as Zarr's, for `mvkit.data.chunked_rows.ChunkedRows`.

    A chunk has as many rows as one of the array that has the largest: of the others, as many are
    read.

    Args:
        arrays: by modality, (b, *shape) each; NaN is missing.
        given: what a modality is, where it is not as its first rows look.
        extra: what else is known of the rows, in memory, (b, …) each: ids, labels, covariates.
        rows: of a chunk, where arrays have no chunks.

    Example:
        >>> import numpy, mvkit
        >>> from mvkit.data.chunked_rows import ChunkedRows
        >>> from mvkit.data.stored_chunks import ArrayChunks
        >>> array = numpy.random.rand(10, 3)  # or zarr.open("cells.zarr")["rna"]
        >>> rows = ChunkedRows(ArrayChunks({"rna": array}, rows=4))
        >>> rows.chunks.counts, rows.modalities["rna"].shape
        ([4, 4, 2], (3,))
    """

    arrays: Mapping[str, ChunkedArray]
    given: Mapping[str, Given] = attrs.field(factory=dict)
    extra: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True)
    rows: int = attrs.field(default=1024, kw_only=True)

    def __attrs_post_init__(self) -> None:
        check_whole_number("ArrayChunks: rows", self.rows, 1)
        lengths = {name: array.shape[0] for name, array in self.arrays.items()}
        lengths |= {f"extra {name!r}": len(values) for name, values in self.extra.items()}
        if len(set(lengths.values())) != 1:
            raise ShapeError(
                f"ArrayChunks: {lengths} rows; expected one array at least, and as many rows in "
                "all; give NaN rows where some lack a modality"
            )

    @property
    def _size(self) -> int:
        chunks = [getattr(array, "chunks", None) for array in self.arrays.values()]
        return max([int(shape[0]) for shape in chunks if shape], default=self.rows)

    @property
    def counts(self) -> list[int]:
        """Rows of each chunk, (n,)."""
        b = next(iter(self.arrays.values())).shape[0]
        return [min(self._size, b - start) for start in range(0, b, self._size)]

    @property
    def modalities(self) -> dict[str, Modality]:
        """As they are given, or as the first chunk looks."""
        first = self.read(0)
        kinds = {}
        for name, x in first.data.items():
            kinds[name], _ = inferred(name, Table(x, None), self.given.get(name))
        return kinds

    def read(self, chunk: int) -> Batch:
        """All rows of a chunk."""
        part = slice(chunk * self._size, (chunk + 1) * self._size)
        data = {}
        for name, array in self.arrays.items():
            data[name] = as_tensor(np.asarray(array[part]), f"arrays[{name!r}]")
        extra = {name: values[part] for name, values in self.extra.items()}
        return Batch(data, extra=extra)
