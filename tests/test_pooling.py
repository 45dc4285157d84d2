"""Rubin's rules: against numbers worked out by hand, and in every form that fits come in."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import special

import mvkit
from mvkit import DataError, RequestError

pandas = pytest.importorskip("pandas")


def by_hand(estimates, variances, complete_df, level=0.95):
    """The rules of Barnard and Rubin (1999), one scalar at a time."""
    m = len(estimates)
    mean = sum(estimates) / m
    within = sum(variances) / m
    between = sum((estimate - mean) ** 2 for estimate in estimates) / (m - 1)
    total = within + (m + 1) / m * between
    gamma = (m + 1) / m * between / total
    nu_m = (m - 1) / gamma**2
    nu_observed = (complete_df + 1) / (complete_df + 3) * complete_df * (1 - gamma)
    nu = nu_m * nu_observed / (nu_m + nu_observed)
    r = (m + 1) / m * between / within
    reach = special.stdtrit(nu, (1 + level) / 2) * math.sqrt(total)
    information = (r + 2 / (nu + 3)) / (r + 1)
    return [mean, math.sqrt(total), nu, mean - reach, mean + reach, information]


RANDOM = np.random.default_rng(0)
ESTIMATES = RANDOM.normal(size=(7, 3))
ERRORS = RANDOM.uniform(0.2, 1.0, size=(7, 3))
NAMES = ["const", "x", "age"]


def check(table, complete_df, level=0.95):
    for k in range(3):
        expected = by_hand(ESTIMATES[:, k], ERRORS[:, k] ** 2, complete_df, level)
        np.testing.assert_allclose(table.iloc[k].to_numpy(), expected, rtol=1e-12)


def test_pooled_numbers_are_those_worked_out_by_hand():
    fits = [(q, s**2, 41.0) for q, s in zip(ESTIMATES, ERRORS)]
    check(mvkit.pool(fits), 41.0)
    check(mvkit.pool(fits, level=0.5), 41.0, 0.5)


def test_a_large_sample_has_the_degrees_of_freedom_of_rubin():
    table = mvkit.pool(list(zip(ESTIMATES, ERRORS**2)))
    for k in range(3):
        between = 8 / 7 * ESTIMATES[:, k].var(ddof=1)
        within = (ERRORS[:, k] ** 2).mean()
        assert table["df"].iloc[k] == pytest.approx(6 * (1 + within / between) ** 2, rel=1e-12)


def test_five_means_of_which_two_differ():
    table = mvkit.pool([(10.0, 4.0), (12.0, 4.0), (14.0, 4.0), (12.0, 4.0), (12.0, 4.0)])
    assert table["estimate"].tolist() == [12.0]
    assert table["std_error"].item() == pytest.approx(math.sqrt(4 + 1.2 * 2))
    assert table["df"].item() == pytest.approx(4 / (2.4 / 6.4) ** 2)


class Fit:
    """A fitted model of statsmodels, as far as pooling goes."""

    def __init__(self, i, names=NAMES):
        self.params = pandas.Series(ESTIMATES[i], names)
        self.bse = pandas.Series(ERRORS[i], names)
        self.df_resid = 41.0

    def cov_params(self):
        raise AssertionError("bse says it all")


class CovarianceFit:
    def __init__(self, i):
        self.params = ESTIMATES[i]
        self.df_resid = 41.0
        self.i = i

    def cov_params(self):
        other = np.full((3, 3), 0.01)
        np.fill_diagonal(other, ERRORS[self.i] ** 2)
        return other


def frame(i, error):
    values = ERRORS[i] if error == "std_error" else ERRORS[i] ** 2
    return pandas.DataFrame({"estimate": ESTIMATES[i], error: values, "df": 41.0}, NAMES)


@pytest.mark.parametrize(
    "make",
    [
        Fit,
        CovarianceFit,
        lambda i: frame(i, "std_error"),
        lambda i: frame(i, "variance"),
        lambda i: [list(ESTIMATES[i]), list(ERRORS[i] ** 2), 41],
        lambda i: (dict(zip(NAMES, ESTIMATES[i])), dict(zip(NAMES, ERRORS[i] ** 2)), 41),
        lambda i: (ESTIMATES[i], np.diag(ERRORS[i] ** 2), 41),
    ],
)
def test_fits_of_every_form_are_pooled_alike(make):
    check(mvkit.pool(make(i) for i in range(7)), 41.0)


def test_coefficients_keep_their_names():
    assert mvkit.pool([Fit(0), Fit(1)]).index.tolist() == NAMES
    assert mvkit.pool([(1.0, 1.0), (2.0, 1.0)]).index.tolist() == [0]


def test_tables_that_agree_miss_no_information():
    table = mvkit.pool([(2.0, 0.25, 10), (2.0, 0.25, 10)])
    assert table["std_error"].item() == 0.5
    assert table["df"].item() == pytest.approx(10 * 11 / 13)
    assert table["missing_information"].item() == 0.0
    large = mvkit.pool([(2.0, 0.25), (2.0, 0.25)])
    assert large["df"].item() == math.inf
    assert large["high"].item() == pytest.approx(2 + 0.5 * special.ndtri(0.975))


def test_nothing_is_known_of_estimates_without_errors_that_differ():
    table = mvkit.pool([(1.0, 0.0), (2.0, 0.0)])
    assert table["missing_information"].item() == 1.0
    same = mvkit.pool([(1.0, 0.0), (1.0, 0.0)])
    assert same[["low", "high"]].to_numpy().tolist() == [[1.0, 1.0]]


def test_the_smallest_degrees_of_freedom_count():
    mixed = mvkit.pool([(1.0, 1.0, 5), (2.0, 1.0, 50)])
    pandas.testing.assert_frame_equal(mixed, mvkit.pool([(1.0, 1.0, 5), (2.0, 1.0, 5)]))


@pytest.mark.parametrize(
    ("fits", "message"),
    [
        ([], "pool: got 0 of fits; expected two at least"),
        ([(1.0, 1.0)], "pool: got 1 of fits"),
        ([(1.0, 1.0), 3.0], "pool: fit 1: got float; expected a fitted model with params"),
        ([(1.0, 1.0), (1.0, 1.0, 1.0, 1.0)], "fit 1: got tuple"),
        ([(1.0, 1.0), ("a", 1.0)], "fit 1: got 'a'; expected numbers"),
        ([(1.0, math.nan), (1.0, 1.0)], "fit 0: got nan; expected finite numbers"),
        ([(1.0, -1.0), (1.0, 1.0)], "expected none below 0"),
        ([([1.0, 2.0], 1.0), (1.0, 1.0)], "2 estimates with variances of shape (1,)"),
        ([([[1.0]], 1.0), (1.0, 1.0)], "estimates have shape (1, 1); expected one axis"),
        ([(1.0, 1.0, 0), (1.0, 1.0)], "df 0; expected a number above 0"),
        ([([1.0, 2.0], [1.0, 1.0]), (1.0, 1.0)], "fit 1 has coefficients [0], and fit 0 [0, 1]"),
        ([pandas.DataFrame({"a": [1]})] * 2, "got a table with columns ['a']"),
    ],
)
def test_fits_that_cannot_be_pooled_are_named(fits, message):
    with pytest.raises(DataError) as caught:
        mvkit.pool(fits)
    assert message in str(caught.value)


def test_variances_follow_the_names_of_estimates():
    fits = []
    for i in range(7):
        estimate = dict(zip(NAMES, ESTIMATES[i]))
        variance = pandas.Series(ERRORS[i] ** 2, NAMES)[::-1]
        fits.append((estimate, variance if i % 2 else dict(variance), 41))
    check(mvkit.pool(fits), 41.0)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_levels_are_shares(level):
    with pytest.raises(RequestError, match=f"pool: level={level}; expected a share"):
        mvkit.pool([(1.0, 1.0), (1.0, 1.0)], level=level)


def test_other_objects_are_no_fits():
    with pytest.raises(DataError, match="fit 0: got SimpleNamespace"):
        mvkit.pool([SimpleNamespace(params=[1.0]), (1.0, 1.0)])
