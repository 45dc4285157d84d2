"""Errors that name cell, feature, value and remedy."""

import warnings

import anndata
import made_up
import mudata
import numpy as np
import pandas as pd
import pytest
from made_up import GENES, PROTEINS, cells, counts, joined, mosaic
from mvkit_omics import from_anndata, from_mudata
from scipy import sparse

import mvkit
from mvkit import DataError

KINDS = [np.asarray, sparse.csr_matrix]


def altered(value, kind=np.asarray, cell=1, gene=4):
    """Counts in which one value is another; a layer holds them as they were."""
    adata = counts(cells(0, 1, 2), GENES, kind=np.asarray)
    adata.layers["raw_counts"] = adata.X.copy()
    values = adata.X.copy()
    values[cell, gene] = value
    adata.X = kind(values)
    return adata


def check(match, read, *args, **options):
    with pytest.raises(DataError, match=match):
        read(*args, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_normalised_values_given_to_a_count_likelihood(kind):
    adata = altered(1.5, kind)
    match = (
        r"adata\.X: cell 'c1', feature 'G4': 1\.5 is no whole number, but Poisson\(.*\) expects "
        r"counts, .*; it looks normalised; give layers=\{'rna': 'raw_counts'\}, or .*'normal'"
    )
    check(match, from_anndata, adata, modalities={"rna": "poisson"})
    assert from_anndata(adata, layers={"rna": "raw_counts"}).modalities["rna"].exposure == "total"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modalities", [None, {"rna": "negative_binomial"}])
def test_negative_counts(kind, modalities):
    match = r"adata\.X: cell 'c1', feature 'G4': -3 is (below 0|negative).*correct it"
    check(match, from_anndata, altered(-3, kind), modalities=modalities)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modalities", [None, {"rna": "normal"}, {"rna": "poisson"}])
def test_infinite_values(kind, modalities):
    match = r"adata\.X: cell 'c1', feature 'G4': inf; expected finite numbers"
    check(match, from_anndata, altered(np.inf, kind), modalities=modalities)


@pytest.mark.parametrize("text", [np.array([["1", "a"]] * 2), np.array([[1, "a"]] * 2, object)])
def test_layers_of_text(text):
    adata = counts(cells(0, 1), GENES[:2])
    adata.layers["note"] = text
    match = r"adata\.layers\['note'\]: cell 'c0', feature 'G[01]': '[1a]' is no number; .*layers="
    check(match, from_anndata, adata, layers="note")


def test_numbers_among_objects_are_numbers():
    adata = counts(cells(0, 1), GENES[:2])
    adata.layers["own"] = np.array([[1, None], [2, 3]], dtype=object)
    data = from_anndata(adata, layers="own")
    assert data.batch.data["rna"].isnan().tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("kind", KINDS)
def test_empty_cells(kind):
    adata = counts(cells(0, 1, 2), GENES, kind=np.asarray)
    values = adata.X.copy()
    values[1] = 0
    adata.X = kind(values)
    match = (
        r"adata\.X: cell 'c1' has no count in any of the 6 features, as 1 of 3 cells; .*"
        r"filter_cells.*empty='unobserved'"
    )
    check(match, from_anndata, adata)
    assert from_anndata(adata, empty="unobserved").ids.tolist() == ["c0", "c2"]
    assert from_anndata(adata, empty="keep").batch.data["rna"][1].tolist() == [0.0] * 6
    with pytest.raises(
        mvkit.RequestError, match=r"empty='drop'; expected 'error' or 'unobserved'"
    ):
        from_anndata(adata, empty="drop")


def test_a_name_of_a_cell_that_stands_twice():
    adata = counts(cells(0, 1), GENES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's own
        twice = anndata.concat([adata, adata])
        match = r"adata\.obs_names: 'c0' stands twice, at 0 and 2; .*obs_names_make_unique.*"
        check(match + "index_unique", from_anndata, twice)
        mdata = mudata.MuData({"rna": twice})
        check(r"obs_names: 'c0' stands twice", from_mudata, mdata)


def test_a_name_of_a_gene_that_stands_twice():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = counts(cells(0, 1), ["G0", "G1", "G0"])
        check(r"adata\.var_names: 'G0' stands twice, at 0 and 2; .*var_names_make_unique",
              from_anndata, adata)  # fmt: skip


def test_names_of_cells_that_only_look_alike():
    rna = counts(cells(1, 2), GENES)
    adt = counts(cells(1, 2), PROTEINS)
    rna.obs_names = ["AAAC-1", "AAAG-1"]
    adt.obs_names = ["AAAC", "AAAG"]
    mdata = joined(rna=rna, adt=adt)
    check(r"none of its ids, such as 'AAAC-1' .*make them alike", from_mudata, mdata)
    check(r"none of its ids", from_mudata, mdata, sparse=True)
    assert len(from_mudata(mdata, disjoint=True)) == 4


def test_other_objects():
    adata = counts(cells(0), GENES)
    check(r"from_mudata: got AnnData; .*use from_anndata", from_mudata, adata)
    check(r"from_anndata: got MuData; .*use from_mudata", from_anndata, joined(rna=adata))
    check(r"from_anndata: got ndarray", from_anndata, adata.X.toarray())
    shared = mudata.MuData({"a": adata, "b": counts(cells(1), GENES)}, axis=1)
    check(r"mdata: its axis is 1, so that modalities share features", from_mudata, shared)
    nested = mudata.MuData({"a": joined(rna=adata)})
    check(r"mdata\['a'\]: a MuData in a MuData", from_mudata, nested)


def test_names_that_are_not_there():
    mdata = mosaic()
    check(
        r"mods: mdata has no modality 'RNA'; did you mean 'rna'", from_mudata, mdata, mods=["RNA"]
    )
    check(r"layers: mdata\['rna'\] has no layer 'counts'; known: 'X'", from_mudata, mdata,
          layers={"rna": "counts"})  # fmt: skip
    check(r"layers: no modality is taken that is called 'atac'", from_mudata, mdata,
          layers={"atac": "counts"})  # fmt: skip
    check(r"modalities: no data for 'atac'", from_mudata, mdata, modalities={"atac": "normal"})
    check(r"covariates: no obs has a column 'bacth'; did you mean 'batch'", from_mudata, mdata,
          covariates=["bacth"])  # fmt: skip
    check(r"label: no obs has a column 'kind'", from_mudata, mdata, label="kind")
    check(r"covariates: got 'batch'; .*give a list, such as \['batch'\]", from_mudata, mdata,
          covariates="batch")  # fmt: skip
    check(r"observed: no obs has a column 'has'", from_mudata, mdata, observed={"rna": "has"})
    check(r"obsm: adata\.obsm has no 'protein'", from_anndata, mdata["rna"],
          obsm={"adt": "protein"})  # fmt: skip
    empty = anndata.AnnData(obs=pd.DataFrame(index=["a"]), var=pd.DataFrame(index=["g"]))
    check(r"adata\.X: there are no values; .*layers=", from_anndata, empty)


def test_flags_that_are_none():
    adata = counts(cells(0, 1), GENES)
    adata.obs["has"] = ["yes", "no"]
    check(r"adata\.obs\['has'\]: .*expected flags", from_anndata, adata, observed={"rna": "has"})


def test_types_of_features_that_nobody_named():
    adata = counts(cells(0, 1), GENES)
    adata.var["feature_types"] = ["Gene Expression", "Peaks"] * 3
    check(
        r"features of 2 types, 'Gene Expression', 'Peaks'; .*feature_types=\{", from_anndata, adata
    )
    check(r"feature_types: adata\.var\['feature_types'\] has no 'Antibodies'", from_anndata, adata,
          feature_types={"adt": "Antibodies"})  # fmt: skip


def test_names_that_do_not_fit_obsm():
    adata = counts(cells(0, 1), GENES)
    adata.obsm["adt"] = np.ones((2, 3))
    check(r"adata\.obsm\['adt'\]: 2 names for 3 features", from_anndata, adata,
          obsm={"adt": "adt"}, features={"adt": ["CD3", "CD4"]})  # fmt: skip
    check(r"features: adata\.uns has no 'names'", from_anndata, adata, obsm={"adt": "adt"},
          features={"adt": "names"})  # fmt: skip


def test_two_modalities_that_disagree_on_a_cell():
    mdata = mosaic()
    mdata["adt"].obs["batch"] = pd.Categorical(["p"] * 6)
    check(r"mdata\['rna'\]\.obs\['batch'\]: cell 'c5' has 'q', but mdata\['adt'\]\.obs says 'p'",
          from_mudata, mdata, covariates=["batch"])  # fmt: skip


# a model that is used on other cells


def other(names=("c20", "c21"), genes=GENES):
    return counts(names, genes)


def test_genes_in_another_order_are_found_by_name():
    model = made_up.trained(joined(rna=counts(cells(*range(9)), GENES)))
    adata = other()
    expected = model.encode(from_anndata(adata, like=model))
    shuffled = adata[:, ["G3", "G5", "G0", "G1", "G4", "G2"]].copy()
    more = shuffled.copy()
    more = anndata.concat([more, counts(adata.obs_names, ["G8", "G9"])], axis=1)
    more.obs = adata.obs
    for same in (shuffled, more):
        np.testing.assert_array_equal(model.encode(from_anndata(same, like=model)), expected)
        rows = from_anndata(same, like=model, sparse=True).__getitems__([0, 1])
        np.testing.assert_array_equal(model.encode(rows), expected)
    # without like=, names are compared where the model is asked
    direct = from_anndata(shuffled, covariates=["batch"])
    np.testing.assert_array_equal(model.encode(direct), expected)
    with pytest.raises(mvkit.ShapeError, match=r"'rna'.*its columns add 'G8', 'G9'"):
        model.encode(from_anndata(more, covariates=["batch"]))


def test_genes_that_are_missing_are_named():
    model = made_up.trained(joined(rna=counts(cells(*range(9)), GENES)))
    adata = other(genes=["G5", "G0", "G2", "G1"])
    match = (
        r"adata\.X: 2 of the 6 features that the model knows of 'rna' are not there: 'G3', 'G4'; "
        r".*missing_genes='unobserved'"
    )
    check(match, from_anndata, adata, like=model)
    data = from_anndata(adata, like=model, missing_genes="unobserved")
    rows = model.conform(data)
    assert rows.present("rna").tolist() == [[True, True, True, False, False, True]] * 2
    totals = np.asarray(adata.X.sum(1)).reshape(-1).tolist()
    assert rows.exposure["rna"].tolist() == totals
    sparse_rows = from_anndata(adata, like=model, missing_genes="unobserved", sparse=True)
    np.testing.assert_array_equal(
        model.encode(sparse_rows.__getitems__([0, 1])), model.encode(data)
    )


def test_genes_that_are_called_otherwise():
    model = made_up.trained(joined(rna=counts(cells(*range(9)), GENES)))
    adata = other(genes=[f"ENSG{i}" for i in range(6)])
    match = r"6 of the 6 .*here they are called 'ENSG0', 'ENSG1'; rename them"
    check(match, from_anndata, adata, like=model, missing_genes="unobserved")
    adata.var["symbol"] = GENES
    match = r"adata\.var\['symbol'\] holds such names: make it the var_names"
    check(match, from_anndata, adata, like=model)


def test_cells_without_a_batch_or_of_an_unknown_one():
    model = made_up.trained(joined(rna=counts(cells(*range(9)), GENES)))
    adata = other()
    adata.obs["batch"] = ["p", "r"]
    match = (
        r"obs\['batch'\]: cell 'c21' has 'r', which is none of the 2 levels of the model, 'p', "
        r"'q'; .*model\.add_level\('batch', 'r', like='average'\)"
    )
    check(match, from_anndata, adata, like=model)
    model.add_level("batch", "r", like="average")
    assert len(model.encode(from_anndata(adata, like=model))) == 2
    adata.obs["batch"] = pd.Categorical(["p", None])
    match = r"obs\['batch'\]: cell 'c21' has no value, as 1 of 2 cells; .*missing='average'"
    check(match, from_anndata, adata, like=model)
    del adata.obs["batch"]
    check(r"covariates: no obs has a column 'batch'", from_anndata, adata, like=model)


def test_modalities_that_the_model_does_not_know():
    model = made_up.trained(mosaic())
    mdata = joined(rna=other(), ADT=counts(cells(20, 21), PROTEINS))
    match = r"the model has no modality 'ADT'; did you mean 'adt'\?; .*mods=\['rna'\]"
    check(match, from_mudata, mdata, like=model)
    assert model.encode(from_mudata(mdata, like=model, mods=["rna"])).shape == (2, 2)
    check(r"no modality 'ADT'", from_mudata, mdata, like=model, mods=["ADT"])
    check(r"modalities: the model says what modalities are", from_mudata, mosaic(), like=model,
          modalities={"rna": "poisson"})  # fmt: skip


def test_a_model_without_names_of_features():
    model = mvkit.Model({"rna": (6,)}, seed=0)
    check(
        r"does not know what the features of 'rna' are called", from_anndata, other(), like=model
    )


def test_one_modality_is_called_as_the_model_calls_it():
    data = from_anndata(counts(cells(0, 1, 2), GENES), layers={"expression": None})
    model = mvkit.Model(data.modalities, seed=0)
    assert list(from_anndata(other(), like=model).modalities) == ["expression"]


def test_normalised_values_given_to_a_trained_model_of_counts():
    model = made_up.trained(joined(rna=counts(cells(*range(9)), GENES)))
    adata = other()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X * 0.5
    match = r"cell 'c2[01]', feature 'G\d': \S+ is no whole number.*layers=\{'rna': 'counts'\}"
    check(match, from_anndata, adata, like=model)


def test_a_batch_that_is_missing_or_unknown_in_a_dataset_made_without_the_model():
    model = made_up.trained(joined(rna=counts(cells(*range(9)), GENES)))
    adata = other()
    adata.obs["batch"] = pd.Categorical(["p", None], categories=["p", "q"])
    with pytest.raises(DataError, match=r"covariate 'batch': row 1 has none \(id 'c21'\)"):
        model.encode(from_anndata(adata, covariates=["batch"]))
    adata.obs["batch"] = ["r", "p"]
    with pytest.raises(DataError, match=r"'r' of row 0 \(id 'c20'\) is none of its 2 levels"):
        model.encode(from_anndata(adata, covariates=["batch"]))


def test_whole_numbers_that_look_like_labels():
    adata = counts(cells(*range(6)), GENES)
    adata.obs["lane"] = [0, 1, 2, 0, 1, 2]
    with pytest.warns(UserWarning, match=r"obs\['lane'\] holds whole numbers, 3 different ones"):
        assert from_anndata(adata, covariates=["lane"]).covariates["lane"].levels == ()
    adata.obs["lane"] = adata.obs["lane"].astype(float)
    assert from_anndata(adata, covariates=["lane"]).covariates["lane"].levels == ()
    adata.obs["lane"] = adata.obs["lane"].astype(int).astype("category")
    assert from_anndata(adata, covariates=["lane"]).covariates["lane"].levels == (0, 1, 2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layers": ["counts"]}, r"from_mudata: layers: got \['counts'\]; .*\{'rna': 'counts'\}"),
        (
            {"observed": "has"},
            r"from_mudata: observed: got 'has'; expected a mapping from modality",
        ),
        (
            {"modalities": "poisson"},
            r"from_mudata: modalities: got 'poisson'; .*give \{'rna': 'po",
        ),
        ({"label": pd.Series([1])}, r"label: got a Series; expected names of columns of obs"),
        ({"row_weight": 2.0}, r"row_weight: got a float; expected names of columns of obs"),
        ({"covariates": {"batch": 1}}, r"covariates: got a dict; .*obs\['name'\] = values"),
        ({"covariates": pd.DataFrame()}, r"covariates: got a DataFrame; expected names of col"),
        ({"covariates": [3]}, r"covariates: got 3; expected names of columns"),
    ],
)
def test_options_of_another_kind(options, match):
    check(match, from_mudata, mosaic(), **options)


def test_options_of_an_anndata_of_another_kind():
    adata = counts(cells(0, 1), GENES)
    check(r"from_anndata: obsm: got 'protein'; .*'protein_expression'", from_anndata, adata,
          obsm="protein")  # fmt: skip
    check(r"from_anndata: feature_types: got True; expected a mapping", from_anndata, adata,
          feature_types=True)  # fmt: skip
    with pytest.raises(mvkit.RequestError, match=r"from_anndata: like: got str as its model"):
        from_anndata(adata, like="model.safetensors")
