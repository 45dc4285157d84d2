"""Sparse rows of backed objects stay in their file, and are looked at some cells at a time."""

import anndata
import made_up
import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from made_up import GENES, cells, counts, mosaic
from mvkit_omics import annotate, from_anndata, from_mudata, measured
from scipy import sparse

from mvkit import DataError


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(measured, "PIECE", 2)


@pytest.fixture
def backed(tmp_path):
    mosaic().write_h5mu(tmp_path / "m.h5mu")
    mdata = mudata.read_h5mu(tmp_path / "m.h5mu", backed="r")
    yield mdata
    mdata.file.close()


def opened(folder, adata, mode="r"):
    adata.write_h5ad(folder / "a.h5ad")
    return anndata.read_h5ad(folder / "a.h5ad", backed=mode)


def test_rows_of_a_backed_object_are_gathered_from_its_file(backed):
    rows = from_mudata(backed, covariates=["batch"], sparse=True)
    assert repr(rows).startswith("SparseRows(rna (6, on disk), adt (3, on disk); 3 of 9 rows")
    dense = from_mudata(mosaic(), covariates=["batch"])
    assert sorted(rows.ids) == sorted(dense.ids)
    assert rows.modalities == dense.modalities
    index = cells(8, 0, 3, 5)
    model = made_up.trained(mosaic())
    assert torch.equal(model.encode(rows.dense(index)), model.encode(dense.take(index)))


def test_a_backed_object_is_annotated_from_its_file(backed):
    mdata = mosaic()
    model = made_up.trained(mdata)
    annotate(mdata, model, imputed=["adt"], n=2)
    annotate(backed, model, sparse=True, imputed=["adt"], n=2)
    expected = made_up.by_cell(mdata.obs_names, mdata.obsm["X_mvkit"])
    for cell, z in made_up.by_cell(backed.obs_names, backed.obsm["X_mvkit"]).items():
        np.testing.assert_array_equal(z, expected[cell])
    table = backed.obsm["mvkit_imputed_adt"].loc[mdata.obs_names]
    np.testing.assert_array_equal(table, mdata.obsm["mvkit_imputed_adt"])


def test_genes_in_another_order_are_put_in_order_in_memory(tmp_path):
    model = made_up.trained(made_up.joined(rna=counts(cells(*range(9)), GENES)))
    adata = counts(cells(20, 21, 22), GENES[::-1])
    rows = from_anndata(opened(tmp_path, adata), like=model, sparse=True)
    assert "on disk" not in repr(rows)
    expected = model.encode(from_anndata(adata, like=model))
    assert torch.equal(model.encode(rows.dense()), expected)


def test_flags_and_cells_without_counts_leave_out_rows_of_the_file(tmp_path):
    adata = counts(cells(*range(7)), GENES, kind=np.asarray)
    values = adata.X.copy()
    values[[1, 4]] = 0
    adata.X = sparse.csr_matrix(values)
    adata.obs["has"] = [True, True, False, True, True, True, True]
    backed = opened(tmp_path, adata)
    with pytest.raises(DataError, match=r"cell 'c1' has no count .* as 2 of 7 cells"):
        from_anndata(backed, sparse=True)
    options = {"observed": {"rna": "has"}, "empty": "unobserved"}
    rows = from_anndata(backed, sparse=True, **options)
    assert "on disk" in repr(rows)
    assert rows.ids.tolist() == cells(0, 3, 5, 6)
    batch = rows.__getitems__([0, 1, 2, 3])
    assert batch.data["rna"].tolist() == values[[0, 3, 5, 6]].tolist()
    assert (
        from_anndata(backed, **options).batch.data["rna"].tolist() == values[[0, 3, 5, 6]].tolist()
    )


@pytest.mark.parametrize(
    ("value", "modalities", "match"),
    [
        (-3, None, r"cell 'c5', feature 'G4': -3 is below 0"),
        (-3, {"rna": "poisson"}, r"cell 'c5', feature 'G4': -3 is negative"),
        (0.5, {"rna": "poisson"}, r"cell 'c5', feature 'G4': 0\.5 is no whole number"),
        (np.inf, None, r"cell 'c5', feature 'G4': inf; expected finite"),
    ],
)
def test_a_fault_far_down_in_a_file_is_named(tmp_path, value, modalities, match):
    adata = counts(cells(*range(7)), GENES, kind=np.asarray)
    adata.X[5, 4] = value
    adata.X = sparse.csr_matrix(adata.X)
    with pytest.raises(DataError, match=match):
        from_anndata(opened(tmp_path, adata), sparse=True, modalities=modalities)


def test_values_far_down_in_a_file_say_what_it_is(tmp_path):
    values = np.zeros((7, 3), dtype="float32")
    values[:, 0] = 1
    obs = pd.DataFrame(index=cells(*range(7)))
    kinds = {}
    for kind, last in {"Bernoulli": 1, "NegativeBinomial": 2}.items():
        values[6, 1] = last
        adata = opened(tmp_path, anndata.AnnData(sparse.csr_matrix(values), obs=obs))
        kinds[kind] = from_anndata(adata, sparse=True).modalities["rna"]
        adata.file.close()
        assert type(kinds[kind].likelihood).__name__ == kind
    values[6, 1] = -0.5
    adata = opened(tmp_path, anndata.AnnData(sparse.csr_matrix(values), obs=obs))
    with pytest.warns(UserWarning, match=r"cell 'c6', feature '1': -0\.5 is no count"):
        from_anndata(adata, sparse=True)


def test_files_that_are_open_for_writing_are_read_into_memory(tmp_path):
    adata = counts(cells(0, 1, 2), GENES)
    rows = from_anndata(opened(tmp_path, adata, "r+"), sparse=True)
    assert "on disk" not in repr(rows)
    assert rows.__getitems__([2, 0]).data["rna"].tolist() == adata.X.toarray()[[2, 0]].tolist()
