"""Matrices of cells by features, of which dense rows are gathered: sparse (CSR) and dense ones.

Axes: n rows that are gathered, r rows of the matrix, f features, v stored values.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvkit.errors import DataError, ShapeError
from mvkit_omics.stored_arrays import Array, InMemory, Stored

Rows = NDArray[np.int64]
EXACT = 2**24  # whole numbers up to here are exact in float32


class RowMatrix(Protocol):
    """A matrix whose rows are gathered."""

    @property
    def shape(self) -> tuple[int, int]:
        """(r, f)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of gathered rows."""
        ...

    @property
    def on_disk(self) -> bool:
        """Whether its values are in a file."""
        ...

    def gather(self, rows: Rows) -> Tensor:
        """Rows at indices (n,), dense, (n, f); zeros where an index is -1."""
        ...


def float_type(dtype: np.dtype[Any], where: str) -> torch.dtype:
    """The floating-point type of gathered values: float64 only where they are.

    Raises:
        DataError: they are no real numbers.
    """
    if dtype.kind not in "biuf":
        raise DataError(
            f"{where}: holds values of type {dtype}; expected real numbers; convert them first"
        )
    return torch.float64 if dtype.kind == "f" and dtype.itemsize > 4 else torch.float32


def as_floats(values: Array, dtype: torch.dtype, where: str) -> Tensor:
    """Stored values as a tensor of floats.

    Raises:
        DataError: whole numbers that float32 does not hold exactly.
    """
    wide = values.dtype.kind in "iu" and values.dtype.itemsize > 2
    if wide and dtype == torch.float32 and len(values):
        largest = max(int(values.max()), -int(values.min()))
        if largest > EXACT:
            raise DataError(
                f"{where}: it holds {largest:,}; expected whole numbers up to {EXACT:,}, which "
                "float32 holds exactly; give values in float64"
            )
    name = str(dtype).removeprefix("torch.")
    return torch.from_numpy(np.require(values.astype(name, copy=False), requirements="W"))


class DenseRows:
    """A dense matrix.

    Args:
        values: (r, f).
        shape: (r, f).
        dtype: of the stored values.
        where: how messages call it.
    """

    def __init__(
        self, values: Stored, shape: tuple[int, int], dtype: np.dtype[Any], where: str
    ) -> None:
        self.values = values
        self.shape = shape
        self.where = where
        self.dtype = float_type(dtype, where)
        self.on_disk = not isinstance(values, InMemory)

    def gather(self, rows: Rows) -> Tensor:
        dense = torch.zeros(len(rows), self.shape[1], dtype=self.dtype)
        places = in_file_order(rows)
        values = as_floats(self.values.take(rows[places]), self.dtype, self.where)
        dense[torch.from_numpy(places)] = values
        return dense


class CsrRows:
    """A sparse matrix in compressed rows (CSR), in memory or on disk.

    The columns of a row may be in any order; values of one column are summed, as scipy does.

    Args:
        indptr: where each row begins among the stored values, and the last ends, (r + 1,).
        indices: the column of each stored value, (v,).
        values: the stored values, (v,).
        columns: f.
        dtype: of the stored values.
        where: how messages call it.
    """

    def __init__(
        self,
        indptr: Rows,
        indices: Stored,
        values: Stored,
        *,
        columns: int,
        dtype: np.dtype[Any],
        where: str,
    ) -> None:
        self.indptr = indptr
        self.indices = indices
        self.values = values
        self.shape = (len(indptr) - 1, columns)
        self.where = where
        self.dtype = float_type(dtype, where)
        self.on_disk = not isinstance(values, InMemory)

    def gather(self, rows: Rows) -> Tensor:
        places = in_file_order(rows)
        chosen = rows[places]
        if (chosen[1:] == chosen[:-1]).any():
            different, inverse = np.unique(rows, return_inverse=True)
            return self.gather(different).index_select(0, torch.from_numpy(inverse.reshape(-1)))
        starts = self.indptr[chosen]
        lengths = self.indptr[chosen + 1] - starts
        ends = np.cumsum(lengths)
        total = int(lengths.sum())
        positions = np.repeat(starts - (ends - lengths), lengths) + np.arange(total)
        columns = self.indices.take(positions)
        self._check(columns, chosen, lengths)
        values = as_floats(self.values.take(positions), self.dtype, self.where)
        cells = np.repeat(places * self.shape[1], lengths) + columns
        dense = torch.zeros(len(rows) * self.shape[1], dtype=self.dtype)
        dense.index_add_(0, torch.from_numpy(cells.astype(np.int64, copy=False)), values)
        return dense.reshape(len(rows), self.shape[1])

    def _check(self, columns: Array, rows: Rows, lengths: Rows) -> None:
        """Raises DataError for columns (v,) of rows (n,) that the matrix does not have."""
        if not len(columns) or (columns.min() >= 0 and columns.max() < self.shape[1]):
            return
        first = int(((columns < 0) | (columns >= self.shape[1])).argmax())
        row = int(np.repeat(rows, lengths)[first])
        raise DataError(
            f"{self.where}: row {row} has a value in column {int(columns[first])}; expected 0 to "
            f"{self.shape[1] - 1}, of {self.shape[1]} columns; it is damaged, take another copy"
        )


def in_file_order(rows: Rows) -> Rows:
    """The places of the rows that are there, those that come first in the file first."""
    places = np.flatnonzero(rows >= 0)
    order: Rows = places[np.argsort(rows[places], kind="stable")]
    return order


def checked_indptr(raw: Array, columns: int, stored: tuple[int, int], where: str) -> Rows:
    """Where rows begin, (r + 1,), as whole numbers.

    Args:
        raw: as it was stored.
        columns: how many the matrix has.
        stored: how many indices there are, and how many values.
        where: how messages call the matrix.

    Raises:
        DataError: it is not that of a CSR matrix.
    """
    fault = ""
    if raw.ndim != 1 or raw.dtype.kind not in "iu" or not len(raw):
        fault = f"indptr is {raw.dtype} of shape {raw.shape}; expected whole numbers (rows + 1,)"
    elif raw[0] != 0 or (raw[1:] < raw[:-1]).any():
        fault = "indptr does not ascend from 0"
    elif raw[-1] > min(stored):
        fault = (
            f"indptr ends at {int(raw[-1])}, but there are {stored[0]} indices and {stored[1]} "
            "values; expected as many"
        )
    elif columns < 1:
        fault = f"it has {columns} columns; expected one at least"
    if fault:
        raise DataError(f"{where}: no CSR matrix: {fault}; take another copy, or write it again")
    return raw.astype(np.int64, copy=False)


def in_memory(matrix: Any, where: str) -> RowMatrix:
    """A sparse matrix of scipy, or an array or tensor (r, f), as one whose rows are gathered.

    Sparse ones of other formats are converted to CSR.

    Raises:
        ShapeError: it has other axes than two.
        DataError: it is something else.
    """
    from scipy import sparse

    if sparse.issparse(matrix):
        if matrix.ndim != 2:
            raise ShapeError(f"{where}: shape {matrix.shape}; expected two axes, rows first")
        csr = matrix.tocsr()
        stored = (len(csr.indices), len(csr.data))
        indptr = checked_indptr(csr.indptr, csr.shape[1], stored, where)
        indices, values = InMemory(csr.indices), InMemory(csr.data)
        options: dict[str, Any] = {"columns": csr.shape[1], "dtype": csr.data.dtype}
        return CsrRows(indptr, indices, values, where=where, **options)
    if isinstance(matrix, Tensor):
        matrix = matrix.detach().cpu().numpy()
    if not isinstance(matrix, np.ndarray):
        raise DataError(
            f"{where}: got a {type(matrix).__name__}; expected a sparse matrix of scipy, an "
            "array, or a MatrixFile"
        )
    if matrix.ndim != 2:
        raise ShapeError(f"{where}: shape {matrix.shape}; expected two axes, rows first")
    return DenseRows(InMemory(matrix), matrix.shape, matrix.dtype, where)
