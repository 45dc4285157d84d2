"""AnnData and MuData as datasets: what is read, where it stands, what modalities become of it."""

import anndata
import made_up
import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from made_up import GENES, PROTEINS, cells, counts, joined, mosaic
from mvkit_omics import from_anndata, from_mudata
from scipy import sparse

import mvkit

KINDS = [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array]


def values_by_cell(adata):
    dense = adata.X.toarray() if sparse.issparse(adata.X) else adata.X
    return made_up.by_cell(adata.obs_names, dense)


def test_every_cell_gets_the_values_of_its_name():
    mdata = mosaic()
    data = from_mudata(mdata)
    assert data.ids.tolist() == mdata.obs_names.tolist()
    for column, name in enumerate(["rna", "adt"]):
        own = values_by_cell(mdata[name])
        for row, cell in enumerate(data.ids):
            assert bool(data.batch.mask[row, column]) == (cell in own)
            if cell in own:
                assert data.batch.data[name][row].tolist() == own[cell].tolist()


def test_zeros_are_zeros_and_cells_that_are_not_there_are_unobserved():
    rna = counts(cells(0, 1), GENES, kind=np.asarray)
    rna.X[0, 1:] = 0
    rna.X = sparse.csr_matrix(rna.X)
    model = made_up.trained(joined(rna=rna, adt=counts(cells(1, 2), PROTEINS)))
    rows = model.conform(from_mudata(joined(rna=rna), like=model))
    assert rows.present("rna").all()
    assert rows.data["rna"][0, 1:].tolist() == [0.0] * 5
    assert not rows.present("adt").any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint16"])
def test_any_container_of_counts_becomes_counts(kind, dtype):
    adata = counts(cells(0, 1, 2), GENES)
    expected = adata.X.toarray()
    adata.X = kind(expected.astype(dtype))
    data = from_anndata(adata)
    assert data.batch.data["rna"].dtype == torch.float32
    assert data.batch.data["rna"].tolist() == expected.tolist()
    rna = data.modalities["rna"]
    assert mvkit.registry.plugins.name_of("likelihood", type(rna.likelihood)) == (
        "negative_binomial"
    )
    assert (rna.exposure, rna.input, rna.features) == ("total", "log1p", tuple(GENES))


def test_counts_beyond_single_precision_stay_exact():
    adata = counts(cells(0, 1), GENES)
    adata.X = np.full((2, 6), 2**24 + 1, dtype="int64")
    assert from_anndata(adata).batch.data["rna"][0, 0].item() == 2**24 + 1


@pytest.mark.parametrize("layers", ["counts", {"rna": "counts"}])
def test_a_layer_is_taken_by_its_name(layers):
    mdata = mosaic()
    for adata in mdata.mod.values():
        adata.layers["counts"] = adata.X.copy()
    mdata["rna"].X = mdata["rna"].X * 0.5
    data = from_mudata(mdata, layers=layers)
    own = made_up.by_cell(mdata["rna"].obs_names, mdata["rna"].layers["counts"].toarray())
    assert data.batch.data["rna"][0].tolist() == own[data.ids[0]].tolist()


def test_some_modalities_are_taken_by_name():
    data = from_mudata(mosaic(), mods=["adt"])
    assert list(data.modalities) == ["adt"]
    assert len(data) == 6


def test_subsets_and_views_keep_names_and_values():
    mdata = mosaic()
    view = mdata[cells(7, 3, 0)]
    data = from_mudata(view)
    assert sorted(data.ids) == cells(0, 3, 7)
    rna = values_by_cell(mdata["rna"])
    for cell in cells(0, 3):
        row = data.ids.tolist().index(cell)
        assert data.batch.data["rna"][row].tolist() == rna[cell].tolist()
    part = from_anndata(mdata["rna"][["c5", "c1"], ["G3", "G0"]])
    assert part.ids.tolist() == ["c5", "c1"]
    assert part.batch.data["rna"][0].tolist() == rna["c5"][[3, 0]].tolist()


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_backed_files_are_read_as_those_in_memory(tmp_path, mode):
    mdata = mosaic()
    mdata["adt"].X = mdata["adt"].X.toarray()
    expected = from_mudata(mdata, covariates=["batch"])
    mdata.write_h5mu(tmp_path / "m.h5mu")
    backed = mudata.read_h5mu(tmp_path / "m.h5mu", backed=mode)
    data = from_mudata(backed, covariates=["batch"])
    assert made_up.by_cell(data.ids, data.batch.data["adt"].nan_to_num(-1)).keys() == set(
        expected.ids
    )
    for name in expected.modalities:
        own = made_up.by_cell(data.ids, data.batch.data[name])
        for cell, values in made_up.by_cell(expected.ids, expected.batch.data[name]).items():
            np.testing.assert_array_equal(own[cell], values)
    backed.file.close()
    mdata["rna"].write_h5ad(tmp_path / "a.h5ad")
    adata = anndata.read_h5ad(tmp_path / "a.h5ad", backed=mode)
    assert adata.isbacked
    data = from_anndata(adata, covariates=["batch"])
    assert data.batch.data["rna"].tolist() == mdata["rna"].X.toarray().tolist()
    adata.file.close()


def test_modalities_in_obsm_have_the_names_of_their_tables():
    adata = counts(cells(0, 1), GENES)
    adata.obsm["protein"] = pd.DataFrame(
        [[1, 5, 0], [2, 0, 3]], index=adata.obs_names, columns=PROTEINS
    )
    adata.obsm["array"] = np.array([[1, 5, 0], [2, 0, 3]])
    adata.uns["names"] = np.array(PROTEINS)
    data = from_anndata(adata, obsm={"adt": "protein", "own": "array", "plain": "array"},
                        features={"own": "names"})  # fmt: skip
    assert list(data.modalities) == ["rna", "adt", "own", "plain"]
    assert data.modalities["adt"].features == data.modalities["own"].features == tuple(PROTEINS)
    assert data.modalities["plain"].features == ("array_0", "array_1", "array_2")
    assert data.batch.data["adt"].tolist() == [[1.0, 5.0, 0.0], [2.0, 0.0, 3.0]]
    listed = from_anndata(adata, obsm={"own": "array"}, features={"own": PROTEINS})
    assert listed.modalities["own"].features == tuple(PROTEINS)


def test_obsm_alone():
    adata = anndata.AnnData(obs=pd.DataFrame(index=["a", "b"]))
    adata.obsm["adt"] = np.array([[1, 5, 0], [2, 0, 3]])
    assert list(from_anndata(adata, obsm={"adt": "adt"}).modalities) == ["adt"]
    both = counts(cells(0, 1), GENES)
    both.obsm["adt"] = adata.obsm["adt"]
    assert list(from_anndata(both, layers={}, obsm={"adt": "adt"}).modalities) == ["adt"]


def test_types_of_features_are_modalities():
    adata = counts(cells(0, 1), GENES)
    adata.var["feature_types"] = ["Peaks", "Gene Expression"] * 3
    types = {"rna": "Gene Expression", "atac": "Peaks"}
    data = from_anndata(adata, feature_types=types)
    assert data.modalities["rna"].features == ("G1", "G3", "G5")
    assert data.batch.data["atac"].tolist() == adata.X.toarray()[:, [0, 2, 4]].tolist()
    adata.layers["raw"] = adata.X * 2
    layered = from_anndata(adata, feature_types=types, layers={"rna": "raw"})
    assert layered.batch.data["rna"].tolist() == (2 * data.batch.data["rna"]).tolist()
    assert layered.batch.data["atac"].tolist() == data.batch.data["atac"].tolist()


def test_layers_of_one_anndata_are_modalities():
    adata = counts(cells(0, 1), GENES)
    adata.layers["unspliced"] = adata.X * 3
    data = from_anndata(adata, layers={"spliced": None, "unspliced": "unspliced"})
    assert (3 * data.batch.data["spliced"]).tolist() == data.batch.data["unspliced"].tolist()


def test_flags_say_where_a_modality_was_measured():
    adata = counts(cells(0, 1, 2), GENES)
    adata.obsm["adt"] = np.array([[1, 2, 3], [0, 0, 0], [4, 5, 6]])
    adata.obs["has_adt"] = [True, False, True]
    data = from_anndata(adata, obsm={"adt": "adt"}, observed={"adt": "has_adt"})
    assert data.batch.mask.tolist() == [[True, True], [True, False], [True, True]]
    assert data.ids.tolist() == cells(0, 1, 2)


def test_nan_is_missing_and_a_cell_of_nan_is_unobserved():
    adata = counts(cells(0, 1, 2), GENES, kind=np.asarray)
    adata.obsm["adt"] = np.array([[1, np.nan, 3], [np.nan] * 3, [4, 5, 6]])
    data = from_anndata(adata, obsm={"adt": "adt"})
    assert data.batch.mask.tolist() == [[True, True], [True, False], [True, True]]
    model = mvkit.Model(data.modalities, latent_dim=2, seed=0)
    assert model.conform(data).present("adt").tolist() == [
        [True, False, True], [False] * 3, [True] * 3]  # fmt: skip
    gaps = sparse.csr_matrix(np.array([[1, np.nan], [np.nan, np.nan]]))
    own = from_anndata(anndata.AnnData(gaps, obs=pd.DataFrame(index=["a", "b"])))
    assert own.ids.tolist() == ["a"]


def test_covariates_are_columns_of_any_obs():
    mdata = mosaic()
    mdata.obs["age"] = np.arange(9.0)
    mdata["adt"].obs["lane"] = pd.Categorical(["x", "y"] * 3, categories=["y", "x"])
    mdata.obs["kind"] = [f"k{name}" for name in mdata.obs_names]
    data = from_mudata(mdata, covariates=["batch", "age", "lane"], label="kind")
    assert data.covariates["batch"].levels == ("p", "q")
    assert data.covariates["lane"].levels == ("y", "x")
    assert data.covariates["age"].levels == ()
    batches = made_up.by_cell(data.ids, data.batch.extra["batch"])
    assert batches == {name: made_up.batch_of(name) for name in mdata.obs_names}
    lanes = made_up.by_cell(data.ids, data.batch.extra["lane"])
    assert lanes == {**dict.fromkeys(cells(0, 1, 2)), **mdata["adt"].obs["lane"].to_dict()}
    assert data.labels.tolist() == [f"k{name}" for name in data.ids]
    assert data.batch.extra["age"].tolist() == mdata.obs.loc[data.ids, "age"].tolist()


def test_categories_of_two_modalities_are_joined():
    mdata = mosaic()
    del mdata["rna"].obs["batch"], mdata["adt"].obs["batch"]
    mdata["rna"].obs["site"] = pd.Categorical(["u"] * 6)
    mdata["adt"].obs["site"] = pd.Categorical(
        ["v" if name in ("c6", "c7", "c8") else "u" for name in mdata["adt"].obs_names]
    )
    assert from_mudata(mdata, covariates=["site"]).covariates["site"].levels == ("u", "v")


def test_weights_are_a_column():
    adata = counts(cells(0, 1), GENES)
    adata.obs["w"] = [0.5, 2.0]
    assert from_anndata(adata, row_weight="w").batch.extra["row_weight"].tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("poisson", ("Poisson", "total", "log1p")),
        ({"likelihood": "multinomial"}, ("Multinomial", "total", "log1p")),
        ({"exposure": None}, ("NegativeBinomial", None, "log1p")),
        ({"input": "values"}, ("NegativeBinomial", "total", "values")),
        ("normal", ("Normal", None, "values")),
        ("foreground_background", ("ForegroundBackground", None, "log1p")),
        (mvkit.Modality((6,), "poisson"), ("Poisson", None, "values")),
    ],
)
def test_what_a_modality_is_can_be_said(given, expected):
    data = from_anndata(counts(cells(0, 1), GENES), modalities={"rna": given})
    rna = data.modalities["rna"]
    assert (type(rna.likelihood).__name__, rna.exposure, rna.input) == expected
    assert rna.features == tuple(GENES)


def test_normalised_values_are_normal_and_bits_are_bits():
    adata = counts(cells(0, 1), GENES)
    adata.X = np.log1p(adata.X.toarray())
    with pytest.warns(UserWarning, match=r"is no count, so that 'rna' is taken to be normal"):
        data = from_anndata(adata)
    assert type(data.modalities["rna"].likelihood).__name__ == "Normal"
    assert data.modalities["rna"].exposure is None
    said = from_anndata(adata, modalities={"rna": "normal"})  # without a warning
    assert said.batch.data["rna"].tolist() == data.batch.data["rna"].tolist()
    adata.X = (adata.X > 1).astype("float32")
    assert type(from_anndata(adata).modalities["rna"].likelihood).__name__ == "Bernoulli"


def test_a_single_feature_has_no_total():
    adata = counts(cells(0, 1, 2), ["G0"])
    assert from_anndata(adata).modalities["rna"].exposure is None


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("sparse_rows", [False, True])
def test_a_dataset_does_not_change_with_the_object(kind, sparse_rows):
    adata = counts(cells(0, 1), GENES, kind=kind)
    data = from_anndata(adata, sparse=sparse_rows)
    before = data.__getitems__([0, 1]).data["rna"].tolist()
    values = adata.X.data if sparse.issparse(adata.X) else adata.X
    np.log1p(values, out=values)  # as scanpy does
    assert data.__getitems__([0, 1]).data["rna"].tolist() == before


def test_sparse_rows_give_the_batches_of_a_dense_dataset():
    mdata = mosaic()
    options = {"covariates": ["batch"], "label": "batch"}
    dense = from_mudata(mdata, **options)
    rows = from_mudata(mdata, sparse=True, **options)
    assert type(rows).__name__ == "SparseRows"
    assert rows.modalities == dense.modalities
    assert rows.covariates == dense.covariates
    assert rows.ids.tolist() == dense.ids.tolist()
    model = mvkit.Model(dense.modalities, covariates=dense.covariates, latent_dim=2, seed=0)
    index = [7, 0, 3, 8]
    expected = model.encode(dense.take(index))
    assert torch.equal(model.encode(rows.__getitems__(index)), expected)
    histories = []
    for source in (dense, rows):
        model = mvkit.Model(dense.modalities, covariates=dense.covariates, latent_dim=2, seed=0)
        mvkit.fit(model, source, epochs=2, batch_size=4, seed=0, progress=False)
        histories.append(model.encode(dense))
    assert torch.equal(*histories)


def test_whole_numbers_stay_whole_in_sparse_rows():
    adata = counts(cells(0, 1), GENES)
    adata.X = adata.X.astype("int32")
    rows = from_anndata(adata, sparse=True)
    assert rows.__getitems__([1]).data["rna"].dtype == torch.float32
