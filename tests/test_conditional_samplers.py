"""Samplers that know a condition: the mixture of normals, on data whose posterior is known.

Axes: n draws, b rows, m modalities, d latent.
"""

import itertools

import pytest
import torch
from torch import nn

import mvkit
from mvkit import Batch, Modality, Model
from mvkit.parts import GMM

NAMES = ("a", "b", "c")
SUBSETS = [
    subset for size in range(len(NAMES) + 1) for subset in itertools.combinations(NAMES, size)
]
LATENT = 2
NOISE = {"a": 0.9, "b": 1.3, "c": 0.7}
LOADINGS = {  # with orthogonal columns, so that posteriors are diagonal
    "a": torch.tensor([[1.0, 0.5], [1.0, -0.5], [0.5, 0.0]], dtype=torch.float64),
    "b": torch.tensor([[0.8, 0.6], [-0.6, 0.8]], dtype=torch.float64),
    "c": torch.tensor([[0.0, 1.0], [0.7, 0.0]], dtype=torch.float64),
}


def precision(name):
    """What a modality adds to the posterior's precision, (d,)."""
    return LOADINGS[name].square().sum(0) / NOISE[name] ** 2


class Exact(nn.Module):
    """The exact expert of a modality: least squares, and the log of its variance."""

    def __init__(self, name):
        super().__init__()
        solve = torch.linalg.pinv(LOADINGS[name])
        self.register_buffer("solve", solve)
        self.register_buffer("raw", -precision(name).log())

    def forward(self, x):
        return torch.cat([x @ self.solve.T.to(x), self.raw.to(x).expand(len(x), -1)], -1)


class Latent(nn.Module):
    """A decoder that shows the latent as it is."""

    def forward(self, z):
        return z


def linear_gaussian(aggregator="poe"):
    """A model whose posteriors are exact; what it generates of c is z itself."""
    modalities = {}
    for name, loading in LOADINGS.items():
        decoder = Latent() if name == "c" else nn.Linear(LATENT, len(loading))
        modalities[name] = Modality((len(loading),), encoder=Exact(name), decoder=decoder)
    model = Model(modalities, latent_dim=LATENT, aggregator=aggregator, seed=0).double().eval()
    return model.requires_grad_(False)


def drawn_rows(b, seed, missing=True):
    """Rows of the linear-Gaussian model, with every pattern of gaps in turn, or complete."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(b, LATENT, generator=generator, dtype=torch.float64)
    data = {}
    for name, loading in LOADINGS.items():
        eps = torch.randn(b, len(loading), generator=generator, dtype=torch.float64)
        data[name] = z @ loading.T + NOISE[name] * eps
    patterns = [[name in subset for name in NAMES] for subset in SUBSETS[1:]]
    mask = torch.tensor([patterns[i % len(patterns)] if missing else [True] * 3 for i in range(b)])
    return Batch(data, mask)


def closed_form(batch, subset):
    """Mean (b, d) and standard deviation (d,) of p(z|x_subset)."""
    total = torch.ones(LATENT, dtype=torch.float64)
    weighted = torch.zeros(len(batch), LATENT, dtype=torch.float64)
    for name in subset:
        total = total + precision(name)
        weighted = weighted + batch.data[name] @ LOADINGS[name] / NOISE[name] ** 2
    return weighted / total, total.rsqrt()


@pytest.fixture(scope="module")
def fitted():
    """The model with a conditional mixture of one component, fitted to rows with gaps."""
    model = linear_gaussian()
    spec = GMM(components=1, conditional=True)
    mvkit.fit_sampler(model, drawn_rows(60_000, seed=1), spec, seed=0)
    return model


@pytest.mark.parametrize("subset", SUBSETS[1:], ids="+".join)
def test_the_posteriors_of_the_model_are_exact(subset):
    batch = drawn_rows(5, seed=0, missing=False)
    posterior = linear_gaussian().posterior(batch, subset)
    mean, sd = closed_form(batch, subset)
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(posterior.scale[0], sd.expand(5, -1), rtol=1e-9, atol=1e-9)


def latents(model, batch, given, n=1, latent="draw"):
    """Draws (n, b, d) of the sampler, or its means."""
    generator = torch.Generator().manual_seed(0)
    return model.translate(
        batch, "c", given, n, latent=latent, sampler="gmm", generator=generator
    )["c"]


@pytest.mark.parametrize("subset", SUBSETS, ids=lambda s: "+".join(s) or "nothing")
def test_draws_are_those_of_the_closed_form_posterior(fitted, subset):
    """Means and covariances within three standard errors, for every subset."""
    batch = drawn_rows(6, seed=2, missing=False)
    n = 4000
    z = latents(fitted, batch, subset, n)
    mean, sd = closed_form(batch, subset)
    off = (z.mean(0) - mean) / (sd / n**0.5)
    assert off.abs().max() < 3
    standard = (z - mean) / sd
    covariance = torch.einsum("nbi,nbj->bij", standard, standard) / n
    error = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64).sqrt() / n**0.5
    assert ((covariance - torch.eye(LATENT)) / error).abs().max() < 3


@pytest.mark.parametrize("subset", SUBSETS, ids=lambda s: "+".join(s) or "nothing")
def test_means_are_those_of_the_closed_form_posterior(fitted, subset):
    batch = drawn_rows(500, seed=3, missing=False)
    means = latents(fitted, batch, subset, latent="mean")[0]
    mean, sd = closed_form(batch, subset)
    # regressions on at most 60,000 * 4/7 rows: three standard errors of their coefficients
    error = sd / (60_000 * 4 / 7) ** 0.5
    size = (1 + sum(len(LOADINGS[name]) for name in subset)) ** 0.5
    assert ((means - mean).square().mean(0).sqrt() / (error * size)).max() < 3
