"""On a linear-Gaussian model everything is known: posteriors, bounds and likelihoods against
closed forms.
"""

import itertools

import pytest
import torch

import mvkit
from mvkit import Batch, Model
from mvkit.core.likelihood import Context

SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(("m0", "m1", "m2"), n)]


def exact(aggregator="poe", objective="elbo", *, orthogonal=True, widen=1.0, **options):
    """The true decoders, and encoders that emit the likelihood factors N(z; (WᵀW)⁻¹Wᵀ(x-b), diag
    σ²(WᵀW)⁻¹).
    """
    data = mvkit.load_dataset("linear_gaussian", orthogonal=orthogonal, rows=200, **options)
    linear = {
        n: mvkit.Modality(m.shape, m.likelihood, encoder="linear", decoder="linear")
        for n, m in data.modalities.items()
    }
    model = Model(
        linear, latent_dim=3, aggregator=aggregator, objective=objective, seed=0
    ).double()
    truth = data.truth
    with torch.no_grad():
        for name in model.names:
            weight, bias, sigma = truth.weight[name], truth.bias[name], truth.sigma[name]
            decoder, encoder = model.decoders[name].network[0], model.encoders[name][0]
            decoder.weight.copy_(weight), decoder.bias.copy_(bias)
            gram = weight.T @ weight
            inverse = torch.linalg.inv(gram) @ weight.T
            encoder.weight[:3], encoder.bias[:3] = inverse, -inverse @ bias
            encoder.weight[3:] = 0
            variance = sigma**2 * torch.diagonal(
                torch.linalg.inv(gram)
            )  # not the inverse of the diagonal: no narrower
            encoder.bias[3:] = torch.log(widen * variance)
    return model.eval(), data


def truths(model, data, batch):
    """log p(x_O) of each row, whatever it observes, in closed form."""
    mask = torch.ones(len(batch), 3, dtype=torch.bool) if batch.mask is None else batch.mask
    rows = [
        {n: batch.data[n][i : i + 1] for j, n in enumerate(model.names) if mask[i, j]}
        for i in range(len(batch))
    ]
    return torch.cat([data.truth.log_prob(row) for row in rows])


@pytest.mark.parametrize("given", SUBSETS)
def test_poe_of_exact_experts_is_the_exact_posterior(given):
    model, data = exact()
    batch = data.test.batch
    mean, covariance = data.truth.posterior({n: batch.data[n] for n in given})
    posterior = model.posterior(batch, given=given)
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        posterior.scale[0] ** 2, covariance.diagonal().expand_as(mean), rtol=1e-10, atol=1e-12
    )
    off = covariance - torch.diag(covariance.diagonal())
    assert off.abs().max() < 1e-10


@pytest.mark.parametrize("observed", SUBSETS)
@pytest.mark.parametrize("objective", ["iwae", "dreg", {"name": "elbo", "density": "mixture"}])
def test_bound_of_the_exact_posterior_is_the_likelihood(observed, objective):
    model, data = exact(objective=objective)
    shown = {n: data.test.batch.data[n] for n in observed}
    torch.testing.assert_close(
        model.loss(Batch(shown)).bound, data.truth.log_prob(shown), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(
        model.log_likelihood(Batch(shown), n=3), data.truth.log_prob(shown), rtol=1e-9, atol=1e-9
    )


def test_closed_form_elbo_of_the_exact_posterior_is_the_likelihood_in_the_mean():
    model, data = exact(objective={"name": "elbo", "samples": 20_000})
    shown = {n: data.test.batch.data[n][:4] for n in ("m0", "m2")}
    bound = model.loss(Batch(shown)).bound
    torch.testing.assert_close(bound, data.truth.log_prob(shown), rtol=0, atol=0.06)


@pytest.mark.parametrize("aggregator", ["poe", "moe", "mopoe"])
@pytest.mark.parametrize("missing", [0.0, 0.5], ids=["complete", "incomplete"])
def test_likelihood_estimate_is_unbiased(aggregator, missing):
    model, data = exact(aggregator, orthogonal=False, missing=missing, widen=3.0, sigma=1.0)
    batch, truth = data.test.batch, truths(model, data, data.test.batch)
    weights = model.log_weights(batch, 8000, generator=torch.Generator().manual_seed(1))
    # p̂ / p has mean 1, and its standard error comes from the weights themselves
    ratio = (weights - truth).exp()
    error = ratio.std(0) / len(ratio) ** 0.5
    off = (ratio.mean(0) - 1) / error
    assert (off.abs() < 3).float().mean() >= 0.95
    assert abs(off.mean()) < 3 / len(batch) ** 0.5
    estimate = model.log_likelihood(batch, n=8000, generator=torch.Generator().manual_seed(3))
    assert ((estimate - truth).abs() < 3 * error + 1e-3).float().mean() >= 0.95


def test_one_component_under_the_mixture_density_would_be_biased():
    """The estimate draws from the whole mixture: taking one component's draws is measurably
    wrong.
    """
    model, data = exact("moe", orthogonal=False)
    batch = model.conform(data.test.batch.take(slice(0, 20)))
    experts = model.experts(batch)
    posterior = model.aggregator.forward(experts, batch)
    z = posterior.loc[:1] + posterior.scale[:1] * torch.randn(20_000, 20, 3, dtype=torch.float64)
    log_w = model.prior().log_prob(z) - posterior.log_prob(z)
    for name in model.names:
        out = model.decoders[name](z)
        log_w = log_w + model.decoders[name].likelihood.log_prob(
            out, batch.data[name], Context()
        ).sum(-1)
    biased = torch.logsumexp(log_w, 0) - torch.tensor(20_000.0).log()
    truth = data.truth.log_prob(dict(batch.data))
    assert (biased - truth).mean().abs() > 10 * (
        model.log_likelihood(batch, n=20_000) - truth
    ).mean().abs()


@pytest.mark.parametrize("aggregator", ["poe", "moe", "mopoe"])
@pytest.mark.parametrize("missing", [0.0, 0.5], ids=["complete", "incomplete"])
def test_bounds_are_ordered(aggregator, missing):
    model, data = exact(aggregator, orthogonal=False, missing=missing, widen=3.0)
    rows = data.train.batch
    truth = truths(model, data, rows)

    def bound(objective):
        seeds = [torch.Generator().manual_seed(i) for i in range(20)]
        return torch.stack(
            [model.loss(rows, objective=objective, generator=s).bound for s in seeds]
        ).mean()

    elbo = bound({"name": "elbo", "density": "mixture", "draw": "stratified"})
    five, fifty = (
        bound({"name": "iwae", "samples": n, "draw": "iid", "bound": "tight"}) for n in (5, 50)
    )
    assert elbo < five < fifty < truth.mean() + 0.02
    # by component, the KL is never less than the mixture's
    assert bound({"name": "elbo", "draw": "stratified"}) <= elbo + 0.05


@pytest.mark.parametrize("proposal", ["mixture", "product"])
def test_conditional_likelihood(proposal):
    model, data = exact("moe", orthogonal=False, widen=2.0, sigma=1.0)
    batch = data.test.batch
    joint = data.truth.log_prob(dict(batch.data))
    given = data.truth.log_prob({n: batch.data[n] for n in ("m0", "m2")})
    estimate = model.log_likelihood(batch, ["m1"], ["m0", "m2"], n=80_000, proposal=proposal)
    torch.testing.assert_close(
        estimate, joint - given, rtol=0, atol=0.12
    )  # 4 standard deviations over seeds
    predictive = model.log_likelihood(batch, ["m1"], ["m0", "m2"], n=4000, estimator="predictive")
    assert (predictive - (joint - given)).abs().mean() > 0.02  # another quantity
    chain = model.log_likelihood(batch, ["m0", "m2"], n=80_000) + estimate
    torch.testing.assert_close(chain, joint, rtol=0, atol=0.2)


def test_predictive_given_nothing_is_the_marginal():
    model, data = exact("poe", sigma=2.0)
    batch = data.test.batch
    marginal = data.truth.log_prob({"m0": batch.data["m0"]})
    estimate = model.log_likelihood(batch, ["m0"], n=20_000, estimator="predictive")
    torch.testing.assert_close(estimate, marginal, rtol=0, atol=0.15)


def test_private_latents_do_not_bias_the_likelihood():
    """A modality whose private latent is part of a larger linear-Gaussian model, whose marginal is
    known.
    """
    torch.manual_seed(3)
    nets = {"encoder": "linear", "decoder": "linear"}
    shapes = {
        n: mvkit.Modality((4,), {"name": "normal", "scale": 0.6}, private_dim=1, **nets)
        for n in ("a", "b")
    }
    model = Model(shapes, latent_dim=2, aggregator="moe", objective="iwae", seed=0).double().eval()
    batch = Batch({n: torch.randn(30, 4, dtype=torch.float64) for n in ("a", "b")})
    joint_weight = torch.zeros(8, 4, dtype=torch.float64)
    bias = []
    for i, name in enumerate(("a", "b")):
        layer = model.decoders[name].network[0]
        joint_weight[4 * i : 4 * i + 4, :2] = layer.weight[:, :2].detach()
        joint_weight[4 * i : 4 * i + 4, 2 + i] = layer.weight[:, 2].detach()
        bias.append(layer.bias.detach())
    covariance = joint_weight @ joint_weight.T + 0.36 * torch.eye(8, dtype=torch.float64)
    both = torch.cat([batch.data["a"], batch.data["b"]], 1)
    truth = torch.distributions.MultivariateNormal(torch.cat(bias), covariance).log_prob(both)
    ratio = (model.log_weights(batch, 50_000) - truth).exp()
    off = (ratio.mean(0) - 1) / (ratio.std(0) / len(ratio) ** 0.5)
    assert (off.abs() < 3).float().mean() >= 0.95
    assert abs(off.mean()) < 3 / len(batch) ** 0.5
