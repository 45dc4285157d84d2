"""Sparse rows: equal to the same rows held dense, whatever holds them."""

import h5py
import numpy as np
import pytest
import scipy.sparse
import torch
from mvkit_omics import MatrixFile, SparseRows

from mvkit import MultimodalDataset, Pipeline

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
            node.create_dataset(part, data=array, chunks=chunks if len(array) else None, **options)
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


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint16", "float32", "float64", "bool"])
def test_rows_are_those_of_the_dense_matrix(tmp_path, storage, dtype):
    matrix = counts(dtype=dtype)
    rows = SparseRows({"rna": stored(tmp_path, matrix, storage)}, {"rna": "normal"})
    index = [5, 0, 52, 5, 7, 51, 5]
    batch = rows.__getitems__(index)
    expected = torch.float64 if dtype == "float64" else torch.float32
    assert batch.data["rna"].dtype == expected
    np.testing.assert_array_equal(batch.data["rna"].numpy(), matrix.toarray()[index])
    assert batch.mask.all()
    assert len(rows) == ROWS
    assert rows.matrices["rna"].on_disk == (storage != "memory")


@pytest.mark.parametrize("storage", STORAGES)
def test_batches_are_those_of_the_dense_rows(tmp_path, storage):
    matrix = counts(dtype="int32")
    ids = [f"c{i}" for i in range(ROWS)]
    rows = SparseRows({"rna": stored(tmp_path, matrix, storage)}, ids=ids, window=None)
    dense = MultimodalDataset.from_arrays({"rna": matrix.toarray()}, ids=ids)
    for epoch in range(2):
        pipelines = Pipeline(rows, batch_size=8, seed=3), Pipeline(dense, batch_size=8, seed=3)
        for pipeline in pipelines:
            pipeline.set_epoch(epoch)
        for own, other in zip(*pipelines, strict=True):
            assert own.extra["id"].tolist() == other.extra["id"].tolist()
            assert torch.equal(own.data["rna"], other.data["rna"].float())
