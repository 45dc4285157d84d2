"""Multiple imputation: copies fitted to bootstraps, and analyses that are pooled."""

import numpy as np
import pytest
import torch

import mvkit
from mvkit import RequestError
from mvkit.core import noise
from mvkit.training.multiple import bootstrap

pandas = pytest.importorskip("pandas")
FIT = {"epochs": 2, "batch_size": 20, "lr": 0.01}


def table(b=60, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=b)
    frame = pandas.DataFrame({"x": x, "y": x + 0.5 * random.normal(size=b)})
    frame.index = [f"p{i}" for i in range(b)]
    frame.loc[random.uniform(size=b) < 0.3, "y"] = np.nan
    return {"a": frame}


def tiny(data, **options):
    dataset = mvkit.MultimodalDataset.from_tables(data)
    return mvkit.Model(dataset.modalities, latent_dim=1, seed=0, **options)


def test_rows_are_drawn_with_replacement():
    counts = torch.stack([bootstrap(50, seed).bincount(minlength=50) for seed in range(400)])
    assert (counts.sum(1) == 50).all()
    # each is binomial(50, 1/50): mean 1, variance 49/50
    assert abs(counts.double().mean(0) - 1).max() < 4 * (0.98 / 400) ** 0.5
    assert counts.double().var() == pytest.approx(0.98, rel=0.1)
    assert torch.equal(bootstrap(50, 3), bootstrap(50, 3))


def test_each_table_is_drawn_from_a_copy_that_was_fitted_to_a_bootstrap():
    data = table()
    model = tiny(data)
    mvkit.fit(model, data, **FIT)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    imputation = mvkit.impute(model, data, m=3, fit_options=FIT, seed=5)
    assert len(imputation.draws) == 3
    gap = data["a"]["y"].isna()
    for number, completed in enumerate(imputation.draws):
        seed = noise.seed_of(5, number)
        copy = mvkit.Model(model.modalities, latent_dim=1, seed=seed)
        rows = {"a": data["a"].iloc[bootstrap(60, seed).tolist()]}
        rows["a"].index = range(60)
        mvkit.fit(copy, rows, seed=seed, **FIT)
        generator = torch.Generator().manual_seed(seed)
        alone = mvkit.impute(copy, data, n=2, draws=True, generator=generator)
        pandas.testing.assert_frame_equal(completed["a"], alone.draws[0]["a"])
        assert completed["a"].notna().all(axis=None)
        assert (completed["a"]["y"][~gap] == data["a"]["y"][~gap]).all()
    for key, x in model.state_dict().items():
        assert torch.equal(x, before[key])
    again = mvkit.impute(model, data, m=3, fit_options=FIT, seed=5)
    pandas.testing.assert_frame_equal(again.draws[2]["a"], imputation.draws[2]["a"])
    first, second = (draw["a"]["y"][gap] for draw in imputation.draws[:2])
    assert (first != second).all()


def test_without_refits_a_warning_says_what_is_wrong():
    data = table()
    model = tiny(data)
    with pytest.warns(UserWarning, match=r"refit=False: all 2 completed tables come from one"):
        imputation = mvkit.impute(model, data, m=2, refit=False)
    assert len(imputation.draws) == 2
    assert (imputation.draws[0]["a"] != imputation.draws[1]["a"]).any(axis=None)


def test_completed_tables_are_analysed_and_pooled():
    data = table()
    model = tiny(data)
    completed = mvkit.impute(model, data, m=4, fit_options=FIT).draws
    fits = [(draw["a"].mean(), draw["a"].var() / 60, 59) for draw in completed]
    pooled = mvkit.pool(fits)
    assert pooled.index.tolist() == ["x", "y"]
    assert pooled.loc["x", "missing_information"] == 0.0
    assert 0 < pooled.loc["y", "missing_information"] < 1


def test_arrays_row_weights_covariates_and_empty_rows_go_with_it():
    random = np.random.default_rng(0)
    shapes = {"a": (2,), "b": (1,)}
    model = mvkit.Model(shapes, latent_dim=1, covariates={"site": ("A", "B")}, seed=0)
    data = {"a": random.normal(size=(24, 2)), "b": random.normal(size=(24, 1))}
    data["a"][::3] = np.nan
    data["b"][1::3, 0] = np.nan
    for x in data.values():
        x[5] = np.nan
    batch = mvkit.Batch(
        {name: torch.tensor(x) for name, x in data.items()},
        covariates={"site": ["A", "B"] * 12},
        row_weight=torch.arange(24) % 4,
    )
    imputation = mvkit.impute(model, batch, m=2, fit_options=FIT, empty="prior")
    assert not imputation.draws[0].data["a"].isnan().any()
    covariates = {"site": ["A", "B"] * 12}
    options = {"fit_options": FIT, "empty": "prior", "covariates": covariates}
    assert not np.isnan(mvkit.impute(model, data, m=2, **options).draws[1]["b"]).any()


def test_intervals_come_with_it():
    data = table()
    model = tiny(data)
    imputation = mvkit.impute(model, data, m=2, fit_options=FIT, intervals=0.9)
    gap = data["a"]["y"].isna()
    assert (imputation.low["a"]["y"] < imputation.high["a"]["y"])[gap].all()


def test_an_ensemble_is_drawn_from_without_refits():
    data = table()
    ensemble = mvkit.Ensemble([tiny(data), tiny(data)])
    with pytest.raises(RequestError, match="an ensemble with refit=True"):
        mvkit.impute(ensemble, data, m=2)
    with pytest.warns(UserWarning, match="improper"):
        assert len(mvkit.impute(ensemble, data, m=3, refit=False).draws) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m": 1}, "impute: m=1; expected a whole number of at least 2"),
        ({"m": 2, "refit": "yes"}, "impute: refit='yes'; expected True or False"),
        ({"m": 2, "draws": True}, "impute: draws beside m=2"),
        ({"m": 2, "generator": torch.Generator()}, "impute: generator beside m=2"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    data = table()
    with pytest.raises(RequestError, match=message):
        mvkit.impute(tiny(data), data, **options)
