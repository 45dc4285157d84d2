"""Every check of scikit-learn, none expected to fail; pipelines, searches, clones and pickles."""

import inspect
import io
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
from mvkit_sklearn import MVClassifier, MVClusterer, MVImputer, MVRegressor, MVTransformer
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import mvkit

EVERY = [MVImputer, MVTransformer, MVClusterer, MVClassifier, MVRegressor]
SHORT = {"epochs": 3, "random_state": 0}


@parametrize_with_checks([make() for make in EVERY])
def test_every_check_of_scikit_learn_passes(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def table():
    """Two modalities that share two latents, 80 rows with names, gaps and labels."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(80, 2))
    values = np.tanh(z @ rng.normal(size=(2, 7))) + 0.1 * rng.normal(size=(80, 7))
    values[rng.random(values.shape) < 0.1] = np.nan
    values[:10, :4] = np.nan
    names = [*(f"rna_{i}" for i in range(4)), *(f"adt_{i}" for i in range(3))]
    frame = pd.DataFrame(values, columns=names, index=[f"r{i}" for i in range(80)])
    return frame, (z[:, 0] > 0).astype(int)


def fitted(make, table, **options):
    X, y = table
    return make(**{**SHORT, **options}).fit(X, y)


def answer(estimator, X):
    return estimator.transform(X) if hasattr(estimator, "transform") else estimator.predict(X)


def test_nothing_is_skipped_as_expected_to_fail():
    for make in EVERY:
        tags = make().__sklearn_tags__()
        assert not tags.non_deterministic
        assert not tags.no_validation
        assert not tags._skip_test
        assert tags.input_tags.allow_nan
        for kind in (tags.classifier_tags, tags.regressor_tags):
            assert kind is None or not kind.poor_score


def test_the_package_imports_no_scikit_learn_until_it_is_asked_for():
    code = "import sys, mvkit_sklearn; print('sklearn' in sys.modules, 'MVImputer' in dir(mvkit_sklearn))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "True"]


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    import mvkit_sklearn

    with pytest.raises(AttributeError, match="no attribute 'MVOutlier'"):
        _ = mvkit_sklearn.MVOutlier


@pytest.mark.parametrize("make", EVERY)
def test_options_are_documented(make):
    for name in inspect.signature(make).parameters:
        assert (
            f"{name}:" in make.__doc__ or f"{name}," in make.__doc__ or f"{name} " in make.__doc__
        )


# columns

SPELLINGS = {
    "names": {"rna": [f"rna_{i}" for i in range(4)], "adt": ("adt_0", "adt_1", "adt_2")},
    "prefixes": {"rna": "rna_", "adt": "adt_"},
    "positions": {"rna": range(4), "adt": np.array([4, 5, 6])},
    "slices": {"rna": slice(0, 4), "adt": slice(-3, None)},
    "from the end": {"rna": [0, 1, 2, 3], "adt": [-3, -2, -1]},
    "flags": {"rna": np.arange(7) < 4, "adt": [False] * 4 + [True] * 3},
    "functions of names": {
        "rna": lambda names: [name.startswith("r") for name in names],
        "adt": lambda names: [name for name in names if "adt" in name],
    },
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_columns_may_be_spelt_in_many_ways_with_the_same_bits(spelling, table):
    X, _ = table
    wanted = MVTransformer({"rna": [0, 1, 2, 3], "adt": [4, 5, 6]}, **SHORT).fit_transform(X)
    estimator = MVTransformer(spelling, **SHORT)
    assert np.array_equal(estimator.fit_transform(X), wanted)
    assert estimator.columns_ == {"rna": [0, 1, 2, 3], "adt": [4, 5, 6]}
    assert estimator.model_.modalities["adt"].features == ("adt_0", "adt_1", "adt_2")


def test_functions_see_positions_where_columns_have_no_names(table):
    X = table[0].to_numpy()
    spelling = {"a": lambda columns: columns < 4, "b": lambda columns: columns[4:]}
    estimator = MVTransformer(spelling, **SHORT).fit(X)
    assert estimator.columns_ == {"a": [0, 1, 2, 3], "b": [4, 5, 6]}


WRONG = {
    "no mapping": (
        ["rna_0"],
        r"modalities: got \['rna_0'\]; expected a mapping from modality to columns",
    ),
    "empty": ({}, r"modalities: got \{\}; expected a mapping"),
    "unknown column": (
        {"rna": ["gene"]},
        r"modalities\.rna: no column 'gene'; expected one of 'rna_0', 'rna_1', .* …",
    ),
    "position": ({"rna": [7]}, r"modalities\.rna: no column 7; expected one of 'rna_0'"),
    "prefix": (
        {"rna": "gex_"},
        r"modalities\.rna: 'gex_' picks no column; expected one at least; leave the modality out",
    ),
    "flags": ({"rna": [True]}, r"modalities\.rna: flags of shape \(1,\); expected \(7,\)"),
    "twice": (
        {"rna": "rna_", "all": range(7)},
        r"modalities: column 'rna_0' is in 'rna' and in 'all'; expected every column in one modality",
    ),
    "left out": (
        {"rna": "rna_"},
        r"modalities: columns 'adt_0', 'adt_1', 'adt_2' are in none; .* ColumnTransformer",
    ),
    "dots": ({"r.na": "rna_", "adt": "adt_"}, r"a modality cannot be called 'r\.na'"),
}


@pytest.mark.parametrize(("spelling", "message"), WRONG.values(), ids=WRONG)
def test_columns_that_cannot_be_are_refused(spelling, message, table):
    with pytest.raises(mvkit.SpecError, match=message):
        MVImputer(spelling, **SHORT).fit(table[0])


def test_a_prefix_needs_names(table):
    with pytest.raises(
        mvkit.SpecError, match=r"'rna_' is a prefix of names, and the columns have none"
    ):
        MVImputer({"rna": "rna_"}, **SHORT).fit(table[0].to_numpy())


def test_other_columns_than_those_of_training_are_refused(table):
    estimator = fitted(MVImputer, table)
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.transform(table[0].iloc[:, ::-1])
    with pytest.raises(ValueError, match="expecting 7 features"):
        MVImputer(**SHORT).fit(table[0].to_numpy()).transform(table[0].to_numpy()[:, :6])


@pytest.mark.parametrize("make", EVERY)
def test_sparse_tables_are_refused_in_words(make):
    X = scipy.sparse.csr_matrix(np.eye(6))
    with pytest.raises(TypeError, match=r"Sparse data was passed .* dense data is required"):
        make(**SHORT).fit(X, [0, 1] * 3)


@pytest.mark.parametrize("make", EVERY)
def test_questions_before_training_are_refused(make, table):
    with pytest.raises(NotFittedError):
        answer(make(), table[0])


def test_a_table_without_a_number_is_refused():
    with pytest.raises(mvkit.DataError, match="X: every value is NaN; expected some numbers"):
        MVImputer(**SHORT).fit(np.full((5, 2), np.nan))


# models


def test_a_model_is_a_recipe_or_options_of_one_or_of_a_model(table):
    two = {"modalities": {"rna": "rna_", "adt": "adt_"}}
    named = fitted(MVTransformer, table, model="mvtcae", **two)
    assert named.model_.header()["objective"]["name"] == "mvtcae"
    given = fitted(MVTransformer, table, model={"recipe": "mvtcae", "alpha": 0.5}, **two)
    assert given.model_.header()["objective"]["alpha"] == 0.5
    parts = fitted(MVTransformer, table, model={"aggregator": "moe", "objective": "iwae"}, **two)
    assert parts.model_.header()["aggregator"]["name"] == "moe"
    assert fitted(MVClusterer, table, n_clusters=3, model="cmvae", **two).model_.n_clusters == 3
    with pytest.raises(mvkit.SpecError, match="model: got 3; expected the name of a recipe"):
        fitted(MVTransformer, table, model=3)


def test_a_stack_answers_too(table):
    two = {"modalities": {"rna": "rna_", "adt": "adt_"}}
    estimator = fitted(MVImputer, table, model="nexus", **two)
    assert isinstance(estimator.model_, mvkit.Stack)
    assert np.isfinite(estimator.transform(table[0])).all()
    assert np.array_equal(
        through_pickle(estimator).transform(table[0]), estimator.transform(table[0])
    )


def test_a_likelihood_is_that_of_all_modalities_or_of_one(table):
    counts = np.random.default_rng(0).poisson(3.0, size=(40, 4)).astype(float)
    counts[0, 0] = np.nan
    estimator = MVImputer({"n": [0, 1], "x": [2, 3]}, likelihoods={"n": "poisson"}, **SHORT)
    filled = estimator.fit_transform(counts)
    assert filled[0, 0] == round(filled[0, 0])
    names = {key: item.likelihood for key, item in estimator.model_.modalities.items()}
    assert [type(names["n"]).__name__, type(names["x"]).__name__] == ["Poisson", "Normal"]
    estimator = MVImputer(likelihoods="bernoulli", **SHORT)
    filled = estimator.fit_transform(np.where(np.isnan(counts), np.nan, counts > 3))
    assert set(np.unique(filled)) == {0.0, 1.0}
    categories = np.where(counts > 3, 2.5, 0.5)
    categories[1, 1] = np.nan
    filled = MVImputer(likelihoods="categorical", **SHORT).fit_transform(categories)
    assert set(np.unique(filled)) == {0.5, 2.5}
    with pytest.raises(mvkit.SpecError, match="likelihoods: no modality 'm'; expected one of 'x'"):
        MVImputer(likelihoods={"m": "poisson"}, **SHORT).fit(counts)


def test_the_scale_of_a_column_does_not_matter(table):
    X = table[0].to_numpy()
    scale = 10.0 ** np.arange(-3, 4)
    near = MVImputer(**SHORT).fit_transform(X)
    far = MVImputer(**SHORT).fit_transform(1e4 * scale + X * scale)
    np.testing.assert_allclose((far - 1e4 * scale) / scale, near, rtol=1e-6, atol=1e-6)


def test_random_states_are_seeds_generators_or_none(table):
    X, _ = table
    first = MVTransformer(epochs=1, random_state=1).fit_transform(X)
    assert np.array_equal(first, MVTransformer(epochs=1, random_state=1).fit_transform(X))
    assert not np.array_equal(first, MVTransformer(epochs=1, random_state=2).fit_transform(X))
    generator = np.random.RandomState(1)
    assert np.array_equal(first, MVTransformer(epochs=1, random_state=generator).fit_transform(X))
    state = np.random.get_state()
    one = MVTransformer(epochs=1).fit_transform(X)
    np.random.set_state(state)
    assert np.array_equal(one, MVTransformer(epochs=1).fit_transform(X))


def test_small_tables_take_few_steps_and_large_ones_more():
    from mvkit_sklearn.building import epochs_for

    steps = {rows: epochs_for(rows, 128) * -(-rows // 128) for rows in (1, 30, 300, 3000, 10**6)}
    assert steps[1] == 40
    assert steps[30] == 55
    assert 190 <= steps[300] < 193
    assert 1540 <= steps[3000] < 1564
    assert 4000 <= steps[10**6] < 4000 + 7813


# trained models


def test_a_trained_model_is_used_as_it_is(table, tmp_path):
    X, _ = table
    first = MVImputer({"rna": "rna_", "adt": "adt_"}, **SHORT).fit(X)
    mvkit.save(first.model_, tmp_path / "model.safetensors")
    for trained in (
        first.model_,
        tmp_path / "model.safetensors",
        str(tmp_path / "model.safetensors"),
    ):
        again = MVImputer(trained=trained).fit(X.iloc[:3])
        assert again.loss_curve_ == []
        assert np.array_equal(again.transform(X), first.transform(X))
        assert again.model_ is not trained
    z = MVTransformer(trained=first.model_).fit_transform(X)
    assert np.array_equal(
        z,
        mvkit.embed(first.model_, {n: X.iloc[:, p] for n, p in first.columns_.items()}).to_numpy(),
    )


def test_a_part_of_the_modalities_of_a_trained_model_will_do(table):
    X, _ = table
    first = MVImputer({"rna": "rna_", "adt": "adt_"}, **SHORT).fit(X)
    proteins = X[["adt_2", "adt_0", "adt_1"]]  # in an order of their own
    part = MVTransformer(trained=first.model_).fit(proteins)
    assert part.columns_ == {"adt": [1, 2, 0]}
    wanted = first.model_.encode({"adt": X.iloc[:, 4:].to_numpy()}, empty="prior").numpy()
    np.testing.assert_allclose(part.transform(proteins), wanted, rtol=1e-12)
    named = MVTransformer({"adt": range(3)}, trained=first.model_).fit(X.iloc[:, 4:].to_numpy())
    assert np.array_equal(named.transform(X.iloc[:, 4:].to_numpy()), wanted)


def test_trained_models_that_do_not_fit_are_refused(table):
    X, y = table
    model = MVImputer({"rna": "rna_", "adt": "adt_"}, **SHORT).fit(X).model_
    refused = {
        r"nothing says which columns are whose; expected modalities=": (X.to_numpy(), None),
        r"'adt' has a feature 'adt_2', and X has no such column": (X.iloc[:, :6], None),
        r"no feature 'age', which is a column of X; drop the column": (X.assign(age=1.0), None),
        r"no modality 'gex'; it has 'rna', 'adt'": (X, {"gex": "rna_", "adt": "adt_"}),
        r"'adt' has values of shape \(3,\), and X has 4 columns of it": (
            X,
            {"adt": "rna_", "rna": "adt_"},
        ),
        r"has the features \('adt_0', .* expected the same, in the same order": (
            X,
            {"rna": "rna_", "adt": [5, 4, 6]},
        ),
    }
    for message, (rows, modalities) in refused.items():
        with pytest.raises(mvkit.RequestError, match=message):
            MVTransformer(modalities, trained=model).fit(rows)
    with pytest.raises(
        mvkit.RequestError, match="trained=int; expected a model, the path of its file"
    ):
        MVTransformer(trained=3).fit(X)
    with pytest.raises(mvkit.RequestError, match="no modality 'label'"):
        MVClassifier(trained=model).fit(X, y)


def test_a_warm_start_trains_on(table):
    X, y = table
    estimator = MVClassifier(epochs=2, warm_start=True, random_state=0).fit(X, y)
    first = estimator.model_
    before = first.encode(estimator._rows(X), ["x"], empty="prior")
    estimator.fit(X, y)
    after = estimator.model_.encode(estimator._rows(X), ["x"], empty="prior")
    assert not np.allclose(before, after)
    assert (
        estimator.loss_curve_[-1]
        < MVClassifier(epochs=2, random_state=0).fit(X, y).loss_curve_[-1]
    )
    assert np.array_equal(first.encode(estimator._rows(X), ["x"], empty="prior"), before)
    trained = MVClassifier(epochs=2, trained=first, warm_start=True, random_state=0).fit(X, y)
    assert np.array_equal(trained.predict_proba(X), estimator.predict_proba(X))


# pipelines, searches, clones and pickles


def test_a_search_runs_in_two_processes(table):
    X, y = table
    line = make_pipeline(
        MVImputer({"rna": "rna_", "adt": "adt_"}, **SHORT),
        MVTransformer(**SHORT),
        LogisticRegression(),
    )
    grid = {"mvtransformer__latent_dim": [2, 3], "mvimputer__model": ["mvtcae"]}
    search = GridSearchCV(line, grid, cv=2, n_jobs=2, error_score="raise").fit(X, y)
    assert search.best_estimator_.predict(X).shape == (80,)
    alone = GridSearchCV(line, grid, cv=2, error_score="raise").fit(X, y)
    assert np.array_equal(
        search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"]
    )


@pytest.mark.parametrize("make", [MVClassifier, MVRegressor])
def test_cross_validation_scores_every_fold(make, table):
    scores = cross_validate(
        make(**SHORT), *table, cv=3, error_score="raise", return_estimator=True
    )
    assert np.isfinite(scores["test_score"]).all()
    assert len({id(each) for each in scores["estimator"]}) == 3


@pytest.mark.parametrize("make", EVERY)
def test_a_clone_has_the_options_and_no_model(make, table):
    estimator = fitted(make, table, latent_dim=3, modalities={"rna": "rna_", "adt": "adt_"})
    copy = clone(estimator)
    assert copy.get_params() == estimator.get_params()
    assert not hasattr(copy, "model_")
    assert np.array_equal(answer(copy.fit(*table), table[0]), answer(estimator, table[0]))


def test_a_clone_with_a_trained_model_has_one_like_it(table):
    model = fitted(MVTransformer, table).model_
    copy = clone(MVTransformer(trained=model))
    assert copy.trained is not model
    wanted = MVTransformer(trained=model).fit_transform(table[0])
    assert np.array_equal(copy.fit_transform(table[0]), wanted)


def through_pickle(estimator):
    return pickle.loads(pickle.dumps(estimator))


@pytest.mark.parametrize("make", EVERY)
def test_a_pickle_gives_the_same_bits(make, table):
    estimator = fitted(make, table)
    again = through_pickle(estimator)
    assert np.array_equal(answer(again, table[0]), answer(estimator, table[0]))
    assert again.get_params() == estimator.get_params()
    for key, value in estimator.model_.state_dict().items():
        assert np.array_equal(again.model_.state_dict()[key], value)


class Recorder(pickle.Unpickler):
    """Notes whatever a pickle asks to import."""

    def __init__(self, file):
        super().__init__(file)
        self.asked = set()

    def find_class(self, module, name):
        self.asked.add(f"{module.partition('.')[0]}.{name}")
        return super().find_class(module, name)


@pytest.mark.parametrize("make", EVERY)
def test_a_pickle_holds_safetensors_and_no_code_of_a_model(make, table):
    model = fitted(MVTransformer, table).model_
    trained = model if make is MVTransformer else None
    blob = pickle.dumps(fitted(make, table, trained=trained))
    reader = Recorder(io.BytesIO(blob))
    assert isinstance(reader.load(), make)
    own = {name for name in reader.asked if not name.startswith("numpy.")}
    assert own == {f"mvkit_sklearn.{make.__name__}", "mvkit_sklearn.Stored"}
    assert blob.count(b'"__metadata__":{"mvkit"') == (2 if trained else 1)


def test_a_pickle_that_was_altered_is_refused(table):
    estimator = fitted(MVTransformer, table)
    state = estimator.__getstate__()
    damaged = bytearray(state["model_"])
    damaged[-1] ^= 1
    state["model_"] = type(state["model_"])(damaged)
    with pytest.raises(mvkit.CheckpointError, match="altered since it was saved"):
        MVTransformer().__setstate__(state)


# tables of pandas and polars


def polars_of(X):
    """A table of polars, with nulls where pandas has NaN."""
    return pl.DataFrame({name: X[name].to_numpy() for name in X}, nan_to_null=True)


@pytest.mark.parametrize("make", [MVImputer, MVTransformer])
def test_tables_of_pandas_and_polars_come_and_go(make, table):
    X, _ = table
    values = make(**SHORT).fit_transform(X)
    estimator = make(**SHORT).set_output(transform="pandas")
    frame = estimator.fit_transform(X)
    assert list(frame.index) == list(X.index)
    assert list(frame.columns) == list(estimator.get_feature_names_out())
    assert np.array_equal(frame.to_numpy(), values)
    gapped = polars_of(X)
    assert gapped.null_count().sum_horizontal().item() > 0
    estimator = make(**SHORT).set_output(transform="polars")
    frame = estimator.fit_transform(gapped)
    assert isinstance(frame, pl.DataFrame)
    assert frame.columns == list(estimator.get_feature_names_out())
    assert np.array_equal(frame.to_numpy(), values)


@pytest.mark.parametrize("make", [MVClusterer, MVClassifier, MVRegressor])
def test_predictions_are_the_same_from_polars(make, table):
    X, y = table
    frame, labels = polars_of(X), pl.Series(y)
    wanted = make(**SHORT).fit(X, y).predict(X)
    assert np.array_equal(make(**SHORT).fit(frame, labels).predict(frame), wanted)


def test_whole_numbers_with_gaps_are_numbers():
    numbers = pd.DataFrame(
        {"a": pd.array([1, None, 3, 4], dtype="Int64"), "b": [1.0, 2.0, 3.0, 4.0]}
    )
    filled = MVImputer(**SHORT).set_output(transform="pandas").fit_transform(numbers)
    assert filled["a"].tolist()[::2] == [1.0, 3.0]
    assert np.isfinite(filled.to_numpy()).all()
    nulls = pl.DataFrame({"a": [1, None, 3, 4], "b": [1.0, 2.0, 3.0, 4.0]})
    assert np.array_equal(MVImputer(**SHORT).fit_transform(nulls), filled.to_numpy())


def test_words_among_numbers_are_refused():
    with pytest.raises(ValueError, match="could not convert string to float"):
        MVImputer(**SHORT).fit(pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}))


def test_infinity_is_refused():
    with pytest.raises(ValueError, match="infinity"):
        MVImputer(**SHORT).fit(np.array([[1.0, np.inf], [2.0, 3.0]]))


def test_blobs_are_told_apart():
    X, y = make_blobs(200, centers=3, n_features=6, random_state=3)
    assert MVClassifier(random_state=0).fit(X[:100], y[:100]).score(X[100:], y[100:]) > 0.95
