"""Sparse rows that cannot be: each is refused in place, with a remedy."""

import os
import shutil

import h5py
import numpy as np
import pytest
import scipy.sparse
import torch
from matrices import GENES, ROWS, counts, written
from mvkit_omics import MatrixFile, SparseRows

from mvkit import DataError, Modality, Pipeline, RequestError, ShapeError


def damaged(tmp_path, part, values=None, **attributes):
    """A file of which one array, or attributes, are replaced."""
    path = written(tmp_path / "cells.h5ad", counts())
    with h5py.File(path, "a") as file:
        if part:
            del file["X"][part]
            if values is not None:
                file["X"][part] = values
        file["X"].attrs.update(attributes)
    return MatrixFile(path)


INDPTR = counts().indptr
BROKEN = {
    "indptr does not ascend from 0": ("indptr", INDPTR[::-1]),
    r"indptr ends at \d+, but there are 2 indices": ("indices", [0, 1]),
    "indptr is float64 of shape": ("indptr", INDPTR.astype(float)),
    r"52 rows and indices of int32; expected 53 rows": ("indptr", INDPTR[:-1]),
    "53 rows and indices of float64": ("indices", counts().indices.astype(float)),
    "no matrix, but a group of 'data', 'indptr'; expected a CSR matrix": ("indices", None),
    "holds values of type complex64; expected real numbers": ("data", counts().data + 1j),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_damaged_matrix_is_refused_when_it_is_opened(tmp_path, message):
    with pytest.raises(DataError, match=message):
        damaged(tmp_path, *BROKEN[message]).open()


def test_columns_that_there_are_not(tmp_path):
    indices = counts().indices.copy()
    place = INDPTR[20]
    for bad in (GENES, -3):
        indices[place] = bad
        file = damaged(tmp_path, "indices", indices)
        rows = SparseRows({"rna": file}, {"rna": Modality((GENES,), "poisson")})
        message = rf"\['X'\]: row 20 has a value in column {bad}; expected 0 to 16, of 17 columns"
        with pytest.raises(DataError, match=message):
            rows.__getitems__([5, 20])
        rows.__getitems__([5, 21])
        os.remove(file.path)


def test_columns_beyond_the_matrix_are_told_when_modalities_are_inferred(tmp_path):
    indices = counts().indices.copy()
    indices[-1] = GENES
    with pytest.raises(DataError, match="has a value in column 17"):
        SparseRows({"rna": damaged(tmp_path, "indices", indices)})


def test_a_csc_matrix_on_disk(tmp_path):
    path = written(tmp_path / "cells.h5ad", counts().tocsc(), kind="csc")
    with pytest.raises(DataError, match="a CSC matrix, whose rows do not lie together.*tocsr"):
        MatrixFile(path).open()


def test_groups_that_are_no_matrix(tmp_path):
    path = written(tmp_path / "cells.h5ad", counts())
    with h5py.File(path, "a") as file:
        file["obs/age"] = np.arange(3)
    with pytest.raises(DataError, match="no matrix 'Y'; known: 'X'"):
        MatrixFile(path, "Y").open()
    with pytest.raises(DataError, match=r"no matrix, but a group of 'age'.*known: 'X'"):
        MatrixFile(path, "obs").open()
    with pytest.raises(DataError, match=r"shape \(3,\); expected a matrix, rows first"):
        MatrixFile(path, "obs/age").open()


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="nowhere.h5ad: no such file"):
        MatrixFile(tmp_path / "nowhere.h5ad").open()
    (tmp_path / "text.h5ad").write_text("cells")
    with pytest.raises(DataError, match="text.h5ad: cannot be read .* expected a whole HDF5 file"):
        MatrixFile(tmp_path / "text.h5ad").open()
    path = written(tmp_path / "cut.h5ad", counts(500))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="cut.h5ad: cannot be read .*truncated.*take another copy"):
        MatrixFile(path).open()
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(DataError, match="empty.zarr: "):
        MatrixFile(tmp_path / "empty.zarr").open()


def test_a_file_that_is_cut_while_it_is_in_use(tmp_path):
    path = written(tmp_path / "cells.h5ad", counts())
    rows = SparseRows({"rna": MatrixFile(path)}, {"rna": Modality((GENES,), "poisson")})
    rows.__getitems__([3])
    os.truncate(path, 100)
    with pytest.raises(
        DataError, match=r"cells.h5ad: it was cut to 100 bytes of \d+ while it was"
    ):
        rows.__getitems__([3])


def test_a_compressed_chunk_that_is_damaged(tmp_path):
    matrix = scipy.sparse.random(2000, 50, 0.3, format="csr", random_state=0)
    path = written(tmp_path / "cells.h5ad", matrix, chunks=(5000,), compression="gzip")
    with h5py.File(path) as file:
        chunk = file["X/data"].id.get_chunk_info(1)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\0" * chunk.size)
    rows = SparseRows({"rna": MatrixFile(path)}, {"rna": Modality((50,), "normal")})
    with pytest.raises(DataError, match="cells.h5ad: cannot be read .*take another copy"):
        list(Pipeline(rows, batch_size=500))


def test_a_chunk_of_a_zarr_folder_that_is_damaged(tmp_path):
    zarr = pytest.importorskip("zarr")
    matrix = counts(500)
    group = zarr.open_group(str(tmp_path / "cells.zarr"), mode="w").create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "shape": list(matrix.shape)})
    for part in ("indptr", "indices", "data"):
        array = getattr(matrix, part)
        group.create_array(part, data=array, chunks=(len(array),), compressors=None)
    chunk = tmp_path / "cells.zarr" / "X" / "data" / "c" / "0"
    os.truncate(chunk, 100)
    rows = {"rna": MatrixFile(tmp_path / "cells.zarr")}
    with pytest.raises(DataError, match="cells.zarr: cannot be read"):
        SparseRows(rows, {"rna": "poisson"})
    shutil.rmtree(tmp_path / "cells.zarr")


def test_whole_numbers_that_floats_do_not_hold():
    matrix = counts(dtype="int64")
    matrix.data[0] = 2**24 + 1
    with pytest.raises(
        DataError, match=r"it holds 16,777,217; expected whole numbers up to 16,77"
    ):
        SparseRows({"rna": matrix}).dense()
    rows = SparseRows({"rna": matrix.astype("float64")}, {"rna": "poisson"})
    assert rows.dense().batch.data["rna"].max() == 2**24 + 1


def test_rows_that_cannot_be():
    two = {"a": counts(), "b": counts(40)}
    message = r"modalities differ in length: 'a' 53, 'b' 40; expected one index.*give rows="
    with pytest.raises(ShapeError, match=message):
        SparseRows(two)
    with pytest.raises(DataError, match=r"rows\['a'\]: row 1 is at 53; expected 0 to 52, of 53"):
        SparseRows({"a": counts()}, rows={"a": [0, 53]})
    with pytest.raises(DataError, match=r"rows\['a'\]: row 0 is at -2; .*or -1 where it is missi"):
        SparseRows({"a": counts()}, rows={"a": [-2, 53]})
    with pytest.raises(ShapeError, match=r"rows\['a'\]: float64 of shape \(2,\); expected whole"):
        SparseRows({"a": counts()}, rows={"a": [0.0, 1.0]})
    with pytest.raises(DataError, match="there are no rows; expected one of one modality"):
        SparseRows({"a": counts()}, rows={"a": []})
    with pytest.raises(DataError, match="no row has 'a'; expected one at least"):
        SparseRows({"a": counts()}, rows={"a": [-1, -1]})
    with pytest.raises(DataError, match="rows: no matrix for 'b'"):
        SparseRows({"a": counts()}, rows={"b": [0]})


def test_matrices_that_cannot_be():
    with pytest.raises(DataError, match=r"SparseRows: got ndarray; expected a mapping"):
        SparseRows(np.zeros((3, 2)))
    with pytest.raises(
        DataError, match=r"matrices\['a'\]: got a str; expected a sparse matrix of"
    ):
        SparseRows({"a": "cells.h5ad"})
    with pytest.raises(ShapeError, match=r"matrices\['a'\]: shape \(3,\); expected two axes"):
        SparseRows({"a": torch.zeros(3)})
    with pytest.raises(DataError, match="it has 0 columns; expected one at least"):
        SparseRows({"a": scipy.sparse.csr_matrix((3, 0))})
    beyond = counts()
    beyond.indices[-1] = 99
    with pytest.raises(DataError, match="has a value in column 99"):
        SparseRows({"a": beyond})


def test_what_is_known_of_rows_and_does_not_fit():
    one = {"a": counts()}
    with pytest.raises(ShapeError, match="2 ids for 53 rows; expected one each"):
        SparseRows(one, ids=["x", "y"])
    with pytest.raises(DataError, match="ids: 'c0' occurs again at row 52; expected each once"):
        SparseRows(one, ids=[*(f"c{i}" for i in range(ROWS - 1)), "c0"])
    with pytest.raises(ShapeError, match=r"features\['a'\]: 1 names for 17 columns"):
        SparseRows(one, features={"a": ["g"]})
    with pytest.raises(ShapeError, match=r"'a': rows of shape \(17,\); expected \(3,\)"):
        SparseRows(one, {"a": Modality((3,))})
    with pytest.raises(DataError, match="covariates: 'a' is a modality too"):
        SparseRows(one, covariates={"a": [0] * ROWS})
    with pytest.raises(RequestError, match="SparseRows: block=0; expected a whole number"):
        SparseRows(one, block=0)
    with pytest.raises(RequestError, match="SparseRows: window=0; expected a whole number"):
        SparseRows(one, window=0)
    with pytest.raises(RequestError, match="fit_transforms: rows=0"):
        SparseRows(one, {"a": "poisson"}).fit_transforms({"a": "log1p"}, rows=0)
