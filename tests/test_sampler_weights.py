"""Row weights and covariates in fits of samplers.

Axes: r rows, c components, f features.
"""

import json

import numpy as np
import pytest
import torch
from helpers import model, rows
from torch import nn

import mvkit
from mvkit import Batch, Covariate, DataError, Model, RequestError, SpecError, spec
from mvkit.parts import GMM
from mvkit.parts.conditional_gmm import ConditionalGMMSampler
from mvkit.parts.conditional_samplers import (
    Code,
    Condition,
    FittingRows,
    SamplerSizes,
    patterns_of,
)
from mvkit.parts.gaussian_mixture import GapPattern, fit_with_gaps
from mvkit.registry import plugins
from mvkit.registry.component import Component
from mvkit.registry.spec import as_part, to_dict

SPEC = GMM(components=2, floor=0.1, conditional=True)
BOTH = pytest.mark.parametrize("conditional", [True, False], ids=["conditional", "of new rows"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def weighted(batch, weight):
    return Batch(batch.data, batch.mask, extra={**batch.extra, "row_weight": weight})


# row weights


def gaps_of(known):
    patterns = []
    for pattern, index in patterns_of(known):
        flags = torch.tensor(pattern)
        patterns.append(GapPattern(index, flags.nonzero()[:, 0], (~flags).nonzero()[:, 0]))
    return patterns


@pytest.mark.parametrize("gaps", [False, True])
def test_a_row_of_weight_two_is_the_row_twice(gaps):
    """All rounds of EM, from the same responsibilities."""
    generator = seeded()
    values = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    values[:20] += 2
    known = torch.rand(40, 4, generator=generator) < 0.7 if gaps else torch.ones(40, 4).bool()
    known[:, 0] = True
    groups = torch.eye(2, dtype=torch.float64)[torch.arange(40) // 20]
    times = torch.arange(40) % 3 + 1
    index = torch.arange(40).repeat_interleave(times)
    by_weight = fit_with_gaps(values, gaps_of(known), groups, 1e-3, 0.37 * times.double())
    twice = fit_with_gaps(values[index], gaps_of(known[index]), groups[index], 1e-3)
    alike = fit_with_gaps(values, gaps_of(known), groups, 1e-3)
    for name in ("weight", "loc", "factor"):
        first, second = getattr(by_weight, name), getattr(twice, name)
        torch.testing.assert_close(first, second, rtol=0, atol=1e-9)
        assert not torch.allclose(first, getattr(alike, name), atol=1e-3)


@BOTH
def test_one_component_has_the_weighted_moments(conditional):
    made = model("poe").eval()
    batch = rows(40, missing=False)
    weight = torch.linspace(0, 2, 40, dtype=torch.float64)
    options = {"components": 1, "floor": 0.0, "conditional": conditional}
    fitted = mvkit.fit_sampler(made, weighted(batch, weight), GMM(**options), seed=3)
    posterior = made.posterior(batch)
    z = posterior.rsample(1, seeded(3))[0].detach().numpy()  # the draw of the fit
    mean = np.average(z, axis=0, weights=weight.numpy())
    covariance = np.cov(z.T, aweights=weight.numpy(), bias=True)
    factor = fitted.factor[0].numpy()[:2, :2]
    np.testing.assert_allclose(fitted.loc[0, :2], mean, rtol=0, atol=1e-9)
    np.testing.assert_allclose(factor @ factor.T, covariance, rtol=0, atol=1e-9)


@BOTH
def test_rows_without_weight_are_as_if_absent(conditional):
    options = {"components": 1, "floor": 0.1, "conditional": conditional}
    batch = rows(30, missing=False)
    weight = torch.ones(30)
    weight[20:] = 0.0
    states = []
    for value in (3.0, 50.0):
        for name in ("a", "b"):
            batch.data[name][20:] = value if name == "a" else 0.5
        made = model("poe").eval()
        fitted = mvkit.fit_sampler(made, weighted(batch, weight), GMM(**options))
        states.append(fitted.state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    few = torch.zeros(30)
    few[0] = 1.0
    with pytest.raises(DataError, match="needs 2 rows at least; got 1"):
        mvkit.fit_sampler(
            model("poe").eval(), weighted(batch, few), GMM(components=2, conditional=conditional)
        )


@BOTH
def test_equal_weights_change_no_bit(conditional):
    states = []
    for weight in (None, torch.full((40,), 3.0)):
        made = model("mopoe", private=1).eval()
        batch = rows(40) if weight is None else weighted(rows(40), weight)
        states.append(
            mvkit.fit_sampler(made, batch, GMM(components=2, conditional=conditional)).state_dict()
        )
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_no_row_that_counts_is_told():
    with pytest.raises(DataError, match="every row has row_weight 0"):
        mvkit.fit_sampler(model("poe").eval(), weighted(rows(8), torch.zeros(8)), SPEC)


@spec
class Plain:
    """A sampler that knows nothing of weights."""

    def build(self, width):
        return LivePlain(self, width)


class LivePlain(nn.Module, mvkit.Sampler):
    def __init__(self, spec, width):
        super().__init__()
        self.spec = spec
        self.register_buffer("loc", torch.zeros(width))

    def fit(self, z, seed):
        self.loc.copy_(z.mean(0))

    def sample(self, model, n, generator):
        return self.loc.expand(n, -1)


def test_samplers_that_know_nothing_of_weights_are_refused():
    plugins.declare(Component("sampler", "plain", f"{__name__}:Plain"))
    made = model("poe").eval()
    message = "sampler 'local/plain' knows nothing of row weights|'plain' knows nothing of row"
    with pytest.raises(RequestError, match=message):
        mvkit.fit_sampler(made, weighted(rows(8), torch.arange(8.0)), "plain")
    assert not made.samplers
    mvkit.fit_sampler(made, weighted(rows(8), torch.ones(8)), "plain")
    assert made.sample(2, sampler="plain")["a"].shape == (2, 3)


# covariates

SEES = GMM(components=1, floor=0.0, conditional=True, covariates=True)


def test_given_covariates_means_are_those_of_least_squares():
    """One component given code and covariates: the regression on them, in float64."""
    generator = seeded(1)
    sizes = SamplerSizes(2, ("a",), {}, context=2)
    context = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    code = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    z = code + 0.7 * context + torch.randn(60, 2, generator=generator, dtype=torch.float64)
    codes = {"a": Code(code, torch.ones_like(code))}
    observed = torch.ones(60, 1, dtype=torch.bool)
    condition = Condition(sizes, observed, codes, {}, None, context)
    sampler = ConditionalGMMSampler(SEES, sizes).double()
    sampler.fit(FittingRows(z, {}, condition), 0)
    mean, _ = sampler.mean(condition, None)
    known = torch.cat([torch.ones(60, 1), code, context], 1).numpy()
    solution = np.linalg.lstsq(known, z.numpy(), rcond=None)[0]
    np.testing.assert_allclose(mean, known @ solution, rtol=0, atol=1e-9)

    nothing = condition.keep(torch.zeros(60, 1, dtype=torch.bool))
    mean, _ = sampler.mean(nothing, None)
    known = torch.cat([torch.ones(60, 1), context], 1).numpy()
    solution = np.linalg.lstsq(known, z.numpy(), rcond=None)[0]
    np.testing.assert_allclose(mean, known @ solution, rtol=0, atol=1e-9)
    z, _ = sampler.sample(nothing, 2000, seeded())
    error = (z.mean(0) - mean).abs()
    assert bool((error < 5 * z.std(0) / 2000**0.5).all())


def of_sites(into, b=200):
    """A model whose latents depend on the site, and rows of two sites."""
    covariates = {"site": Covariate(levels=("A", "B"), into=into)}
    options = {"latent_dim": 2, "covariates": covariates, "seed": 0}
    prior = "learnable" if "prior" in into else "standard"
    modalities = {n: {"shape": (f,), "encoder": "linear"} for n, f in (("a", 3), ("b", 2))}
    made = Model(modalities, prior=prior, **options)
    made = made.double().eval()
    at_b = torch.arange(b) % 2
    data = {}
    for name, f in (("a", 3), ("b", 2)):
        x = torch.randn(b, f, generator=seeded(f), dtype=torch.float64)
        data[name] = x + 6.0 * at_b[:, None]
    return made, Batch(data, covariates={"site": ["AB"[i] for i in at_b.tolist()]})


def test_new_rows_are_those_of_their_site(tmp_path):
    made, batch = of_sites(("decoders", "encoders", "prior"))
    mvkit.fit_sampler(
        made, batch, GMM(components=2, floor=1e-3, conditional=True, covariates=True)
    )
    mvkit.save(made, tmp_path / "m")
    loaded = mvkit.load(tmp_path / "m")
    codes = made.encode(batch)
    for i, site in enumerate("AB"):
        options = {"sampler": "gmm", "covariates": {"site": site}, "latents": True}
        _, latents = made.sample(4000, generator=seeded(), **options)
        _, again = loaded.sample(4000, generator=seeded(), **options)
        assert torch.equal(latents.z, again.z)
        expected = codes[i::2].mean(0)
        apart = (codes[0::2].mean(0) - codes[1::2].mean(0)).norm()
        assert (latents.z.mean(0) - expected).norm() < 0.25 * apart


@pytest.mark.parametrize(
    "part", [GMM(components=2), SPEC], ids=["of latents alone", "without covariates"]
)
def test_samplers_that_miss_what_the_prior_depends_on_are_refused(part):
    made, batch = of_sites(("decoders", "encoders", "prior"))
    with pytest.raises(RequestError, match="depends on covariate 'site', of which sampler 'gmm'"):
        mvkit.fit_sampler(made, batch, part)
    mvkit.fit_sampler(made, batch, "prior")  # it is the prior
    other, batch = of_sites(("encoders", "prior"))
    with pytest.raises(RequestError, match="and a covariate that decoders see"):
        mvkit.fit_sampler(other, batch, SEES)


def test_new_levels_need_samplers_of_covariates_to_be_fitted_again():
    made, batch = of_sites(("decoders", "encoders"))
    mvkit.fit_sampler(made, batch, GMM(2, 1e-3, True, True))
    with pytest.raises(RequestError, match="add_level: sampler 'gmm' sees covariates"):
        made.add_level("site", "C")
    del made.samplers["gmm"]
    made.add_level("site", "C")
    mvkit.fit_sampler(made, batch, GMM(2, 1e-3, True, True))
    assert made.sample(3, sampler="gmm", covariates={"site": "C"})["a"].isfinite().all()


def test_covariates_are_an_option_of_conditional_ones_and_quiet():
    with pytest.raises(SpecError, match="covariates: got True without conditional=True"):
        mvkit.fit_sampler(model("poe").eval(), rows(8), GMM(covariates=True))
    assert "covariates" not in to_dict(SPEC)
    part = GMM(conditional=True, covariates=True)
    assert as_part("sampler", json.loads(json.dumps(to_dict(part)))) == part
    made = model("mopoe", private=1).eval()  # of a model without covariates, it is as without
    mvkit.fit_sampler(made, rows(40), GMM(2, 0.1, True, True))
    plain = model("mopoe", private=1).eval()
    mvkit.fit_sampler(plain, rows(40), SPEC)
    first, second = made.samplers.state_dict(), plain.samplers.state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
