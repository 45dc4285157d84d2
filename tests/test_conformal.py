"""Conformal intervals: their share on exchangeable cells, whatever the model; and every kind of data."""

import math

import numpy as np
import pytest
import torch

import mvkit
from mvkit import DataError, Modality, MultimodalDataset, RequestError
from mvkit.models.calibration import conformal_quantile, held_share

pandas = pytest.importorskip("pandas")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def by_loop(scores, level):
    """The ⌈(n + 1) level⌉-th smallest, in exact arithmetic."""
    from fractions import Fraction

    n = len(scores)
    rank = math.ceil((n + 1) * Fraction(str(level)))
    return sorted(scores)[rank - 1] if rank <= n else math.inf


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_quantiles_are_those_of_a_finite_sample(level):
    for n in range(1, 45):
        scores = torch.randn(50, 2, generator=seeded(n), dtype=torch.float64)
        places = torch.zeros(50, 2, dtype=torch.bool)
        places[:n, 0] = True
        places[50 - n :, 1] = True
        found = conformal_quantile(scores, places, level)
        assert found[0].item() == by_loop(scores[:n, 0].tolist(), level), n
        assert found[1].item() == by_loop(scores[50 - n :, 1].tolist(), level), n


def test_each_half_of_the_cells_is_held_by_the_other():
    scores = torch.randn(60, generator=seeded(), dtype=torch.float64)
    places = torch.rand(60, generator=seeded(1)) < 0.7
    known = scores[places].tolist()
    first, second = known[::2], known[1::2]
    expected = sum(score <= by_loop(first, 0.8) for score in second)
    expected += sum(score <= by_loop(second, 0.8) for score in first)
    held = held_share(scores, places, 0.8)
    assert held.item() == pytest.approx(expected / len(known))


PLAIN = {"encoder": "linear", "decoder": "linear"}
MODALITIES = {
    "x": Modality((3,), "normal", **PLAIN),
    "k": Modality((2,), "poisson", **PLAIN),
    "c": Modality((4,), "categorical", **PLAIN),
    "b": Modality((2,), "bernoulli", **PLAIN),
}


def untrained(**options):
    """A model that knows nothing of the data, whose own intervals are wrong."""
    return mvkit.Model(MODALITIES, latent_dim=2, seed=0, **options).eval()


def rows(b, seed):
    """Skewed numbers, counts, classes and bits that depend on one another."""
    random = np.random.default_rng(seed)
    z = random.normal(size=b)
    classes = (z[:, None] + random.gumbel(size=(b, 4)) * [1, 0.5, 2, 1]).argmax(1)
    return {
        "x": np.exp(z[:, None] * [0.5, 1.0, 0.1]) + random.exponential(size=(b, 3)) * 3,
        "k": random.poisson(np.exp(1 + z[:, None] * [0.3, 0.8])).astype(float),
        "c": np.eye(4)[classes],
        "b": (random.uniform(size=(b, 2)) < 1 / (1 + np.exp(-z[:, None] * [1, 3]))).astype(float),
    }


def with_gaps(full, rate, seed):
    """Each cell missing with probability `rate`; each row keeps its first number."""
    random = np.random.default_rng(seed)
    shown = {}
    for name, x in full.items():
        width = 1 if name == "c" else x.shape[1]
        gap = random.uniform(size=(len(x), width)) < rate
        if name == "x":
            gap[:, 0] = False
        shown[name] = np.where(gap, np.nan, x)
    return shown


def held(imputation, shown, full):
    """Whether the value of each missing cell is in its interval or set, by column."""
    inside = {}
    for name in ("x", "k"):
        gap = np.isnan(shown[name])
        within = (imputation.low[name] <= full[name]) & (full[name] <= imputation.high[name])
        for i in range(name == "x", full[name].shape[1]):
            inside[f"{name}{i}"] = within[gap[:, i], i]
    gap = np.isnan(shown["c"]).any(1)
    inside["c"] = (imputation.sets["c"] & (full["c"] > 0.5)).any(-1)[gap]
    for i in range(2):
        gap = np.isnan(shown["b"][:, i])
        rows = np.flatnonzero(gap)
        inside[f"b{i}"] = imputation.sets["b"][rows, i, full["b"][rows, i].astype(int)]
    return inside


@pytest.fixture(scope="module")
def shares():
    """Coverage by column over many calibrations of a model that is wrong, and its own."""
    model = untrained()
    calibrated = []
    own = []
    cells = 30  # at least
    for seed in range(24):
        full, other = rows(150, 2 * seed), rows(200, 2 * seed + 1)
        shown, gaps = with_gaps(full, 0.3, seed), with_gaps(other, 0.3, 1000 + seed)
        options = {"n": 19, "generator": seeded(seed)}
        calibration = mvkit.calibrate(model, shown, full, level=0.8, **options)
        filled = mvkit.impute(model, gaps, intervals=calibration, **options)
        calibrated.append({k: x.mean() for k, x in held(filled, gaps, other).items()})
        plain = mvkit.impute(model, gaps, intervals=0.8, **options)
        own.append({k: x.mean() for k, x in held(plain, gaps, other).items()})
    return pandas.DataFrame(calibrated), pandas.DataFrame(own), cells


def test_intervals_hold_their_share_whatever_the_model(shares):
    calibrated, own, cells = shares
    error = calibrated.std() / len(calibrated) ** 0.5
    assert ((own.mean() - 0.8).abs() > 0.1).any()  # there was something to calibrate
    for column in ("x1", "x2"):
        # of n cells, the share is ⌈(n + 1) 0.8⌉/(n + 1): at most 1/(n + 1) more
        assert abs(calibrated[column].mean() - 0.8) < 3 * error[column] + 1 / cells, column
    for column in calibrated:
        assert calibrated[column].mean() > 0.8 - 3 * error[column], column


def test_without_calibration_intervals_are_those_of_the_quantiles():
    model, full = untrained(), rows(20, 0)
    shown = with_gaps(full, 0.3, 0)
    options = {"n": 60, "quantiles": (0.1, 0.9)}
    filled = mvkit.impute(model, shown, intervals=0.8, generator=seeded(), **options)
    for name in ("x", "k"):
        np.testing.assert_allclose(filled.low[name], filled.quantiles[0.1][name], rtol=1e-6)
        np.testing.assert_allclose(filled.high[name], filled.quantiles[0.9][name], rtol=1e-6)
    again = mvkit.impute(model, shown, generator=seeded(), **options)
    assert again.low is None
    assert again.sets == {}
    np.testing.assert_array_equal(again.filled["x"], filled.filled["x"])


def test_corrections_are_those_of_a_loop_over_cells():
    model, full = untrained().double(), rows(150, 5)
    shown = with_gaps(full, 0.3, 5)
    calibration = mvkit.calibrate(model, shown, full, level=0.9, n=50, generator=seeded())
    generator = seeded()
    samples = model.translate(shown, n=50, sample=True, generator=generator)
    means = model.translate(shown, n=50, generator=generator)
    draws, gap = samples["x"].numpy(), np.isnan(shown["x"])
    floor = 1e-3 * draws.std(0, ddof=1).mean(0)
    scores, inside = [], 0
    for row in np.flatnonzero(gap[:, 1]):
        ordered = np.sort(draws[:, row, 1])
        # the (n + 1) p-th of n, between neighbours: 2.55 and 48.45 of 50
        low = ordered[1] + 0.55 * (ordered[2] - ordered[1])
        high = ordered[47] + 0.45 * (ordered[48] - ordered[47])
        value = full["x"][row, 1]
        sd = max(draws[:, row, 1].std(ddof=1), floor[1])
        scores.append(max(low - value, value - high) / sd)
        inside += low <= value <= high
    assert calibration.score["x"][1].item() == pytest.approx(by_loop(scores, 0.9), rel=1e-9)
    assert calibration.own["x"][1].item() == pytest.approx(inside / len(scores))
    draws, gap = samples["k"].numpy()[:, :, 0], np.isnan(shown["k"][:, 0])
    deviations, centres = draws.std(0, ddof=1), draws.mean(0)
    deviations = np.maximum(deviations, 1e-3 * deviations.mean())
    scores = np.abs(full["k"][:, 0] - centres) / deviations
    limit = by_loop(scores[gap].tolist(), 0.9)
    assert calibration.score["k"][0].item() == pytest.approx(limit, rel=1e-9)
    filled = mvkit.impute(model, shown, intervals=calibration, n=50, generator=seeded())
    assert (filled.low["k"] == filled.low["k"].round()).all()
    width = (filled.high["k"] - filled.low["k"])[gap, 0]
    assert (width <= 2 * limit * deviations[gap].max()).all()
    p = means["c"].numpy().mean(0)
    scores = [1 - p[row] @ full["c"][row] for row in np.flatnonzero(np.isnan(shown["c"]).any(1))]
    assert calibration.score["c"].item() == pytest.approx(by_loop(scores, 0.9), rel=1e-9)
    p = means["b"].numpy().mean(0)[:, 1]
    scores = []
    for row in np.flatnonzero(np.isnan(shown["b"][:, 1])):
        scores.append(1 - p[row] if full["b"][row, 1] else p[row])
    assert calibration.score["b"][1].item() == pytest.approx(by_loop(scores, 0.9), rel=1e-9)


def test_observed_cells_are_certain():
    model, full = untrained(), rows(300, 1)
    shown = with_gaps(full, 0.3, 1)
    calibration = mvkit.calibrate(model, shown, full)
    filled = mvkit.impute(model, shown, intervals=calibration)
    seen = ~np.isnan(shown["x"])
    assert (filled.low["x"][seen] == full["x"][seen]).all()
    assert (filled.high["x"][seen] == full["x"][seen]).all()
    known = ~np.isnan(shown["c"]).any(1)
    np.testing.assert_array_equal(filled.sets["c"][known], full["c"][known] > 0.5)
    known = ~np.isnan(shown["b"])
    np.testing.assert_array_equal(filled.sets["b"][known][:, 1], full["b"][known] > 0.5)
    assert filled.sets["c"].any(-1).all()


def tables(b, seed):
    full = rows(b, seed)
    ids = [f"r{i}" for i in range(b)]
    words = np.array(["north", "south", "east", "west"])[full["c"].argmax(1)]
    return {
        "x": pandas.DataFrame(full["x"], ids, ["u", "v", "w"]),
        "k": pandas.DataFrame(full["k"], ids, ["n", "m"]),
        "c": pandas.DataFrame({"where": words}, ids),
    }


def test_tables_get_tables_in_their_units_and_words():
    full = tables(200, 3)
    kinds = {"k": {"likelihood": "poisson"}, "c": {"likelihood": "categorical"}, "x": {}}
    options = {name: {**kind, **PLAIN} for name, kind in kinds.items()}
    data = MultimodalDataset.from_tables(full, modalities=options)
    data = data.fit_transforms({"x": ["log1p", "standardise"]})
    model = mvkit.Model(data.modalities, latent_dim=2, seed=0)
    random = np.random.default_rng(0)
    shown = {k: x.mask(random.uniform(size=x.shape) < 0.3) for k, x in full.items()}
    shown["x"]["u"] = full["x"]["u"]
    calibration = mvkit.calibrate(model, shown, full, n=40, generator=seeded())
    frame = calibration.frame()
    assert frame["column"].tolist() == ["u", "v", "w", "n", "m", "where"]
    assert frame["cells"].tolist()[:2] == [0, shown["x"]["v"].isna().sum()]
    order = {k: x[x.columns[::-1]] for k, x in shown.items()}  # the user's order of columns
    for given in (shown, order):
        filled = mvkit.impute(model, given, intervals=calibration, n=40, generator=seeded(1))
        for column in ("v", "w"):
            gap = shown["x"][column].isna()
            low, high = filled.low["x"][column], filled.high["x"][column]
            inside = ((low <= full["x"][column]) & (full["x"][column] <= high))[gap]
            assert inside.mean() > 0.8
            assert (low > -1).all()  # back through log(1 + x)
        gap = shown["c"]["where"].isna()
        sets = filled.sets["c"]["where"]
        assert sets.index.tolist() == full["c"].index.tolist()
        held = [word in members for word, members in zip(full["c"]["where"], sets)]
        assert np.mean(np.array(held)[gap]) > 0.8
        assert sets[~gap].tolist() == [(word,) for word in full["c"]["where"][~gap]]
    assert filled.low["c"]["where"][gap].isna().all()


def test_tensors_and_batches_get_tensors():
    model, full = untrained(), {k: torch.tensor(x) for k, x in rows(200, 2).items()}
    shown = {k: torch.tensor(x) for k, x in with_gaps(rows(200, 2), 0.3, 2).items()}
    calibration = mvkit.calibrate(model, mvkit.Batch(shown), mvkit.Batch(full), generator=seeded())
    filled = mvkit.impute(model, mvkit.Batch(shown), intervals=calibration, generator=seeded())
    assert isinstance(filled.low, mvkit.Batch)
    assert filled.sets["c"].dtype == torch.bool
    assert filled.sets["c"].shape == (200, 4)
    other = mvkit.impute(model, shown, intervals=calibration, generator=seeded())
    assert torch.equal(other.low["x"], filled.low.data["x"])


def test_whole_modalities_and_empty_rows_can_be_hidden():
    model, full = untrained(), rows(120, 4)
    shown = {k: x.copy() for k, x in full.items()}
    shown["x"][:60] = np.nan
    for name in shown:
        shown[name][:3] = np.nan
    with pytest.raises(DataError, match="row 0 observes none of the given"):
        mvkit.calibrate(model, shown, full)
    with pytest.warns(UserWarning, match=r"k\[0\], k\[1\], c\[.*fewer than 9 known cells"):
        calibration = mvkit.calibrate(model, shown, full, empty="prior")
    assert calibration.cells["x"].tolist() == [60, 60, 60]
    filled = mvkit.impute(model, shown, intervals=calibration, empty="prior")
    assert np.isinf(filled.high["k"][:3]).all()
    assert filled.sets["c"][:3].all()


def test_ensembles_are_calibrated_too():
    members = [mvkit.Model(MODALITIES, latent_dim=2, seed=s) for s in (0, 1)]
    ensemble, full = mvkit.Ensemble(members), rows(200, 6)
    shown = with_gaps(full, 0.3, 6)
    calibration = mvkit.calibrate(ensemble, shown, full, n=60)
    filled = mvkit.impute(ensemble, shown, intervals=calibration, n=60)
    inside = held(filled, shown, full)
    assert all(flags.mean() > 0.75 for flags in inside.values())


def test_values_missing_not_at_random_are_calibrated_as_the_model_draws_them():
    model = mvkit.Model({"x": MODALITIES["x"]}, latent_dim=2, missingness="self", seed=0)
    full = {"x": rows(150, 7)["x"]}
    shown = {"x": with_gaps(rows(150, 7), 0.3, 7)["x"]}
    calibration = mvkit.calibrate(model, shown, full, n=20, generator=seeded())
    filled = mvkit.impute(model, shown, intervals=calibration, n=20, generator=seeded())
    gap = np.isnan(shown["x"])
    assert ((filled.low["x"] <= full["x"]) & (full["x"] <= filled.high["x"]))[gap].mean() > 0.8


def test_double_precision_stays_so():
    model, full = untrained().double(), rows(150, 8)
    calibration = mvkit.calibrate(model, with_gaps(full, 0.3, 8), full)
    assert calibration.score["x"].dtype == torch.float64


@pytest.mark.parametrize("level", [0, 1, 90, True, "a"])
def test_levels_are_shares(level):
    model, full = untrained(), rows(20, 0)
    with pytest.raises(RequestError, match="calibrate: level=.*expected a share between 0 and 1"):
        mvkit.calibrate(model, with_gaps(full, 0.3, 0), full, level=level)
    with pytest.raises(RequestError, match="impute: intervals=.*expected a share"):
        mvkit.impute(model, full, intervals=level)


def test_rows_that_cannot_calibrate_are_refused():
    model, full = untrained(), rows(20, 0)
    with pytest.raises(DataError, match="calibrate: no cell is known in `full` and hidden"):
        mvkit.calibrate(model, full, full)
    fewer = {name: x[:10] for name, x in with_gaps(full, 0.3, 0).items()}
    with pytest.raises(DataError, match="calibrate: 10 rows shown and 20 in full"):
        mvkit.calibrate(model, fewer, full)
    with pytest.raises(RequestError, match="calibrate: got int as its model"):
        mvkit.calibrate(3, full, full)


def test_a_calibration_of_another_model_is_refused():
    full = rows(200, 0)
    calibration = mvkit.calibrate(untrained(), with_gaps(full, 0.3, 0), full)
    other = mvkit.Model({"x": (2,)}, latent_dim=1)
    with pytest.raises(
        RequestError, match=r"intervals of 'x' with columns \(3,\), and the model has \(2,\)"
    ):
        mvkit.impute(other, {"x": np.ones((3, 2))}, intervals=calibration)
