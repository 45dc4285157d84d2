"""Sparse matrices and files of them, for tests."""

import h5py
import numpy as np
import scipy.sparse
from mvkit_omics import MatrixFile

ROWS, GENES, PROTEINS = 53, 17, 4


def counts(rows=ROWS, columns=GENES, dtype=np.float32, seed=0):
    """A CSR matrix of counts with an empty first and last row and an empty column."""
    random = np.random.default_rng(seed)
    dense = random.poisson(0.7, (rows, columns)).astype(dtype)
    dense[0] = dense[-1] = 0
    dense[:, 3] = 0
    return scipy.sparse.csr_matrix(dense)


def written(path, matrix, group="X", *, kind="csr", chunks=None, userblock=0, **options):
    """The matrix in an HDF5 file, laid out as AnnData has it."""
    with h5py.File(path, "a", userblock_size=userblock) as file:
        node = file.create_group(group)
        node.attrs["encoding-type"] = f"{kind}_matrix"
        node.attrs["shape"] = matrix.shape
        for part in ("indptr", "indices", "data"):
            array = getattr(matrix, part)
            layout = {}
            if len(array):
                size = chunks and (min(chunks[0], len(array)),)
                layout = {"chunks": size, **options}
            node.create_dataset(part, data=array, **layout)
    return path


STORAGES = {
    "memory": None,
    "in one piece": {},
    "in chunks": {"chunks": (7,)},
    "after a user block": {"chunks": (7,), "userblock": 512},
    "compressed": {"chunks": (16,), "compression": "gzip"},
}


def stored(tmp_path, matrix, storage):
    """The matrix in memory, or in a file of some storage."""
    options = STORAGES[storage]
    if options is None:
        return matrix
    return MatrixFile(written(tmp_path / "cells.h5ad", matrix, **options))
