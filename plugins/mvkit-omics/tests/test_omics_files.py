"""Real cells, in and out; skipped where the files are not."""

import os
import warnings
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from mvkit_omics import annotate, from_anndata, from_mudata

import mvkit

DATA = Path(os.environ.get("MVKIT_DATA", Path(__file__).parents[4] / "shared" / "data"))
MOSAIC = DATA / "midas_mosaic" / "quickstart_pbmc_mosaic.h5mu"
CITE = DATA / "pbmc_citeseq"
needs_mosaic = pytest.mark.skipif(not MOSAIC.exists(), reason=f"no {MOSAIC}")
needs_cite = pytest.mark.skipif(not CITE.exists(), reason=f"no {CITE}")


def quiet(read, *args, **options):
    """What a function reads, without the warnings of anndata and mudata about old files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(*args, **options)


@pytest.fixture
def mdata():
    return quiet(mudata.read_h5mu, MOSAIC)


@needs_mosaic
def test_a_mosaic_is_read_and_annotated_by_names(mdata):
    data = from_mudata(mdata, covariates=["batch"], label="celltype")
    assert data.ids.tolist() == mdata.obs_names.tolist()
    assert data.alignment == "800 of 1,600 rows in both: rna 1,200, adt 1,200"
    assert data.covariates["batch"].levels == ("p1_0", "p2_0", "p3_0", "p4_0")
    assert data.labels.tolist() == mdata.obs["celltype"].tolist()
    observed = pd.DataFrame(data.batch.mask.numpy(), columns=["rna", "adt"])
    by_batch = observed.groupby(np.asarray(data.batch.extra["batch"])).all()
    assert by_batch["rna"].tolist() == [True, False, True, True]
    assert by_batch["adt"].tolist() == [False, True, True, True]
    total = sum(float(adata.X.sum()) for adata in mdata.mod.values())
    sums = (data.batch.data[name].nan_to_num(0).double().sum() for name in ("rna", "adt"))
    assert float(sum(sums)) == total
    model = mvkit.Model(data.modalities, covariates=data.covariates, latent_dim=4, seed=0)
    mvkit.fit(model, data, epochs=2, seed=0, progress=False)
    annotate(mdata, model, imputed=["adt"], n=2)
    z = dict(zip(mdata.obs_names, mdata.obsm["X_mvkit"], strict=True))
    noise = np.random.default_rng(0)
    mods = {}
    for name in ("adt", "rna"):
        adata = mdata[name][noise.permutation(1200)]
        mods[name] = adata[:, noise.permutation(adata.n_vars)].copy()
    mudata.set_options(pull_on_update=False)  # without this, mudata warns
    other = mudata.MuData(mods)
    annotate(other, model, imputed=["adt"], n=2)
    assert set(other.obs_names) == set(z)
    for cell, values in zip(other.obs_names, other.obsm["X_mvkit"], strict=True):
        np.testing.assert_array_equal(values, z[cell])
    first, second = (each.obsm["mvkit_imputed_adt"] for each in (mdata, other))
    np.testing.assert_array_equal(second.loc[first.index, first.columns], first)


@needs_mosaic
def test_a_backed_mosaic_stays_sparse(mdata):
    backed = quiet(mudata.read_h5mu, MOSAIC, backed="r")
    rows = from_mudata(backed, covariates=["batch"], sparse=True)
    dense = from_mudata(mdata, covariates=["batch"])
    model = mvkit.Model(dense.modalities, covariates=dense.covariates, latent_dim=2, seed=0)
    ids = dense.ids[::100].tolist()
    expected = model.encode(dense.take(ids))
    assert torch.equal(model.encode(rows.dense(ids)), expected)
    backed.file.close()


@needs_cite
def test_panels_that_share_some_proteins():
    small = quiet(anndata.read_h5ad, CITE / "pbmc_10k_protein_v3.h5ad")
    large = quiet(anndata.read_h5ad, CITE / "pbmc_5k_protein_v3.h5ad")
    reading = {"obsm": {"adt": "protein_expression"}, "features": {"adt": "protein_names"}}
    genes = small.var_names.intersection(large.var_names)[:200]
    train = from_anndata(large[:, genes], **reading, empty="keep")
    assert train.modalities["adt"].features == tuple(large.uns["protein_names"])
    model = mvkit.Model(train.modalities, latent_dim=2, seed=0)
    with pytest.raises(
        mvkit.DataError, match="15 of the 29 features that the model knows of 'adt'"
    ):
        from_anndata(small[:, genes], like=model, empty="keep", **reading)
    options = {"missing_genes": "unobserved", "empty": "keep", **reading}
    data = from_anndata(small[:, genes], like=model, **options)
    own = dict(zip(small.uns["protein_names"], small.obsm["protein_expression"].T, strict=True))
    rows = model.conform(data)
    for column, protein in enumerate(train.modalities["adt"].features):
        assert bool(rows.present("adt")[:, column].all()) == (protein in own)
        if protein in own:
            assert rows.data["adt"][:, column].tolist() == own[protein].tolist()
