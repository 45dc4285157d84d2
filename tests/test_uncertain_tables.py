"""Tables completed several times, with intervals and sets, in one call."""

import numpy as np
import pytest

import mvkit
from mvkit import RequestError, SpecError

pandas = pytest.importorskip("pandas")
SMALL = {"epochs": 3, "width": 16, "blocks": 1, "latent_dim": 4, "held_out": 0.2, "batch_size": 64}


def table(b=200, seed=0):
    random = np.random.default_rng(seed)
    z = random.normal(size=b)
    grades = pandas.Categorical.from_codes(
        np.digitize(z, [-0.5, 0.5]), ["low", "mid", "high"], ordered=True
    )
    full = pandas.DataFrame(
        {
            "height": 170 + 10 * z + random.normal(size=b),
            "visits": random.poisson(np.exp(1 + 0.3 * z)),
            "smokes": z + random.normal(size=b) > 0,
            "site": np.array(["A", "B", "C"])[random.integers(0, 3, b)],
            "grade": grades,
            "note": [f"text {i}" for i in range(b)],
            "seen": pandas.Timestamp("2024-03-01")
            + pandas.to_timedelta(random.integers(0, 90, b), "D"),
        },
        index=[f"p{i}" for i in range(b)],
    )
    gap = random.uniform(size=full.shape) < 0.2
    gap[:, 5] = False
    return full, full.mask(gap)


@pytest.fixture(scope="module")
def imputation():
    full, shown = table()
    return full, shown, mvkit.impute(shown, choices=SMALL, intervals=0.8, m=2, seed=3)


def test_intervals_are_tables_in_the_units_of_the_columns(imputation):
    full, shown, imputation = imputation
    names = ["height", "visits", "grade", "seen"]
    assert list(imputation.low.columns) == names
    assert list(imputation.high.columns) == names
    assert (imputation.low.index == shown.index).all()
    for name in ("height", "visits", "seen"):
        gap = shown[name].isna()
        low, high = imputation.low[name], imputation.high[name]
        assert low.notna().all()
        assert high.notna().all()
        assert (low <= high).all()
        inside = ((low <= full[name]) & (full[name] <= high))[gap]
        assert inside.mean() > 0.6
        assert (low[~gap] == full[name][~gap]).all()
    codes = [imputation.low["grade"].cat.codes, imputation.high["grade"].cat.codes]
    assert (codes[0] <= codes[1]).all()
    assert imputation.low["visits"].dropna().mod(1).eq(0).all()


def test_sets_are_tuples_of_the_words_of_the_columns(imputation):
    full, shown, imputation = imputation
    assert sorted(imputation.sets.columns) == ["site", "smokes"]
    sets = imputation.sets["site"]
    gap = shown["site"].isna()
    assert sets[~gap].tolist() == [(word,) for word in full["site"][~gap]]
    held = [word in members for word, members in zip(full["site"][gap], sets[gap])]
    assert np.mean(held) > 0.6
    bits = imputation.sets["smokes"][shown["smokes"].isna()]
    assert {len(members) for members in bits} <= {1, 2}
    assert {type(member) for members in bits for member in members} == {int}


def test_coverage_is_told_by_column(imputation):
    frame = imputation[2].coverage
    assert set(frame["column"]) == {"height", "visits", "seen", "smokes", "site", "grade"}
    assert (frame["cells"] > 10).all()
    assert frame["coverage"].between(0.5, 1).all()


def test_each_completed_table_has_a_model_of_its_own(imputation):
    _, shown, imputation = imputation
    first, second = imputation.draws
    gap = shown["height"].isna()
    assert (first["height"][gap] != second["height"][gap]).all()
    assert (first["height"][~gap] == shown["height"][~gap]).all()
    assert first["site"].notna().all()
    assert first.dtypes["grade"] == shown.dtypes["grade"]


def test_without_refits_a_warning_says_what_is_wrong():
    _, shown = table(60)
    with pytest.warns(UserWarning, match="refit=False: all 2 completed tables"):
        imputation = mvkit.impute(shown, choices=SMALL, m=2, refit=False)
    assert len(imputation.draws) == 2


def test_large_values_may_be_missing_because_they_are_large():
    full, shown = table(150)
    shown["height"] = full["height"].mask(full["height"] > 175)
    choices = {**SMALL, "epochs": 2}
    missingness = {"name": "self", "sign": "high"}
    imputation = mvkit.impute(shown, choices=choices, missingness=missingness)
    assert imputation.model.missingness.modalities == ("numbers",)
    assert imputation.choices["missingness"] == missingness
    assert imputation.table["height"].notna().all()
    with pytest.raises(SpecError, match="missingness: the tables have no numbers"):
        mvkit.impute(shown[["site", "smokes"]], choices=choices, missingness="self")


def test_several_tables_have_intervals_each():
    _, shown = table(120)
    tables = {"a": shown[["height", "site"]], "b": shown[["visits"]].iloc[:100]}
    imputation = mvkit.impute(tables, choices=SMALL, intervals=0.8)
    assert list(imputation.low) == ["a", "b"]
    assert imputation.low["b"].shape == (100, 1)
    assert list(imputation.sets["a"].columns) == ["site"]
    assert imputation.sets["b"].shape == (100, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m": 1}, "impute: m=1; expected a whole number of at least 2"),
        ({"m": 2, "draws": 3}, "impute: draws=3 beside m=2"),
        ({"m": 2, "refit": 1.5}, "impute: refit=1.5; expected True or False"),
        ({"intervals": 90}, "impute: intervals=90; expected a share between 0 and 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        mvkit.impute(table(40)[1], **options)
