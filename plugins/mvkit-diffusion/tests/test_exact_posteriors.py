"""The samplers of latents where p(z, w | subset) is known: normal latents and codes.

Axes: n draws, b rows, d latent, f features: z, private latents, then codes.
"""

import itertools

import attrs
import pytest
import torch

from mvkit.core.noise import global_seed, seeded
from mvkit.parts.conditional_samplers import Code, Condition, FittingRows, SamplerSizes
from mvkit.parts.families import Normal
from mvkit.registry.spec import as_part

FIT = {"steps": 2500, "batch": 2048, "width": 64, "layers": 2, "lr": 3e-3}
NAMES = ("a", "b", "c")
SUBSETS = [s for size in range(4) for s in itertools.combinations(NAMES, size)]
ROWS = 24
N = 1_600  # draws per row
OFF = 0.1  # errors of means, in standard deviations of the posterior
SPREAD = 0.05  # relative errors of standard deviations


def check_draws(z, mean, covariance):
    """Root mean squares over rows and latents of the errors of draws (n, b, t) are below 0.1
    standard deviations for means, and 5 % for standard deviations; 0.05 for correlations.

    A mean that is off by 0.1 costs 0.005 nats of KL(posterior ‖ draws) for each latent, a standard
    deviation that is 5 % off half of that: more is to be seen here, less is not. Draws alone have
    errors of 0.025, 0.018 and 0.025, so that a fit passes whose own are below 0.096, 0.046 and
    0.043.

    Args:
        z: the draws.
        mean: (b, t).
        covariance: (t, t).
    """
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, (z - mean).mT, upper=False).mT
    second = torch.einsum("nbi,nbj->bij", white, white) / len(z)
    off = white.mean(0)
    spreads = (second.diagonal(dim1=1, dim2=2) - off.square()).sqrt()
    apart = ~torch.eye(len(covariance)).bool()
    assert root_mean_square(off) < OFF, "means"
    assert root_mean_square(spreads - 1) < SPREAD, "spreads"
    assert root_mean_square(second[:, apart]) < SPREAD, "correlations"


def root_mean_square(values):
    return float(values.square().mean().sqrt()) if values.numel() else 0.0


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
    values = drawn_features(100_000, 1)
    gaps = [SUBSETS[-1]] * 14 + SUBSETS[:-1]
    observed = flags(*gaps).repeat(100_000 // len(gaps) + 1, 1)[:100_000]
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


def drawn_given(fitted, subset, x):
    """Draws (n, b, t) of the latents that a subset of the modalities leaves open."""
    wanted, mean, covariance = conditional(subset, x)
    condition = condition_at(x.float(), flags(*[subset] * ROWS))
    z, private = fitted.sample(condition, N, seeded(3))
    latents = torch.cat([z, private["a"], private["c"]], -1).double()
    return latents[..., wanted], mean, covariance


def test_exact_draws_pass_and_small_errors_do_not():
    """The control: what a perfect sampler draws, and one whose errors are half above the bounds,
    or twice for correlations.
    """
    for subset in SUBSETS:
        _, mean, covariance = conditional(subset, drawn_features(ROWS, 2))
        eps = torch.randn(N, *mean.shape, generator=seeded(1), dtype=torch.float64)
        factor = torch.linalg.cholesky(covariance)
        check_draws(mean + eps @ factor.T, mean, covariance)
        with pytest.raises(AssertionError, match="means"):
            check_draws(mean + (eps + 1.5 * OFF) @ factor.T, mean, covariance)
        with pytest.raises(AssertionError, match="spreads"):
            check_draws(mean + (1 - 1.5 * SPREAD) * eps @ factor.T, mean, covariance)
        mixed = eps + 2 * SPREAD * eps.roll(1, -1)
        with pytest.raises(AssertionError, match="correlations"):
            check_draws(mean + mixed / (1 + 4 * SPREAD**2) ** 0.5 @ factor.T, mean, covariance)


@pytest.mark.slow
@pytest.mark.parametrize("subset", SUBSETS, ids=lambda s: "+".join(s) or "nothing")
def test_latents_are_drawn_together_given_every_subset(fitted, subset):
    """By Schur complements of the joint covariance of z, private latents and codes."""
    x = drawn_features(ROWS, 2)
    check_draws(*drawn_given(fitted, subset, x))
    wanted, mean, covariance = conditional(subset, x)
    z, private = fitted.mean(condition_at(x.float(), flags(*[subset] * ROWS)), seeded(3))
    means = torch.cat([z, private["a"], private["c"]], -1).double()[:, wanted]
    assert root_mean_square((means - mean) / covariance.diagonal().sqrt()) < OFF


@pytest.mark.slow
def test_a_sampler_that_does_not_see_what_is_given_fails(fitted, monkeypatch):
    monkeypatch.setattr(fitted.features, "forward", lambda c: torch.zeros_like(c.features()))
    for subset in (("b",), NAMES):
        with pytest.raises(AssertionError, match="means"):
            check_draws(*drawn_given(fitted, subset, drawn_features(ROWS, 2)))


@pytest.mark.slow
def test_denoising_in_few_steps_fails_as_it_loses_spread(fitted, monkeypatch):
    if fitted.name != "latent_diffusion":
        pytest.skip("the flow has no such way")
    monkeypatch.setattr(fitted, "spec", attrs.evolve(fitted.spec, eta=1.0))
    with pytest.raises(AssertionError, match="spreads"):
        check_draws(*drawn_given(fitted, (), drawn_features(ROWS, 2)))
