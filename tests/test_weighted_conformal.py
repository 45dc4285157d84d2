"""Weighted conformal intervals: quantiles, the odds of gaps, and cells that are missing at random."""

import math

import numpy as np
import pytest
import torch

import mvkit
from mvkit import Modality, RequestError
from mvkit.core.batch import conform
from mvkit.models.calibration import RankedScores, conformal_quantile, held_share, share_of
from mvkit.models.cell_odds import learn_odds, logistic

pandas = pytest.importorskip("pandas")
PLAIN = {"encoder": "linear", "decoder": "linear"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def by_loop(scores, weights, own, level):
    """The smallest score up to which the weights, of all and a cell's own, have the share."""
    total = math.fsum([*weights, own])
    for score in sorted(scores):
        up_to = math.fsum(w for s, w in zip(scores, weights) if s <= score)
        if up_to >= level * total:
            return score
    return math.inf


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_weighted_quantiles_are_those_of_a_loop(level):
    random = np.random.default_rng(0)
    for n in (1, 2, 9, 10, 30):
        scores = torch.tensor(random.normal(size=(40, 2)).round(1))  # some are tied
        weights = torch.tensor(random.exponential(size=(40, 2)))
        weights[n:, 0] = 0
        weights[: 40 - n, 1] = 0
        own = torch.tensor(random.exponential(size=(7, 2)) * 2)
        quantiles = RankedScores.of(scores, weights).quantile(level, own)
        for column in range(2):
            counted = weights[:, column] > 0
            known = scores[counted, column].tolist()
            shares = weights[counted, column].tolist()
            for row in range(7):
                expected = by_loop(known, shares, own[row, column].item(), level)
                assert quantiles[row, column].item() == expected


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_equal_weights_give_the_plain_quantile_to_the_bit(level):
    for n in range(1, 60):
        scores = torch.randn(60, generator=seeded(n), dtype=torch.float64)
        places = torch.zeros(60, dtype=torch.bool)
        places[torch.randperm(60, generator=seeded(n))[:n]] = True
        plain = conformal_quantile(scores, places, level)
        for weight in (1.0, 0.3, 1e-7):
            weights = torch.where(places, weight, 0.0)
            own = torch.full((1,), weight, dtype=torch.float64)
            weighted = RankedScores.of(scores, weights).quantile(level, own)
            assert weighted.item() == plain.item(), n
    every = torch.full_like(scores, 0.3)
    assert held_share(scores, places, level, every).item() == pytest.approx(
        held_share(scores, places, level).item()
    )


def test_a_cell_that_outweighs_all_known_ones_has_no_bound():
    scores = torch.arange(20.0)
    ranked = RankedScores.of(scores, torch.ones(20))
    # 20 of 20 + w are 0.8 of all up to w = 5
    quantiles = ranked.quantile(0.8, torch.tensor([0.0, 1.0, 4.99, 5.01]))
    assert quantiles.tolist() == [15.0, 16.0, 19.0, math.inf]


def test_shares_are_weighted():
    flags = torch.tensor([True, False, True, False])
    places = torch.tensor([True, True, True, False])
    assert share_of(flags, places).item() == pytest.approx(2 / 3)
    weights = torch.tensor([1.0, 4.0, 2.0, 9.0])
    assert share_of(flags, places, weights).item() == pytest.approx(3 / 7)


def test_logistic_regressions_are_at_their_optimum():
    optimize = pytest.importorskip("scipy.optimize")
    random = np.random.default_rng(1)
    x = random.normal(size=(200, 3))
    y = (random.uniform(size=200) < 1 / (1 + np.exp(-(x @ [2.0, -1.0, 0.0] - 1)))).astype(float)

    def loss(slopes):
        logits = slopes[0] + x @ slopes[1:]
        likelihood = (y * logits - np.logaddexp(0, logits)).sum()
        return -likelihood + 0.5 * (slopes[1:] ** 2).sum() + 0.5e-3 * slopes[0] ** 2

    expected = optimize.minimize(loss, np.zeros(4), tol=1e-12).x
    slopes = logistic(torch.tensor(x), torch.tensor(y))
    np.testing.assert_allclose(slopes.numpy(), expected, atol=1e-5)


def test_answers_that_are_told_perfectly_stay_finite():
    x = torch.linspace(-1, 1, 50, dtype=torch.float64).reshape(50, 1)
    slopes = logistic(x, (x[:, 0] > 0).double())
    assert slopes.isfinite().all()
    assert slopes[1] > 1
    assert logistic(x, torch.ones(50, dtype=torch.float64)).isfinite().all()


MODALITIES = {
    "x": Modality((3,), "normal", **PLAIN),
    "c": Modality((3,), "categorical", **PLAIN),
    "b": Modality((2,), "bernoulli", **PLAIN),
}


def untrained():
    return mvkit.Model(MODALITIES, latent_dim=2, seed=0).eval()


def rows(b, seed):
    """The first number, by which others spread more and more, and classes are harder to tell."""
    random = np.random.default_rng(seed)
    driver = random.normal(size=b)
    spread = np.exp(driver)
    x = np.stack([driver, random.normal(size=b) * spread, random.exponential(size=b)], 1)
    classes = np.where(random.uniform(size=b) < 1 / (1 + np.exp(-2 * driver)), 2, 0)
    bits = random.uniform(size=(b, 2)) < 1 / (1 + np.exp(-driver[:, None] * [3, 0]))
    return {"x": x, "c": np.eye(3)[classes], "b": bits.astype(float)}


def true_odds(full):
    """P(missing) / P(known) of cells whose gaps depend on the first number."""
    return np.exp(2 * np.tanh(full["x"][:, 0]) - 1)


def missing_at_random(full, seed):
    """Second numbers, classes and first bits that are missing by the first number, by no others
    the rest; the first number is always known.
    """
    random = np.random.default_rng([seed, 7])
    odds = true_odds(full)
    share = odds / (1 + odds)
    b = len(share)
    gap = random.uniform(size=(b, 5)) < np.stack([share, 0 * share + 0.3] * 2 + [share], 1)
    data = {name: x.copy() for name, x in full.items()}
    data["x"][gap[:, 0], 1] = np.nan
    data["x"][gap[:, 1], 2] = np.nan
    data["c"][gap[:, 2]] = np.nan
    data["b"][gap[:, 3], 1] = np.nan
    data["b"][gap[:, 4], 0] = np.nan
    return data


def hidden_at_random(data, rate, seed):
    """The data with a share of known cells hidden, the first number apart."""
    random = np.random.default_rng([seed, 8])
    shown = {}
    for name, x in data.items():
        gap = random.uniform(size=(len(x), 1 if name == "c" else x.shape[1])) < rate
        if name == "x":
            gap[:, 0] = False
        shown[name] = np.where(gap, np.nan, x)
    return shown


def held(imputation, data, full):
    """Share of the missing values that are in their interval or set, by column."""
    inside = {}
    gap = np.isnan(data["x"])
    within = (imputation.low["x"] <= full["x"]) & (full["x"] <= imputation.high["x"])
    for i in (1, 2):
        inside[f"x{i}"] = within[gap[:, i], i].mean()
    gap = np.isnan(data["c"]).any(1)
    inside["c"] = (imputation.sets["c"] & (full["c"] > 0.5)).any(-1)[gap].mean()
    for i in (0, 1):
        missing = np.flatnonzero(np.isnan(data["b"][:, i]))
        truth = full["b"][missing, i].astype(int)
        inside[f"b{i}"] = imputation.sets["b"][missing, i, truth].mean()
    return inside


@pytest.fixture(scope="module")
def coverage():
    """Coverage of missing cells over many data sets, by weights."""
    model = untrained()
    shares = {"odds": [], "equal": []}
    for seed in range(16):
        full = rows(600, seed)
        data = missing_at_random(full, seed)
        shown = hidden_at_random(data, 0.3, seed)
        for weights, lines in shares.items():
            options = {"n": 19, "generator": seeded(seed)}
            calibration = mvkit.calibrate(
                model, shown, data, level=0.8, weights=weights, **options
            )
            filled = mvkit.impute(model, shown, intervals=calibration, **options)
            lines.append(held(filled, data, full))
    return {weights: pandas.DataFrame(lines) for weights, lines in shares.items()}


def test_weights_hold_the_share_where_values_are_missing_at_random(coverage):
    plain, weighted = coverage["equal"], coverage["odds"]
    error = weighted.std() / len(weighted) ** 0.5
    assert plain["x1"].mean() < 0.8 - 0.1  # known cells are those of rows with little spread
    assert abs(weighted["x1"].mean() - 0.8) < 3 * error["x1"] + 0.03
    for column in weighted:
        assert weighted[column].mean() > 0.8 - 3 * error[column], column
    # columns whose gaps depend on nothing stay as they were
    assert abs(weighted["x2"].mean() - plain["x2"].mean()) < 0.01


def learnt_from(data, shown):
    schema = untrained().schema
    known = conform(mvkit.Batch({k: torch.tensor(x) for k, x in data.items()}), schema)
    seen = conform(mvkit.Batch({k: torch.tensor(x) for k, x in shown.items()}), schema)
    hidden = {}
    for name in known.data:
        flags = known.present(name) & ~seen.present(name)
        hidden[name] = flags[..., 0] if name == "c" else flags
    return known, learn_odds(known, hidden)


def test_odds_are_those_of_the_mechanism():
    full = rows(4000, 3)
    data = missing_at_random(full, 3)
    known, (odds, weights) = learnt_from(data, hidden_at_random(data, 0.3, 3))
    assert odds.names >= {"x", "c", "b"}
    for column in (weights["x"][:, 1], weights["c"], weights["b"][:, 0]):
        ratio = column.log().numpy() - np.log(true_odds(full))
        assert ratio.std() < 0.2
    assert np.log(true_odds(full)).std() > 1
    assert weights["x"][:, 0].unique().tolist() == [1.0]  # nothing is missing there
    again = odds.of(known)  # of rows as if they were new: means of all folds
    assert (again["c"].log() - weights["c"].log()).abs().max() < 0.5


def test_odds_see_other_columns_only():
    data = missing_at_random(rows(1000, 4), 4)
    known, (odds, _) = learnt_from(data, hidden_at_random(data, 0.3, 4))
    changed = {name: x.clone() for name, x in known.data.items()}
    changed["x"][:, 1] = 100.0
    changed["c"] = changed["c"].roll(1, -1)
    one = known.data
    for name, column in (("x", 1), ("c", None)):
        other = mvkit.Batch({**one, name: changed[name]}, known.mask, known.elements)
        weights = odds.of(conform(other, known.schema))[name]
        own = odds.of(known)[name]
        if column is not None:
            weights, own = weights[:, column], own[:, column]
        assert torch.equal(weights, own)


def test_cells_missing_completely_at_random_keep_their_bits():
    full = rows(400, 5)
    random = np.random.default_rng(5)
    data = {k: np.where(random.uniform(size=x.shape) < 0.2, np.nan, x) for k, x in full.items()}
    data["c"] = full["c"]
    shown = hidden_at_random(data, 0.3, 5)
    model = untrained()
    plain = mvkit.calibrate(model, shown, data, weights="equal", generator=seeded())
    weighted = mvkit.calibrate(model, shown, data, generator=seeded())
    assert weighted.odds is None
    for name in plain.score:
        np.testing.assert_array_equal(plain.score[name], weighted.score[name])
        np.testing.assert_array_equal(plain.held[name], weighted.held[name])


def test_odds_of_columns_without_gaps_change_nothing_even_if_cells_are_hidden_by_a_rule():
    full = rows(600, 6)
    shown = missing_at_random(full, 6)
    model = untrained()
    calibration = mvkit.calibrate(model, shown, full)
    assert calibration.odds is None


def test_cells_that_are_hidden_as_others_are_missing_are_weighted_alike():
    full = rows(4000, 7)
    data = missing_at_random(full, 7)
    shown = missing_at_random(data, 107)  # by the same rule, so that hidden cells are like those
    _, (odds, weights) = learnt_from(data, shown)
    assert 1 in odds.hidden
    # p of all cells are missing, and p of the others are hidden: p / ((1 - p) p) = 1 + odds
    ratio = weights["x"][:, 1].log().numpy() - np.log(1 + true_odds(full))
    assert ratio.std() < 0.2
    assert np.log(true_odds(full)).std() > 1


def test_whole_modalities_that_are_missing_have_finite_intervals():
    full = rows(500, 8)
    data = {name: x.copy() for name, x in full.items()}
    data["c"][:200] = np.nan
    data["b"][:200] = np.nan
    shown = hidden_at_random(data, 0.3, 8)
    calibration = mvkit.calibrate(untrained(), shown, data)
    filled = mvkit.impute(untrained(), shown, intervals=calibration)
    assert not filled.sets["c"][:200].all()
    for slopes in (calibration.odds.missing if calibration.odds else {}).values():
        gaps = calibration.odds.features.gaps[slopes[0]]
        assert not gaps.any()  # what only missing cells lack too


def test_rows_unlike_all_known_ones_have_infinite_intervals_and_a_warning():
    full = rows(500, 9)
    random = np.random.default_rng(9)
    share = np.where(full["x"][:, 0] > 0.5, 0.97, 0.05)
    data = {name: x.copy() for name, x in full.items()}
    data["x"][random.uniform(size=500) < share, 1] = np.nan
    shown = hidden_at_random(data, 0.15, 9)
    with pytest.warns(UserWarning, match=r"missing cells of x\[1\] are in rows so much likelier"):
        calibration = mvkit.calibrate(untrained(), shown, data)
    filled = mvkit.impute(untrained(), shown, intervals=calibration)
    gap = np.isnan(data["x"][:, 1])
    endless = np.isinf(filled.high["x"][gap, 1])
    high = full["x"][gap, 0] > 0.5
    assert endless[high].mean() > 0.25
    assert endless[~high].mean() == 0
    assert np.isfinite(filled.high["x"][:, 2]).all()
    plain = mvkit.calibrate(untrained(), shown, data, weights="equal")
    filled = mvkit.impute(untrained(), shown, intervals=plain)
    assert np.isfinite(filled.high["x"]).all()


def test_frames_say_how_many_cells_of_one_weight_there_are():
    full = rows(600, 10)
    data = missing_at_random(full, 10)
    shown = hidden_at_random(data, 0.3, 10)
    frame = mvkit.calibrate(untrained(), shown, data, level=0.8).frame().set_index("modality")
    numbers = frame.loc["x"]
    assert numbers["effective_cells"].iloc[1] < numbers["cells"].iloc[1]
    plain = mvkit.calibrate(untrained(), shown, data, level=0.8, weights="equal").frame()
    assert (plain["effective_cells"] == plain["cells"]).all()
    # what the model's own intervals hold of missing cells is less than of known ones
    own = plain.set_index("modality").loc["x"]["own_coverage"]
    assert numbers["own_coverage"].iloc[1] < own.iloc[1]


def test_double_precision_and_ensembles_are_weighted_too():
    data = missing_at_random(rows(400, 11), 11)
    shown = hidden_at_random(data, 0.3, 11)
    model = untrained().double()
    calibration = mvkit.calibrate(model, shown, data, level=0.8)
    assert calibration.score["x"].dtype == torch.float64
    assert calibration.odds is not None
    ensemble = mvkit.Ensemble([untrained(), untrained()])
    calibration = mvkit.calibrate(ensemble, shown, data, level=0.8)
    filled = mvkit.impute(ensemble, shown, intervals=calibration)
    gap = np.isnan(data["x"][:, 1])
    widths = (filled.high["x"] - filled.low["x"])[gap, 1]
    assert np.isfinite(widths).mean() > 0.9


def test_other_weights_are_refused():
    full = rows(60, 12)
    with pytest.raises(RequestError, match="calibrate: weights='even'; expected"):
        mvkit.calibrate(untrained(), hidden_at_random(full, 0.3, 0), full, weights="even")
    with pytest.raises(RequestError, match="impute: weights=3; expected"):
        mvkit.impute(pandas.DataFrame({"a": [1.0, 2.0, None] * 9}), weights=3)


def test_tables_are_weighted_unless_asked_not_to():
    random = np.random.default_rng(0)
    driver = random.normal(size=400)
    full = pandas.DataFrame({"a": driver, "b": random.normal(size=400) * np.exp(driver)})
    full["c"] = random.normal(size=400)
    share = 1 / (1 + np.exp(1 - 2 * np.tanh(driver)))
    shown = full.copy()
    gap = random.uniform(size=400) < share
    shown.loc[gap, "b"] = np.nan
    choices = {"epochs": 3, "width": 16, "blocks": 1, "latent_dim": 4, "held_out": 0.2}
    widths = {}
    for weights in ("odds", "equal"):
        options = {"choices": choices, "intervals": 0.8, "weights": weights}
        imputation = mvkit.impute(shown, **options)
        widths[weights] = (imputation.high["b"] - imputation.low["b"])[gap].mean()
        assert (imputation.coverage["column"] == ["a", "b", "c"]).all()
    assert widths["odds"] > widths["equal"]
    default = mvkit.impute(shown, choices=choices, intervals=0.8)
    assert (default.high["b"] - default.low["b"])[gap].mean() == widths["odds"]
