"""The one latent distribution: densities, draws and divergences against torch's own and against
sampling.
"""

import math

import pytest
import torch
from torch.distributions import (
    Categorical,
    Independent,
    Laplace,
    MixtureSameFamily,
    Normal,
    kl_divergence,
)

from mvkit.core.mixture import Mixture, equal_weights
from mvkit.parts import families

FAMILIES = {
    "normal": (families.Normal(), Normal),
    "normal_softplus": (families.NormalSoftplus(), Normal),
    "laplace_softmax": (families.LaplaceSoftmax(), Laplace),
}


def mixture(family, k=3, b=4, d=2, **options):
    torch.manual_seed(0)
    loc, scale = torch.randn(k, b, d).double(), torch.rand(k, b, d).double() + 0.2
    weight = torch.log_softmax(torch.randn(k, b).double(), 0)
    return Mixture(family, loc, scale, weight, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_density_is_torchs(name):
    family, theirs = FAMILIES[name]
    q = mixture(family)
    components = Independent(theirs(q.loc.transpose(0, 1), q.scale.transpose(0, 1)), 1)
    oracle = MixtureSameFamily(Categorical(logits=q.log_weight.T), components)
    z = torch.randn(5, 7, 4, 2).double()
    torch.testing.assert_close(q.log_prob(z), oracle.log_prob(z))
    torch.testing.assert_close(q.mean, oracle.mean)


def test_density_in_blocks_is_the_same(monkeypatch):
    q = mixture(families.Normal())
    z = torch.randn(50, 4, 2).double()
    leaves = [t.requires_grad_() for t in (q.loc, q.scale, q.log_weight)]
    whole = q.log_prob(z)
    gradients = torch.autograd.grad(whole.sum(), leaves)
    monkeypatch.setattr("mvkit.core.mixture.DENSITIES", 400)
    pieces = q.log_prob(z)
    torch.testing.assert_close(pieces, whole)
    for first, other in zip(torch.autograd.grad(pieces.sum(), leaves), gradients, strict=True):
        torch.testing.assert_close(first, other)


@pytest.mark.parametrize("name", FAMILIES)
def test_closed_form_kl_is_torchs_and_sampling_agrees(name):
    family, theirs = FAMILIES[name]
    q, p = mixture(family), mixture(family, k=1, b=1)
    kl = q.kl(p)
    oracle = kl_divergence(theirs(q.loc, q.scale), theirs(p.loc, p.scale)).sum(-1)
    torch.testing.assert_close(kl, oracle)
    draws = q.draw(200_000, "stratified")
    values = draws.log_qk - p.log_prob(draws.z)
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - kl).abs() < 4 * error).all()


def test_kl_between_other_densities_has_no_closed_form():
    assert mixture(families.Normal()).kl(mixture(families.LaplaceSoftmax(), k=1, b=1)) is None
    assert mixture(families.Normal()).kl(mixture(families.Normal(), b=1)) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_noise_has_its_density(name):
    family, theirs = FAMILIES[name]
    eps = family.noise((100_000,), dtype=torch.float64, device=torch.device("cpu"), generator=None)
    oracle = theirs(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    torch.testing.assert_close(family.log_density(eps), oracle.log_prob(eps))
    for q in (0.1, 0.5, 0.9):
        assert abs((oracle.cdf(eps) < q).double().mean() - q) < 0.006


def test_scales():
    raw = torch.tensor([[-40.0, 0.0, 40.0, 1.0]])
    normal, softplus, softmax = (FAMILIES[name][0].scale(raw) for name in FAMILIES)
    assert torch.allclose(normal, torch.exp(raw.clamp(-15, 15) / 2))
    assert torch.allclose(softplus, torch.nn.functional.softplus(raw.clamp(-15, 15)) + 1e-6)
    assert math.isclose(softmax.sum().item(), 4, rel_tol=1e-4)


@pytest.mark.parametrize("how", ["stratified", "iid", "balanced"])
def test_draws_have_the_mixtures_mean(how):
    q = mixture(families.Normal(), b=1)
    q = Mixture(
        q.family, *(t.expand(-1, 400, *t.shape[2:]) for t in (q.loc, q.scale, q.log_weight))
    )
    draws = q.draw(200, how)
    weight = draws.log_pi.exp().unsqueeze(-1)
    mean = (draws.z.mean(0) * weight).sum(0).mean(0)
    torch.testing.assert_close(mean, q.mean[0], rtol=0, atol=0.15 if how == "balanced" else 0.02)


def test_balanced_draws_spread_components_evenly():
    usable = torch.ones(4, 128, dtype=torch.bool)
    loc = torch.zeros(4, 128, 1)
    q = Mixture(families.Normal(), loc, torch.ones_like(loc), equal_weights(usable, loc))
    component = q.draw(3, "balanced").component
    assert component.shape == (1, 1, 128)
    assert torch.bincount(component.flatten()).tolist() == [32] * 4
    assert (component.flatten().diff() != 0).float().mean() > 0.5  # in random order


def test_components_that_a_row_cannot_use_are_never_drawn():
    usable = torch.tensor([[False, True], [True, False], [False, True], [False, False]])
    loc = torch.arange(4.0).reshape(4, 1, 1).expand(4, 2, 1)
    q = Mixture(families.Normal(), loc, torch.full_like(loc, 1e-3), equal_weights(usable, loc))
    for how in ("iid", "balanced"):
        component = q.draw(500, how).component
        assert set(component[..., 0].flatten().tolist()) == {1}
        assert set(component[..., 1].flatten().tolist()) <= {0, 2}


def test_a_row_without_components_stays_finite():
    usable = torch.tensor([[False, True], [False, True]])
    weights = equal_weights(usable, torch.zeros(()))
    torch.testing.assert_close(weights.exp().sum(0), torch.ones(2))


def test_where_takes_the_other_mixture_in_the_other_rows():
    q, p = mixture(families.Normal()), mixture(families.Normal(), k=1, b=1)
    rows = torch.tensor([True, False, True, False])
    z = torch.randn(3, 4, 2).double()
    joined = q.where(rows, p)
    torch.testing.assert_close(joined.log_prob(z), torch.where(rows, q.log_prob(z), p.log_prob(z)))


def test_generator_decides():
    q = mixture(families.LaplaceSoftmax())
    first, second = (q.rsample(3, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("k", [1, 3])
def test_latents_of_one_row_are_scored_in_every_row(k):
    q = mixture(families.Normal(), k=k)
    z = torch.randn(5, 1, 2).double()
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.expand(5, 4, 2)))


def test_a_prior_stands_in_for_the_posterior_of_rows_that_observe_nothing():
    prior = mixture(families.Normal(), k=3, b=1, d=2)
    rows = prior.expand(5, 4)
    assert rows.evidence.shape == (3, 5, 4)
    assert not rows.evidence.any()
    z = torch.randn(6, 1, 2, dtype=torch.float64)
    torch.testing.assert_close(rows.log_prob(z.expand(6, 5, 2)), prior.log_prob(z).expand(6, 5))
    torch.testing.assert_close(rows.mean, prior.mean.expand(5, 2))


@pytest.mark.parametrize("other_rows", [1, 4])
def test_some_rows_of_a_mixture_and_the_rest_of_another(other_rows):
    first = mixture(families.Normal(), k=2, b=4, d=3)
    second = mixture(families.Normal(), k=3, b=other_rows, d=3)
    rows = torch.tensor([True, False, True, False])
    both = first.where(rows, second)
    z = torch.randn(5, 4, 3, dtype=torch.float64)
    expected = torch.where(rows, first.log_prob(z), second.log_prob(z))
    torch.testing.assert_close(both.log_prob(z), expected)
    assert both.components == 5
    assert both.mean.shape == (4, 3)


def test_draws_of_a_prior_are_of_the_components_that_they_name():
    prior = Mixture(
        families.Normal(),
        torch.tensor([[[0.0, 100.0, 200.0]], [[300.0, 400.0, 500.0]]]).double(),
        torch.full((2, 1, 3), 1e-3).double(),
        torch.log(torch.tensor([[0.25], [0.75]]).double()),
    )
    z, component = prior.sample(4000, generator=torch.Generator().manual_seed(0))
    assert z.shape == (4000, 3)
    torch.testing.assert_close(z, prior.loc[component, 0], atol=0.01, rtol=0)
    assert component.double().mean().item() == pytest.approx(0.75, abs=0.03)


def test_equal_weights_leave_the_first_component_where_none_is_usable():
    usable = torch.tensor([[True, False, False], [True, True, False], [False, True, False]])
    weights = equal_weights(usable, torch.zeros((), dtype=torch.float64)).exp()
    right = torch.tensor([[0.5, 0.0, 1.0], [0.5, 0.5, 0.0], [0.0, 0.5, 0.0]]).double()
    torch.testing.assert_close(weights, right)
