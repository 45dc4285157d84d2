"""Means without background: what `translate` and `decode` return with `background=False`."""

import pytest
import torch

import mvkit
from mvkit import Batch, Covariate, Modality, Model, RequestError
from mvkit.core import Context

SITES = ("A", "B")


def model_of(**options):
    proteins = {"name": "foreground_background", "by": "feature_and_level", "level": "site"}
    modalities = {
        "proteins": Modality((3,), proteins, decoder="linear"),
        "x": Modality((2,), decoder="linear"),
    }
    model = Model(
        modalities, latent_dim=2, covariates={"site": Covariate(SITES)}, seed=0, **options
    ).double()
    likelihood = model.decoders["proteins"].likelihood
    with torch.no_grad():
        likelihood.background.copy_(torch.tensor([[0.1, 1.0, 2.0], [0.7, -1.0, 0.3]]))
    return model


def rows():
    generator = torch.Generator().manual_seed(0)
    data = {
        "proteins": torch.poisson(torch.full((6, 3), 4.0), generator=generator).double(),
        "x": torch.randn(6, 2, generator=generator).double(),
    }
    return Batch(data, covariates={"site": ["A", "B", "A", "B", "B", "A"]})


def expected(model, z, sites):
    """(1 - π) (1 + exp(a)) μ_b, row by row, from the linear decoder's weights."""
    outputs = model.decoders["proteins"](z, context_of(model, sites))
    foreground = torch.empty(len(z), 3, dtype=torch.float64)
    for i, site in enumerate(sites):
        background = model.decoders["proteins"].likelihood.background[SITES.index(site)].exp()
        for f in range(3):
            logit, a = outputs[i, f].tolist()
            share = 1 / (1 + torch.exp(torch.tensor(-logit, dtype=torch.float64)))
            above = (1 + torch.exp(torch.tensor(a, dtype=torch.float64))) * background[f]
            foreground[i, f] = (1 - share) * above
    return foreground


def context_of(model, sites):
    ones = torch.zeros(len(sites), 2, dtype=torch.float64)
    for i, site in enumerate(sites):
        ones[i, SITES.index(site)] = 1.0
    return ones


@torch.no_grad()
def test_translate_returns_the_foreground_alone():
    model = model_of()
    batch = rows()
    z = model.encode(batch)
    foreground = model.translate(batch, "proteins", latent="mean", background=False)["proteins"][0]
    own = expected(model, z, batch.extra["site"])
    assert (foreground - own).abs().max() < 1e-12
    other = model.translate(
        batch, "proteins", latent="mean", background=False, covariates={"site": "B"}
    )["proteins"][0]
    assert (other - expected(model, z, ["B"] * 6)).abs().max() < 1e-12
    whole = model.translate(batch, "proteins", latent="mean")["proteins"][0]
    assert (whole > foreground).all()


@torch.no_grad()
def test_decode_returns_the_foreground_alone():
    model = model_of()
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(1)).double()
    values = model.decode(z, covariates={"site": "A"}, background=False)
    assert (values["proteins"] - expected(model, z, ["A"] * 4)).abs().max() < 1e-12


def test_a_likelihood_without_background_has_its_mean():
    model = model_of()
    batch = rows()
    kept = model.translate(batch, "x", latent="mean")["x"]
    assert torch.equal(model.translate(batch, "x", latent="mean", background=False)["x"], kept)


def test_a_likelihood_of_an_earlier_version_has_its_mean():
    class Old(mvkit.Likelihood):
        def log_prob(self, out, x, context):
            return out

        def mean(self, out):
            return out + 1

        def sample(self, out, generator=None):
            return out

    assert Old().foreground(torch.zeros(2), Context()).tolist() == [1.0, 1.0]


def test_draws_hold_the_background():
    message = (
        "translate: background=False with draws of the likelihood, which hold it; expected means; "
        "leave sample=True out"
    )
    with pytest.raises(RequestError) as error:
        model_of().translate(rows(), "proteins", sample=True, background=False)
    assert str(error.value) == message


@torch.no_grad()
def test_two_levels_pass_it_on():
    proteins = Modality((3,), "foreground_background", private_dim=2, decoder="linear")
    bottom = Model({"proteins": proteins}, latent_dim=0, seed=0)
    top = Model({"proteins": (2,)}, latent_dim=1, seed=0)
    stack = mvkit.Stack([bottom, top]).double()
    z = torch.randn(4, 1, generator=torch.Generator().manual_seed(1)).double()
    w = top.decode(z)["proteins"]
    foreground = stack.decode(z, background=False)["proteins"]
    assert torch.equal(
        foreground, bottom.decode(z.new_zeros(4, 0), {"proteins": w}, background=False)["proteins"]
    )
    assert not torch.equal(foreground, stack.decode(z)["proteins"])
