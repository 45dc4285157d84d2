"""Delta adjustment: imputed values move, observed ones stay, and estimates follow."""

import math

import numpy as np
import pytest

import mvkit
from mvkit import DataError, RequestError, plots
from mvkit.evaluation.sensitivity import shifted

pandas = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")


def tables():
    random = np.random.default_rng(0)
    full = pandas.DataFrame({"x": random.normal(size=50), "k": random.poisson(5, 50), "w": "a"})
    data = full.astype({"k": "Int64"}).mask(random.uniform(size=full.shape) < 0.3)
    completed = []
    for i in range(3):
        completed.append(data.fillna({"x": 0.1 * i, "k": 4 + i, "w": "b"}))
    return data, completed


def mean(table):
    names = ["x", "k"]
    return table[names].astype(float).mean(), table[names].astype(float).var() / 50, 49


def test_only_imputed_values_move_by_deviations_of_the_observed_ones():
    data, completed = tables()
    moved = shifted(data, completed[1], ["x", "k"], 1.5)
    for name in ("x", "k"):
        known = data[name].dropna().astype(float).tolist()
        centre = sum(known) / len(known)
        deviation = math.sqrt(sum((x - centre) ** 2 for x in known) / (len(known) - 1))
        for row in data.index:
            before = float(completed[1].loc[row, name])
            step = 1.5 * deviation if pandas.isna(data.loc[row, name]) else 0.0
            assert moved.loc[row, name] == pytest.approx(before + step)
    assert (moved["w"] == completed[1]["w"]).all()
    assert completed[1]["k"].dtype == "Int64"  # nothing of the user's was changed


def test_estimates_move_by_the_share_that_is_missing():
    data, completed = tables()
    table = mvkit.sensitivity(data, completed, mean, deltas=[-1, 0, 2])
    assert table["delta"].tolist() == [-1, -1, 0, 0, 2, 2]
    assert table["coefficient"].tolist() == ["x", "k"] * 3
    plain = mvkit.pool([mean(completion) for completion in completed])
    for name in ("x", "k"):
        own = table[table["coefficient"] == name]
        gap = data[name].isna()
        step = gap.mean() * data[name].dropna().astype(float).std()
        estimate = plain.loc[name, "estimate"]
        expected = [estimate - step, estimate, estimate + 2 * step]
        np.testing.assert_allclose(own["estimate"], expected, rtol=1e-12)
        assert own["low"].iloc[1] == plain.loc[name, "low"]
    only = mvkit.sensitivity(data, completed, mean, columns=["x"], deltas=[1])
    assert only["estimate"].iloc[1] == plain.loc["k", "estimate"]


def test_the_picture_shows_the_numbers_of_the_table():
    data, completed = tables()
    table = mvkit.sensitivity(data, completed, mean)
    ax = plots.sensitivity(table)
    lines = {line.get_label(): line for line in ax.lines}
    for name in ("x", "k"):
        own = table[table["coefficient"] == name]
        np.testing.assert_allclose(lines[name].get_xdata(), own["delta"])
        np.testing.assert_allclose(lines[name].get_ydata(), own["estimate"])
    band = ax.collections[0].get_paths()[0].vertices
    own = table[table["coefficient"] == "x"]
    assert band[:, 1].min() == pytest.approx(own["low"].min())
    assert band[:, 1].max() == pytest.approx(own["high"].max())
    alone = plots.sensitivity(table, coefficients=["k"])
    assert [line.get_label() for line in alone.lines][0] == "k"
    with pytest.raises(RequestError, match="sensitivity: no coefficient 'z'; known: 'k', 'x'"):
        plots.sensitivity(table, coefficients=["z"])


def test_columns_that_cannot_move_are_refused():
    data, completed = tables()
    with pytest.raises(RequestError, match="sensitivity: no column of numbers 'w'"):
        mvkit.sensitivity(data, completed, mean, columns=["w"])
    whole = completed[0]
    with pytest.raises(RequestError, match="no column of numbers has gaps"):
        mvkit.sensitivity(whole, completed, mean)
    with pytest.raises(DataError, match="completed table 1 has other rows than the data"):
        mvkit.sensitivity(data, [completed[0], completed[1].iloc[:9]], mean)
