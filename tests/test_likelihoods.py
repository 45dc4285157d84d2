"""Likelihoods against scipy, sums and quadrature; their draws, gaps, extremes, files and fits.

Axes: n rows; one element a row in the tables, so that decoders emit (1, n, 1[, params]).
"""

import itertools

import attrs
import numpy as np
import pytest
import torch
from mpmath import mp
from scipy import integrate, optimize, stats

import mvkit
from mvkit import DataError, Modality, Model, SpecError
from mvkit.core.likelihood import Context
from mvkit.core.modality import Sizes
from mvkit.core.noise import seeded
from mvkit.registry import plugins
from mvkit.testing import ConformanceError, check_component
from mvkit.testing.conformance import checks_of

DRAWS = 4000


def live(name, shape=(1,), exposure=None, **options):
    """The likelihood of a modality, in float64."""
    modality = Modality(shape, {"name": name, **options}, exposure=exposure)
    part = modality.likelihood.build(Sizes.alone(modality))
    return part.double().eval() if isinstance(part, torch.nn.Module) else part


def f64(values):
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


def poisson(mean):
    return stats.poisson(mean).logpmf


def negative_binomial(mean, theta):
    return stats.nbinom(theta, theta / (theta + mean)).logpmf


def inflated(log_p, share):
    def log_prob(x):
        log_p_counted = np.log1p(-share) + log_p(x)
        zero = np.logaddexp(np.log(share), log_p_counted)
        return np.where(np.asarray(x) == 0, zero, log_p_counted)

    return log_prob


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def background_and_foreground(logit, above, background, theta):
    def log_prob(x):
        low = negative_binomial(background, theta)(x)
        high = negative_binomial((1 + np.exp(above)) * background, theta)(x)
        return np.logaddexp(np.log(sigmoid(logit)) + low, np.log(sigmoid(-logit)) + high)

    return log_prob


def ordinal(score, thresholds):
    cumulative = np.concatenate([[0.0], sigmoid(np.array(thresholds) - score), [1.0]])
    return lambda x: np.log(np.diff(cumulative))[np.asarray(x, int)]


@attrs.frozen
class Case:
    """A likelihood, what its decoder emits for one element, and the law that this must be.

    Args:
        name, options: of the likelihood.
        numbers: what the decoder emits.
        log_prob: the law, from scipy.
        support: all values with a probability that shows, or the interval of a density.
        tensors: parameters to set.
    """

    name: str
    options: dict
    numbers: tuple
    log_prob: object
    support: object
    tensors: dict = {}

    def live(self):
        part = live(self.name, **self.options)
        for path, value in self.tensors.items():
            tensor = dict(part.state_dict(keep_vars=True))[path]
            tensor.data = f64(value).expand(tensor.shape).clone().to(tensor)
        return part

    def out(self, n):
        numbers = f64(self.numbers).expand(1, n, 1, len(self.numbers))
        return numbers if len(self.numbers) > 1 else numbers[..., 0]

    def density(self, x):
        x = f64(np.atleast_1d(x))
        log_p = self.live().log_prob(self.out(len(x)), x[:, None], Context())
        return log_p.exp()[0, :, 0].detach().numpy()

    def expectation(self, function):
        """Of a function of x under the likelihood's own density."""
        if isinstance(self.support, tuple):
            low, *points, high = self.support
            ends = [low, *points, high]
            total = 0.0
            for left, right in zip(ends, ends[1:], strict=False):
                integrand = lambda x: float(function(x) * self.density(x)[0])  # noqa: E731
                total += integrate.quad(
                    integrand, left, right, epsabs=1e-12, epsrel=1e-12, limit=400
                )[0]
            return total
        return float(np.sum(function(self.support) * self.density(self.support)))


COUNTS = np.arange(400)
CASES = {
    "poisson": Case("poisson", {}, (1.3,), poisson(np.exp(1.3)), COUNTS),
    "poisson, zero-inflated": Case(
        "poisson",
        {"zero_inflated": True},
        (1.3, -0.4),
        inflated(poisson(np.exp(1.3)), sigmoid(-0.4)),
        COUNTS,
    ),
    "negative_binomial": Case(
        "negative_binomial",
        {},
        (1.3,),
        negative_binomial(np.exp(1.3), np.exp(-0.2)),
        COUNTS,
        {"log_theta": -0.2},
    ),
    "negative_binomial, modality": Case(
        "negative_binomial",
        {"by": "modality"},
        (0.4,),
        negative_binomial(np.exp(0.4), 40.0),
        COUNTS,
        {"log_theta": np.log(40.0)},
    ),
    "negative_binomial, decoded": Case(
        "negative_binomial",
        {"by": "decoded"},
        (2.0, 1.0),
        negative_binomial(np.exp(2.0), np.exp(1.0)),
        COUNTS,
    ),
    "negative_binomial, decoded, zero-inflated": Case(
        "negative_binomial",
        {"by": "decoded", "zero_inflated": True},
        (2.0, 1.0, -1.0),
        inflated(negative_binomial(np.exp(2.0), np.exp(1.0)), sigmoid(-1.0)),
        COUNTS,
    ),
    "ordinal": Case(
        "ordinal",
        {"levels": 5},
        (0.3,),
        ordinal(0.3, [-1.0, 0.1, 0.15, 2.0]),
        np.arange(5),
        {"first": -1.0, "gaps": np.log(np.expm1(np.array([1.1, 0.05, 1.85]) - 1e-6))},
    ),
    "ordinal, modality": Case(
        "ordinal", {"levels": 2, "by": "modality"}, (-0.7,), ordinal(-0.7, [0.0]), np.arange(2)
    ),
    "normal, decoded": Case(
        "normal",
        {"scale": "decoded"},
        (0.7, -0.6),
        stats.norm(0.7, np.exp(-0.6)).logpdf,
        (-8.0, 0.7, 8.0),
    ),
    "normal, trained, feature": Case(
        "normal",
        {"scale": "trained", "by": "feature"},
        (0.7,),
        stats.norm(0.7, 2.5).logpdf,
        (-30.0, 0.7, 30.0),
        {"scale.log": np.log(2.3), "scale.floor": 0.2},
    ),
    "laplace, decoded": Case(
        "laplace",
        {"scale": "decoded", "by": "feature"},
        (0.7, -0.6),
        stats.laplace(0.7, np.exp(-0.6) + 0.1).logpdf,
        (-25.0, 0.7, 25.0),
        {"scale.floor": 0.1},
    ),
    "laplace, trained, feature": Case(
        "laplace",
        {"scale": "trained", "by": "feature"},
        (0.7,),
        stats.laplace(0.7, 1.5).logpdf,
        (-60.0, 0.7, 60.0),
        {"scale.log": np.log(1.5)},
    ),
    "student_t, decoded": Case(
        "student_t",
        {"df": 9.0, "scale": "decoded"},
        (0.7, -1.6),
        stats.t(9.0, 0.7, np.exp(-1.6)).logpdf,
        (-np.inf, -1.0, 0.7, 2.0, np.inf),
    ),
    "lognormal": Case(
        "lognormal",
        {},
        (0.4,),
        stats.lognorm(0.8, scale=np.exp(0.4)).logpdf,
        (0.0, 0.5, 1.5, 5.0, 20.0, 400.0, 20000.0),
        {"scale.log": np.log(0.8)},
    ),
    "lognormal, decoded": Case(
        "lognormal",
        {"scale": "decoded"},
        (0.4, -1.0),
        stats.lognorm(np.exp(-1.0), scale=np.exp(0.4)).logpdf,
        (0.0, 0.5, 1.5, 5.0, 40.0),
    ),
    "gamma": Case(
        "gamma",
        {},
        (1.2, 0.5),
        stats.gamma(np.exp(0.5), scale=np.exp(0.7)).logpdf,
        (0.0, 0.5, 3.0, 20.0, 90.0),
    ),
    "gamma, large shape": Case(
        "gamma",
        {},
        (1.2, 5.0),
        stats.gamma(np.exp(5.0), scale=np.exp(1.2 - 5.0)).logpdf,
        (1.5, 3.3, 6.5),
    ),
    "beta": Case(
        "beta",
        {},
        (0.6, 1.8),
        stats.beta(np.exp(1.8) * sigmoid(0.6), np.exp(1.8) * sigmoid(-0.6)).logpdf,
        (0.0, 0.5, 1.0),
    ),
    "beta, precise": Case(
        "beta",
        {},
        (-1.0, 6.0),
        stats.beta(np.exp(6.0) * sigmoid(-1.0), np.exp(6.0) * sigmoid(1.0)).logpdf,
        (0.0, 0.2, 0.27, 0.35, 1.0),
    ),
    "foreground_background": Case(
        "foreground_background",
        {},
        (-0.4, 1.1),
        background_and_foreground(-0.4, 1.1, np.exp(0.9), np.exp(0.5)),
        np.arange(700),
        {"background": 0.9, "log_theta": 0.5},
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_log_probabilities_are_those_of_scipy(case):
    if isinstance(case.support, tuple):
        low, high = np.clip([case.support[0], case.support[-1]], -50, 50)
        x = np.linspace(low, high, 42)[1:-1, None]
    else:
        x = case.support[:40, None]
    log_p = case.live().log_prob(case.out(len(x)), f64(x), Context())
    assert log_p.shape == (1, *x.shape)
    np.testing.assert_allclose(log_p[0].detach(), case.log_prob(x), rtol=1e-9, atol=1e-9)


@every_case
def test_densities_are_normalised(case):
    assert case.expectation(np.ones_like) == pytest.approx(1, abs=1e-9)


@every_case
def test_means_are_expectations(case):
    mean = case.live().mean(case.out(1)).detach()
    assert mean.shape == (1, 1, 1)
    assert case.expectation(lambda x: x) == pytest.approx(mean.item(), rel=1e-8)


@every_case
def test_draws_follow_the_density(case):
    part = case.live()
    with torch.no_grad():
        draws = part.sample(case.out(DRAWS), Context(generator=seeded(1)))
        again = part.sample(case.out(DRAWS), Context(generator=seeded(1)))
    assert draws.shape == (1, DRAWS, 1)
    assert draws.dtype == torch.float64
    assert torch.equal(draws, again)
    assert not part.out_of_support(draws).any()
    draws = draws.flatten().numpy()
    if isinstance(case.support, tuple):
        assert _kolmogorov(case, draws) > 1e-3
        return
    counted = np.array([(draws == value).sum() for value in case.support])
    expected = case.density(case.support) * DRAWS
    common = expected >= 5
    counted = np.append(counted[common], DRAWS - counted[common].sum())
    expected = np.append(expected[common], DRAWS - expected[common].sum())
    statistic = ((counted - expected) ** 2 / np.maximum(expected, 1e-2)).sum()
    assert stats.chi2(len(counted) - 1).sf(statistic) > 1e-3


def _kolmogorov(case, draws):
    """p of draws under the distribution function, the trapezoid sum of the density."""
    edges = np.quantile(draws, np.linspace(0, 1, 41)[1:-1])
    low = case.support[0]
    below = []
    for edge in edges:
        part = attrs.evolve(case, support=(low, edge))
        below.append(part.expectation(lambda x: 1.0))
        low = edge
    shares = np.append(below, 1 - np.sum(below))
    counted = np.histogram(draws, np.concatenate([[-np.inf], edges, [np.inf]]))[0]
    return stats.chisquare(counted, shares * len(draws)).pvalue


# float32, far out: what the decoders emit, what is observed
FAR = (-1e4, -100.0, 0.0, 100.0, 1e4)
EXTREMES = {
    "poisson": ({}, (0.0, 1.0, 1e6)),
    "poisson, zero-inflated": ({"zero_inflated": True}, (0.0, 1.0, 1e6)),
    "negative_binomial": ({}, (0.0, 1.0, 1e6)),
    "negative_binomial, decoded": ({"by": "decoded", "zero_inflated": True}, (0.0, 1.0, 1e6)),
    "multinomial": ({}, (0.0, 1.0, 1e6)),
    "normal, decoded": ({"scale": "decoded"}, (0.0, -1e6, 1e6)),
    "laplace, decoded": ({"scale": "decoded"}, (0.0, -1e6, 1e6)),
    "student_t, decoded": ({"scale": "decoded"}, (0.0, -1e6, 1e6)),
    "lognormal, decoded": ({"scale": "decoded"}, (1e-30, 1.0, 1e30)),
    "gamma": ({}, (1e-30, 1.0, 1e6)),
    "beta": ({}, (1e-30, 0.5, 1 - 2.0**-24)),
    "foreground_background": ({}, (0.0, 1.0, 1e6)),
    "ordinal": ({"levels": 4}, (0.0, 1.0, 2.0, 3.0)),
}


@pytest.mark.parametrize("title", EXTREMES)
def test_extreme_values_in_float32_are_finite(title):
    options, values = EXTREMES[title]
    part = live(title.partition(",")[0], shape=(2,), **options)
    if isinstance(part, torch.nn.Module):
        part = part.float().train()
    grids = [torch.tensor(FAR)] * part.params + [torch.tensor(values)]
    *numbers, x = torch.meshgrid(*grids, indexing="ij")
    out = torch.stack([number.flatten() for number in numbers], -1)
    out = out.reshape(1, -1, 1, part.params).repeat(1, 1, 2, 1)
    out = (out if part.params > 1 else out[..., 0]).requires_grad_()
    x = x.flatten()[:, None].repeat(1, 2)
    log_p = part.log_prob(out, x, Context())
    assert torch.isfinite(log_p).all()
    log_p.sum().backward()
    assert torch.isfinite(out.grad).all()
    for parameter in part.parameters() if isinstance(part, torch.nn.Module) else ():
        assert torch.isfinite(parameter.grad).all()
    assert torch.isfinite(part.mean(out)).all()
    assert not torch.isnan(part.sample(out.detach(), Context(generator=seeded(0)))).any()


COUNTED = {
    "poisson": {},
    "poisson, zero-inflated": {"zero_inflated": True},
    "negative_binomial": {},
    "negative_binomial, decoded": {"by": "decoded", "zero_inflated": True},
}
counted = pytest.mark.parametrize("title", COUNTED)


def count_likelihood(title, exposure=None, shape=(4,)):
    return live(title.partition(",")[0], shape, exposure, **COUNTED[title])


def outputs(part, n, shape=(4,), seed=0):
    numbers = (part.params,) if part.params > 1 else ()
    return torch.randn(2, n, *shape, *numbers, dtype=torch.float64, generator=seeded(seed))


def with_log_means(part, out, log_mean):
    """Outputs with other first numbers."""
    if part.params == 1:
        return log_mean
    return torch.cat([log_mean[..., None], out[..., 1:]], -1)


@counted
def test_a_named_exposure_multiplies_the_means(title):
    part = count_likelihood(title, "depth")
    plain = count_likelihood(title)
    out = outputs(part, 3)
    first = out[..., 0] if part.params > 1 else out
    s = f64([0.5, 1.0, 20.0])
    x = f64(np.random.default_rng(0).integers(0, 9, (3, 4)))
    shifted = with_log_means(part, out, first + s.log()[:, None])
    expected = plain.log_prob(shifted, x, Context())
    context = Context(exposure=s)
    torch.testing.assert_close(part.log_prob(out, x, context), expected)
    torch.testing.assert_close(part.mean(out, context), plain.mean(shifted))
    draws = part.sample(out, Context(exposure=s, generator=seeded(3)))
    assert torch.equal(draws, plain.sample(shifted, Context(generator=seeded(3))))


@counted
def test_a_total_is_shared_among_the_counted_elements(title):
    part = count_likelihood(title, "total", (2, 2))
    plain = count_likelihood(title, shape=(2, 2))
    out = outputs(part, 3, (2, 2))
    first = out[..., 0] if part.params > 1 else out
    counted = torch.ones(3, 2, 2, dtype=torch.bool)
    counted[0, 0, 1] = False
    counted[1, :, 0] = False
    s = f64([9.0, 3.0, 40.0])
    rate = first.exp()
    share = rate / (rate * counted).sum((-1, -2), keepdim=True)
    shares = with_log_means(part, out, (share * s[:, None, None]).log())
    x = f64(np.random.default_rng(0).integers(0, 9, (3, 2, 2)))
    context = Context(exposure=s, counted=counted)
    torch.testing.assert_close(
        part.log_prob(out, x, context), plain.log_prob(shares, x, Context())
    )
    torch.testing.assert_close(part.mean(out, context), plain.mean(shares))
    if part.params == 1:
        torch.testing.assert_close((part.mean(out, context) * counted).sum((-1, -2))[0], s)


@counted
def test_a_total_that_nobody_states_is_the_rows_own(title):
    part = count_likelihood(title, "total")
    out = outputs(part, 3)
    x = f64(np.random.default_rng(0).integers(0, 9, (3, 4)))
    elements = torch.ones(3, 4, dtype=torch.bool)
    elements[0, 2] = False
    x[0, 2] = 0.0
    own = part.log_prob(out, x, Context(elements=elements))
    stated = Context(elements, exposure=x.sum(1), counted=elements)
    torch.testing.assert_close(own, part.log_prob(out, x, stated))
    assert torch.isfinite(own).all()
    torch.testing.assert_close(part.mean(out), part.mean(out, Context(exposure=f64([1, 1, 1]))))


@counted
@pytest.mark.parametrize("exposure", ["depth", "total"])
def test_exposures_that_are_unknown_are_as_if_nobody_stated_them(title, exposure):
    part = count_likelihood(title, exposure)
    out = outputs(part, 3)
    x = f64(np.random.default_rng(0).integers(0, 9, (3, 4)))
    for unknown in (f64([np.nan] * 3), f64(np.nan)):
        context = Context(exposure=unknown)
        if exposure == "total":
            expected = part.log_prob(out, x, Context())
        else:
            expected = part.log_prob(out, x, Context(exposure=f64([1, 1, 1])))
        torch.testing.assert_close(part.log_prob(out, x, context), expected)
        torch.testing.assert_close(
            part.mean(out, context), part.mean(out, Context(exposure=f64([1, 1, 1])))
        )


@counted
@pytest.mark.parametrize("exposure", ["depth", "total"])
def test_rows_without_exposure_are_finite(title, exposure):
    part = count_likelihood(title, exposure).float()
    out = (outputs(part, 3).float() * 1e3).requires_grad_()
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    for counted in (None, nothing):
        context = Context(exposure=torch.zeros(3), counted=counted, generator=seeded(0))
        zeros = part.log_prob(out, torch.zeros(3, 4), context)
        ones = part.log_prob(out, torch.ones(3, 4), context)
        assert torch.equal(zeros, torch.zeros_like(zeros))
        assert torch.isfinite(ones).all()
        assert (ones < -100).all()
        assert torch.equal(part.mean(out, context), torch.zeros(2, 3, 4))
        assert torch.equal(part.sample(out.detach(), context), torch.zeros(2, 3, 4))
        (zeros.sum() + ones.sum()).backward()
        assert torch.isfinite(out.grad).all()


@counted
def test_a_share_of_a_single_count_is_refused(title):
    with pytest.raises(SpecError, match="share of a single count in its own total is always 1"):
        count_likelihood(title, "total", (1, 1))
    options = {"name": title.partition(",")[0], **COUNTED[title]}
    with pytest.raises(SpecError, match=r"modalities\.a.*leave exposure out"):
        Model({"a": Modality((1,), options, exposure="total")}, latent_dim=1, seed=0)


def test_negative_binomial_is_accurate_at_any_dispersion():
    x = np.array([0.0, 1.0, 7.0, 300.0, 1e5])
    log_theta = np.array([-12.0, -3.0, 2.5, 2.8, 6.0, 14.0, 29.0])
    mean = np.array([1e-12, 0.3, 90.0, 1e5])
    x, log_theta, mean = (axis.flatten() for axis in np.meshgrid(x, log_theta, mean))
    with mp.workdps(60):
        expected = []
        for k, a, m in zip(x, log_theta, mean, strict=True):
            theta, m = mp.exp(mp.mpf(a)), mp.mpf(m)
            log_p = mp.loggamma(k + theta) - mp.loggamma(theta) - mp.loggamma(k + 1)
            log_p += theta * mp.log(theta / (theta + m)) + k * mp.log(m / (theta + m))
            expected.append(float(log_p))
    part = live("negative_binomial", by="decoded")
    out = torch.stack([f64(mean).log(), f64(log_theta)], -1)[None, :, None]
    log_p = part.log_prob(out, f64(x)[:, None], Context()).flatten()
    scale = np.maximum(np.abs(expected), x * np.log(x + 2) + 1)  # terms that cancel
    np.testing.assert_allclose((log_p - f64(expected)) / f64(scale), 0, atol=1e-14)


def test_negative_binomial_tends_to_poisson():
    nb = live("negative_binomial", (6,))
    x = f64([[0, 1, 2, 5, 40, 1000]])
    log_mean = f64([[[-30.0, -2.0, 0.5, 1.0, 3.0, 7.0]]])
    expected = live("poisson", (6,)).log_prob(log_mean, x, Context())
    for log_theta in (25.0, 1e3, 1e30):
        nb.log_theta.data.fill_(log_theta)
        log_p = nb.log_prob(log_mean, x, Context())
        torch.testing.assert_close(log_p, expected, rtol=1e-7, atol=1e-7)


def test_dispersions_of_levels_are_looked_up():
    options = {"by": "feature_and_level", "level": "batch", "levels": 3}
    part = live("negative_binomial", (2,), **options)
    part.log_theta.data.copy_(f64([[0.1, 0.2], [1.1, 1.2], [2.1, 2.2]]))
    level = torch.tensor([2, 0, 1, 0])
    out = outputs(part, 4, (2,))
    x = f64(np.random.default_rng(0).integers(0, 9, (4, 2)))
    context = Context(covariates={"batch": level}, generator=seeded(0))
    log_p = part.log_prob(out, x, context).detach()
    theta = part.log_theta.detach()[level].exp().numpy()
    expected = negative_binomial(out.exp().numpy(), theta)(x.numpy())
    np.testing.assert_allclose(log_p, expected, rtol=1e-9)
    many = out[:1].expand(20000, 4, 2)
    draws = part.sample(many, context).detach()
    mean = out[0].exp().numpy()
    error = np.sqrt((mean + mean**2 / theta) / len(draws))
    assert (np.abs(draws.mean(0).numpy() - mean) < 4 * error).all()
    with pytest.raises(mvkit.RequestError, match="by the level of 'batch', which the rows lack"):
        part.log_prob(out, x, Context())


@pytest.mark.parametrize(
    "options",
    [
        {"by": "feature_and_level"},
        {"by": "feature_and_level", "levels": 3},
        {"by": "feature", "level": "batch", "levels": 3},
        {"levels": 3},
    ],
)
def test_dispersions_of_levels_need_both(options):
    with pytest.raises(
        SpecError, match="a covariate's name as level= with by='feature_and_level'"
    ):
        Modality((3,), {"name": "negative_binomial", **options})


def compositions(total, parts):
    """All counts of a total, (rows, parts)."""
    every = itertools.product(range(total + 1), repeat=parts)
    return np.array([row for row in every if sum(row) == total])


def test_multinomial_is_that_of_scipy_over_all_axes_of_the_shape():
    part = live("multinomial", (2, 3))
    x = compositions(3, 6).reshape(-1, 2, 3)
    out = outputs(part, 1, (2, 3))[:1]
    shares = torch.softmax(out.flatten(), 0).numpy()
    log_p = part.log_prob(out.expand(1, len(x), 2, 3), f64(x), Context())
    assert log_p.shape == (1, *x.shape)
    expected = stats.multinomial(3, shares).logpmf(x.reshape(-1, 6))
    np.testing.assert_allclose(log_p.sum((0, 2, 3)), expected, rtol=1e-9, atol=1e-12)
    p = np.exp(expected)
    mean = part.mean(out, Context(exposure=f64([3.0])))
    np.testing.assert_allclose(mean[0, 0], np.einsum("n,nij->ij", p, x), rtol=1e-9)


@pytest.mark.parametrize("stated", [False, True])
def test_multinomial_of_observed_elements_is_that_of_these_alone(stated):
    part = live("multinomial", (4,), "total" if stated else None)
    x = f64([[3, 0, 2, 7], [1, 1, 1, 1]])
    elements = torch.tensor([[True, False, True, True], [False, True, True, False]])
    out = outputs(part, 2)
    context = Context(elements)
    if stated:
        total = (x * elements).sum(1)
        context = Context(elements, exposure=total, counted=elements)
    log_p = part.log_prob(out, torch.where(elements, x, 0.0), context)
    for row in range(2):
        seen = elements[row]
        for repeat in range(2):
            shares = torch.softmax(out[repeat, row, seen], 0)
            own = x[row, seen].numpy()
            expected = stats.multinomial(own.sum(), shares.numpy()).logpmf(own)
            actual = log_p[repeat, row, seen].sum().item()
            assert actual == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(1,), (2,), (5,), (2, 3)])
def test_multinomial_draws(shape):
    part = live("multinomial", shape)
    out = outputs(part, 1, shape)[:1].expand(1, DRAWS, *shape)
    context = Context(exposure=f64([6.0]).expand(DRAWS), generator=seeded(0))
    draws = part.sample(out, context)
    assert torch.equal(draws.flatten(2).sum(-1), torch.full((1, DRAWS), 6.0).double())
    shares = torch.softmax(out[0, 0].flatten(), 0).numpy()
    draws = draws.reshape(DRAWS, -1).numpy()
    for element, share in enumerate(shares):
        expected = stats.binom(6, share).pmf(np.arange(7)) * DRAWS
        counted = np.bincount(draws[:, element].astype(int), minlength=7)
        common = expected > 5
        statistic = ((counted - expected)[common] ** 2 / expected[common]).sum()
        assert stats.chi2(max(common.sum() - 1, 1)).sf(statistic) > 1e-3
    if len(shares) > 1:  # two elements together: their covariance is -N ρ ρ'
        covariance = np.cov(draws[:, 0], draws[:, 1])[0, 1]
        assert covariance == pytest.approx(-6 * shares[0] * shares[1], abs=0.1)


def test_multinomial_draws_without_a_total_are_of_one_count():
    part = live("multinomial", (3,))
    draws = part.sample(outputs(part, 50, (3,)), Context(generator=seeded(0)))
    assert torch.equal(draws.sum(-1), torch.ones(2, 50).double())


def test_what_a_multinomial_does_not_count_has_the_mean_of_its_share():
    part = live("multinomial", (3,), "total")
    counted = torch.tensor([[True, True, False]]).expand(DRAWS, 3)
    out = outputs(part, 1, (3,))[:1].expand(1, DRAWS, 3)
    total = f64([5.0]).expand(DRAWS)
    context = Context(exposure=total, counted=counted, generator=seeded(0))
    rate = out[0, 0].exp()
    mean = part.mean(out, context)[0, 0]
    torch.testing.assert_close(mean, 5 * rate / rate[:2].sum())
    draws = part.sample(out, context)[0]
    assert torch.equal(draws[:, :2].sum(1), total)
    assert draws.mean(0)[2].item() == pytest.approx(mean[2].item(), abs=0.1)


def test_a_multinomial_given_something_else_than_its_total_is_refused():
    with pytest.raises(SpecError, match=r"modalities\.a\.exposure.*expected 'total' or None"):
        Model({"a": Modality((2,), "multinomial", exposure="depth")}, latent_dim=1, seed=0)


def test_rows_of_no_counts_are_certain():
    part = live("multinomial", (3,))
    out = outputs(part, 2, (3,)).requires_grad_()
    log_p = part.log_prob(out, torch.zeros(2, 3).double(), Context())
    assert torch.equal(log_p, torch.zeros_like(log_p))
    log_p.sum().backward()
    assert torch.isfinite(out.grad).all()


def level_rows(generator, z, levels=5):
    score = z @ [[2.0, -1.0, 0.5]] + generator.logistic(size=(len(z), 3))
    return np.digitize(score, np.linspace(-2, 2, levels - 1)).astype(float)


@pytest.mark.parametrize("by", ["feature", "modality"])
def test_thresholds_start_at_the_shares_of_the_data(by):
    generator = np.random.default_rng(0)
    shares = np.array([[0.1, 0.2, 0.4, 0.3], [0.6, 0.2, 0.15, 0.05]])
    x = np.stack([generator.choice(4, 4000, p=share) for share in shares], 1).astype(np.float32)
    x[::5, 0] = np.nan
    modality = Modality((2,), {"name": "ordinal", "levels": 4, "by": by})
    model = Model({"a": modality}, latent_dim=1, seed=0)
    before = [value.clone() for value in model.decoders["a"].network.state_dict().values()]
    mvkit.fit(model, {"a": x[:1000]}, epochs=1, lr=0.0, progress=False)
    part = model.decoders["a"].likelihood
    counts = np.stack([np.bincount(f[~np.isnan(f)].astype(int), minlength=4) for f in x[:1000].T])
    if by == "modality":
        counts = counts.sum(0, keepdims=True)
    expected = (counts + 0.5) / (counts + 0.5).sum(1, keepdims=True)
    actual = part.probabilities(torch.zeros(1, 2))[0].detach()
    np.testing.assert_allclose(actual, np.broadcast_to(expected, (2, 4)), atol=1e-5)
    after = model.decoders["a"].network.state_dict().values()  # scores are no means
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    first = part.first.detach().clone()
    mvkit.fit(model, {"a": 3 - x[:50]}, epochs=1, lr=0.0, progress=False)
    assert torch.equal(part.first, first)


def test_levels_are_probabilities_even_at_the_start():
    part = live("ordinal", (2,), levels=4)
    torch.testing.assert_close(
        part.probabilities(torch.zeros(1, 2).double()), torch.full((1, 2, 4), 0.25).double()
    )


def test_thresholds_stay_in_their_order():
    part = live("ordinal", (2,), levels=6).float()
    part.gaps.data = torch.randn(2, 4, generator=seeded(0)) * 1e3
    assert (part.thresholds().diff(dim=-1) >= 0).all()
    log_p = part.log_prob(torch.zeros(6, 2), torch.arange(6)[:, None].expand(6, 2), Context())
    assert torch.isfinite(log_p).all()


@pytest.mark.parametrize("by", ["feature", "modality"])
def test_the_median_is_the_middle_of_the_draws(by):
    part = live("ordinal", (3,), levels=7, by=by)
    out = outputs(part, 5, (3,)) * 3
    draws = part.sample(out.expand(4001, 2, 5, 3), Context(generator=seeded(0)))
    cumulative = part.probabilities(out).cumsum(-1)
    clear = ((cumulative - 0.5).abs() > 0.05).all(-1)
    assert clear.any()
    assert torch.equal(part.median(out)[clear], draws.median(0).values[clear])


SCALED = {
    "normal, decoded": ({"scale": "decoded"}, "modality"),
    "normal, decoded, feature": ({"scale": "decoded", "by": "feature"}, "feature"),
    "normal, trained, feature": ({"scale": "trained", "by": "feature"}, "feature"),
    "laplace, trained, feature": ({"scale": "trained", "by": "feature"}, "feature"),
    "laplace, decoded": ({"scale": "decoded"}, "modality"),
    "student_t, trained, feature": ({"scale": "trained", "by": "feature"}, "feature"),
    "student_t, decoded, feature": ({"scale": "decoded", "by": "feature"}, "feature"),
}


def scaled_rows(n=400):
    """Features of very different spreads and means, one of them constant, with gaps."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(n, 4)) * [1e-2, 1.0, 50.0, 0.0] + [3.0, -1.0, 200.0, 7.0]
    x[::7, 1] = np.nan
    return x.astype(np.float32)


def spreads(x, by):
    residual = x.astype(float) - np.nanmean(x.astype(float), 0)
    overall = np.sqrt(np.nanmean(residual**2))
    if by == "modality":
        return np.full(4, overall)
    return np.maximum(np.sqrt(np.nanmean(residual**2, 0)), 1e-3 * overall)


@pytest.mark.parametrize("title", SCALED)
def test_scales_start_at_the_data_and_keep_above_their_floor(title):
    options, by = SCALED[title]
    x = scaled_rows()
    likelihood = {"name": title.partition(",")[0], **options}
    model = Model({"a": Modality((4,), likelihood)}, latent_dim=2, seed=0)
    fresh = {k: v.clone() for k, v in model.decoders["a"].network.state_dict().items()}
    mvkit.fit(model, {"a": x}, epochs=1, lr=0.0, batch_size=400, progress=False)
    part = model.decoders["a"].likelihood
    expected = spreads(x, by)
    floor = part.scale.floor.expand(4)
    np.testing.assert_allclose(floor, 1e-3 * expected, rtol=1e-4)
    last = list(fresh)[-1]
    bias = (model.decoders["a"].network.state_dict()[last] - fresh[last]).reshape(4, -1)
    np.testing.assert_allclose(bias[:, 0], np.nanmean(x, 0), rtol=1e-3)
    if part.params == 2:
        np.testing.assert_allclose(bias[:, 1], np.log(spreads(x, "feature")), rtol=1e-3)
        out = torch.tensor([0.0, -1e3]).expand(1, 4, 2)
        actual = part.centre_and_scale(out)[1]
    else:
        np.testing.assert_allclose(part.scale().detach(), expected, rtol=1e-4)
        part.scale.log.data.fill_(-1e3)
        actual = part.scale()
    np.testing.assert_allclose(actual[..., :].detach().flatten(), floor, rtol=1e-3)
    # what is placed stays when training goes on with other data
    mvkit.fit(model, {"a": 100 * x}, epochs=1, lr=0.0, progress=False)
    np.testing.assert_allclose(part.scale.floor.expand(4), floor, rtol=1e-6)


def test_floors_have_a_slope_that_leads_away():
    part = live("normal", (2,), scale="trained", by="feature")
    part.scale.floor.fill_(0.1)
    part.scale.log.data.fill_(-4.0)
    part.log_prob(torch.zeros(1, 1, 2).double(), f64([[5.0, 5.0]]), Context()).sum().backward()
    assert (part.scale.log.grad > 0).all()


def test_optimal_scales_of_features_are_their_residuals():
    x = f64(np.random.default_rng(0).normal(size=(50, 2, 2)) * [[1.0, 5.0], [20.0, 0.1]])
    part = live("normal", (2, 2), scale="optimal", by="feature").train()
    elements = torch.rand(50, 2, 2, generator=seeded(0)) < 0.7
    weight = torch.rand(3, 50, generator=seeded(1), dtype=torch.float64)
    out = torch.zeros(3, 50, 2, 2, dtype=torch.float64)
    log_p = part.log_prob(out, x, Context(elements, weight))
    share = weight[:, :, None, None] * elements
    scale = ((share * x**2).sum((0, 1)) / share.sum((0, 1))).sqrt()
    torch.testing.assert_close(part.scale.running, scale)
    expected = stats.norm(0, scale.numpy()).logpdf(x.numpy())
    np.testing.assert_allclose(log_p[0], expected, rtol=1e-9)
    part.eval()
    np.testing.assert_allclose(
        part.log_prob(out, 2 * x, Context())[1], stats.norm(0, scale.numpy()).logpdf(2 * x.numpy())
    )


def test_models_of_today_have_the_tensors_of_today():
    for options, names in (
        ({"name": "normal"}, []),
        ({"name": "normal", "scale": "trained"}, ["scale.log"]),
        ({"name": "normal", "scale": "optimal"}, ["scale.running", "scale.updates"]),
        ({"name": "laplace", "scale": "trained"}, ["scale.log"]),
        ({"name": "student_t", "df": "trained", "scale": "trained"}, ["df.log", "scale.log"]),
    ):
        state = live(options.pop("name"), (3,), **options).state_dict()
        assert list(state) == names
        assert all(not value.ndim for value in state.values())


@pytest.mark.parametrize("log_precision", [-3.0, 2.0, 2.77, 2.78, 6.0, 12.0])
def test_gamma_and_beta_are_accurate_at_any_precision(log_precision):
    x = np.array([1e-8, 0.01, 0.3, 0.9])
    n = len(x)
    with mp.workdps(60):
        a, m = mp.exp(mp.mpf(log_precision)), mp.exp(mp.mpf(-0.5))
        p = 1 / (1 + mp.exp(mp.mpf(0.5)))
        gamma = [
            a * mp.log(a / m) - mp.loggamma(a) + (a - 1) * mp.log(v) - a * v / m
            for v in map(mp.mpf, x)
        ]
        beta = [
            mp.loggamma(a)
            - mp.loggamma(a * p)
            - mp.loggamma(a - a * p)
            + (a * p - 1) * mp.log(v)
            + (a - a * p - 1) * mp.log(1 - v)
            for v in map(mp.mpf, x)
        ]
    out = f64([-0.5, log_precision]).expand(1, n, 1, 2)
    for name, expected in (("gamma", gamma), ("beta", beta)):
        log_p = live(name).log_prob(out, f64(x)[:, None], Context()).flatten()
        np.testing.assert_allclose(log_p, [float(v) for v in expected], rtol=1e-12, atol=1e-12)


def test_a_lognormal_starts_at_the_data():
    x = np.random.default_rng(0).lognormal([3.0, -2.0], [0.2, 1.0], (500, 2)).astype(np.float32)
    for options in ({}, {"scale": "decoded"}):
        model = Model(
            {"a": Modality((2,), {"name": "lognormal", **options})}, latent_dim=1, seed=0
        )
        last = list(model.decoders["a"].network.state_dict())[-1]
        fresh = model.decoders["a"].network.state_dict()[last].clone()
        mvkit.fit(model, {"a": x}, epochs=1, lr=0.0, progress=False)
        part = model.decoders["a"].likelihood
        outputs = (model.decoders["a"].network.state_dict()[last] - fresh).reshape(2, -1)
        outputs = outputs if part.params == 2 else outputs[:, 0]
        np.testing.assert_allclose(part.mean(outputs).detach(), x.mean(0), rtol=0.2)
        scale = part.centre_and_scale(outputs)[1].detach()
        np.testing.assert_allclose(scale, np.log(x).std(0), rtol=0.3)


def hazards(bins=6, n=3, seed=0):
    """A hazard likelihood with uneven edges, and outputs (2, n, 2, bins)."""
    part = live("hazard", (2,), bins=bins)
    part.edges.copy_(f64(np.cumsum([0.0, 0.5, 0.2, 1.0, 0.1, 3.0, 0.7])))
    out = torch.randn(2, n, 2, bins, dtype=torch.float64, generator=seeded(seed)) - 1
    return part, out


def law_of_bins(out):
    """Probabilities of an event in each bin, and beyond, by hand."""
    h = sigmoid(out.numpy())
    survival = np.cumprod(np.concatenate([[1.0], 1 - h]))
    return np.append(survival[:-1] * h, survival[-1])


def test_hazards_are_a_law_of_bins_and_beyond():
    part, out = hazards()
    middle = (part.edges[1:] + part.edges[:-1]) / 2
    for time in (middle, part.edges[1:]):
        events = torch.stack([time, torch.ones_like(time)], -1)
        log_p = part.log_prob(out[:, :1].expand(2, 6, 2, 6), events, Context())
        assert torch.equal(log_p[..., 1], torch.zeros(2, 6).double())
        beyond = f64([[9.0, 0.0]])
        log_beyond = part.log_prob(out[:, :1], beyond, Context())[..., 0]
        for repeat in range(2):
            expected = law_of_bins(out[repeat, 0, 0])
            np.testing.assert_allclose(log_p[repeat, :, 0].exp(), expected[:-1], rtol=1e-9)
            np.testing.assert_allclose(log_beyond[repeat].exp(), expected[-1:], rtol=1e-9)
            total = log_p[repeat, :, 0].exp().sum() + log_beyond[repeat].exp().sum()
            assert total.item() == pytest.approx(1, abs=1e-12)


def test_censored_rows_survived_their_bin():
    part, out = hazards()
    middle = (part.edges[1:] + part.edges[:-1]) / 2
    censored = torch.stack([middle, torch.zeros_like(middle)], -1)
    log_p = part.log_prob(out[:1, :1].expand(1, 6, 2, 6), censored, Context())
    expected = 1 - np.cumsum(law_of_bins(out[0, 0, 0]))[:-1]
    np.testing.assert_allclose(log_p[0, :, 0].exp(), expected, rtol=1e-9)
    np.testing.assert_allclose(part.survival(out)[0, 0], expected, rtol=1e-9)
    zero = part.log_prob(out[:1, :1], f64([[0.0, 1.0]]), Context())  # time 0 is in the first bin
    np.testing.assert_allclose(zero[0, 0, 0].exp(), sigmoid(out[0, 0, 0, 0].numpy()))
    both = [part.log_prob(out[:1, :1], f64([[9.0, event]]), Context()) for event in (0.0, 1.0)]
    assert torch.equal(*both)


def test_means_and_draws_of_hazards():
    part, out = hazards()
    law = law_of_bins(out[0, 0, 0])
    edges = part.edges.numpy()
    mean = part.mean(out)
    assert mean.shape == (2, 3, 2)
    middle = (edges[1:] + edges[:-1]) / 2
    assert mean[0, 0, 0].item() == pytest.approx(law[:-1] @ middle + law[-1] * edges[-1])
    assert mean[0, 0, 1].item() == pytest.approx(1 - law[-1])
    many = out[:1, :1].expand(1, DRAWS, 2, 6)
    draws = part.sample(many, Context(generator=seeded(0)))[0].numpy()
    assert not part.out_of_support(f64(draws)).any()
    seen = draws[:, 1] == 1
    counted = np.append(np.histogram(draws[seen, 0], edges)[0], (~seen).sum())
    assert stats.chisquare(counted, law * DRAWS).pvalue > 1e-3
    assert (draws[~seen, 0] == edges[-1]).all()
    for start, end in zip(edges, edges[1:], strict=False):  # even within each bin
        inside = draws[seen & (draws[:, 0] > start) & (draws[:, 0] <= end), 0]
        assert stats.kstest(inside, stats.uniform(start, end - start).cdf).pvalue > 1e-3


def test_edges_are_placed_at_quantiles_of_events():
    generator = np.random.default_rng(0)
    x = np.stack([generator.exponential(30.0, 500), generator.random(500) < 0.6], 1)
    x = x.astype(np.float32)
    model = Model({"a": Modality((2,), {"name": "hazard", "bins": 4})}, latent_dim=1, seed=0)
    part = model.decoders["a"].likelihood
    np.testing.assert_allclose(part.edges, [0, 0.25, 0.5, 0.75, 1])
    rows = x[:400]
    mvkit.fit(model, {"a": rows}, epochs=1, lr=0.0, progress=False)
    events = rows[rows[:, 1] == 1, 0]
    expected = np.quantile(events, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(part.edges, [0, *expected[1:]], rtol=1e-5)
    mvkit.fit(model, {"a": rows * [10.0, 1.0]}, epochs=1, lr=0.0, progress=False)
    np.testing.assert_allclose(part.edges[1:], expected[1:], rtol=1e-5)
    survival = part.survival(model.decoders["a"](torch.zeros(1, 1)))[0]
    np.testing.assert_allclose(survival.detach(), [0.8, 0.6, 0.4, 0.2], atol=0.05)


@pytest.mark.parametrize(
    ("column", "value"), [(0, np.nan), (1, np.nan), (0, -1.0), (1, 2.0), (1, 0.5), (0, np.inf)]
)
@pytest.mark.parametrize("by_elements", [False, True])
def test_times_and_events_go_together(column, value, by_elements):
    x = np.ones((6, 2), np.float32)
    x[2] = np.nan
    model = Model({"a": Modality((2,), "hazard"), "b": (1,)}, latent_dim=1, seed=0)
    data = {"a": torch.tensor(x), "b": torch.zeros(6, 1)}
    model.encode(mvkit.Batch(data))
    data["a"][4, column] = value
    elements = None
    if by_elements:
        elements = {"a": ~torch.isnan(data["a"])}
        data["a"] = torch.where(elements["a"], data["a"], 0.0)
    with pytest.raises(DataError, match="(?s)'a'.*row 4.*both or neither"):
        model.encode(mvkit.Batch(data, elements=elements))


def test_hazards_of_rows_that_lack_one_number_count_nothing():
    part, out = hazards(n=2)
    elements = torch.tensor([[True, False], [True, True]])
    log_p = part.log_prob(out, f64([[1.0, 0.0], [1.0, 1.0]]), Context(elements))
    assert torch.equal(log_p[:, 0], torch.zeros(2, 2).double())
    assert (log_p[:, 1, 0] < 0).all()


def test_hazards_of_other_shapes_are_refused():
    with pytest.raises(SpecError, match=r"modalities\.a.*expected \(2,\): the time"):
        Model({"a": Modality((3,), "hazard")}, latent_dim=1, seed=0)


def test_hazards_far_out_are_finite_in_float32():
    part = live("hazard", (2,), bins=3).float()
    out = torch.tensor(FAR).repeat(3, 1).T[:, None].repeat(1, 2, 1)[None].requires_grad_()
    for row in ([0.1, 1.0], [0.5, 0.0], [1e6, 1.0], [1.0, 1.0]):
        log_p = part.log_prob(out, torch.tensor([row]).expand(5, 2), Context())
        assert torch.isfinite(log_p).all()
        log_p.sum().backward()
        assert torch.isfinite(out.grad).all()
    assert torch.isfinite(part.mean(out)).all()
    assert torch.isfinite(part.sample(out.detach(), Context(generator=seeded(0)))).all()


def foreground(shape=(3,)):
    part = live("foreground_background", shape)
    generator = np.random.default_rng(0)
    part.background.data = f64(generator.normal(1.0, 0.7, shape))
    part.log_scale.data = f64(generator.normal(-1.5, 0.3, shape))
    part.log_theta.data = f64(generator.normal(0.5, 0.3, shape))
    return part


def test_in_training_backgrounds_are_averaged_over_their_posterior():
    part = foreground().train()
    out = outputs(part, 4, (3,))
    x = f64(np.random.default_rng(0).integers(0, 30, (4, 3)))
    log_p = part.log_prob(out, x, Context()).detach().numpy()
    loc, scale, theta = (
        f.detach().numpy() for f in (part.background, part.log_scale.exp(), part.log_theta.exp())
    )
    for repeat, row, f in itertools.product(range(1), range(2), range(3)):
        logit, above = out[repeat, row, f].numpy()

        def integrand(eps):
            background = np.exp(loc[f] + scale[f] * eps)
            law = background_and_foreground(logit, above, background, theta[f])
            return stats.norm.pdf(eps) * law(x[row, f].item())

        expected = integrate.quad(integrand, -10, 10, epsabs=1e-12)[0]
        assert log_p[repeat, row, f] == pytest.approx(expected, abs=1e-4)


def test_the_penalty_is_the_kl_to_the_closest_prior():
    part = foreground()
    loc, scale = (f.detach().numpy() for f in (part.background, part.log_scale.exp()))

    def kl(prior):
        centre, width = prior[0], np.exp(prior[1])
        return np.sum(
            np.log(width / scale) + (scale**2 + (loc - centre) ** 2) / (2 * width**2) - 0.5
        )

    best = optimize.minimize(kl, [0.0, 0.0], tol=1e-12)
    assert part.penalty().item() == pytest.approx(best.fun, rel=1e-6)
    part.penalty().backward()
    assert part.background.grad.abs().sum() > 0
    assert live("foreground_background", (4,)).penalty().item() == pytest.approx(0, abs=1e-12)


def test_backgrounds_start_at_the_lower_quartile():
    x = protein_rows(np.random.default_rng(0), np.random.default_rng(1).normal(size=(400, 1)))
    x = x.astype(np.float32)
    x[::5, 0] = np.nan
    x[:, 2] *= np.arange(400) % 8 == 0
    model = Model({"a": Modality((3,), "foreground_background")}, latent_dim=1, seed=0)
    mvkit.fit(model, {"a": x}, epochs=1, lr=0.0, progress=False)
    part = model.decoders["a"].likelihood
    expected = np.maximum(np.nanquantile(x, 0.25, axis=0), 0.5)
    np.testing.assert_allclose(part.background.exp().detach(), expected, rtol=1e-5)
    mean = part.mean(model.decoders["a"](torch.zeros(1, 1))).detach()[0]
    np.testing.assert_allclose(mean, np.nanmean(x, 0), rtol=0.4)
    mvkit.fit(model, {"a": 3 * x}, epochs=1, lr=0.0, progress=False)
    np.testing.assert_allclose(part.background.exp().detach(), expected, rtol=1e-5)


def test_fit_tells_foreground_from_background():
    model, data = small_model("foreground_background")
    mvkit.fit(model, data, epochs=40, lr=1e-2, batch_size=50, progress=False)
    background = model.decoders["a"].likelihood.background.exp().detach()
    np.testing.assert_allclose(background, [5.0, 5.0, 5.0], rtol=0.35)


def test_a_background_with_an_exposure_is_refused():
    modality = Modality((2,), "foreground_background", exposure="total")
    with pytest.raises(SpecError, match=r"modalities\.a\.exposure.*expected None"):
        Model({"a": modality}, latent_dim=1, seed=0)


# through models: each a likelihood, its shape, and values that follow it


def count_rows(generator, z):
    return generator.poisson(np.exp(1 + z @ [[1.0, -0.7, 0.4]]))


def number_rows(generator, z):
    signal = z @ [[1.0, -0.7, 0.4]]
    return signal + generator.normal(size=signal.shape) * [0.1, 0.3, 1.0]


def positive_rows(generator, z):
    return np.exp(number_rows(generator, z))


def share_rows(generator, z):
    return sigmoid(number_rows(generator, z))


def survival_rows(generator, z):
    time = generator.exponential(np.exp(2 * z[:, 0]))
    censored = generator.exponential(3.0, len(z))
    return np.stack([np.minimum(time, censored), time <= censored], 1)


def protein_rows(generator, z):
    seen = z @ [[1.0, -1.0, 1.0]] > 0
    mean = np.where(seen, 60.0, 5.0)
    return generator.poisson(mean * generator.gamma(5.0, 0.2, mean.shape))


LEARNT = {
    "poisson": ({}, count_rows),
    "poisson, zero-inflated": ({"zero_inflated": True}, count_rows),
    "negative_binomial": ({}, count_rows),
    "negative_binomial, decoded": ({"by": "decoded", "zero_inflated": True}, count_rows),
    "multinomial": ({}, count_rows),
    "normal, decoded": ({"scale": "decoded"}, number_rows),
    "normal, optimal": ({"scale": "optimal", "by": "feature"}, number_rows),
    "normal, trained": ({"scale": "trained", "by": "feature"}, number_rows),
    "laplace, decoded": ({"scale": "decoded", "by": "feature"}, number_rows),
    "laplace, trained": ({"scale": "trained", "by": "feature"}, number_rows),
    "student_t, decoded": ({"scale": "decoded", "by": "feature"}, number_rows),
    "student_t, trained": ({"scale": "trained", "by": "feature"}, number_rows),
    "lognormal": ({}, positive_rows),
    "lognormal, decoded": ({"scale": "decoded", "by": "modality"}, positive_rows),
    "gamma": ({}, positive_rows),
    "beta": ({}, share_rows),
    "hazard": ({"bins": 6}, survival_rows),
    "foreground_background": ({}, protein_rows),
    "ordinal": ({"levels": 5}, level_rows),
    "ordinal, modality": ({"levels": 5, "by": "modality"}, level_rows),
}
learnt = pytest.mark.parametrize("title", LEARNT)


def made_up_rows(title, n=300):
    generator = np.random.default_rng(0)
    rows = LEARNT[title][1](generator, generator.normal(size=(n, 1)))
    return np.asarray(rows, np.float32)


def small_model(title, **options):
    x = made_up_rows(title)
    likelihood = {"name": title.partition(",")[0], **LEARNT[title][0]}
    network = {"name": "mlp", "hidden": [16]}
    modality = Modality(x.shape[1:], likelihood, encoder=network, decoder=network, **options)
    return Model({"a": modality, "b": (2,)}, latent_dim=2, seed=0), {
        "a": x,
        "b": np.zeros((len(x), 2), np.float32),
    }


@learnt
def test_fit_learns(title):
    model, data = small_model(title)
    history = mvkit.fit(model, data, epochs=15, lr=1e-2, batch_size=50, progress=False)
    loss = history["loss"]
    assert np.isfinite(loss).all()
    assert loss[-1] < loss[0] - 0.1
    samples = model.sample(200)["a"]
    assert torch.isfinite(samples).all()


EXPOSED = [(name, e) for name in ("poisson", "negative_binomial") for e in ("depth", "total")]
EXPOSED.append(("multinomial", "total"))


@pytest.mark.parametrize(("name", "exposure"), EXPOSED)
def test_models_with_exposures_tell_rates_from_depths(name, exposure):
    generator = np.random.default_rng(0)
    depth = generator.lognormal(3.0, 1.0, 300)
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    x = generator.poisson(depth[:, None] * shares).astype(np.float32)
    modality = Modality((4,), name, exposure=exposure, input="log1p")
    options, given = {}, {}
    if exposure == "depth":
        options["covariates"] = {"depth": mvkit.Covariate(into=("encoders",))}
        given["covariates"] = {"depth": depth.astype(np.float32)}
    model = Model({"rna": modality, "b": (1,)}, latent_dim=1, seed=0, **options)
    data = {"rna": torch.tensor(x), "b": torch.zeros(300, 1)}
    mvkit.fit(model, mvkit.Batch(data, **given), epochs=40, lr=3e-3, batch_size=50, progress=False)
    rows = mvkit.Batch(
        {"b": torch.zeros(2, 1)}, **{k: {"depth": v["depth"][:2]} for k, v in given.items()}
    )
    means = []
    for s in (1.0, 1e4):
        options = {"exposure": {"rna": s}, "generator": seeded(0)}
        means.append(model.translate(rows, to=["rna"], **options)["rna"].flatten(0, -2))
    torch.testing.assert_close(means[1], 1e4 * means[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(means[0][0], shares, atol=0.06)


@learnt
def test_files_bring_it_back(title, tmp_path):
    model, data = small_model(title)
    mvkit.fit(model, data, epochs=1, progress=False)
    mvkit.save(model, tmp_path / "model.safetensors")
    again = mvkit.load(tmp_path / "model.safetensors")
    assert again.header() == model.header()
    rows = {name: values[:5] for name, values in data.items()}
    scores = [m.log_likelihood(rows, n=7, generator=seeded(0)) for m in (model, again)]
    assert torch.equal(*scores)
    draws = [m.translate(rows, sample=True, generator=seeded(0))["a"] for m in (model, again)]
    assert torch.equal(*draws)


@learnt
def test_gaps_are_left_out_whatever_they_hold(title):
    model, data = small_model(title)
    rows = {name: values[:4].copy() for name, values in data.items()}
    whole = title.partition(",")[0] == "hazard"
    rows["a"][1, ... if whole else 0] = np.nan
    rows["a"][2] = np.nan
    loss = model.loss(mvkit.Batch({k: torch.tensor(v) for k, v in rows.items()})).loss
    loss.backward()
    assert torch.isfinite(loss)
    for parameter in model.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@learnt
def test_conformance(title):
    check_component("likelihood", title.partition(",")[0], **LEARNT[title][0])


REFUSED = {
    "poisson, negative": ("poisson", {}, -1.0, "counts: whole numbers of at least 0"),
    "poisson, fraction": ("poisson", {}, 2.5, "counts: whole numbers of at least 0"),
    "negative_binomial": ("negative_binomial", {}, 1.25, "counts: whole numbers of at least 0"),
    "multinomial": ("multinomial", {}, -2.0, "counts: whole numbers of at least 0"),
    "ordinal, above": ("ordinal", {}, 5.0, "whole numbers from 0 to 4"),
    "ordinal, between": ("ordinal", {}, 0.5, "whole numbers from 0 to 4"),
    "lognormal, zero": ("lognormal", {}, 0.0, "numbers greater than 0"),
    "gamma, zero": ("gamma", {}, 0.0, "numbers greater than 0"),
    "gamma, infinite": ("gamma", {}, np.inf, "numbers greater than 0"),
    "beta, zero": ("beta", {}, 0.0, "greater than 0 and less than 1"),
    "beta, one": ("beta", {}, 1.0, "greater than 0 and less than 1"),
    "foreground_background": ("foreground_background", {}, 0.5, "counts: whole numbers"),
    "poisson, infinite": ("poisson", {}, np.inf, "counts: whole numbers of at least 0"),
}


@pytest.mark.parametrize("title", REFUSED)
def test_values_outside_the_support_are_refused_with_their_place(title):
    name, options, value, expected = REFUSED[title]
    case = next(t for t in LEARNT if t.partition(",")[0] == name)
    x = made_up_rows(case)[:6]
    likelihood = {"name": name, **LEARNT[case][0], **options}
    model = Model({"a": Modality(x.shape[1:], likelihood)}, latent_dim=1, seed=0)
    model.encode({"a": x})
    x[4, 1] = value
    with pytest.raises(DataError, match=f"(?s)'a'.*row 4.*{expected}"):
        model.encode({"a": x})


def rates(*, total):
    """A likelihood of rates in an exposure, which says that it shares out totals or does not."""

    @mvkit.spec
    class Rates(mvkit.Likelihood):
        """Poisson counts of rates. Reference: none."""

        takes_exposure = True
        takes_total = total

        def build(self, sizes):
            return self

        def mean(self, out, context):
            rate = torch.exp(out)
            return rate if context.exposure is None else rate * context.exposure.reshape(-1, 1)

        def log_prob(self, out, x, context):
            rate = self.mean(out, context)
            return torch.xlogy(x, rate) - rate - torch.lgamma(x + 1)

        def sample(self, out, context):
            return torch.poisson(self.mean(out, context), generator=context.generator)

        def out_of_support(self, x):
            return ~((x >= 0) & (x == x.round()))

    return Rates


def test_a_likelihood_of_rates_refuses_a_total():
    plugins.declare("likelihood", "rates_only", rates(total=False))
    with pytest.raises(SpecError, match="multiplies rates by an exposure.*takes_total"):
        Model({"a": Modality((3,), "rates_only", exposure="total")}, latent_dim=2)
    Model({"a": Modality((3,), "rates_only", exposure="years")}, latent_dim=2)


def test_conformance_tells_rates_that_claim_to_share_out_totals():
    plugins.declare("likelihood", "rates_claim", rates(total=True))
    with pytest.raises(ConformanceError, match="'exposures'.*other counts of a total"):
        check_component(
            "likelihood", "rates_claim", skip=set(checks_of("likelihood")) - {"exposures"}
        )
