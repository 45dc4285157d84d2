"""The samplers of latents where p(z, w | subset) is known: linear-Gaussian models, normal latents.

Axes: n draws, b rows, d latent, f features: z, private latents, then codes.
"""

import itertools

import pytest
import torch
from torch import nn

import mvkit
from mvkit import Batch, Modality, Model
from mvkit.core.noise import global_seed, seeded
from mvkit.parts.conditional_samplers import Code, Condition, FittingRows, SamplerSizes
from mvkit.parts.families import Normal
from mvkit.registry.spec import as_part

FIT = {"steps": 4000, "batch": 512, "width": 96, "layers": 2, "lr": 3e-3}
EACH = pytest.mark.parametrize("name", ["latent_flow", "latent_diffusion"])
NAMES = ("a", "b", "c")
SUBSETS = [s for size in range(4) for s in itertools.combinations(NAMES, size)]
N = 400  # draws per row, whose standard errors bound the errors of a fit


def check_draws(z, mean, covariance):
    """Means and covariances of draws (n, b, t) are within three standard errors of the right ones.

    Each within four, as there are many; and the sum of their squares, over standard errors, within
    three standard deviations of what exact draws have.

    Args:
        z: the draws.
        mean: (b, t).
        covariance: (t, t).
    """
    n = len(z)
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, (z - mean).mT, upper=False).mT
    t = white.shape[-1]
    off = white.mean(0) * n**0.5
    products = torch.einsum("nbi,nbj->bij", white, white) / n - torch.eye(t)
    below = torch.ones(t, t).tril().bool()
    error = ((1 + torch.eye(t)) / n).sqrt()
    scores = torch.cat([off.flatten(), (products / error)[:, below].flatten()])
    assert scores.abs().max() < 4
    k = len(scores)
    assert (scores.square().sum() - k) / (2 * k) ** 0.5 < 3


SIZES = SamplerSizes(2, NAMES, {"a": 1, "c": 2})
PLACES = {"a": slice(2, 3), "c": slice(3, 5)}
CODES = {"a": slice(5, 7), "b": slice(7, 9), "c": slice(9, 11)}


def random_normal():
    """Mean (f,) and covariance (f, f) with correlations between all features."""
    generator = seeded(5)
    factor = torch.randn(11, 11, generator=generator, dtype=torch.float64)
    covariance = factor @ factor.T / 11 + 0.3 * torch.eye(11)
    return torch.randn(11, generator=generator, dtype=torch.float64), covariance


def drawn_features(b, seed):
    mean, covariance = random_normal()
    eps = torch.randn(b, 11, generator=seeded(seed), dtype=torch.float64)
    return mean + eps @ torch.linalg.cholesky(covariance).T


def condition_at(values, observed):
    """Codes and private posteriors at features (b, f), which tell them all but exactly."""
    kinds = []
    for places in (CODES, PLACES):
        codes = {}
        for name, place in places.items():
            loc = values[:, place]
            codes[name] = Code(loc, torch.full_like(loc, 1e-9))
        kinds.append(codes)
    every = torch.ones_like(observed)
    return Condition(SIZES, every, *kinds, Normal()).keep(observed)


def flags(*subsets):
    return torch.tensor([[name in subset for name in NAMES] for subset in subsets])


@pytest.fixture(scope="module", params=["latent_flow", "latent_diffusion"])
def fitted(request):
    """A sampler that was fitted to normal latents and codes, of rows of which a third have gaps."""
    values = drawn_features(30_000, 1)
    gaps = [SUBSETS[-1]] * 14 + SUBSETS[:-1]
    observed = flags(*gaps).repeat(30_000 // len(gaps) + 1, 1)[:30_000]
    with global_seed(0):
        live = as_part("sampler", {"name": request.param, **FIT}).build(2, SIZES)
    values = values.float()
    private = {name: values[:, place] for name, place in PLACES.items()}
    live.fit(FittingRows(values[:, :2], private, condition_at(values, observed)), 0)
    return live


def conditional(subset, x):
    """Wanted latents, and their means (b, t) and covariance (t, t) given what a subset tells."""
    mean, covariance = random_normal()
    known = []
    for places in (PLACES, CODES):
        for name in subset:
            if name in places:
                known += range(places[name].start, places[name].stop)
    wanted = [i for i in range(5) if i not in known]
    across = covariance[wanted][:, known]
    gain = across @ torch.linalg.inv(covariance[known][:, known])
    means = mean[wanted] + (x[:, known] - mean[known]) @ gain.T
    return wanted, means, covariance[wanted][:, wanted] - gain @ across.T


@pytest.mark.slow
@pytest.mark.parametrize("subset", SUBSETS, ids=lambda s: "+".join(s) or "nothing")
def test_latents_are_drawn_together_given_every_subset(fitted, subset):
    """By Schur complements of the joint covariance of z, private latents and codes."""
    x = drawn_features(6, 2)
    wanted, mean, covariance = conditional(subset, x)
    condition = condition_at(x.float(), flags(*[subset] * 6))
    z, private = fitted.sample(condition, N, seeded(3))
    latents = torch.cat([z, private["a"], private["c"]], -1).double()
    check_draws(latents[..., wanted], mean, covariance)
    z, private = fitted.mean(condition, seeded(3))
    means = torch.cat([z, private["a"], private["c"]], -1).double()[:, wanted]
    assert ((means - mean) / covariance.diagonal().sqrt()).abs().max() < 4 / N**0.5


NOISE = {"a": 0.9, "b": 1.3, "c": 0.7}
LOADINGS = {  # with orthogonal columns, so that posteriors are diagonal
    "a": torch.tensor([[1.0, 0.5], [1.0, -0.5], [0.5, 0.0]]),
    "b": torch.tensor([[0.8, 0.6], [-0.6, 0.8]]),
    "c": torch.tensor([[0.0, 1.0], [0.7, 0.0]]),
}


def precision(name):
    """What a modality adds to the posterior's precision, (d,)."""
    return LOADINGS[name].square().sum(0) / NOISE[name] ** 2


class Exact(nn.Module):
    """The exact expert of a modality: least squares, and the log of its variance."""

    def __init__(self, name):
        super().__init__()
        self.register_buffer("solve", torch.linalg.pinv(LOADINGS[name]))
        self.register_buffer("raw", -precision(name).log())

    def forward(self, x):
        return torch.cat([x @ self.solve.T, self.raw.expand(len(x), -1)], -1)


class Latent(nn.Module):
    """A decoder that shows the latent as it is."""

    def forward(self, z):
        return z


def linear_gaussian():
    """A model whose posteriors are exact; what it generates of c is z itself."""
    modalities = {}
    for name, loading in LOADINGS.items():
        decoder = Latent() if name == "c" else nn.Linear(2, len(loading))
        modalities[name] = Modality((len(loading),), encoder=Exact(name), decoder=decoder)
    return Model(modalities, latent_dim=2, aggregator="poe", seed=0).eval().requires_grad_(False)


def drawn_rows(b, seed, gaps):
    """Rows of the linear-Gaussian model, with every pattern of gaps in turn, or complete."""
    generator = seeded(seed)
    z = torch.randn(b, 2, generator=generator)
    data = {}
    for name, loading in LOADINGS.items():
        data[name] = z @ loading.T + NOISE[name] * torch.randn(
            b, len(loading), generator=generator
        )
    if not gaps:
        return Batch(data)
    return Batch(data, flags(*SUBSETS[1:]).repeat(b // 7 + 1, 1)[:b])


@pytest.mark.slow
@EACH
def test_draws_of_a_linear_gaussian_model_are_those_of_its_posteriors(name):
    """Fitted to rows with every pattern of gaps: a row with less is told less, yet z is right."""
    model = linear_gaussian()
    mvkit.fit_sampler(model, drawn_rows(30_000, 1, gaps=True), {"name": name, **FIT}, seed=0)
    batch = drawn_rows(6, 2, gaps=False)
    for subset in SUBSETS:
        total = torch.ones(2)
        weighted = torch.zeros(6, 2)
        for each in subset:
            total = total + precision(each)
            weighted = weighted + batch.data[each] @ LOADINGS[each] / NOISE[each] ** 2
        options = {"sampler": name, "generator": seeded(0)}
        z = model.translate(batch, "c", subset, N, **options)["c"]
        check_draws(z.double(), (weighted / total).double(), total.reciprocal().diag().double())
