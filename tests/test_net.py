"""Means over rows that count, floors, and KLs without a closed form, by plain formulas."""

import math

import pytest
import torch
from helpers import declare_logistic, loss_and_gradients, model, rows
from torch import distributions

import mvkit
from mvkit import Batch, Modality, Model
from mvkit.core import bounds
from mvkit.core.terms import Terms
from mvkit.testing import bound_noise

NAMES = ("a", "b", "c")


def log_likelihood_of(vae, batch, latents):
    """Σ_{m∈O} log p(x_m|latents of m) of the tiny model, by torch's own densities."""
    outputs = {name: vae.decoders[name](latents[name]) for name in NAMES}
    x = batch.data
    log_a = distributions.Normal(outputs["a"], 1.0).log_prob(x["a"])
    log_b = x["b"] * outputs["b"].sigmoid().log() + (1 - x["b"]) * (-outputs["b"]).sigmoid().log()
    log_c = x["c"] * torch.log_softmax(outputs["c"], -1)
    columns = torch.stack([log_a.sum(-1), log_b.sum((-1, -2)), log_c.sum(-1)], -1)
    return torch.where(batch.mask, columns, 0.0).sum(-1)


def test_the_mean_over_conditions_is_over_those_that_a_row_has():
    vae = model(objective={"name": "elbo", "condition": "unimodal", "reduce": "mean"})
    batch = rows()
    losses, _ = loss_and_gradients(vae, batch)
    conformed = vae.conform(batch)
    experts = vae.experts(conformed)
    eps = bound_noise(range(8), NAMES)("z", (1, 1, 8, 2), torch.float64, torch.device("cpu"))[0, 0]
    total = torch.zeros(8, dtype=torch.float64)
    for i, posterior in enumerate(vae.aggregator.unimodal(experts, conformed).values()):
        loc, scale = posterior.loc[0], posterior.scale[0]
        z = loc + scale * eps
        kl = 0.5 * (loc**2 + scale**2 - 1) - scale.log()
        bound = log_likelihood_of(vae, batch, dict.fromkeys(NAMES, z)) - kl.sum(-1)
        total = total + torch.where(batch.mask[:, i], bound, 0.0)
    bound = total / batch.mask.sum(1)
    torch.testing.assert_close(losses.bound, bound.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(losses.loss, -bound.mean(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(losses.metrics["bound"], bound.mean().detach())


@pytest.mark.parametrize("objective", ["elbo", "iwae", "telbo"])
def test_the_mean_of_the_bound_is_over_active_rows(objective):
    vae = model({"name": "joint", "incomplete": "skip"}, objective=objective)
    batch = rows(16)
    losses, _ = loss_and_gradients(vae, batch)
    complete = batch.mask.all(1)
    assert complete.sum() == 3
    assert torch.equal(torch.isfinite(losses.bound), complete)
    total = sum(losses.bound[complete].tolist())
    assert losses.metrics["bound"].item() == pytest.approx(total / 3)
    assert losses.counts["bound"] == 3


def joint_model(shapes, latent_dim, aggregator):
    """A model with a joint encoder and a schedule that trains all of it."""
    options = {"aggregator": aggregator, "schedule": "joint_then_unimodal", "seed": 0}
    return Model(shapes, latent_dim=latent_dim, **options).double()


def test_the_optimal_scale_looks_at_active_rows_alone():
    nets = {"encoder": "linear", "decoder": "linear"}
    optimal = {"name": "normal", "scale": "optimal"}
    shapes = {name: Modality((3,), optimal, **nets) for name in "ab"}
    vae = joint_model(shapes, 2, {"name": "joint", "incomplete": "skip"})
    generator = torch.Generator().manual_seed(0)
    data = {name: torch.randn(6, 3, generator=generator, dtype=torch.float64) for name in "ab"}
    data["a"][3:] += 100.0
    mask = torch.ones(6, 2, dtype=torch.bool)
    mask[3:, 1] = False
    source = bound_noise(range(6), "ab")
    with mvkit.testing.noise(source):
        vae.train().loss(Batch(data, mask))
    features = [vae.aggregator.trunks[name](data[name]) for name in "ab"]
    loc, raw = vae.aggregator.head(torch.cat(features, -1)).chunk(2, -1)
    eps = source("z", (1, 1, 6, 2), torch.float64, torch.device("cpu"))[0, 0]
    z = loc + torch.exp(raw / 2) * eps
    for name in "ab":
        residual = (data[name] - vae.decoders[name].network(z))[:3]
        expected = residual.square().mean().sqrt().detach()
        torch.testing.assert_close(vae.decoders[name].likelihood.scale.running, expected)


def broad_surrogate(precision):
    """The posterior given two experts N(1, 1 / precision), the product divided by one prior."""
    nets = {"encoder": "linear", "decoder": "linear"}
    shapes = {name: Modality((1,), **nets) for name in NAMES}
    vae = joint_model(shapes, 1, {"name": "joint", "correct_prior": True})
    with torch.no_grad():
        for name in NAMES:
            vae.encoders[name][0].weight.zero_()
            vae.encoders[name][0].bias[0] = 1.0
            vae.encoders[name][0].bias[1] = -math.log(precision)
    x = {name: torch.zeros(1, 1, dtype=torch.float64) for name in NAMES}
    return vae.posterior(x, given=["a", "b"])


def test_a_corrected_product_is_exact_while_its_precision_is_small_but_positive():
    posterior = broad_surrogate(0.51)
    assert posterior.scale.item() == pytest.approx((2 * 0.51 - 1) ** -0.5)
    assert posterior.loc.item() == pytest.approx(2 * 0.51 / (2 * 0.51 - 1))


def test_a_product_that_nothing_normalises_is_as_broad_as_its_sharpest_expert():
    posterior = broad_surrogate(0.4)
    assert posterior.scale.item() == pytest.approx(0.4**-0.5)
    assert posterior.loc.item() == pytest.approx(2.0)


def logistic(loc, scale):
    """The logistic distribution by torch's transforms."""
    uniform = distributions.Uniform(torch.zeros_like(loc), torch.ones_like(loc))
    return distributions.TransformedDistribution(
        uniform, [distributions.SigmoidTransform().inv, distributions.AffineTransform(loc, scale)]
    )


def sampled_kl(loc, scale, z):
    """Log q(z) - log p(z), summed over dimensions; p is the standard logistic."""
    standard = logistic(torch.zeros_like(loc), torch.ones_like(scale))
    return (logistic(loc, scale).log_prob(z) - standard.log_prob(z)).sum(-1)


def bounds_of_component(vae, batch, k):
    """The bound (b,) under expert k, with all weights at 1 and as trained, by the formula."""
    source = bound_noise(range(8), NAMES)

    def eps(site):
        return source(site, (1, 3, 8, 2), torch.float64, torch.device("cpu"))[0, k]

    conformed = vae.conform(batch)
    numbers = {name: vae.encoders[name](conformed.data[name]) for name in NAMES}
    loc, raw = numbers[NAMES[k]][:, :4].chunk(2, -1)
    scale = vae.family.scale(raw)
    z = loc + scale * eps("z")
    plain = trained = sampled_kl(loc, scale, z)
    latents = {}
    for i, name in enumerate(NAMES):
        w_loc, w_raw = numbers[name][:, 4:].chunk(2, -1)
        w_scale = vae.family.scale(w_raw)
        w = w_loc + w_scale * eps(f"w/{name}")
        if i == k or vae.spec.private_from == "observed":
            kl = torch.where(batch.mask[:, i], sampled_kl(w_loc, w_scale, w), 0.0)
            plain = plain + kl
            trained = trained + vae.modalities[name].private_beta * kl
        else:
            w = vae.family.scale(vae.cross[name]) * eps(f"cross/{name}")
        latents[name] = torch.cat([z, w], -1)
    log_px = log_likelihood_of(vae, batch, latents)
    return log_px - plain, log_px - vae.objective.kl_weight * trained


@pytest.mark.parametrize("private_from", ["evidence", "observed"])
def test_a_private_kl_without_a_closed_form_is_sampled_with_its_sign(private_from):
    declare_logistic()
    objective = {"name": "elbo", "kl_weight": 0.8}
    vae = model("moe", "standard", objective, "logistic", private=2, private_from=private_from)
    batch = rows()
    losses, _ = loss_and_gradients(vae, batch)
    bound = torch.zeros(8, dtype=torch.float64)
    trained = torch.zeros(8, dtype=torch.float64)
    for k in range(3):
        plain, weighted = bounds_of_component(vae, batch, k)
        share = batch.mask[:, k].double() / batch.mask.sum(1)
        bound = bound + share * plain
        trained = trained + share * weighted
    # private latents of the rule `evidence` have priors of their own, so that it bounds nothing
    name = "surrogate_bound" if private_from == "evidence" else "bound"
    torch.testing.assert_close(losses.bound, bound.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(losses.metrics[name], bound.mean().detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(losses.loss, -trained.mean(), rtol=1e-9, atol=1e-9)


def made_up_weights(s=3, j=2, b=4):
    """Log-weights of draws and of components, log p(z) and log q(z), at random."""
    generator = torch.Generator().manual_seed(0)
    log_w, log_pz, log_qz = torch.randn(3, s, j, b, generator=generator, dtype=torch.float64)
    log_pi = torch.log_softmax(torch.randn(j, b, generator=generator, dtype=torch.float64), 0)
    return log_w.requires_grad_(), log_pi, log_pz, log_qz


def test_the_kl_of_a_mixture_is_the_mean_ratio_of_its_density():
    _, log_pi, log_pz, log_qz = made_up_weights()
    terms = Terms(torch.zeros(3, 2, 4, 1), log_pi, log_pi, log_pz, log_qz)
    kl = bounds.kl(terms, density="mixture")
    for row in range(4):
        total = 0.0
        for component in range(2):
            ratios = log_qz[:, component, row] - log_pz[:, component, row]
            total += log_pi[component, row].exp() * ratios.mean()
        assert float(kl[row]) == pytest.approx(float(total))


def test_the_loose_bound_weighs_the_draws_of_each_component_alone():
    log_w, log_pi, *_ = made_up_weights()
    value = bounds.dreg(log_w, log_pi, bound="loose")
    (gradient,) = torch.autograd.grad(value.sum(), log_w)
    for row in range(4):
        total = 0.0
        for component in range(2):
            weights = log_w[:, component, row].detach().exp()
            pi = log_pi[component, row].exp()
            total += pi * weights.mean().log()
            expected = pi * weights / weights.sum()
            torch.testing.assert_close(gradient[:, component, row], expected)
        assert float(value[row].detach()) == pytest.approx(float(total))
    shares = bounds.normalised_weights(log_w, log_pi, bound="loose")
    torch.testing.assert_close(shares, torch.softmax(log_w.detach(), 0))


def test_the_tight_bound_weighs_all_draws_together():
    log_w, log_pi, *_ = made_up_weights()
    value = bounds.dreg(log_w, log_pi, bound="tight")
    (gradient,) = torch.autograd.grad(value.sum(), log_w)
    joint = (log_w.detach() + log_pi).exp()
    torch.testing.assert_close(value, (joint.sum((0, 1)) / 3).log())
    torch.testing.assert_close(gradient, joint / joint.sum((0, 1)))
