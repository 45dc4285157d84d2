"""What a model says of cells, back in the object that they come from."""

import json

import anndata
import made_up
import mudata
import numpy as np
import pandas as pd
import pytest
from made_up import GENES, PROTEINS, cells, counts, joined, mosaic
from mvkit_omics import annotate, from_anndata, from_mudata

import mvkit
from mvkit import DataError, MultimodalDataset, RequestError


@pytest.fixture(scope="module")
def model():
    return made_up.trained(mosaic())


def from_tables(mdata, ids):
    """The same cells by the door for tables of pandas."""
    tables = {}
    for name, adata in mdata.mod.items():
        tables[name] = adata.to_df().reindex([cell for cell in ids if cell in adata.obs_names])
    return MultimodalDataset.from_tables(
        tables, covariates=pd.DataFrame({"batch": [made_up.batch_of(cell) for cell in ids]}, ids)
    )


def test_latents_and_clusters_stand_at_the_names_of_their_cells(model):
    mdata = mosaic()
    annotate(mdata, model)
    rows = from_tables(mdata, mdata.obs_names.tolist())
    z = made_up.by_cell(rows.ids, model.encode(rows))
    clusters = made_up.by_cell(rows.ids, model.clusters(rows))
    assert len(z) == 9
    for row, cell in enumerate(mdata.obs_names):
        np.testing.assert_allclose(mdata.obsm["X_mvkit"][row], z[cell], rtol=1e-5, atol=1e-6)
        assert mdata.obs["mvkit_cluster"].iloc[row] == str(clusters[cell])
    assert mdata.obs["mvkit_cluster"].cat.categories.tolist() == ["0", "1", "2"]


def test_modalities_in_other_orders_than_the_whole(model):
    mdata = mosaic()
    annotate(mdata, model, imputed=["rna", "adt"], n=3, seed=5)
    again = mosaic()
    rows = from_mudata(again, like=model).take(sorted(range(9), key=again.obs_names.__getitem__))
    generator = mvkit.core.noise.seeded(5)
    filled = mvkit.impute(model, rows.batch, n=3, all=True, to=["rna", "adt"], generator=generator)
    for name in ("rna", "adt"):
        values = made_up.by_cell(rows.ids, filled.data[name])
        table = mdata.obsm[f"mvkit_imputed_{name}"]
        assert table.index.tolist() == mdata.obs_names.tolist()
        assert table.columns.tolist() == mdata[name].var_names.tolist()
        for cell in mdata.obs_names:
            np.testing.assert_array_equal(table.loc[cell], values[cell])
        layer = mdata[name].layers["mvkit_imputed"]
        for row, cell in enumerate(mdata[name].obs_names):
            np.testing.assert_array_equal(layer[row], values[cell])


def test_imputed_values_are_means_of_counts_with_the_depth_of_the_cell():
    """An independent route: shares of the decoder times the total of the cell."""
    adata = counts(cells(*range(6)), GENES)
    data = from_anndata(adata)
    model = mvkit.Model(data.modalities, latent_dim=2, seed=0)
    mvkit.fit(model, data, epochs=1, seed=0, progress=False)
    annotate(adata, model, imputed=["rna"])
    totals = np.asarray(adata.X.sum(1)).reshape(-1)
    np.testing.assert_allclose(adata.layers["mvkit_imputed"].sum(1), totals, rtol=1e-5)
    assert "mvkit_cluster" not in adata.obs
    assert not [name for name in adata.obsm if "imputed" in name]


def test_a_modality_with_all_cells_needs_no_table(model):
    mdata = joined(rna=counts(cells(2, 0, 1), GENES), adt=counts(cells(1, 2), PROTEINS))
    annotate(mdata, model, imputed=["rna", "adt"], n=2)
    assert sorted(name for name in mdata.obsm if "mvkit" in name) == [
        "X_mvkit", "mvkit_imputed_adt"]  # fmt: skip
    assert mdata["rna"].layers["mvkit_imputed"].shape == (3, 6)


def test_a_modality_that_is_not_there_becomes_a_table(model):
    mdata = joined(rna=counts(cells(2, 0, 1), GENES))
    annotate(mdata, model, imputed="adt", n=2)
    table = mdata.obsm["mvkit_imputed_adt"]
    assert (table.shape, table.columns.tolist()) == ((3, 3), PROTEINS)
    adata = counts(cells(2, 0, 1), GENES)
    with pytest.raises(DataError, match="no modality 'X'"):
        annotate(adata, model, layers={"X": None})
    annotate(adata, model, layers={"rna": None}, imputed=["adt"], n=2)
    np.testing.assert_array_equal(adata.obsm["mvkit_imputed_adt"], table)


def test_genes_in_another_order_and_genes_that_the_model_does_not_have(model):
    genes = ["G9", *GENES[::-1]]
    adata = anndata.concat([counts(cells(1, 0), ["G9"]), counts(cells(1, 0), GENES[::-1])], axis=1)
    adata.obs["batch"] = ["q", "p"]
    annotate(adata, model, layers={"rna": None}, imputed=["rna"], n=2)
    plain = counts(cells(1, 0), GENES)
    annotate(plain, model, layers={"rna": None}, imputed=["rna"], n=2)
    layer = pd.DataFrame(adata.layers["mvkit_imputed"], columns=genes)
    assert layer["G9"].isna().all()
    np.testing.assert_array_equal(layer[GENES], plain.layers["mvkit_imputed"])
    np.testing.assert_array_equal(adata.obsm["X_mvkit"], plain.obsm["X_mvkit"])


def test_layers_of_one_anndata_have_names_of_their_own():
    adata = counts(cells(0, 1, 2), GENES)
    adata.layers["unspliced"] = adata.X * 3
    adata.obsm["adt"] = pd.DataFrame(np.ones((3, 2)) * 2, adata.obs_names, ["G0", "G1"])
    reading = {"layers": {"spliced": None, "unspliced": "unspliced"}, "obsm": {"adt": "adt"}}
    model = mvkit.Model(from_anndata(adata, **reading).modalities, latent_dim=2, seed=0)
    annotate(adata, model, imputed=list(model.names), n=2, **reading)
    assert sorted(adata.layers) == [
        "mvkit_imputed_spliced",
        "mvkit_imputed_unspliced",
        "unspliced",
    ]
    assert adata.obsm["mvkit_imputed_adt"].columns.tolist() == ["G0", "G1"]


def test_cells_of_which_nothing_is_known_stay_open(model):
    mdata = mosaic()
    annotate(mdata, model, mods=["adt"], imputed=["rna"], n=2)
    unknown = ~np.isin(mdata.obs_names, mdata["adt"].obs_names)
    assert np.isnan(mdata.obsm["X_mvkit"]).all(1).tolist() == unknown.tolist()
    assert mdata.obs["mvkit_cluster"].isna().tolist() == unknown.tolist()
    assert mdata.obsm["mvkit_imputed_rna"].isna().all(axis=1).tolist() == unknown.tolist()


@pytest.mark.parametrize("sparse", [False, True])
def test_some_cells_that_were_read_before(model, sparse):
    mdata = mosaic()
    whole = mosaic()
    annotate(whole, model)
    data = from_mudata(mdata, covariates=["batch"], sparse=sparse).take(["c7", "c0"])
    annotate(mdata, model, dataset=data)
    z = made_up.by_cell(mdata.obs_names, mdata.obsm["X_mvkit"])
    expected = made_up.by_cell(whole.obs_names, whole.obsm["X_mvkit"])
    for cell in mdata.obs_names:
        if cell in ("c7", "c0"):
            np.testing.assert_allclose(z[cell], expected[cell], rtol=1e-5, atol=1e-6)
        else:
            assert np.isnan(z[cell]).all()


def test_which_model_it_was_stands_in_uns_and_in_files(model, tmp_path):
    mdata = mosaic()
    annotate(mdata, model, imputed=["adt"], n=2)
    mdata.write_h5mu(tmp_path / "m.h5mu")
    back = mudata.read_h5mu(tmp_path / "m.h5mu")
    origin = back.uns["mvkit"]
    mvkit.save(model, tmp_path / "model.safetensors")
    assert json.loads(origin["spec"]) == mvkit.describe(tmp_path / "model.safetensors")["model"]
    assert origin["versions"]["mvkit"] == mvkit.__version__
    z = made_up.by_cell(mdata.obs_names, mdata.obsm["X_mvkit"])
    for cell, values in made_up.by_cell(back.obs_names, back.obsm["X_mvkit"]).items():
        np.testing.assert_array_equal(values, z[cell])
    loaded = mvkit.load(tmp_path / "model.safetensors")
    annotate(back, loaded)
    assert back.uns["mvkit"]["checksum"] == origin["checksum"]
    other = made_up.trained(mosaic(), latent_dim=3)
    annotate(back, other)
    assert back.uns["mvkit"]["checksum"] != origin["checksum"]
    adata = counts(cells(0, 1), GENES)
    annotate(adata, model, layers={"rna": None}, imputed=["rna", "adt"], n=2)
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.layers["mvkit_imputed"], adata.layers["mvkit_imputed"])
    assert back.obsm["mvkit_imputed_adt"].equals(adata.obsm["mvkit_imputed_adt"])
    assert back.uns["mvkit"]["checksum"] == adata.uns["mvkit"]["checksum"] == origin["checksum"]


def test_what_an_earlier_call_wrote_is_replaced(model):
    mdata = mosaic()
    annotate(mdata, model, imputed=["rna", "adt"], n=2)
    annotate(mdata, model, key="other")
    plain = made_up.trained(mosaic(), prior="standard")
    annotate(mdata, plain)
    assert sorted(name for name in mdata.obsm if "mvkit" in name) == ["X_mvkit"]
    assert not mdata["rna"].layers
    assert "mvkit_cluster" not in mdata.obs.columns
    assert "other_cluster" in mdata.obs.columns
    assert mdata.obsm["X_other"].shape == (9, 2)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_backed_objects_are_written_to(model, tmp_path, mode):
    mdata = mosaic()
    mdata.write_h5mu(tmp_path / "m.h5mu")
    annotate(mdata, model, imputed=["adt"], n=2)
    backed = mudata.read_h5mu(tmp_path / "m.h5mu", backed=mode)
    annotate(backed, model, imputed=["adt"], n=2)
    assert backed.isbacked
    backed.write()
    backed.file.close()
    back = mudata.read_h5mu(tmp_path / "m.h5mu")
    np.testing.assert_array_equal(
        back.obsm["mvkit_imputed_adt"].loc[mdata.obs_names], mdata.obsm["mvkit_imputed_adt"]
    )
    np.testing.assert_array_equal(
        back["adt"].layers["mvkit_imputed"], mdata["adt"].layers["mvkit_imputed"]
    )
    np.testing.assert_array_equal(back["rna"].X.toarray(), mdata["rna"].X.toarray())
    mdata["rna"].write_h5ad(tmp_path / "a.h5ad")
    adata = anndata.read_h5ad(tmp_path / "a.h5ad", backed=mode)
    annotate(adata, model, layers={"rna": None}, imputed=["rna"], n=2)
    assert adata.isbacked
    adata.write()
    adata.file.close()
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert back.obsm["X_mvkit"].shape == (6, 2)
    assert back.layers["mvkit_imputed"].shape == (6, 6)


def test_what_cannot_be_written_says_so(model):
    class Closed(dict):
        def __setitem__(self, name, value):
            raise NotImplementedError("backed")

    from mvkit_omics.writing import _put

    with pytest.raises(
        RequestError,
        match=r"layers of 'rna': 'mvkit_imputed' cannot be written: NotImplementedError: backed; .*to_memory\(\), or leave imputed= out",
    ):
        _put(Closed(), "layers of 'rna'", "mvkit_imputed", 1)


def test_views_become_objects_of_their_own(model):
    mdata = mosaic()
    whole = mosaic()
    annotate(whole, model)
    expected = made_up.by_cell(whole.obs_names, whole.obsm["X_mvkit"])
    view = mdata[cells(7, 3, 0)]
    annotate(view, model, imputed=["adt"], n=2)
    for cell, z in made_up.by_cell(view.obs_names, view.obsm["X_mvkit"]).items():
        np.testing.assert_allclose(z, expected[cell], rtol=1e-5, atol=1e-6)
    assert "mvkit" not in mdata.uns
    assert view["adt"].layers["mvkit_imputed"].shape == (2, 3)
    adata = counts(cells(0, 1, 2), GENES)
    part = adata[["c2", "c0"]]
    annotate(part, model, layers={"rna": None}, imputed=["rna"], n=2)
    assert part.obsm["X_mvkit"].shape == (2, 2)
    assert "mvkit" not in adata.uns


def test_a_view_of_a_backed_object_says_what_to_do(model, tmp_path):
    counts(cells(0, 1, 2), GENES).write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(RequestError, match=r"annotate: .* cannot be written: .*to_memory\(\)"):
        annotate(backed[["c2", "c0"]], model, layers={"rna": None})
    backed.file.close()


def test_bad_requests(model):
    mdata = mosaic()
    with pytest.raises(
        RequestError,
        match=r"annotate: imputed: the model has no modality 'ADT'; did you mean 'adt'",
    ):
        annotate(mdata, model, imputed=["ADT"])
    with pytest.raises(
        RequestError, match=r"annotate: n=0; expected a whole number of at least 1"
    ):
        annotate(mdata, model, n=0)
    with pytest.raises(RequestError, match=r"annotate: got str as its model"):
        annotate(mdata, "model")
    with pytest.raises(DataError, match=r"annotate: got dict; expected an AnnData or a MuData"):
        annotate({}, model)
    data = from_mudata(mdata, covariates=["batch"])
    with pytest.raises(RequestError, match=r"annotate: layers: how to read cells, and a dataset"):
        annotate(mdata, model, dataset=data, layers="counts")
    with pytest.raises(
        DataError, match=r"1 of the 9 cells of the dataset are not in obs_names, such as 'c8'"
    ):
        annotate(mdata[cells(*range(8))].copy(), model, dataset=data)
    plain = MultimodalDataset.from_arrays({"rna": np.ones((2, 6))})
    with pytest.raises(DataError, match=r"the dataset does not know the names of its cells"):
        annotate(mdata, model, dataset=plain)


def test_namespaces(model):
    import mvkit_omics.namespace  # noqa: F401

    mdata = mosaic()
    assert mdata.mvkit.dataset(covariates=["batch"]).ids.tolist() == mdata.obs_names.tolist()
    mdata.mvkit.annotate(model)
    adata = mdata["rna"]
    assert len(adata.mvkit.dataset()) == 6
    adata.mvkit.annotate(model, layers={"rna": None})
    z = made_up.by_cell(mdata.obs_names, mdata.obsm["X_mvkit"])
    only_rna = set(cells(0, 1, 2))
    for cell, values in made_up.by_cell(adata.obs_names, adata.obsm["X_mvkit"]).items():
        if cell in only_rna:
            np.testing.assert_allclose(values, z[cell], rtol=1e-5, atol=1e-6)
