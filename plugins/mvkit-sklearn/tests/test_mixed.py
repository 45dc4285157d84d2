"""MVImputer of tables whose columns hold words, categories, whole numbers, bits and days."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from mvkit_sklearn import MVImputer
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils.estimator_checks import parametrize_with_checks

import mvkit

SHORT = {"kinds": "auto", "epochs": 3, "random_state": 0}
GRADES = ["low", "mid", "high"]


def patients(b=60, seed=0):
    """A complete table of mixed columns, and the same with gaps."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=b)
    full = pd.DataFrame(
        {
            "crp": np.exp(z).round(2),
            "visits": rng.poisson(np.exp(1 + 0.3 * z)),
            "smokes": z + rng.normal(size=b) > 0,
            "site": np.array(["A", "B", "C"])[rng.integers(0, 3, b)],
            "grade": pd.Categorical.from_codes(np.digitize(z, [-0.5, 0.5]), GRADES, ordered=True),
            "seen": pd.Timestamp("2024-03-01") + pd.to_timedelta(rng.integers(0, 90, b), "D"),
            "ward": 7,
            "note": [f"text {i}" for i in range(b)],
        },
        index=[f"p{i}" for i in range(b)],
    )
    typed = full.astype({"visits": "Int64", "smokes": "boolean"})
    gaps = rng.uniform(size=full.shape) < 0.2
    gaps[:, 7] = False
    gaps[0, :7] = True  # a row that observes nothing that is modelled
    return full, typed.mask(gaps)


@pytest.fixture(scope="module")
def imputer():
    return MVImputer(**SHORT).fit(patients()[1])


def test_columns_of_every_kind_come_back_filled_in_their_types(imputer):
    full, shown = patients()
    before = shown.copy()
    filled = imputer.transform(shown)
    assert isinstance(filled, pd.DataFrame)
    assert not filled.isna().any().any()
    pd.testing.assert_series_equal(filled.dtypes, shown.dtypes)
    assert filled.index.equals(shown.index)
    assert filled.columns.equals(shown.columns)
    known = shown.notna()
    for name in shown:
        assert (filled[name][known[name]] == shown[name][known[name]]).all()
    assert filled["crp"].between(shown["crp"].min(), shown["crp"].max()).all()
    assert filled["visits"].between(shown["visits"].min(), shown["visits"].max()).all()
    assert set(filled["site"]) == {"A", "B", "C"}
    assert set(filled["ward"]) == {7}
    assert (filled["seen"].dt.normalize() == filled["seen"]).all()
    pd.testing.assert_frame_equal(shown, before)
    assert imputer.layout_.kinds["visits"] == "count"
    assert imputer.columns_["site"] == [3]


def test_gaps_are_what_the_model_expects(imputer):
    _, shown = patients()
    parts = imputer.layout_.split(shown)
    answers = imputer.model_.translate(
        parts, ["numbers", "site"], given=list(parts), latent="mean", empty="prior"
    )
    filled = imputer.transform(shown)
    gap = shown["crp"].isna().to_numpy()
    expected = answers["numbers"][0, :, 0].numpy().clip(shown["crp"].min(), shown["crp"].max())
    np.testing.assert_allclose(filled["crp"][gap], expected[gap], rtol=1e-12)
    gap = shown["site"].isna().to_numpy()
    words = [imputer.layout_.column("site").levels[int(i)] for i in answers["site"][0, :, 0]]
    assert filled["site"][gap].tolist() == np.array(words)[gap].tolist()


def test_a_rows_answer_depends_on_no_other_row(imputer):
    _, shown = patients()
    filled = imputer.transform(shown)
    some = imputer.transform(shown.iloc[5:9])
    pd.testing.assert_frame_equal(some, filled.iloc[5:9])


def test_kinds_are_stated(imputer):
    _, shown = patients()
    stated = MVImputer(**{**SHORT, "kinds": {"visits": "ordered", "note": "category"}}).fit(shown)
    assert stated.layout_.kinds["visits"] == "ordered"
    assert stated.layout_.kinds["site"] == "category"
    assert "ordered" in stated.columns_
    with pytest.raises(mvkit.DataError, match="kinds: X has no column 'visit'; did you mean"):
        MVImputer(kinds={"visit": "count"}).fit(shown)
    with pytest.raises(mvkit.RequestError, match="column 'visits': kind='whole'; expected"):
        MVImputer(kinds={"visits": "whole"}).fit(shown)
    with pytest.raises(mvkit.SpecError, match="kinds: got 'all'; expected 'auto', a mapping"):
        MVImputer(kinds="all").fit(shown)


@pytest.mark.parametrize("name", ["modalities", "likelihoods"])
def test_other_ways_to_say_what_columns_are_are_refused(name):
    with pytest.raises(mvkit.SpecError, match=f"{name}: beside kinds="):
        MVImputer(**SHORT, **{name: {"a": ["crp"]}}).fit(patients()[1])


def test_tables_of_polars_and_arrays_come_back_as_such(imputer):
    _, shown = patients()
    names = ["crp", "visits", "site"]
    frame = shown[names]
    wanted = MVImputer(**SHORT).fit_transform(frame)
    table = pl.from_pandas(frame)
    filled = MVImputer(**SHORT).fit_transform(table)
    assert isinstance(filled, pl.DataFrame)
    assert filled.schema == table.schema
    for name in names:
        assert filled[name].to_list() == wanted[name].tolist()
    array = frame.astype(object).where(frame.notna(), None).to_numpy()
    filled = MVImputer(**SHORT).fit_transform(array)
    assert filled.dtype == object
    assert filled[:, 2].tolist() == wanted["site"].tolist()
    output = MVImputer(**SHORT).set_output(transform="polars").fit_transform(frame)
    assert isinstance(output, pl.DataFrame)
    assert output["site"].to_list() == wanted["site"].tolist()


def test_flags_stand_behind_the_columns():
    _, shown = patients()
    imputer = MVImputer(**SHORT, add_indicator=True).fit(shown)
    filled = imputer.transform(shown)
    assert list(filled) == list(imputer.get_feature_names_out())
    assert filled["missingindicator_site"].tolist() == shown["site"].isna().tolist()
    assert "missingindicator_note" not in filled


def test_what_was_not_there_in_training_is_refused(imputer):
    _, shown = patients()
    with pytest.raises(mvkit.DataError, match="'D' was not among the categories of training"):
        imputer.transform(shown.assign(site="D"))
    with pytest.raises(ValueError, match="feature names should match"):
        imputer.transform(shown.iloc[:, ::-1])
    with pytest.raises(mvkit.DataError, match="X: no column can be learnt from"):
        MVImputer(**SHORT).fit(shown[["note", "ward"]])


def test_pickles_clones_and_trained_models_answer_alike(imputer):
    _, shown = patients()
    filled = imputer.transform(shown)
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(imputer)).transform(shown), filled)
    pd.testing.assert_frame_equal(clone(imputer).fit(shown).transform(shown), filled)
    again = MVImputer(kinds="auto", trained=imputer.model_).fit(shown)
    assert again.loss_curve_ == []
    pd.testing.assert_frame_equal(again.transform(shown), filled)
    on = MVImputer(**SHORT, trained=imputer.model_, warm_start=True).fit(shown)
    assert len(on.loss_curve_) == 3
    with pytest.raises(mvkit.RequestError, match="trained: a model of 'numbers', .* give kinds="):
        MVImputer(kinds="auto", trained=imputer.model_).fit(shown[["crp", "site"]])


def test_a_pipeline_goes_from_gaps_to_predictions():
    full, shown = patients()
    line = make_pipeline(
        MVImputer(**SHORT), OneHotEncoder(handle_unknown="ignore"), LogisticRegression()
    )
    assert line.fit(shown, full["smokes"]).predict(shown).shape == (60,)


def test_filled_words_are_better_than_a_guess():
    rng = np.random.default_rng(0)
    z = rng.normal(size=400)
    truth = pd.DataFrame({"x": z, "site": np.where(z > 0, "A", "B")})
    gaps = rng.uniform(size=400) < 0.2
    shown = truth.assign(site=truth["site"].mask(gaps))
    filled = MVImputer(kinds="auto", random_state=0).fit_transform(shown)
    assert (filled["site"] == truth["site"])[gaps].mean() > 0.85


@parametrize_with_checks([MVImputer(kinds="auto")])
def test_checks_of_scikit_learn_pass_with_kinds(estimator, check):
    check(estimator)
