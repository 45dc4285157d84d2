"""Checks of laws and bounds: for each a part that is wrong in this one thing, and that it alone catches."""

import math

import attrs
import pytest
import torch
from scipy import stats
from test_conformance import Density, broken, likelihood, objective
from torch import nn

import mvkit
from mvkit.parts import ELBO, Bernoulli, Categorical, Hazard, NormalFamily, Poisson
from mvkit.parts.likelihoods.hazard import HazardLikelihood
from mvkit.parts.likelihoods.ordinal import OrdinalLikelihood
from mvkit.parts.priors import DiagonalPrior
from mvkit.registry import declare
from mvkit.testing import (
    ConformanceError,
    check_component,
    conformance,
    density_checks,
    objective_checks,
    quadrature,
)


def prior(log_prob=None, sample=None):
    class Changed(Density):
        def sample(self, shape):
            draws = super().sample(shape)
            return draws if sample is None else sample(draws)

    class Live(DiagonalPrior):
        def forward(self, posterior=None, context=None):
            return Changed(super().forward(posterior, context), log_prob or (lambda p: p))

    return broken(object, build=lambda self, sizes: Live(sizes, learn_loc=True, learn_scale=False))


def live_of(base, *options, **methods):
    live = type("Live", (base,), methods)
    return broken(object, build=lambda self, sizes: live(*options))


class Counts(mvkit.Likelihood):
    """Poisson at log-rates."""

    integers = True
    off = 0.0

    def log_prob(self, out, x, context):
        return x * out - out.exp() - torch.lgamma(x + 1) + self.off

    def mean(self, out, context=None):
        return out.exp()

    def sample(self, out, context):
        return torch.poisson(out.exp(), generator=context.generator)

    def out_of_support(self, x):
        return ~((x >= 0) & (x == x.round()))


class Halves(Counts):
    """Positive numbers, exponential with log-mean `out`, by a kernel without its constant."""

    integers = False

    def log_prob(self, out, x, context):
        return -x * (-out).exp() + 0 * out

    def sample(self, out, context):
        uniform = torch.rand(out.shape, generator=context.generator, dtype=out.dtype)
        return -out.exp() * torch.log1p(-uniform)

    def out_of_support(self, x):
        return ~(torch.isfinite(x) & (x > 0))


def hazard_log_prob(self, out, x, context):
    return 1.1 * HazardLikelihood.log_prob(self, out, x, context)


def improper_hazards(self, sizes):
    live = type("Live", (HazardLikelihood,), {"log_prob": hazard_log_prob})
    return live(Hazard.build(self, sizes).params)


def unweighted(self, model, batch, experts):
    return ELBO.forward(attrs.evolve(self, kl_weight=1.0), model, batch, experts)


def summed(found, batch):
    return attrs.evolve(found, loss=found.loss * len(batch), weighted=False)


def too_high(found, batch):
    return attrs.evolve(found, bound=found.bound + 0.2)


WRONG = {
    "likelihood, constant": (
        "likelihood",
        "normalised",
        likelihood(lambda self, p, out, x: p + 0.01),
        "has 1.01.* as the integral of its density; expected 1",
    ),
    "likelihood, kernel": ("likelihood", "normalised", live_of(Halves), "integral of its density"),
    "counts": (
        "likelihood",
        "normalised",
        live_of(Counts, off=-0.01),
        "has 0.990.* as the probabilities of its whole numbers",
    ),
    "classes": (
        "likelihood",
        "normalised",
        broken(
            Categorical,
            log_prob=lambda self, out, x, context: (x * out.log_softmax(-1)).sum(-1) - 0.01,
        ),
        "probabilities of its classes",
    ),
    "levels": (
        "likelihood",
        "normalised",
        live_of(
            OrdinalLikelihood,
            (3,),
            4,
            log_prob=lambda *args: OrdinalLikelihood.log_prob(*args) * 1.1,
        ),
        "probabilities of its whole numbers",
    ),
    "hazards": (
        "likelihood",
        "normalised",
        broken(Hazard, build=improper_hazards, __doc__="Reference: none; option: bins."),
        "probabilities of its outcomes",
    ),
    "likelihood, sums over gaps": (
        "likelihood",
        "sums",
        broken(
            Bernoulli,
            log_prob_sum=lambda self, out, x, context: self.log_prob(out, x, context).sum(-1),
        ),
        "has -.* as log_prob_sum; expected -.*, that of the sum of log_prob",
    ),
    "likelihood, slope of sums": (
        "likelihood",
        "sums",
        broken(
            Bernoulli,
            log_prob_sum=lambda self, out, x, context: Bernoulli.log_prob_sum(
                self, out.detach() + 0 * out, x, context
            ),
        ),
        "has 0 as the slope of log_prob_sum",
    ),
    "likelihood, shape of sums": (
        "likelihood",
        "sums",
        broken(
            Bernoulli, log_prob_sum=lambda self, out, x, context: self.log_prob(out, x, context)
        ),
        "has log_prob_sum of shape",
    ),
    "likelihood, mean": (
        "likelihood",
        "mean",
        likelihood(lambda self, p, out, x: p, mean=lambda self, out, context=None: 1.1 * out),
        "has the mean .*, and draws whose mean is",
    ),
    "family, constant": (
        "family",
        "normalised",
        broken(
            NormalFamily, log_density=lambda self, eps: NormalFamily.log_density(self, eps) + 0.01
        ),
        "integral of its log_density",
    ),
    "family, scale": (
        "family",
        "normalised",
        broken(
            NormalFamily,
            log_prob=lambda self, z, loc, scale: self.log_density((z - loc) / scale).sum(-1),
        ),
        "has 1.7 as the integral of its log_prob",
    ),
    "family, noise": (
        "family",
        "draws",
        broken(
            NormalFamily,
            noise=lambda self, size, **options: 1.1 * NormalFamily().noise(size, **options),
        ),
        "draws noise elsewhere than its density",
    ),
    "prior, constant": (
        "prior",
        "normalised",
        prior(lambda p: p + 0.01),
        "has 1.01.* as the integral of its density",
    ),
    "prior, draws": (
        "prior",
        "draws",
        prior(sample=lambda z: z + 0.1),
        "draws latents elsewhere than its density",
    ),
    "objective, sum": (
        "objective",
        "averaged",
        objective(summed),
        "of 8 rows, of which each alone has .* on average",
    ),
    "objective, weight of the KL": (
        "objective",
        "kl_weight",
        broken(ELBO, forward=unweighted),
        "returned the same losses, .* whatever its kl_weight is",
    ),
    "objective, bound": (
        "objective",
        "bound",
        objective(too_high),
        "reports a bound of .* on linear-Gaussian rows whose log p",
    ),
}


def others(kind, check):
    return [name for name in conformance.checks_of(kind) if name != check]


@pytest.mark.parametrize(("kind", "check", "cls", "reason"), WRONG.values(), ids=WRONG)
def test_a_part_that_is_wrong_in_one_thing_fails_in_its_check(kind, check, cls, reason):
    declare(kind, "broken", cls)
    with pytest.raises(
        ConformanceError, match=rf"^{kind} 'broken', check '{check}': it .*{reason}"
    ):
        check_component(kind, "broken", skip=others(kind, check))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "check", "cls", "reason"), WRONG.values(), ids=WRONG)
def test_no_other_check_catches_it(kind, check, cls, reason):
    declare(kind, "broken", cls)
    check_component(kind, "broken", skip=[check])


def test_every_check_of_laws_is_seen_to_fail():
    checks = set()
    for table in (density_checks.CHECKS, objective_checks.CHECKS):
        for kind, by_name in table.items():
            checks |= {(kind, check) for check in by_name}
    assert checks == {(kind, check) for kind, check, _, _ in WRONG.values()}


def test_an_objective_without_a_weight_of_its_kl():
    class Weightless(mvkit.Objective):
        def forward(self, model, batch, experts):
            return ELBO().forward(model, batch, experts)

    declare("objective", "broken", broken(Weightless))
    with pytest.raises(ConformanceError, match="check 'kl_weight': it has no option kl_weight"):
        check_component("objective", "broken", skip=others("objective", "kl_weight"))


def test_the_exposure_is_fixed():
    """Rows whose density is right without an exposure, and wrong with one."""

    class Live(nn.Module, mvkit.Likelihood):
        integers = True
        takes_exposure = True

        def __init__(self, sizes):
            super().__init__()
            self.law = Poisson().build(sizes)

        def log_prob(self, out, x, context):
            extra = 0.0 if context.exposure is None else 0.01
            return self.law.log_prob(out, x, context) + extra

        def mean(self, out, context):
            return self.law.mean(out, context)

        def sample(self, out, context):
            return self.law.sample(out, context)

        def out_of_support(self, x):
            return self.law.out_of_support(x)

    declare("likelihood", "broken", broken(object, build=lambda self, sizes: Live(sizes)))
    with pytest.raises(ConformanceError, match="check 'normalised': it has 1.01"):
        check_component("likelihood", "broken", skip=others("likelihood", "normalised"))


@pytest.mark.parametrize(
    ("law", "low", "high"),
    [
        (stats.norm(3.0, 0.1), -math.inf, math.inf),
        (stats.t(1.5), -math.inf, math.inf),
        (stats.laplace(-2.0, 5.0), -math.inf, math.inf),
        (stats.gamma(0.4), 0.0, math.inf),
        (stats.gamma(30.0, loc=7.0), 7.0, math.inf),
        (stats.beta(0.5, 2.0), 0.0, 1.0),
        (stats.beta(3.0, 0.6, loc=-4.0, scale=8.0), -4.0, 4.0),
        (stats.uniform(-1.0, 2.0), -1.0, 1.0),
    ],
    ids=lambda x: getattr(getattr(x, "dist", None), "name", str(x)),
)
def test_quadrature_against_scipy(law, low, high):
    nodes = quadrature.nodes_between(low, high, float(law.median()), float(law.std()) or 1.0)
    if not math.isfinite(law.std()):
        nodes = quadrature.nodes_between(low, high, 0.0, 1.0)
    log_density = torch.tensor(law.logpdf(nodes.point.numpy()))
    assert abs(float(nodes.total(log_density)) - 1) < 1e-5  # a kink
    draws = torch.tensor(law.rvs(5000, random_state=0))
    distance = nodes.distance(draws, log_density)
    exact = stats.kstest(draws.numpy(), law.cdf).statistic
    assert abs(distance - exact) < 2e-3
    shift = float(law.ppf(0.55) - law.median())
    assert nodes.distance(draws + shift, log_density) > 0.03


@pytest.mark.parametrize(
    ("low", "high"),
    [(-math.inf, math.inf), (0.0, math.inf), (-math.inf, 2.0), (0.0, 1.0), (-3.5, 8.25)],
)
def test_ends_of_what_is_allowed(low, high):
    ends = quadrature.ends_of(lambda x: low < x < high, 0.5)
    assert ends == pytest.approx((low, high), abs=1e-9)


def test_an_upper_end_alone():
    nodes = quadrature.nodes_between(-math.inf, 2.0, 1.0, 1.0)
    assert bool((nodes.point.diff() >= 0).all())
    log_density = nodes.point - 2  # exponential, mirrored
    assert float(nodes.total(log_density)) == pytest.approx(1.0, abs=1e-9)
