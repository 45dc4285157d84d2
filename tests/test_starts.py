"""Where networks and scales start, by the training data."""

import math

import numpy as np
import pytest
import torch

import mvkit
from mvkit import Modality, Model
from mvkit.parts.networks import MLP
from mvkit.training.starts import look_at_first_rows

OBJECTIVES = {"poe": "elbo", "moe": "elbo", "mopoe": "elbo", "joint": "jmvae"}


def offset_rows(n=240, features=40, seed=0):
    """Three tables whose values lie around 0.5 with a spread of 0.1, of four common factors."""
    generator = np.random.default_rng(seed)
    z = generator.normal(size=(n, 4))
    data = {}
    for name in "abc":
        signal = z @ generator.normal(size=(4, features)) / 2
        noise = generator.normal(size=(n, features))
        data[name] = (0.5 + 0.1 * (0.7 * signal + 0.7 * noise)).astype(np.float32)
    return data


def started(modalities, data, **options):
    model = Model(modalities, seed=0, **options)
    look_at_first_rows(model, mvkit.Pipeline(mvkit.Batch(data), schema=model.schema))
    return model


def trained_scale(shape, **options):
    return Modality(shape, {"name": "normal", "scale": "trained"}, **options)


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
@pytest.mark.parametrize("indicator", [False, True])
@pytest.mark.parametrize("aggregator", ["poe", "joint"])
def test_encoders_see_standardised_values(shape, indicator, aggregator):
    modality = trained_scale(shape, encoder=MLP(hidden=(8,)), indicator=indicator)
    x = torch.randn(50, *shape, generator=torch.Generator().manual_seed(0)) * 3 + 70
    x[:, 0] *= 20
    options = {"latent_dim": 2, "aggregator": aggregator, "objective": OBJECTIVES[aggregator]}
    fresh = Model({"a": modality}, seed=0, **options)
    placed = started({"a": modality}, {"a": x}, **options)
    standardised = (x - x.mean(0)) / x.std(0, correction=0)
    expected = fresh.posterior({"a": standardised}).loc
    torch.testing.assert_close(placed.posterior({"a": x}).loc, expected, atol=2e-3, rtol=1e-3)


def test_decoders_start_around_the_means():
    x = torch.randn(50, 6) * 3 + torch.arange(6) * 50
    fresh = Model({"a": trained_scale((6,))}, latent_dim=2, seed=0)
    model = started({"a": trained_scale((6,))}, {"a": x}, latent_dim=2)
    z = torch.randn(4, 2)
    shift = model.decode(z)["a"] - fresh.decode(z)["a"]
    torch.testing.assert_close(shift, x.mean(0).expand(4, 6), atol=1e-4, rtol=1e-4)
    scale = model.decoders["a"].likelihood.scale()
    torch.testing.assert_close(scale, (x - x.mean(0)).square().mean().sqrt())


def test_values_that_are_missing_do_not_count():
    x = torch.randn(60, 4) + 9
    gaps = x.clone()
    gaps[::2, 1] = math.nan
    gaps[:, 3] = math.nan
    model = started({"a": trained_scale((4,)), "b": (2,)}, {"a": gaps, "b": x[:, :2]})
    fresh = Model({"a": trained_scale((4,)), "b": (2,)}, seed=0)
    layer, untouched = model.encoders["a"][0], fresh.encoders["a"][0]
    spread = untouched.weight / layer.weight
    torch.testing.assert_close(spread[0, 1], x[1::2, 1].std(correction=0), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(layer.weight).all()
    assert torch.isfinite(layer.bias).all()
    shift = model.decoders["a"].network[-1].bias - fresh.decoders["a"].network[-1].bias
    torch.testing.assert_close(shift[1], x[1::2, 1].mean(), rtol=1e-4, atol=1e-4)
    assert shift[3] == 0


def test_what_was_trained_stays_and_fixed_scales_change_no_bit():
    x = torch.randn(50, 6) * 3 + 70
    model = started({"a": trained_scale((6,))}, {"a": x}, latent_dim=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    look_at_first_rows(model, mvkit.Pipeline(mvkit.Batch({"a": x + 5}), schema=model.schema))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    fixed = started({"a": (6,)}, {"a": x}, latent_dim=2)
    fresh = Model({"a": (6,)}, latent_dim=2, seed=0)
    assert all(map(torch.equal, fixed.state_dict().values(), fresh.state_dict().values()))


def test_networks_of_users_stay_as_they_are():
    encoder = torch.nn.Sequential(torch.nn.Linear(6, 4))
    before = encoder[0].weight.clone()
    started(
        {"a": trained_scale((6,), encoder=encoder)}, {"a": torch.randn(50, 6) + 70}, latent_dim=2
    )
    assert torch.equal(encoder[0].weight, before)


@pytest.mark.parametrize("aggregator", ["poe", "moe", "mopoe", "joint"])
def test_tables_far_from_zero_are_learnt_at_the_defaults(aggregator):
    data = offset_rows()
    modalities = {name: trained_scale((40,)) for name in data}
    model = Model(modalities, aggregator=aggregator, objective=OBJECTIVES[aggregator], seed=0)
    mvkit.fit(model, data, epochs=20, progress=False)
    assert model.encode(data).std(0).max() > 0.5


def test_values_that_are_all_the_same_leave_weights_finite():
    modality = Modality((4,), {"name": "normal", "scale": "trained", "by": "feature"})
    model = started({"a": modality}, {"a": torch.full((20, 4), 7.0)}, latent_dim=2)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
