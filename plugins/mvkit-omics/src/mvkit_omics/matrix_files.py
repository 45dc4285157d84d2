"""Matrices in files of AnnData and MuData (h5ad, h5mu, zarr), which stay there."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from mvkit.errors import DataError, suggest
from mvkit_omics.row_matrices import CsrRows, DenseRows, RowMatrix, checked_indptr
from mvkit_omics.stored_arrays import BlockCache, InBlocks, Mapped, MappedFile, Stored, reading

PARTS = ("indptr", "indices", "data")
MEMORY = 2**29  # bytes


@attrs.frozen
class MatrixFile:
    """A matrix in a file: a CSR group, or a dense dataset, rows first.

    Uncompressed arrays of HDF5 files are mapped; others are read in blocks of entries that follow
    each other, the last of which are kept. Nothing of it is read before it is
    needed, but for where rows begin.

    Args:
        path: an h5ad, h5mu or other HDF5 file, or a zarr folder.
        group: where in the file: `X`, `layers/counts`, `mod/rna/X`.
        memory: bytes of pages, or of blocks, that are held.

    Example:
        >>> MatrixFile("cells.h5mu", "mod/rna/X").group
        'mod/rna/X'
    """

    path: Path = attrs.field(converter=Path)
    group: str = "X"
    memory: int = MEMORY

    def open(self) -> RowMatrix:
        """The matrix, of which rows can be gathered.

        Raises:
            DataError: no such file or matrix; one that is damaged, or whose rows cannot be
                gathered, such as a CSC matrix.
        """
        where = f"{self.path}[{self.group!r}]"
        with reading(self.path):
            node, arrays = self._node(where)
            storage = _Storage(self.path, self.memory)
            if arrays is None:
                return self._dense(node, storage, where)
            return self._sparse(node, arrays, storage, where)

    def _node(self, where: str) -> tuple[Any, Mapping[str, Any] | None]:
        """The group or the dataset; and the arrays of a group."""
        root = _root(self.path)
        if self.group not in root:
            raise DataError(
                f"{self.path}: no matrix {self.group!r}; {suggest(self.group, _matrices(root))}"
            )
        node = root[self.group]
        if not _is_group(node):
            return node, None
        arrays = {part: node[part] for part in PARTS if part in node}
        kind = _kind(node.attrs)
        if kind == "csc":
            raise DataError(
                f"{where}: a CSC matrix, whose rows do not lie together; expected CSR; write it "
                "as one: adata.X = adata.X.tocsr(), and write the file again"
            )
        if kind != "csr" or len(arrays) < len(PARTS):
            raise DataError(
                f"{where}: no matrix, but a group of {', '.join(map(repr, sorted(node)))}; "
                f"expected a CSR matrix or a dense one; {suggest(self.group, _matrices(root))}"
            )
        return node, arrays

    def _dense(self, node: Any, storage: _Storage, where: str) -> RowMatrix:
        if len(node.shape) != 2:
            raise DataError(f"{where}: shape {tuple(node.shape)}; expected a matrix, rows first")
        shape = (int(node.shape[0]), int(node.shape[1]))
        return DenseRows(storage.of(node), shape, np.dtype(node.dtype), where)

    def _sparse(
        self, node: Any, arrays: Mapping[str, Any], storage: _Storage, where: str
    ) -> RowMatrix:
        attributes = node.attrs
        shape = attributes["shape"] if "shape" in attributes else attributes["h5sparse_shape"]
        rows, columns = (int(length) for length in shape)
        indices, values = arrays["indices"], arrays["data"]
        stored = (int(indices.shape[0]), int(values.shape[0]))
        indptr = checked_indptr(np.asarray(arrays["indptr"][:]), columns, stored, where)
        if len(indptr) != rows + 1 or np.dtype(indices.dtype).kind not in "iu":
            raise DataError(
                f"{where}: no CSR matrix: {len(indptr) - 1} rows and indices of {indices.dtype}; "
                f"expected {rows} rows, and whole numbers; take another copy, or write it again"
            )
        options: dict[str, Any] = {"columns": columns, "dtype": np.dtype(values.dtype)}
        return CsrRows(indptr, storage.of(indices), storage.of(values), where=where, **options)


class _Storage:
    """How the arrays of one file are read."""

    def __init__(self, path: Path, memory: int) -> None:
        self.path = path
        self.memory = memory
        self.cache = BlockCache(memory)
        self.file: MappedFile | None = None

    def of(self, array: Any) -> Stored:
        """An array, mapped if it lies in one piece."""
        starts = _starts(array)
        shape = tuple(int(length) for length in array.shape)
        dtype = np.dtype(array.dtype)
        if starts is None or not Mapped.fits(starts, _width(shape, dtype)):
            return InBlocks(array, self.path, self.cache)
        if self.file is None:
            self.file = MappedFile(self.path, self.memory)
        size = array.chunks[0] if array.chunks else shape[0]
        return Mapped(self.file, starts, size, shape=shape, dtype=dtype)


def _width(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of an entry on the first axis."""
    return int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize


def _starts(array: Any) -> NDArray[np.int64] | None:
    """The first byte of each chunk of an array that lies uncompressed in an HDF5 file.

    None: it does not, or not all of it was written.
    """
    import h5py

    if not isinstance(array, h5py.Dataset) or array.external or not array.size:
        return None
    if array.chunks is None:
        offset = array.id.get_offset()
        return None if offset is None else np.array([offset])
    filtered = array.id.get_create_plist().get_nfilters()
    if filtered or array.ndim > 1:
        return None
    starts = np.full(math.ceil(len(array) / array.chunks[0]), -1)

    def note(chunk: Any) -> None:
        starts[chunk.chunk_offset[0] // array.chunks[0]] = chunk.byte_offset

    array.id.chunk_iter(note)
    return None if (starts < 0).any() else starts


def _root(path: Path) -> Any:
    """An open file."""
    if path.is_dir():
        import zarr

        return zarr.open_group(os.fspath(path), mode="r")
    import h5py

    return h5py.File(path, "r")


def _is_group(node: Any) -> bool:
    """Whether a node of a file holds others."""
    import h5py
    import zarr

    return isinstance(node, h5py.Group | zarr.Group)


def _kind(attributes: Mapping[str, Any]) -> str:
    """The format of a sparse matrix, `csr` or `csc`; empty if it is none."""
    kind = attributes.get("encoding-type", attributes.get("h5sparse_format", ""))
    return str(kind).removesuffix("_matrix")


def _matrices(root: Any) -> list[str]:
    """Where matrices usually are, of those that are there."""
    places = ["X", "raw/X"]
    places += [f"layers/{name}" for name in root.get("layers", ())]
    for name in root.get("mod", ()):
        places.append(f"mod/{name}/X")
        places += [f"mod/{name}/layers/{layer}" for layer in root.get(f"mod/{name}/layers", ())]
    return [place for place in places if place in root]
