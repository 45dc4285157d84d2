"""Where training of counts starts, and what recipes of counts are checked with."""

import math

import pytest
import torch

import mvkit
from mvkit import Batch, Modality, SpecError
from mvkit.testing import check_component
from mvkit.testing.conformance import ConformanceError
from mvkit.training.stages import Stage


def counts(rows=400):
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([0.3, 4.0, 50.0])
    rate = means * torch._standard_gamma(torch.full((rows, 3), 2.0), generator=generator) / 2
    return torch.poisson(rate, generator=generator)


def started(likelihood, rows, **options):
    """A model after a stage that trains nothing: where training starts."""
    model = mvkit.Model({"a": Modality((3,), likelihood, **options)}, latent_dim=2, seed=0)
    optimizer = {"name": "sgd", "lr": 0.0}
    mvkit.fit(model, {"a": rows}, stages=[Stage("elbo", 1, optimizer=optimizer)], progress=False)
    return model


def nb(**options):
    return {"name": "negative_binomial", **options}


@pytest.mark.parametrize("by", ["feature", "modality"])
def test_dispersions_start_at_the_moments_of_counts(by):
    x = counts()
    live = started(nb(start="data", by=by), x).decoders["a"].likelihood
    mean, variance = x.mean(0), x.var(0, correction=0)
    theta = mean**2 / (variance - mean)
    expected = theta.log() if by == "feature" else theta.log().mean()
    assert torch.allclose(live.log_theta, expected, atol=1e-4)


@pytest.mark.parametrize("zero_inflated", [True, False])
def test_decoders_start_at_the_means_of_counts(zero_inflated):
    x = counts()
    live = nb(start="data", zero_inflated=zero_inflated)
    plain = started(nb(zero_inflated=zero_inflated), x)
    model = started(live, x)
    last = [key for key in model.state_dict() if key.startswith("decoders.a.network")][-1]
    moved = model.state_dict()[last] - plain.state_dict()[last]
    moved = moved.reshape(3, -1)
    assert torch.allclose(moved[:, 0], x.mean(0).log(), atol=1e-4)
    if zero_inflated:
        assert torch.allclose(moved[:, 1], torch.full((3,), -2.0))


def test_gaps_of_counts_do_not_tell_where_to_start():
    x = counts()
    gaps = x.clone()
    gaps[::2, 1] = math.nan
    live = started(nb(start="data"), gaps).decoders["a"].likelihood
    mean, variance = x[1::2, 1].mean(), x[1::2, 1].var(correction=0)
    assert torch.allclose(live.log_theta[1], (mean**2 / (variance - mean)).log(), atol=1e-4)


def test_constant_counts_start_finite():
    live = started(nb(start="data"), torch.tensor([[0.0, 3.0, 1.0]] * 20)).decoders["a"].likelihood
    assert torch.isfinite(live.log_theta).all()


def test_dispersions_that_were_trained_stay():
    x = counts()
    model = started(nb(start="data"), x)
    before = model.decoders["a"].likelihood.log_theta.clone()
    optimizer = {"name": "sgd", "lr": 0.0}
    stage = Stage("elbo", 1, optimizer=optimizer)
    mvkit.fit(model, {"a": 10 * x}, stages=[stage], progress=False)
    assert torch.equal(model.decoders["a"].likelihood.log_theta, before)


def test_counts_start_at_ones_unless_asked():
    assert not started(nb(), counts()).decoders["a"].likelihood.log_theta.any()
    assert "start" not in mvkit.registry.to_dict(mvkit.parts.NegativeBinomial())


def test_decoded_dispersions_have_no_start():
    with pytest.raises(SpecError, match="start: got 'data' with by='decoded'.*expected 'ones'"):
        mvkit.parts.NegativeBinomial(by="decoded", start="data")


def test_dispersions_by_level_start_alike_and_are_saved(tmp_path):
    x = counts()
    likelihood = nb(start="data", by="feature_and_level", level="site")
    model = mvkit.Model(
        {"a": Modality((3,), likelihood)}, latent_dim=2, seed=0, covariates={"site": ("A", "B")}
    )
    rows = Batch({"a": x}, extra={"site": ["A", "B"] * 200})
    mvkit.fit(model, rows, epochs=1, progress=False)
    mvkit.save(model, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    assert again.header() == model.header()
    assert again.modalities["a"].likelihood.start == "data"
    assert torch.equal(again.encode(rows), model.encode(rows))


@pytest.mark.parametrize("likelihood", [nb(start="data"), "foreground_background"])
def test_encoders_of_log1p_start_as_if_log1p_were_standardised(likelihood):
    """The first layer of x' = (log1p(x) - μ) / σ is that of an untrained model."""
    x = counts()
    model = started(likelihood, x, input="log1p")
    fresh = mvkit.Model(
        {"a": Modality((3,), likelihood, input="log1p")}, latent_dim=2, seed=0
    ).encoders["a"]
    seen = x.log1p()
    standardised = (seen - seen.mean(0)) / seen.std(0, correction=0)
    assert torch.allclose(model.encoders["a"](seen), fresh(standardised), atol=1e-4)


def counting(modalities, latent_dim=10, **options):
    """Counts of everything.

    Reference: none, a test.
    """
    each = {name: Modality(m.shape, "poisson", exposure="total") for name, m in modalities.items()}
    return mvkit.Model(each, latent_dim=latent_dim, **options)


def unsure(modalities, latent_dim=10, **options):
    """Another model each time.

    Reference: none, a test.
    """
    return mvkit.Model(modalities, latent_dim=latent_dim, **{**options, "seed": None})


def test_recipes_of_counts_are_checked_with_counts():
    mvkit.plugins.declare("recipe", "counting", counting)
    check_component("recipe", "counting")


def test_recipes_that_draw_anew_are_still_refused():
    mvkit.plugins.declare("recipe", "unsure", unsure)
    with pytest.raises(ConformanceError, match="global generator|drew"):
        check_component("recipe", "unsure")
