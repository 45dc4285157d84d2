"""Exposures: counts given how much a row was exposed to them, and nothing that leaks."""

import math

import pytest
import torch

import mvkit
from mvkit import Batch, Covariate, DataError, Modality, Model, RequestError, SpecError
from mvkit.models import trial_values
from mvkit.testing import tiny_models

TINY = {"encoder": {"name": "mlp", "hidden": [6]}, "decoder": {"name": "mlp", "hidden": [6]}}
COUNTS = ("poisson", "negative_binomial", "multinomial")


def counted(likelihood="poisson", exposure="total", features=5, **options):
    return Modality((features,), likelihood, exposure=exposure, input="log1p", **TINY, **options)


def rows(n=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    depth = torch.randint(20, 400, (n, 1), generator=generator).float()
    share = torch.softmax(torch.randn(n, 5, generator=generator), -1)
    counts = torch.poisson(depth * share, generator=generator)
    return {"rna": counts, "x": torch.randn(n, 3, generator=generator)}


def trained(likelihood="poisson", **options):
    modalities = {"rna": counted(likelihood), "x": Modality((3,), **TINY)}
    model = Model(modalities, latent_dim=2, seed=0, **options)
    mvkit.fit(model, rows(), epochs=2, progress=False)
    return model


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("likelihood", COUNTS)
def test_no_hidden_count_changes_a_number_about_it(likelihood):
    model = trained(likelihood)
    data = rows(8, seed=1)
    altered = {"rna": data["rna"] * 7 + 3, "x": data["x"]}
    asked = []
    for each in (data, altered):
        batch = Batch(each)
        drawn = model.translate(batch, to=["rna"], given=["x"], sample=True, generator=seeded())
        means = model.translate(batch, to=["rna"], given=["x"], latent="mean")
        hidden = Batch(each, torch.tensor([[False, True]] * 8), order=("rna", "x"))
        imputed = model.translate(hidden, to=["rna"], latent="mean")
        scored = model.log_likelihood(batch, of=["x"], given=["rna"], n=3, generator=seeded())
        asked.append((drawn["rna"], means["rna"], imputed["rna"], scored))
    first, second = asked
    for a, b in zip(first[:3], second[:3], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[3], second[3])  # what is given may tell


@pytest.mark.parametrize("estimator", ["importance", "predictive"])
def test_scored_counts_have_the_median_of_training_or_what_is_stated(estimator):
    model = trained()
    data = rows(8, seed=1)
    median = rows()["rna"].sum(1).median()
    assert model.decoders["rna"].typical_exposure == median
    options = {"n": 4, "estimator": estimator}
    if estimator == "predictive":
        options["given"] = ["x"]
    ask = [{}, {"exposure": {"rna": float(median)}}, {"exposure": {"rna": [float(median)] * 8}}]
    scores = [model.log_likelihood(data, generator=seeded(), **options, **more) for more in ask]
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])
    own = model.log_likelihood(
        data, exposure={"rna": data["rna"].sum(1)}, generator=seeded(), **options
    )
    assert not torch.allclose(own, scores[0])


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial"])
def test_means_of_observed_elements_sum_to_the_total(likelihood):
    model = trained(likelihood)
    data = rows(6, seed=1)
    data["rna"][0, 1:3] = math.nan
    data["rna"][1] = math.nan
    means = model.translate(data, to=["rna"], latent="mean")["rna"][0]
    observed = ~data["rna"].isnan()
    for row in (0, 2, 3, 4, 5):
        total = data["rna"][row][observed[row]].sum()
        torch.testing.assert_close(means[row][observed[row]].sum(), total)
    torch.testing.assert_close(means[1].sum(), model.decoders["rna"].typical_exposure)
    stated = model.translate(data, to=["rna"], latent="mean", exposure={"rna": 1e4})["rna"][0]
    torch.testing.assert_close(stated.sum(1), torch.full((6,), 1e4))


def test_a_named_exposure_multiplies_the_rate():
    model = Model({"n": counted(exposure="years", features=1)}, latent_dim=2, seed=0)
    x = torch.ones(4, 1)
    years = [1.0, 2.0, 10.0, 0.5]
    batch = Batch({"n": x}, covariates={"years": years})
    rate = model.translate(batch, latent="mean", exposure={"n": 1.0})["n"][0]
    means = model.translate(batch, latent="mean")["n"][0]
    torch.testing.assert_close(means, rate * torch.tensor(years)[:, None])
    assert torch.isfinite(model.loss(batch).loss)
    hidden = Batch({"n": x}, torch.zeros(4, 1, dtype=torch.bool), covariates={"years": years})
    nothing = model.translate(hidden, latent="mean", empty="prior")["n"][0]
    torch.testing.assert_close(nothing[2], 20 * nothing[3])


def test_the_loss_is_that_of_counts_given_their_total():
    model = tiny_models.model(first={"shape": (3,), "likelihood": "poisson", "exposure": "total"})
    batch = tiny_models.rows(8)
    counts = torch.randint(9, (8, 3)).double()
    batch.data["a"] = counts
    conformed = model.conform(batch)
    out = torch.randn(1, 8, 3).double()
    likelihood = model.decoders["a"].likelihood
    context = model.decoders["a"].likelihood_context(
        conformed.exposure["a"], None, mvkit.core.Context()
    )
    mean = counts.sum(1, keepdim=True) * torch.softmax(out, -1)
    expected = torch.distributions.Poisson(mean).log_prob(counts)
    rows_that_count = conformed.observed[:, 0] & (counts.sum(1) > 0)
    torch.testing.assert_close(
        likelihood.log_prob(out, counts, context)[:, rows_that_count], expected[:, rows_that_count]
    )
    loss, _ = tiny_models.loss_and_gradients(model, batch)
    for filler in (math.nan, 1e30):
        other, _ = tiny_models.loss_and_gradients(model, tiny_models.fillers(batch, filler))
        assert torch.equal(other.loss, loss.loss)


EVERY = {
    **{name: {"shape": (3,), "likelihood": name, "exposure": "total"} for name in COUNTS},
    "poisson, zeros": {"shape": (3,), "likelihood": {"name": "poisson", "zero_inflated": True}},
    "ordinal": {"shape": (3,), "likelihood": {"name": "ordinal", "levels": 5}},
    **{name: {"shape": (3,), "likelihood": name} for name in ("lognormal", "gamma", "beta")},
    "decoded": {"shape": (3,), "likelihood": {"name": "normal", "scale": "decoded"}},
    "by feature": {
        "shape": (3,),
        "likelihood": {"name": "student_t", "scale": "trained", "by": "feature"},
    },
    "hazard": {"shape": (2,), "likelihood": {"name": "hazard", "bins": 4}},
    "foreground_background": {"shape": (3,), "likelihood": "foreground_background"},
}


def values(model, b):
    """Values that the likelihood of modality `a` takes, (b, *shape)."""
    live = model.decoders["a"].likelihood
    shape = (b, *model.modalities["a"].shape)
    return trial_values.supported_values(live, shape, torch.float64)


@pytest.mark.parametrize("likelihood", EVERY)
@pytest.mark.parametrize("aggregator", ["poe", "moe", "mopoe", "joint"])
@pytest.mark.parametrize("objective", ["elbo", "iwae", "dreg", "telbo", "jmvae"])
def test_every_likelihood_trains_with_covariates(likelihood, aggregator, objective):
    covariates = {"site": Covariate(("A", "B"), missing="average")}
    try:
        model = tiny_models.model(
            aggregator, "standard", objective, first=EVERY[likelihood], covariates=covariates
        )
    except SpecError:
        with pytest.raises(SpecError):
            tiny_models.model(aggregator, "standard", objective)
        return
    for missing in (False, True):
        batch = tiny_models.rows(8, missing=missing)
        batch.data["a"] = values(model, 8)
        batch.extra["site"] = ["A", None, "B", "B", "A", "A", None, "B"]
        loss, gradients = tiny_models.loss_and_gradients(model, batch)
        assert torch.isfinite(loss.loss)
        assert any(value is not None and value.abs().max() > 0 for value in gradients.values())
        filled, others = tiny_models.loss_and_gradients(model, tiny_models.fillers(batch, 1e30))
        assert torch.equal(filled.loss, loss.loss)
        for name, value in gradients.items():
            assert value is None or torch.equal(value, others[name]), name


def test_exposures_are_saved_and_resumed(tmp_path):
    model = trained()
    mvkit.save(model, tmp_path / "model")
    again = mvkit.load(tmp_path / "model")
    assert again.decoders["rna"].typical_exposure == model.decoders["rna"].typical_exposure
    drawn = [m.sample(4, generator=seeded())["rna"] for m in (model, again)]
    assert torch.equal(*drawn)
    torch.testing.assert_close(
        drawn[0].sum(1), torch.full((4,), float(rows()["rna"].sum(1).median()))
    )


def test_a_row_without_a_single_count_is_finite():
    model = trained()
    data = rows(3)
    data["rna"][1] = 0.0
    loss = model.loss(data)
    assert torch.isfinite(loss.bound).all()
    loss.loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_what_cannot_be_an_exposure_is_refused():
    with pytest.raises(SpecError, match="exposure"):
        Model({"x": Modality((3,), exposure="total")})
    with pytest.raises(SpecError, match="always 1"):
        Model({"n": counted(features=1)})
    with pytest.raises(SpecError, match="'site' has levels"):
        Model({"n": counted(exposure="site")}, covariates={"site": ("A", "B")})
    model = Model({"n": counted(exposure="years")}, seed=0)
    x = torch.ones(2, 5)
    with pytest.raises(DataError, match="exposure 'years' of 'n': the rows have none"):
        model.loss({"n": x})
    for years, message in (([1.0, -2.0], "row 1 is -2.0"), ([math.nan, 1.0], "row 0 is nan")):
        with pytest.raises(DataError, match=message):
            model.loss(Batch({"n": x}, covariates={"years": years}))
    batch = Batch({"n": x}, covariates={"years": [1.0, 2.0]})
    with pytest.raises(RequestError, match="at least 0"):
        model.translate(batch, exposure={"n": -1.0})


def test_encoders_see_the_form_that_was_asked_for():
    model = Model({"n": counted()}, latent_dim=2, seed=0)
    plain = Model(
        {"n": counted().__class__((5,), "poisson", exposure="total", **TINY)}, seed=0, latent_dim=2
    )
    plain.load_state_dict(model.state_dict())
    counts = rows(4)["rna"]
    seen = []
    model.encoders["n"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.encode({"n": counts})
    torch.testing.assert_close(seen[0], counts.log1p())
    assert not torch.allclose(model.encode({"n": counts}), plain.encode({"n": counts}))
