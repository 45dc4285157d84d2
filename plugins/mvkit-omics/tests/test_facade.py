"""The façade does what mvkit's own functions do, in the order that scvi-tools has."""

import numpy as np
import pandas as pd
import pytest
import torch
from made_up import GENES, PROTEINS, cells, counts, joined, mosaic
from mvkit_omics import MVKIT, denoised, differential_expression, from_mudata, latents

import mvkit
from mvkit import RequestError

FIT = {"max_epochs": 2, "progress": False}


def both():
    names = cells(*range(20))
    mdata = joined(rna=counts(names, GENES), adt=counts(names[3:], PROTEINS, seed=1))
    mdata.obs["kind"] = ["T", "B"] * 10
    return mdata


@pytest.fixture(scope="module")
def trained():
    mdata = both()
    MVKIT.setup_mudata(mdata, batch_key="batch", labels_key="kind")
    facade = MVKIT(mdata, n_latent=3, hidden=(8,), seed=0)
    facade.train(**FIT)
    return facade


def test_it_is_a_recipe_trained_by_fit(trained):
    data = from_mudata(both(), covariates=["batch"], label="kind")
    model = mvkit.recipes.totalvi(
        data.modalities, 3, batch="batch", covariates=data.covariates, hidden=(8,), seed=0
    )
    mvkit.fit(model, data, epochs=2, progress=False)
    for name, value in model.state_dict().items():
        assert torch.equal(trained.model.state_dict()[name], value)
    pd.testing.assert_frame_equal(latents(trained.model, trained.dataset), latents(model, data))
    z = trained.get_latent_representation()
    assert np.array_equal(z, model.encode(data).numpy())
    assert trained.get_latent_representation(given="rna").shape == (20, 3)


def test_expression_is_that_of_denoised(trained):
    model, data = trained.model, trained.dataset
    table = trained.get_normalized_expression(
        transform_batch=["p", "q"], n_samples=2, gene_list=["G1"]
    )
    expected = denoised(model, data, "rna", covariates={"batch": ["p", "q"]}, n=2, features=["G1"])
    pd.testing.assert_frame_equal(table, expected)
    assert abs(trained.get_normalized_expression().sum(1) - 1).max() < 1e-5
    own = trained.get_normalized_expression(library_size="latent", n_samples=None)
    pd.testing.assert_frame_equal(own, denoised(model, data, "rna", exposure=None, n=None))
    proteins = trained.get_normalized_expression(modality="adt", n_samples=None)
    pd.testing.assert_frame_equal(proteins, denoised(model, data, "adt", n=None))
    assert list(proteins.columns) == PROTEINS


def test_groups_are_by_columns_of_obs(trained):
    table = trained.differential_expression(
        groupby="kind", group1="T", batch_correction=True, pairs=50
    )
    expected = differential_expression(
        trained.model,
        trained.dataset,
        "T",
        by="label",
        modality="rna",
        covariates={"batch": "all"},
        pairs=50,
    )
    pd.testing.assert_frame_equal(table, expected)
    assert set(table.index) == set(GENES)
    two = trained.differential_expression(
        groupby="kind", group1="T", group2="B", mode="vanilla", pairs=50
    )
    assert set(two["comparison"]) == {"T vs B"}
    by_cells = trained.differential_expression(group1=["c0", "c2"], group2=["c1"], pairs=50)
    assert len(by_cells) == 6


def test_other_cells_are_read_alike(trained):
    other = joined(rna=counts(cells(30, 31, 32), [*GENES[::-1], "G9"]))
    other.obs["kind"] = ["T", "B", "B"]
    z = trained.get_latent_representation(other)
    assert z.shape == (3, 3)
    data = from_mudata(other, covariates=["batch"], like=trained.model)
    assert np.array_equal(z, trained.model.encode(data).numpy())
    table = trained.differential_expression(other, groupby="kind", group1="B", pairs=20)
    assert set(table["comparison"]) == {"B vs rest"}


def test_a_saved_one_is_loaded_for_its_cells(trained, tmp_path):
    folder = tmp_path / "run"
    trained.save(folder)
    with pytest.raises(RequestError, match="save: .* exists; expected a new one, or overwrite"):
        trained.save(folder)
    trained.save(folder, overwrite=True)
    again = MVKIT.load(folder, both())
    assert np.array_equal(again.get_latent_representation(), trained.get_latent_representation())
    pd.testing.assert_frame_equal(
        again.get_normalized_expression(transform_batch="p"),
        trained.get_normalized_expression(transform_batch="p"),
    )


def test_a_setup_is_kept_in_files(tmp_path):
    import mudata

    mdata = both()
    MVKIT.setup_mudata(mdata, batch_key="batch", mods=["rna"])
    mdata.write_h5mu(tmp_path / "cells.h5mu")
    facade = MVKIT(mudata.read_h5mu(tmp_path / "cells.h5mu"), n_latent=2)
    assert facade.model.names == ("rna",)
    assert facade.dataset.covariates["batch"].levels == ("p", "q")


def test_recipes_follow_from_the_modalities():
    adata = counts(cells(*range(8)), GENES)
    MVKIT.setup_anndata(adata)
    facade = MVKIT(adata, n_latent=2)
    assert facade.model.names == ("rna",)
    facade.train(early_stopping=True, validation=0.25, **FIT)
    assert facade.get_normalized_expression().shape == (8, 6)
    mixture = MVKIT(both_set_up(), "cite_mopoe", n_latent=2)
    assert type(mixture.model.spec.aggregator).__name__ == "MoPoE"
    names = cells(*range(8))
    peaks = counts(names, ["a", "b", "c"])
    peaks.X = (peaks.X > 1).astype(np.float32)
    multi = joined(rna=counts(names, GENES), atac=peaks)
    MVKIT.setup_mudata(multi)
    assert MVKIT(multi, n_latent=2).model.modalities["atac"].exposure is None


def both_set_up():
    mdata = both()
    MVKIT.setup_mudata(mdata, batch_key="batch")
    return mdata


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: MVKIT(both()).train(),
            "MVKIT: this MuData was not set up; expected MVKIT.setup_mudata(…, batch_key=…) before MVKIT(…) and train()",
        ),
        (
            lambda: MVKIT(counts(cells(1, 2), GENES)),
            "MVKIT: this AnnData was not set up; expected MVKIT.setup_anndata(…, batch_key=…) before MVKIT(…) and train()",
        ),
        (lambda: MVKIT(3), "MVKIT: got int; expected an AnnData or a MuData"),
        (
            lambda: MVKIT(both_set_up()).get_latent_representation(),
            "MVKIT: not trained yet; expected train() before questions",
        ),
        (
            lambda: MVKIT(both_set_up()).save("nowhere"),
            "MVKIT: not trained yet; expected train() before questions",
        ),
        (
            lambda: MVKIT.setup_mudata(both(), modalities={"rna": object}),
            "MVKIT: Object of type type is not JSON serializable; expected options that a file can hold: names, numbers and dicts of them; write a Modality as a dict of its options",
        ),
    ],
)
def test_a_wrong_order_is_said_in_words(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError) as error:
        call()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda f: f.differential_expression(groupby="kinds"),
            "differential_expression: obs has no column 'kinds'; did you mean 'kind'?",
        ),
        (
            lambda f: f.get_latent_representation(3),
            "MVKIT: got int; expected an AnnData or a MuData",
        ),
        (
            lambda f: f.get_normalized_expression(transform_batch="z"),
            "translate: covariate 'batch'",
        ),
    ],
)
def test_what_cannot_be_asked_is_said(trained, call, message):
    with pytest.raises(RequestError) as error:
        call(trained)
    assert str(error.value).startswith(message)


def test_without_batches_none_can_be_stated():
    mdata = mosaic()
    MVKIT.setup_mudata(mdata)
    facade = MVKIT(mdata, n_latent=2)
    facade.train(**FIT)
    with pytest.raises(RequestError, match="no batches are known; expected batch_key="):
        facade.get_normalized_expression(transform_batch="p")


def test_cells_may_stay_sparse(trained):
    mdata = both()
    MVKIT.setup_mudata(mdata, batch_key="batch", sparse=True)
    facade = MVKIT(mdata, n_latent=3, hidden=(8,), seed=0)
    facade.train(**FIT)
    assert type(facade.dataset).__name__ == "SparseRows"
    assert np.array_equal(facade.get_latent_representation(), trained.get_latent_representation())
    options = {"groupby": "kind", "group1": "T", "batch_correction": True, "pairs": 50}
    pd.testing.assert_frame_equal(
        facade.differential_expression(**options), trained.differential_expression(**options)
    )
    pd.testing.assert_frame_equal(
        facade.get_normalized_expression(transform_batch="p"),
        trained.get_normalized_expression(transform_batch="p"),
    )
