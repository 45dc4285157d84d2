"""Mixtures of many normal components as quadratic forms, against loops over torch's densities."""

import itertools
import math

import pytest
import torch
from torch.distributions import Normal

from mvkit.core.mixture import Mixture, equal_weights
from mvkit.core.product_of_experts import Factors
from mvkit.parts import families

B, D = 5, 4


class Experts:
    """Normal experts of which some disagree by many standard deviations."""

    def __init__(self, m, apart=1.0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(m)
        loc = apart * torch.randn(m, B, D, generator=generator, dtype=torch.float64)
        scale = torch.rand(m, B, D, generator=generator, dtype=torch.float64) + 0.1
        self.loc, self.scale = loc.to(dtype).requires_grad_(), scale.to(dtype).requires_grad_()
        self.mask = torch.rand(B, m, generator=generator) < 0.8
        self.mask[0] = True  # one row has all, another has nothing
        self.mask[1] = False


def subsets(m):
    return torch.tensor(list(itertools.product((False, True), repeat=m))[1:])


def products(experts, kind="alike", prior=1.0):
    """The mixture of all products, of members for all rows alike or by row."""
    mask = experts.mask
    members = subsets(mask.shape[1])
    usable = ~(members[:, None] & ~mask).any(-1)
    if kind == "by row":
        members = members[:, None] & mask
    factors = Factors.of(experts, mask, members, usable, prior)
    log_weight = equal_weights(usable, experts.loc)
    return Mixture(families.Normal(), None, None, log_weight, factors=factors)


def by_loop(mixture, z):
    """The mixture's log-density at (..., b, d), one component after the other."""
    densities = []
    for loc, scale, log_weight in zip(mixture.loc, mixture.scale, mixture.log_weight, strict=True):
        densities.append(Normal(loc, scale).log_prob(z).sum(-1) + log_weight)
    return torch.logsumexp(torch.stack(densities), 0)


def latents(n, dtype=torch.float64, spread=2.0):
    generator = torch.Generator().manual_seed(9)
    return (spread * torch.randn(n, B, D, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("kind", ["alike", "by row"])
@pytest.mark.parametrize("prior", [0.0, 1.0])
@pytest.mark.parametrize("m", [2, 4, 8])
def test_products_have_the_density_of_a_loop_over_them(m, prior, kind):
    mixture = products(Experts(m), kind, prior)
    z = latents(9)
    expected = by_loop(mixture, z)
    assert (mixture.log_prob(z) - expected).abs().max() < 1e-10
    with torch.no_grad():
        kept = mixture.log_prob(z)
        again = mixture.log_prob(z)
    assert (kept - expected).abs().max() < 1e-10
    assert torch.equal(kept, again)
    assert (mixture.stop_density().log_prob(z) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("kind", ["alike", "by row"])
def test_products_have_the_gradients_of_a_loop_over_them(kind):
    experts = Experts(4)
    mixture = products(experts, kind)
    z = latents(9).requires_grad_()
    leaves = [z, experts.loc, experts.scale]
    factors = torch.randn(9, B, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ours = torch.autograd.grad((mixture.log_prob(z) * factors).sum(), leaves, retain_graph=True)
    loop = torch.autograd.grad((by_loop(mixture, z) * factors).sum(), leaves, retain_graph=True)
    for gradient, expected in zip(ours, loop, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


def test_products_in_blocks_of_subsets_are_the_same(monkeypatch):
    experts = Experts(4)
    leaves = [experts.loc, experts.scale]
    z = latents(8)
    whole = products(experts).log_prob(z)
    expected = torch.autograd.grad(whole.sum(), leaves, retain_graph=True)
    monkeypatch.setattr("mvkit.core.product_of_experts.PRODUCTS", 300)
    pieces = products(experts).log_prob(z)
    torch.testing.assert_close(pieces, whole)
    for gradient, other in zip(torch.autograd.grad(pieces.sum(), leaves), expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_stopped_products_leave_gradients_to_the_latents_alone():
    experts = Experts(4)
    z = latents(8).requires_grad_()
    stopped = products(experts).stop_density().log_prob(z)
    of_z, of_loc = torch.autograd.grad(stopped.sum(), [z, experts.loc], allow_unused=True)
    expected = torch.autograd.grad(by_loop(products(experts), z).sum(), z)
    torch.testing.assert_close(of_z, *expected)
    assert of_loc is None


@pytest.mark.parametrize("apart", [1.0, 30.0, 1000.0])
def test_float32_is_as_good_as_its_inputs(apart):
    """Experts that lie up to 10,000 standard deviations from one another: differences of squares
    of 1e8 would leave nothing of a nat in float32.
    """
    experts = Experts(6, apart, torch.float32)
    mixture = products(experts)
    wide = Factors(*(getattr(mixture.factors, name).double() for name in FIELDS))
    exact = Mixture(families.Normal(), None, None, mixture.log_weight.double(), factors=wide)
    component = torch.arange(40).reshape(40, 1, 1).expand(40, B, 1) % 63
    loc, scale = mixture.factors.pick(component)
    z = (loc + scale * latents(40, torch.float32, 1.0)).detach()
    expected = by_loop(exact, z.double())
    error = (mixture.log_prob(z).double() - expected).abs() / (1 + expected.abs())
    assert error.max() < 1e-6


FIELDS = ("precision", "weighted", "members", "guard")


@pytest.mark.parametrize("rows", ["own", "one of components", "one of latents"])
def test_components_of_any_origin_and_rows_that_serve_all(rows):
    generator = torch.Generator().manual_seed(1)
    own = 1 if rows == "one of components" else B
    loc = torch.randn(60, own, D, generator=generator, dtype=torch.float64)
    scale = torch.rand(60, own, D, generator=generator, dtype=torch.float64) + 0.01
    log_weight = torch.randn(60, own, generator=generator, dtype=torch.float64).log_softmax(0)
    mixture = Mixture(families.Normal(), loc, scale, log_weight)
    z = latents(8)[:, :1] if rows == "one of latents" else latents(8)
    torch.testing.assert_close(mixture.log_prob(z), by_loop(mixture, z), rtol=1e-12, atol=1e-10)
    nested = torch.stack([z, -z])
    torch.testing.assert_close(mixture.log_prob(nested)[0], mixture.log_prob(z))
    assert mixture.log_prob(z[:0]).shape == (0, B)


def test_components_without_weight_do_not_count():
    loc = torch.arange(9.0).reshape(9, 1, 1).double()
    log_weight = torch.full((9, 1), -math.inf).double()
    log_weight[0] = 0.0
    mixture = Mixture(families.Normal(), loc, torch.ones_like(loc), log_weight)
    z = torch.linspace(-50, 50, 8).reshape(8, 1, 1).double()
    torch.testing.assert_close(mixture.log_prob(z), Normal(0.0, 1.0).log_prob(z).squeeze(-1))
    nothing = Mixture(families.Normal(), loc, torch.ones_like(loc), log_weight - math.inf)
    assert (nothing.log_prob(z) == -math.inf).all()
