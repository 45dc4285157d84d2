"""Numbers of likelihoods by the level of a covariate: backgrounds and dispersions, in new levels
too.
"""

import numpy as np
import pytest
import torch
from scipy import stats

import mvkit
from mvkit import Batch, Covariate, Modality, Model, RequestError, SpecError, Stage
from mvkit.core.likelihood import Context
from mvkit.core.modality import Sizes

SITES = ("A", "B", "C")
BY_SITE = {"by": "feature_and_level", "level": "site"}
LIKELIHOODS = {
    "negative_binomial": ["log_theta"],
    "foreground_background": ["background", "log_scale"],
}


def f64(values):
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


def cells(sites, seed=0):
    rates = {"A": 3.0, "B": 6.0, "C": 9.0, "D": 20.0}
    generator = torch.Generator().manual_seed(seed)
    means = torch.tensor([rates[site] for site in sites]).unsqueeze(1).expand(-1, 4)
    counts = torch.poisson(means, generator=generator)
    return Batch({"a": counts}, covariates={"site": sites})


def model_of(name, covariate=None, **options):
    modality = Modality((4,), {"name": name, **BY_SITE, **options}, input="log1p")
    covariates = {"site": covariate or Covariate(SITES)}
    return Model({"a": modality}, latent_dim=2, covariates=covariates, seed=0)


def live(levels=2, shape=(3,)):
    options = {"name": "foreground_background", **BY_SITE, "levels": levels}
    modality = Modality(shape, options)
    part = modality.likelihood.build(Sizes.alone(modality)).double()
    generator = np.random.default_rng(3)
    part.background.data = f64(generator.normal(1.0, 0.6, (levels, *shape)))
    part.log_scale.data = f64(generator.normal(-1.0, 0.3, (levels, *shape)))
    part.log_theta.data = f64(generator.normal(0.5, 0.3, shape))
    return part


def law(x, logit, above, background, theta):
    """The density as the docstring has it, of numbers."""
    share = 1 / (1 + np.exp(-logit))

    def counts(mean):
        return stats.nbinom(theta, theta / (theta + mean)).pmf(x)

    return share * counts(background) + (1 - share) * counts((1 + np.exp(above)) * background)


def test_density_mean_and_draws_are_those_of_the_level_of_each_row():
    part = live().eval()
    site = torch.tensor([1, 0, 1, -1])
    generator = np.random.default_rng(0)
    out = generator.normal(size=(1, 4, 3, 2))
    x = generator.integers(0, 12, (4, 3))
    context = Context(covariates={"site": site}, generator=torch.Generator().manual_seed(0))
    log_p = part.log_prob(f64(out), f64(x), context).detach().numpy()[0]
    mean = part.mean(f64(out), context).detach().numpy()[0]
    table = part.background.detach().numpy()
    theta = np.exp(part.log_theta.detach().numpy())
    counts = np.arange(4000)
    for n in range(4):
        for f in range(3):
            log_background = table[:, f].mean() if site[n] < 0 else table[site[n], f]
            numbers = (*out[0, n, f], np.exp(log_background), theta[f])
            assert log_p[n, f] == pytest.approx(np.log(law(x[n, f], *numbers)), rel=1e-9)
            assert mean[n, f] == pytest.approx((counts * law(counts, *numbers)).sum(), rel=1e-6)
    draws = part.sample(f64(out).expand(4000, 4, 3, 2), context).mean(0)
    assert torch.allclose(draws, f64(mean), rtol=0.2, atol=0.3)


def test_in_training_backgrounds_are_averaged_over_their_posterior():
    part = live().train()
    out = f64(np.random.default_rng(0).normal(size=(1, 2, 3, 2)))
    x = f64([[0, 3, 8], [2, 2, 30]])
    log_p = part.log_prob(out, x, Context(covariates={"site": torch.tensor([1, 0])}))
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    loc, scale = part.background.detach().numpy(), part.log_scale.exp().detach().numpy()
    theta = part.log_theta.exp().detach().numpy()
    for n, level in enumerate((1, 0)):
        for f in range(3):
            expected = 0.0
            for node, weight in zip(nodes, weights / weights.sum(), strict=True):
                background = np.exp(loc[level, f] + node * scale[level, f])
                numbers = (*out[0, n, f].numpy(), background, theta[f])
                expected += weight * np.log(law(x[n, f].item(), *numbers))
            assert log_p[0, n, f].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rows", [1, 250])
def test_penalty_is_the_kl_to_the_closest_prior_by_row(rows):
    part = live(levels=4)
    loc = part.background.detach().flatten()
    scale = part.log_scale.detach().exp().flatten()

    def kl(prior_loc, prior_scale):
        prior = torch.distributions.Normal(prior_loc, prior_scale)
        posterior = torch.distributions.Normal(loc, scale)
        return torch.distributions.kl_divergence(posterior, prior).sum().item()

    prior_scale = (scale.square() + (loc - loc.mean()).square()).mean().sqrt()
    closest = kl(loc.mean(), prior_scale)
    assert part.penalty(rows).item() == pytest.approx(closest / rows, rel=1e-9)
    for shift in (-0.05, 0.05):
        assert kl(loc.mean() + shift, prior_scale) > closest
        assert kl(loc.mean(), prior_scale + shift) > closest
    part.penalty(rows).backward()
    assert part.background.grad.abs().sum() > 0
    assert part.log_scale.grad.abs().sum() > 0


def test_backgrounds_of_sites_are_found():
    """Counts are background alone, of three means: the tables follow them."""
    model = model_of("foreground_background")
    data = cells(list(SITES) * 150)
    mvkit.fit(model, data, epochs=60, lr=0.02, seed=0, progress=False)
    medians = model.decoders["a"].likelihood.background.detach().exp().mean(1)
    assert medians[0] < medians[1] < medians[2]


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_new_level_has_its_own_numbers_and_trains_them_alone(name, tmp_path):
    model = model_of(name)
    data = cells(list(SITES) * 20)
    mvkit.fit(model, data, epochs=3, progress=False)
    old = {key: value.clone() for key, value in model.state_dict().items()}
    model.add_level("site", "D", like="C")
    part = model.decoders["a"].likelihood
    for key in LIKELIHOODS[name]:
        table = old[f"decoders.a.likelihood.{key}"]
        assert torch.equal(getattr(part, key), torch.cat([table, table[2:]]))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stage = Stage(epochs=3, trainable=["covariates.site.D"])
    mvkit.fit(model, cells(["D"] * 30), stages=[stage], progress=False)
    for key, value in model.state_dict().items():
        if key.removeprefix("decoders.a.likelihood.") in LIKELIHOODS[name]:
            assert torch.equal(value[:3], before[key][:3])
            assert not torch.equal(value[3], before[key][3])
        elif not key.endswith("weight"):  # columns of weights: see test_added_levels
            assert torch.equal(value, before[key]), key
    mvkit.save(model, tmp_path / "m.safetensors")
    again = mvkit.load(tmp_path / "m.safetensors")
    rows = cells(["D", "A"])
    expected = model.translate(rows, latent="mean")["a"]
    assert torch.equal(again.translate(rows, latent="mean")["a"], expected)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_number_of_levels_that_was_stated_grows(name, tmp_path):
    model = model_of(name, levels=3)
    model.add_level("site", "D")
    mvkit.save(model, tmp_path / "m.safetensors")
    again = mvkit.load(tmp_path / "m.safetensors")
    assert len(getattr(again.decoders["a"].likelihood, LIKELIHOODS[name][0])) == 4


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_rows_without_a_level_have_the_mean_of_all_not_the_last(name):
    model = model_of(name, Covariate(SITES, missing="average"))
    key = LIKELIHOODS[name][0]
    table = getattr(model.decoders["a"].likelihood, key)
    table.data = torch.arange(12.0).reshape(3, 4) / 10
    rows = Batch({"a": torch.ones(2, 4)}, covariates={"site": [None, "B"]})
    expected = model.log_likelihood(
        rows, n=50, missing="average", generator=torch.Generator().manual_seed(0)
    )
    table.data[[0, 2]] = table.data[1].clone()  # the mean of all is the middle one
    again = model.log_likelihood(
        rows, n=50, missing="average", generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose(expected, again)


def test_other_likelihoods_and_headers_stay():
    likelihood = {"name": "foreground_background"}
    model = Model({"a": Modality((4,), likelihood)}, seed=0)
    assert model.header()["modalities"]["a"]["likelihood"] == likelihood
    assert model.decoders["a"].likelihood.background.shape == (4,)
    assert model.decoders["a"].likelihood.by_level("site") == ()
    assert Model({"a": (2,)}).decoders["a"].likelihood.by_level("site") == ()


def test_what_cannot_be_is_refused():
    with pytest.raises(SpecError, match="a covariate's name as level= with by='feature_and_lev"):
        Modality((4,), {"name": "foreground_background", "level": "site"})
    with pytest.raises(SpecError, match="no covariate 'site' with levels in the model"):
        Model({"a": Modality((4,), {"name": "foreground_background", **BY_SITE})})
    with pytest.raises(SpecError, match="got 2, and covariate 'site' has 3; leave it out"):
        model_of("foreground_background", levels=2)
    message = "foreground_background: its background is by the level of 'site', which the rows"
    with pytest.raises(RequestError, match=message):
        live().mean(torch.zeros(1, 3, 2, dtype=torch.float64))
