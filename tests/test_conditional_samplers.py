"""Samplers that know a condition: the mixture of normals, on data whose posterior is known.

Axes: n draws, b rows, m modalities, d latent.
"""

import itertools

import pytest
import torch
from torch import nn

import mvkit
from mvkit import Batch, Modality, Model
from mvkit.parts import GMM, NormalFamily, gaussian_mixture
from mvkit.parts.conditional_samplers import (
    Code,
    Condition,
    FittingRows,
    SamplerSizes,
    patterns_of,
)
from mvkit.parts.gaussian_mixture import GapPattern, GaussianMixture, fit_with_gaps

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


SIZES = SamplerSizes(LATENT, NAMES, {"a": 1, "c": 2})
FEATURES = LATENT + 3 + len(NAMES) * LATENT  # z, private latents, codes
PRIVATE = {"a": slice(2, 3), "c": slice(3, 5)}
CODES = {"a": slice(5, 7), "b": slice(7, 9), "c": slice(9, 11)}


def positions(place):
    return list(range(place.start, place.stop))


def told_by(subset):
    """Positions of what modalities tell: their private latents, then their codes."""
    known = [i for name in PRIVATE if name in subset for i in positions(PRIVATE[name])]
    return known + [i for name in NAMES if name in subset for i in positions(CODES[name])]


def condition_at(values, observed, scale=1e-9):
    """A condition whose codes and private posteriors are at features (b, f)."""
    mask = torch.tensor([[name in subset for name in NAMES] for subset in observed])
    codes = {}
    private = {}
    for places, kind in ((CODES, codes), (PRIVATE, private)):
        for name, place in places.items():
            loc = values[:, place]
            kind[name] = Code(loc, torch.full_like(loc, scale))
    return Condition(SIZES, mask, codes, private, NormalFamily())


def fitting_rows(values, observed):
    private = {name: values[:, place] for name, place in PRIVATE.items()}
    return FittingRows(values[:, :LATENT], private, condition_at(values, observed))


def random_normal(seed):
    """Mean (f,) and covariance (f, f) with correlations between all features."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(FEATURES, FEATURES, generator=generator, dtype=torch.float64)
    covariance = factor @ factor.T / FEATURES + 0.2 * torch.eye(FEATURES)
    return torch.randn(FEATURES, generator=generator, dtype=torch.float64), covariance


def mixture_sampler(components=2):
    """A conditional mixture that holds known parameters."""
    live = GMM(components=components, conditional=True).build(LATENT, sizes=SIZES).double()
    for i in range(components):
        mean, covariance = random_normal(i)
        live.weight[i] = (i + 1) / sum(range(components + 1))
        live.loc[i] = mean
        live.factor[i] = torch.linalg.cholesky(covariance)
    live.rows.fill_(10)
    return live


def textbook(live, x, subset):
    """Weights (c,), means (c, t) and covariances (c, t, t) of the latents that are left open."""
    known = told_by(subset)
    wanted = [i for i in range(LATENT + 3) if i not in known]
    log_weights, means, covariances = [], [], []
    for weight, mean, factor in zip(live.weight, live.loc, live.factor, strict=True):
        covariance = factor @ factor.T
        across = covariance[wanted][:, known]
        inverse = torch.linalg.inv(covariance[known][:, known])
        off = x[known] - mean[known]
        density = -0.5 * off @ inverse @ off + 0.5 * torch.logdet(inverse)
        log_weights.append(weight.log() + density)
        means.append(mean[wanted] + across @ inverse @ off)
        covariances.append(covariance[wanted][:, wanted] - across @ inverse @ across.T)
    weights = torch.softmax(torch.stack(log_weights), 0)
    return wanted, weights, torch.stack(means), torch.stack(covariances)


@pytest.mark.parametrize("subset", SUBSETS, ids=lambda s: "+".join(s) or "nothing")
def test_conditionals_are_those_of_the_textbook(subset):
    """Weights by the density of what is observed, means and covariances by Schur complements."""
    live = mixture_sampler()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, FEATURES, generator=generator, dtype=torch.float64)
    condition = condition_at(x, [subset])
    wanted, weights, means, covariances = textbook(live, x[0], subset)
    z, private = live.mean(condition, generator)
    latents = torch.cat([z, private["a"], private["c"]], 1)[0]
    torch.testing.assert_close(latents[wanted], weights @ means, rtol=1e-9, atol=1e-9)

    n = 40_000
    z, private = live.sample(condition, n, generator)
    latents = torch.cat([z, private["a"], private["c"]], 2)[:, 0]
    mean = weights @ means
    spread = means - mean
    covariance = torch.einsum("c,cij->ij", weights, covariances)
    covariance = covariance + torch.einsum("c,ci,cj->ij", weights, spread, spread)
    off = latents[:, wanted] - mean
    assert ((off.mean(0)) / (covariance.diagonal() / n).sqrt()).abs().max() < 3
    products = torch.einsum("ni,nj->nij", off, off)
    error = products.std(0) / n**0.5
    assert ((products.mean(0) - covariance) / error).abs().max() < 3.5
    known = [i for i in told_by(subset) if i < LATENT + 3]
    torch.testing.assert_close(latents[:, known], x[0, known].expand(n, -1), rtol=1e-6, atol=1e-6)


def test_a_private_latent_that_is_observed_is_drawn_from_its_posterior():
    live = mixture_sampler()
    x = torch.zeros(1, FEATURES, dtype=torch.float64)
    condition = condition_at(x + 0.7, [("a", "c")], scale=0.4)
    _, private = live.sample(condition, 20_000, torch.Generator().manual_seed(0))
    for w in private.values():
        assert (w.mean(0) - 0.7).abs().max() < 3 * 0.4 / 20_000**0.5
        assert (w.std(0) / 0.4 - 1).abs().max() < 3 / 40_000**0.5


def test_a_round_of_em_is_that_of_loops_over_rows():
    """Ghahramani and Jordan (1993), written row by row and component by component."""
    generator = torch.Generator().manual_seed(0)
    b, f, c = 12, 5, 2
    values = torch.randn(b, f, generator=generator, dtype=torch.float64)
    present = torch.rand(b, f, generator=generator) < 0.6
    present[:, 0] = True
    factor = (
        torch.eye(f).double() + 0.3 * torch.randn(c, f, f, generator=generator).tril().double()
    )
    loc = torch.randn(c, f, generator=generator, dtype=torch.float64)
    mixture = GaussianMixture(torch.tensor([0.3, 0.7], dtype=torch.float64), loc, factor)
    patterns = []
    for pattern, rows in patterns_of(present):
        flags = torch.tensor(pattern)
        patterns.append(GapPattern(rows, flags.nonzero()[:, 0], (~flags).nonzero()[:, 0]))
    sums = gaussian_mixture._expected(values, patterns, mixture)

    first = torch.zeros(c, f, dtype=torch.float64)
    second = torch.zeros(c, f, f, dtype=torch.float64)
    total = 0.0
    for x, known in zip(values, present, strict=True):
        joint = []
        filled = []
        for k in range(c):
            covariance = factor[k] @ factor[k].T
            own = covariance[known][:, known]
            gain = covariance[:, known] @ torch.linalg.inv(own)
            normal = torch.distributions.MultivariateNormal(loc[k][known], own)
            joint.append(mixture.weight[k].log() + normal.log_prob(x[known]))
            mean = loc[k] + gain @ (x[known] - loc[k][known])
            filled.append((mean, covariance - gain @ covariance[known]))
        log_prob = torch.logsumexp(torch.stack(joint), 0)
        total += float(log_prob)
        for k, (mean, rest) in enumerate(filled):
            weight = (joint[k] - log_prob).exp()
            first[k] += weight * mean
            second[k] += weight * (torch.outer(mean, mean) + rest)
    torch.testing.assert_close(sums.first, first, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sums.second, second, rtol=1e-9, atol=1e-9)
    assert float(sums.log_prob) == pytest.approx(total, abs=1e-9)


def test_em_reaches_what_scikit_learn_reaches_where_nothing_is_missing():
    from sklearn.mixture import GaussianMixture as Reference

    generator = torch.Generator().manual_seed(0)
    values = torch.randn(600, 3, generator=generator, dtype=torch.float64)
    values[:200] = 0.5 * values[:200] + 6
    groups = torch.nn.functional.one_hot((torch.arange(600) >= 200).long()).double()
    everything = GapPattern(torch.arange(600), torch.arange(3), torch.arange(0))
    mixture = fit_with_gaps(values, [everything], groups, 1e-6)
    reference = Reference(2, random_state=0, tol=1e-8, max_iter=1000).fit(values.numpy())
    order = reference.means_[:, 0].argsort()[::-1].copy()
    for ours, theirs in (
        (mixture.weight, reference.weights_),
        (mixture.loc, reference.means_),
        (mixture.factor @ mixture.factor.mT, reference.covariances_),
    ):
        torch.testing.assert_close(ours, torch.from_numpy(theirs[order]), rtol=1e-3, atol=1e-3)


def test_a_fit_with_gaps_finds_the_joint_normal():
    """Within three standard errors of the moments, though no row has everything."""
    mean, covariance = random_normal(0)
    generator = torch.Generator().manual_seed(1)
    b = 30_000
    eps = torch.randn(b, FEATURES, generator=generator, dtype=torch.float64)
    values = mean + eps @ torch.linalg.cholesky(covariance).T
    pairs = [("a", "b"), ("b", "c"), ("a", "c")]
    observed = [pairs[i % 3] for i in range(b)]
    live = GMM(components=1, conditional=True).build(LATENT, sizes=SIZES).double()
    live.fit(fitting_rows(values, observed), 0)
    assert live.rows.tolist() == [20_000] * 3
    variance = covariance.diagonal()
    rows = b / 3  # at least, behind each moment
    assert ((live.loc[0] - mean) / (variance / rows).sqrt()).abs().max() < 3
    factor = live.factor[0]
    error = ((covariance.square() + torch.outer(variance, variance)) / rows).sqrt()
    assert ((factor @ factor.T - covariance) / error).abs().max() < 3


def test_what_stands_in_unobserved_places_changes_no_number():
    live = mixture_sampler()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, FEATURES, generator=generator, dtype=torch.float64)
    filled = x.clone()
    for i, subset in enumerate(SUBSETS[1:]):
        known = [*range(LATENT), *told_by(subset)]
        missing = [j for j in range(FEATURES) if j not in known]
        filled[i, missing] = 1e6
    draws = []
    fits = []
    for values in (x, filled):
        condition = condition_at(values, SUBSETS[1:])
        draws.append(live.sample(condition, 3, torch.Generator().manual_seed(1))[0])
        fit = GMM(components=2, conditional=True).build(LATENT, sizes=SIZES).double()
        fit.fit(fitting_rows(values, SUBSETS[1:]), 0)
        fits.append(fit.factor)
    assert torch.equal(*draws)
    assert torch.equal(*fits)


def test_rows_of_a_condition_are_independent():
    live = mixture_sampler()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, FEATURES, generator=generator, dtype=torch.float64)
    order = torch.tensor([5, 0, 7, 2, 1, 6, 3, 4])
    subsets = [SUBSETS[i] for i in order]
    means = live.mean(condition_at(x, SUBSETS), None)[0]
    permuted = live.mean(condition_at(x[order], subsets), None)[0]
    torch.testing.assert_close(permuted, means[order], rtol=1e-12, atol=1e-12)


def test_no_round_of_em_loses_likelihood():
    generator = torch.Generator().manual_seed(0)
    mean, covariance = random_normal(0)
    eps = torch.randn(300, FEATURES, generator=generator, dtype=torch.float64)
    values = mean + eps @ torch.linalg.cholesky(covariance).T
    subsets = [SUBSETS[1 + i % 7] for i in range(300)]
    rows = fitting_rows(values, subsets)
    live = GMM(components=2, conditional=True).build(LATENT, sizes=SIZES).double()
    patterns = live.features.gaps(rows.condition.observed)
    mixture = mixture_sampler()
    mixture = GaussianMixture(mixture.weight, mixture.loc, mixture.factor)
    reached = []
    for _ in range(30):
        sums = gaussian_mixture._expected(values, patterns, mixture)
        mixture = sums.mixture(0.0)
        reached.append(float(sums.log_prob))
    assert all(after >= before - 1e-9 for before, after in zip(reached, reached[1:], strict=False))
    assert reached[-1] > reached[0] + 10
