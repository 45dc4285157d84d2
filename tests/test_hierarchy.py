"""Levels of latents: the bound against a loop from the paper, one level against `poe`, densities,
a model's life.
"""

import copy
import itertools
import math

import pytest
import torch
from helpers import FAMILIES, OBJECTIVES, fillers, loss_and_gradients, rows
from test_recipes import check, modalities
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import mvkit
from mvkit import Batch, Modality, Model, RequestError, SpecError, recipes

WIDTHS = (2, 1, 2)
SMALL = {"name": "mlp", "hidden": [4]}
FUSION = {"name": "top_down_poe", "features": 3, "network": SMALL}
PRIOR = {"name": "top_down", "levels": WIDTHS, "networks": [SMALL]}


def made(objective="elbo", aggregator=FUSION, prior=PRIOR, **options):
    options = {"latent_dim": 5, "seed": 0, **options}
    return Model(
        modalities(), aggregator=aggregator, prior=prior, objective=objective, **options
    ).double()


def normal(network, *inputs):
    loc, raw = network(torch.cat(inputs)[None])[0].chunk(2)
    return Normal(loc, torch.exp(raw / 2))


def descend(oracle, row, eps):
    """Samples of all levels, the top first, and Σ_l KL(q(z_l|x, z_>l) ‖ p(z_l|z_>l))."""
    model, z, kl = oracle.model, torch.zeros(0, dtype=torch.float64), 0.0
    for i, width in enumerate(WIDTHS):
        p = (
            normal(model.prior.networks[i - 1], z)
            if i
            else Normal(torch.zeros(width), torch.ones(width))
        )
        precision, weighted = p.scale**-2, p.scale**-2 * p.loc
        for name in oracle.observed(row):
            features = model.encoders[name](oracle.data[name][row : row + 1])[0]
            expert = normal(model.aggregator.heads[name][i], features, z)
            precision, weighted = (
                precision + expert.scale**-2,
                weighted + expert.scale**-2 * expert.loc,
            )
        q = Normal(weighted / precision, precision**-0.5)
        kl = kl + kl_divergence(q, p).sum()
        start = sum(WIDTHS[:i])
        z = torch.cat([z, q.loc + q.scale * eps[start : start + width]])
    return z, kl


@pytest.mark.parametrize("samples", [1, 2])
def test_the_bound_is_the_loop_of_the_paper(samples):
    model = made({"name": "elbo", "kl_weight": 0.7, "samples": samples})

    def loop(oracle, row):
        eps, value = oracle.eps("z", samples, 1, 5), 0.0
        for s in range(samples):
            z, kl = descend(oracle, row, eps[s, 0, row])
            fit = sum(oracle.log_px(name, row, z) for name in oracle.observed(row))
            value = value + (fit - 0.7 * kl) / samples
        return value

    check(model, loop)


def test_the_weights_of_draws_are_the_loop():
    """log p(x|z) + log p(z) - log q(z|x) at draws that go down the levels."""
    model = made({"name": "iwae", "samples": 3})

    def loop(oracle, row):
        eps, logs = oracle.eps("z", 3, 1, 5), []
        for s in range(3):
            z = torch.zeros(0, dtype=torch.float64)
            value = 0.0
            for i, width in enumerate(WIDTHS):
                p = (
                    normal(model.prior.networks[i - 1], z)
                    if i
                    else Normal(torch.zeros(width), torch.ones(width))
                )
                experts = [p]
                for name in oracle.observed(row):
                    features = model.encoders[name](oracle.data[name][row : row + 1])[0]
                    experts.append(normal(model.aggregator.heads[name][i], features, z))
                q = oracle.product(experts, 0.0)
                start = sum(WIDTHS[:i])
                own = q.loc + q.scale * eps[s, 0, row, start : start + width]
                value = value + (p.log_prob(own) - q.log_prob(own)).sum()
                z = torch.cat([z, own])
            logs.append(value + sum(oracle.log_px(name, row, z) for name in oracle.observed(row)))
        return torch.logsumexp(torch.stack(logs), 0) - math.log(3)

    check(model, loop)


def test_one_level_is_poe():
    nets = {"encoder": "linear", "decoder": "linear"}
    shapes = {k: Modality((3,), **nets) for k in "ab"}
    poe = Model(shapes, latent_dim=2, seed=0).double()
    fusion = {"name": "top_down_poe", "features": 4, "network": "linear"}
    one = Model(
        shapes, latent_dim=2, aggregator=fusion, prior={"name": "top_down", "levels": 1}, seed=1
    ).double()
    with torch.no_grad():
        for name in "ab":
            one.encoders[name].load_state_dict(poe.encoders[name].state_dict())
            one.decoders[name].load_state_dict(poe.decoders[name].state_dict())
            one.aggregator.heads[name][0][0].weight.copy_(torch.eye(4))
            one.aggregator.heads[name][0][0].bias.zero_()
    batch = Batch(
        {k: torch.randn(6, 3).double() for k in "ab"},
        torch.tensor([[1, 1], [1, 0], [0, 1]] * 2).bool(),
    )
    found, gradients = loss_and_gradients(one, batch)
    expected, others = loss_and_gradients(poe, batch)
    torch.testing.assert_close(found.bound, expected.bound, rtol=1e-12, atol=1e-12)
    for name, gradient in others.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one.encode(batch), poe.encode(batch))
    torch.testing.assert_close(
        one.encode(batch, "a", empty="prior"), poe.encode(batch, "a", empty="prior")
    )


def linear_gaussian():
    """z_2 ~ N(0, I), z_1 = A z_2 + a + s ε, x_m = W_m z + b_m + ε: log p(x) in closed form."""
    nets = {
        "encoder": "linear",
        "decoder": "linear",
        "likelihood": {"name": "normal", "scale": 0.9},
    }
    shapes = {k: Modality((3,), **nets) for k in "ab"}
    prior = {"name": "top_down", "levels": [1, 2], "networks": ["linear"]}
    fusion = {"name": "top_down_poe", "features": 4, "network": "linear"}
    model = Model(shapes, latent_dim=3, aggregator=fusion, prior=prior, seed=2).double()
    with torch.no_grad():
        down = model.prior.networks[0][0]
        down.weight[2:].zero_()  # a scale that does not depend on the level above
        for heads in (
            model.aggregator.heads.values()
        ):  # broad experts, so that no weight is far from the rest
            for i, head in enumerate(heads):
                head[0].weight.mul_(0.3)
                head[0].bias[i + 1 :] = 3.0
    a, shift, variance = down.weight[:2], down.bias[:2], down.bias[2:].exp()
    mean = torch.cat([torch.zeros(1).double(), shift])
    cov = torch.eye(3).double()
    cov[0, 1:] = cov[1:, 0] = a[:, 0]
    cov[1:, 1:] = a @ a.T + torch.diag(variance)

    def truth(x, names):
        w = torch.cat([model.decoders[k].network[0].weight for k in names])
        b = torch.cat([model.decoders[k].network[0].bias for k in names])
        out = MultivariateNormal(w @ mean + b, w @ cov @ w.T + 0.81 * torch.eye(3 * len(names)))
        return out.log_prob(torch.cat([x[k] for k in names], 1)).detach()

    return model.eval(), truth, MultivariateNormal(mean.detach(), cov.detach())


def test_bounds_stay_below_the_likelihood_and_the_estimate_reaches_it():
    model, truth, _ = linear_gaussian()
    x = {k: torch.randn(30, 3, generator=torch.Generator().manual_seed(1)).double() for k in "ab"}
    for names in (("a", "b"), ("a",)):
        batch, exact = Batch({k: x[k] for k in names}), truth(x, names)
        means = [
            torch.stack([model.loss(batch, objective=o).bound for _ in range(n)]).mean(0).mean()
            for o, n in (
                ({"name": "elbo", "samples": 100}, 3),
                ({"name": "iwae", "samples": 5}, 60),
                ({"name": "iwae", "samples": 50}, 20),
            )
        ]
        assert means[0] < means[1] < means[2] < exact.mean() + 0.02
        ratio = (model.log_weights(batch, 10_000) - exact).exp()
        off = (ratio.mean(0) - 1) / (ratio.std(0) / len(ratio) ** 0.5)
        assert (off.abs() < 3).double().mean() >= 0.9
        torch.testing.assert_close(model.log_likelihood(batch, n=10_000), exact, rtol=0, atol=0.1)
    conditional = truth(x, ("a", "b")) - truth(x, ("b",))
    estimates = []
    for seed in range(
        5
    ):  # of heavy tails: one estimate of all rows is off by 0.15 in three of ten
        generator = torch.Generator().manual_seed(seed)
        estimates.append(model.log_likelihood(x, "a", "b", n=10_000, generator=generator))
    estimates = torch.stack(estimates)
    off = estimates.mean(0) - conditional
    error = estimates.std(0) / len(estimates) ** 0.5
    assert off.abs().max() < 0.15
    assert (off.abs() < 3 * error).double().mean() >= 0.9
    assert off.mean().abs() < 0.02


def test_the_prior_is_its_density_its_draws_and_the_posterior_given_nothing():
    model, _, exact = linear_gaussian()
    z = torch.randn(40, 3).double()
    prior = model.prior_at()
    torch.testing.assert_close(prior.log_prob(z[:, None])[:, 0], exact.log_prob(z))
    given_nothing = model.posterior({"a": torch.zeros(40, 3)}, given=())
    torch.testing.assert_close(given_nothing.log_prob(z), exact.log_prob(z))
    _, latents = model.sample(40_000, latents=True, generator=torch.Generator().manual_seed(0))
    assert latents.cluster is None
    torch.testing.assert_close(latents.z.mean(0), exact.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(latents.z.T), exact.covariance_matrix, rtol=0, atol=0.05)
    one, two = (model.sample(3, generator=torch.Generator().manual_seed(5))["a"] for _ in range(2))
    assert torch.equal(one, two)


def test_draws_are_of_the_density():
    model = made()
    posterior = model.posterior(rows())
    draws = posterior.draw(4, "iid")
    torch.testing.assert_close(draws.log_qk, posterior.log_prob(draws.z))
    torch.testing.assert_close(posterior.detach().log_prob(draws.z), draws.log_qk)
    assert not posterior.detach().log_prob(draws.z.detach()).requires_grad
    kl = draws.kl(model.prior_at()).detach()
    many = posterior.draw(5_000, "iid")
    sampled = (many.log_qk - model.prior_at().log_prob(many.z)).detach()
    closed = torch.stack(
        [posterior.draw(1, "iid").kl(model.prior_at())[0] for _ in range(200)]
    ).detach()
    assert kl.shape == (1, 8)
    error = (sampled.var((0, 1)) / 5_000 + closed.var(0) / 200).sqrt()
    assert ((sampled.mean((0, 1)) - closed.mean(0)).abs() < 4 * error).all()


def test_dreg_has_the_gradient_of_iwae():
    model, batch, gaps = made(), rows(4), []
    for seed in range(120):
        found = []
        for objective in ("dreg", "iwae"):
            model.zero_grad(set_to_none=True)
            generator = torch.Generator().manual_seed(seed)
            model.loss(
                batch, objective={"name": objective, "samples": 3}, generator=generator
            ).loss.backward()
            found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        gaps.append(found[0] - found[1])
    gaps = torch.stack(gaps)
    decoders = torch.cat(
        [torch.full((p.numel(),), n.startswith("decoders")) for n, p in model.named_parameters()]
    )
    assert gaps[:, decoders].abs().max() < 1e-12
    off = gaps.mean(0)[~decoders] / (gaps.std(0)[~decoders] / len(gaps) ** 0.5).clamp(min=1e-12)
    assert off.square().mean() < 1.5
    assert off.abs().max() < 5


@pytest.mark.parametrize(("objective", "family"), list(itertools.product(OBJECTIVES, FAMILIES)))
def test_every_combination_trains_or_is_refused(objective, family):
    if family == "laplace_softmax":
        with pytest.raises(SpecError, match="no closed product"):
            made(objective, family=family)
    else:
        model = made(objective, family=family)
        found, gradients = loss_and_gradients(model, rows())
        assert torch.isfinite(found.loss)
        assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())
        other, others = loss_and_gradients(model, fillers(rows(), torch.nan))
        assert torch.equal(found.loss, other.loss)
        assert all(torch.equal(g, others[name]) for name, g in gradients.items())
    for aggregator in ("poe", "moe", "mean_message"):
        if family != "laplace_softmax" or aggregator != "poe":
            _, gradients = loss_and_gradients(made(objective, aggregator, family=family), rows())
            assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())


def test_life(tmp_path):
    model = recipes.mhvae(
        modalities(), latent_dim=5, levels=[1, 2, 2], seed=0, condition="subset", warmup=2
    ).double()
    batch = rows(40)
    history = mvkit.fit(
        model, Batch(batch.data, rows(40, seed=1).mask), validation=batch, epochs=2, batch_size=16
    )
    assert all(map(math.isfinite, history["valid/loss"]))
    mvkit.save(model, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    assert again.header() == model.header()
    assert torch.equal(model.encode(rows()), again.encode(rows()))
    assert model.encode(rows()).shape == (8, 5)
    assert model.posterior(rows()).evidence.shape == (1, 8, 3)
    mixed = model.posterior(rows(), ["a"], empty="prior")  # some rows lack it
    z = mixed.rsample(3)
    assert torch.isfinite(mixed.log_prob(z)).all()
    lacking = ~rows().mask[:, 0]
    torch.testing.assert_close(
        mixed.log_prob(z)[:, lacking], model.prior_at().log_prob(z)[:, lacking]
    )
    assert model.translate(rows(), ["c"], ["a", "b"], n=2, empty="prior")["c"].shape == (2, 8, 4)
    assert torch.isfinite(model.log_likelihood(rows(), ["a"], ["b"], n=20, empty="prior")).all()
    assert model.decode(torch.zeros(3, 5))["b"].shape == (3, 2, 2)
    alone = torch.cat([model.encode(rows().take(slice(i, i + 1))) for i in range(8)])
    torch.testing.assert_close(model.encode(rows()), alone)
    private = {k: Modality(m.shape, m.likelihood, private_dim=2) for k, m in modalities().items()}
    own = Model(private, latent_dim=5, aggregator=FUSION, prior=PRIOR, seed=0).double()
    own.loss(rows()).loss.backward()
    assert torch.isfinite(own.log_likelihood(rows(), n=5)).all()


def test_the_order_of_modalities_and_copies_change_nothing():
    model, batch = made(), rows()
    turned = dict(reversed(modalities().items()))
    other = Model(turned, latent_dim=5, aggregator=FUSION, prior=PRIOR).double()
    other.load_state_dict(model.state_dict())
    flipped = Batch(batch.data, batch.mask.flip(1))
    one, two, three = (
        loss_and_gradients(m, x)[0].loss
        for m, x in ((model, batch), (other, flipped), (copy.deepcopy(model), batch))
    )
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    assert torch.equal(one, three)
    twin = copy.deepcopy(model)
    assert twin.aggregator.prior.module is twin.prior


def test_modules_of_the_user(tmp_path):
    class Down(torch.nn.Module):
        def __init__(self, into, out):
            super().__init__()
            self.layer = torch.nn.Linear(into, out)

        def forward(self, rows):
            return self.layer(rows)

    networks = [Down(2, 2), Down(3, 4)]
    model = made(prior={"name": "top_down", "levels": WIDTHS, "networks": networks})
    mvkit.save(model, tmp_path / "m")
    given = {"prior.networks.0": Down(2, 2), "prior.networks.1": Down(3, 4)}
    again = mvkit.load(tmp_path / "m", modules=given)
    assert torch.equal(model.encode(rows()), again.encode(rows()))


def test_what_does_not_fit_is_refused():
    cases = {
        r"model\.prior\.levels: got \(2, 2\), which sum to 4, not latent_dim=5": {
            "levels": [2, 2]
        },
        r"model\.prior\.levels: got 6; latent_dim=5 makes 5 at most": {"levels": 6},
        r"levels: got 0; expected an integer of at least 1, or a list of them": {"levels": 0},
        r"networks: got 3; expected one spec for the levels below the top, or 1": {
            "networks": ["mlp"] * 3
        },
    }
    for message, options in cases.items():
        with pytest.raises(SpecError, match=message):
            made(prior={"name": "top_down", **options})
    with pytest.raises(
        SpecError,
        match=r"model\.aggregator: goes down the levels of its prior, and 'standard' has none",
    ):
        made(prior="standard")
    assert mvkit.plugins.lookup("prior", "top_down")(levels=3).widths(10) == (3, 3, 4)
    with pytest.raises(RequestError, match="cannot stand in for others"):
        made().posterior(rows(), ["a"], empty="prior").expand(2, 3)
