"""What estimators answer: gaps filled, latents, clusters, labels that are known of some rows."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mvkit_sklearn import MVClassifier, MVClusterer, MVImputer, MVRegressor, MVTransformer
from sklearn.metrics import adjusted_rand_score, r2_score

import mvkit

DATA = Path(os.environ.get("MVKIT_DATA", Path(__file__).parents[4] / "shared" / "data"))
SHORT = {"epochs": 3, "random_state": 0}


def factors(rows=200, seed=0):
    """Eight columns of two factors, (b, 8)."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, 2)) @ rng.normal(size=(2, 8))
    return values + 0.1 * rng.normal(size=values.shape)


def gapped(values, share=0.2, seed=1):
    return np.where(np.random.default_rng(seed).random(values.shape) < share, np.nan, values)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_observed_values_keep_their_bits(kind):
    X = gapped(factors()).astype(kind)
    before = X.copy()
    filled = MVImputer(**SHORT).fit_transform(X)
    seen = ~np.isnan(X)
    assert filled.dtype == kind
    assert filled[seen].tobytes() == X[seen].tobytes()
    assert np.isfinite(filled).all()
    assert np.array_equal(X, before, equal_nan=True)


def test_gaps_are_filled_better_than_by_means():
    truth = factors()
    X = gapped(truth)
    gaps = np.isnan(X)
    filled = MVImputer(random_state=0).fit_transform(X)
    error = ((filled - truth)[gaps] ** 2).mean()
    by_means = ((np.nanmean(X, 0) - truth)[gaps.nonzero()[0], gaps.nonzero()[1]] ** 2).mean()
    assert error < 0.4 * by_means


def test_a_gap_is_what_the_decoder_says_at_the_mean_of_the_latent():
    X = gapped(factors())
    imputer = MVImputer(**SHORT).fit(X)
    z = imputer.model_.encode({"x": torch.tensor(X)}, empty="prior")
    means = imputer.model_.decode(z)["x"].numpy()
    gaps = np.isnan(X)
    np.testing.assert_allclose(imputer.transform(X)[gaps], means[gaps], rtol=1e-10)


def test_rows_and_columns_without_a_value_are_filled():
    X = factors()
    X[:, 3] = np.nan
    imputer = MVImputer(**SHORT).fit(X)
    rows = X[:4].copy()
    rows[1] = np.nan
    filled = imputer.transform(rows)
    assert np.isfinite(filled).all()
    assert np.array_equal(filled, imputer.transform(rows))
    assert np.array_equal(filled[1:2], imputer.transform(rows[1:2]))


def test_rows_without_a_value_train_nothing():
    X = gapped(factors(40))
    more = np.insert(X, [5, 20], np.nan, axis=0)
    wanted = MVImputer(**SHORT).fit(X).transform(X)
    assert np.array_equal(MVImputer(**SHORT).fit(more).transform(X), wanted)


def test_flags_stand_behind_the_table():
    X = pd.DataFrame(factors(30), columns=list("abcdefgh"))
    X.loc[::3, "b"] = np.nan
    imputer = MVImputer(add_indicator=True, **SHORT).set_output(transform="pandas")
    filled = imputer.fit_transform(X)
    assert list(filled.columns) == [*"abcdefgh", "missingindicator_b"]
    assert filled["missingindicator_b"].tolist() == X["b"].isna().astype(float).tolist()


def test_latents_come_from_what_a_row_has_and_go_back():
    X = factors()
    transformer = MVTransformer(
        {"a": range(4), "b": range(4, 8)}, latent_dim=3, random_state=0
    ).fit(X)
    z = transformer.transform(X)
    assert z.shape == (200, 3)
    assert transformer.get_feature_names_out().tolist() == [f"mvtransformer{i}" for i in range(3)]
    assert r2_score(X, transformer.inverse_transform(z)) > 0.6
    half = X.copy()
    half[:, 4:] = np.nan
    wanted = transformer.model_.encode({"a": torch.tensor(X[:, :4])}).numpy()
    np.testing.assert_allclose(transformer.transform(half), wanted, rtol=1e-10)
    nothing = transformer.transform(np.full((2, 8), np.nan))
    np.testing.assert_allclose(nothing, 0.0, atol=1e-12)  # the prior's mean


def blobs(seed=0):
    rng = np.random.default_rng(seed)
    label = np.repeat(range(3), 40)
    return 4 * rng.normal(size=(3, 6))[label] + rng.normal(size=(120, 6)), label


def test_clusters_are_numbered_from_zero_and_agree_with_their_probabilities():
    X, label = blobs()
    clusterer = MVClusterer(3, latent_dim=3, random_state=0)
    labels = clusterer.fit_predict(X)
    assert adjusted_rand_score(label, labels) > 0.9
    assert np.array_equal(clusterer.predict(X), labels)
    shares = clusterer.predict_proba(X)
    assert np.array_equal(shares.argmax(1), labels)
    np.testing.assert_allclose(shares.sum(1), 1.0)
    many = MVClusterer(12, random_state=0, epochs=5).fit(X)
    assert np.array_equal(np.unique(many.labels_), np.arange(len(np.unique(many.labels_))))
    assert many.predict_proba(X).shape == (120, 12)


def test_a_row_without_a_value_has_no_cluster():
    X, _ = blobs()
    clusterer = MVClusterer(2, **SHORT).fit(X)
    with pytest.raises(mvkit.DataError, match="row 1 observes nothing"):
        clusterer.predict(np.array([[1.0] * 6, [np.nan] * 6]))


def test_a_prior_without_clusters_is_refused():
    with pytest.raises(
        mvkit.RequestError, match="prior 'standard' has no components to assign rows to"
    ):
        MVClusterer(2, model={"prior": "standard", "schedule": "single"}, **SHORT).fit(blobs()[0])


@pytest.mark.parametrize("missing", [-1, np.nan, "?"])
def test_labels_may_be_known_of_some_rows(missing):
    X, label = blobs()
    words = {-1: label, np.nan: label.astype(float), "?": np.array(["a", "b", "c"])[label]}[
        missing
    ]
    y = words.copy()
    y[np.arange(120) % 8 != 0] = missing
    model = MVClassifier(unlabelled=missing, random_state=0).fit(X, y)
    assert list(model.classes_) == sorted(set(words.tolist()))
    assert model.score(X, words) > 0.95
    shares = model.predict_proba(X)
    np.testing.assert_allclose(shares.sum(1), 1.0)
    np.testing.assert_allclose(model.predict_log_proba(X), np.log(shares))
    known = np.arange(120) % 8 == 0
    assert model.score(X, y) == (model.predict(X)[known] == words[known]).mean()
    weight = np.arange(120.0)
    assert model.score(X, y, weight) == np.average(
        model.predict(X)[known] == words[known], weights=weight[known]
    )


def test_rows_without_a_label_teach_the_classifier():
    X, label = blobs(1)
    y = label.copy()
    y[np.arange(120) % 40 > 0] = -1  # one label for each class
    some = MVClassifier(unlabelled=-1, random_state=0).fit(X, y)
    only = MVClassifier(random_state=0).fit(X[::40], label[::40])
    assert not np.array_equal(some.predict_proba(X), only.predict_proba(X))
    assert some.score(X, label) > 0.8


def test_minus_one_is_a_class_unless_it_means_no_label():
    X, label = blobs()
    y = np.where(label == 0, -1, 1)
    assert MVClassifier(**SHORT).fit(X, y).classes_.tolist() == [-1, 1]


def test_a_label_is_predicted_from_gapped_rows():
    X, label = blobs()
    model = MVClassifier({"a": range(3), "b": range(3, 6)}, random_state=0).fit(X, label)
    half = X.copy()
    half[:, 3:] = np.nan
    assert (model.predict(half) == label).mean() > 0.6
    nothing = model.predict_proba(np.full((1, 6), np.nan))
    assert np.isfinite(nothing).all()


def test_numbers_may_be_known_of_some_rows():
    X = factors()
    truth = 100 + 20 * X[:, 0]
    y = truth.copy()
    y[::2] = np.nan
    X = X[:, 1:]
    model = MVRegressor({"a": range(3), "b": range(3, 7)}, unlabelled=np.nan, random_state=0)
    model.fit(X, y)
    assert r2_score(truth[::2], model.predict(X)[::2]) > 0.7
    assert model.score(X, y) == r2_score(y[1::2], model.predict(X)[1::2])


WRONG = {
    "one class": (MVClassifier, {}, np.zeros(120), "y: one class only, .* expected two at least"),
    "no label": (
        MVClassifier,
        {"unlabelled": -1},
        np.full(120, -1),
        "y: every label is -1, which is missing",
    ),
    "NaN": (MVRegressor, {}, np.full(120, np.nan), "Input y contains NaN"),
    "infinity": (
        MVRegressor,
        {"unlabelled": np.nan},
        np.full(120, np.inf),
        "Input y contains infinity",
    ),
    "nothing": (MVRegressor, {}, None, "y: requires y to be passed, but the target y is None"),
    "a word": (
        MVRegressor,
        {},
        np.array(["a"] * 120),
        "could not convert string to float|dtype='numeric'",
    ),
    "numbers": (MVClassifier, {}, np.linspace(0, 1, 120), "Unknown label type: continuous"),
}


@pytest.mark.parametrize(("make", "options", "y", "message"), WRONG.values(), ids=WRONG)
def test_labels_that_cannot_be_are_refused(make, options, y, message):
    with pytest.raises(ValueError, match=message):
        make(**SHORT, **options).fit(blobs()[0], y)


def test_a_modality_cannot_be_called_as_the_label_is():
    with pytest.raises(mvkit.SpecError, match="modalities: a modality is called 'label'"):
        MVClassifier({"label": range(6)}, **SHORT).fit(*blobs())


@pytest.fixture(scope="module")
def mfeat():
    """Six descriptions of handwritten digits as tables with prefixes, and the digits."""
    pytest.importorskip("mvkit_datasets", reason="needs plugins/mvkit-datasets")
    if not (DATA / "mfeat").is_dir():
        pytest.skip(f"no folder {DATA / 'mfeat'}; set MVKIT_DATA to where the data are")
    data = mvkit.load_dataset("mfeat", path=DATA / "mfeat")
    splits = []
    for split in (data.train, data.test):
        tables = [
            pd.DataFrame(x.numpy(), columns=[f"{name}_{i}" for i in range(x.shape[1])])
            for name, x in split.batch.data.items()
        ]
        splits.append((pd.concat(tables, axis=1), np.asarray(split.labels)))
    names = list(data.modalities)
    return {name: f"{name}_" for name in names}, *splits


def test_digits_are_classified_from_all_descriptions_and_from_one(mfeat):
    modalities, (X, y), (held_out, digits) = mfeat
    labels = np.where(np.arange(len(y)) % 5 == 0, y, -1)
    model = MVClassifier(modalities, unlabelled=-1, random_state=0, epochs=12).fit(X, labels)
    assert model.score(held_out, digits) > 0.85  # of chance 0.1
    alone = held_out.copy()
    alone.loc[:, ~alone.columns.str.startswith("fac_")] = np.nan
    assert model.score(alone, digits) > 0.7


def test_digits_are_clustered(mfeat):
    modalities, (X, y), (held_out, digits) = mfeat
    clusterer = MVClusterer(10, modalities, random_state=0, epochs=16).fit(X)
    assert adjusted_rand_score(y, clusterer.labels_) > 0.4
    assert adjusted_rand_score(digits, clusterer.predict(held_out)) > 0.4


def test_descriptions_are_imputed_better_than_by_means(mfeat):
    modalities, (X, _), (held_out, _) = mfeat
    gaps = held_out.columns.str.startswith(("kar_", "zer_"))
    given = held_out.copy()
    given.loc[:, gaps] = np.nan
    filled = (
        MVImputer(modalities, random_state=0, epochs=12)
        .fit(X)
        .set_output(transform="pandas")
        .transform(given)
    )
    scale = X.std()[gaps]
    error = (((filled - held_out).loc[:, gaps] / scale) ** 2).to_numpy().mean()
    by_means = (((X.mean() - held_out).loc[:, gaps] / scale) ** 2).to_numpy().mean()
    assert error < 0.7 * by_means


def test_examples_of_the_readme_run(tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "readme"}
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 7
    for example in examples:
        exec(example, space)
    assert space["labels"].max() < 3
    assert space["z"].shape == (100, 10)
