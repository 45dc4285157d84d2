"""Each recipe's loss and every gradient against a plain loop, row by row, written from its
paper.
"""

import itertools
import math
import warnings

import pytest
import torch
from helpers import rows
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal, kl_divergence

import mvkit
from mvkit import Modality, recipes
from mvkit.testing import bound_noise

LINEAR = {"encoder": "linear", "decoder": "linear"}
SHAPES = {"a": (3,), "b": (2, 2), "c": (4,)}
NAMES = tuple(SHAPES)
ROWS = 8
RECIPES = (
    "telbo",
    "jmvae",
    "mopoe",
    "cmvae",
    "mvae",
    "mmvae",
    "mmvaeplus",
    "mvtcae",
    "dmvae",
    "crmvae",
    "mmvm",
    "nexus",
    "mhvae",
    "hivae",
)


def modalities(**options):
    return {
        "a": Modality((3,), **LINEAR, **options),
        "b": Modality((2, 2), "bernoulli", **LINEAR, **options),
        "c": Modality((4,), "categorical", weight=1.5, **LINEAR, **options),
    }


def made(name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(recipes, name)(modalities(), latent_dim=2, seed=0, **options).double()


class Oracle:
    """A model seen row by row: experts, decoders and the noise that the library drew."""

    def __init__(self, model, batch=None):
        self.model, self.batch = model, rows(ROWS) if batch is None else batch
        self.data = self.batch.data
        self.source = bound_noise(list(range(ROWS)), NAMES)
        self.kind = Laplace if model.family.density == "laplace" else Normal

    def eps(self, site, samples, components, d=2):
        choice = site.startswith("choice/")
        shape = (samples, ROWS) if choice else (samples, components, ROWS, d)
        return self.source(site, shape, torch.float64, torch.device("cpu"))

    def apply(self, network, x, row):
        """What a network emits for one row."""
        return network(x[None])[0]

    def observed(self, row):
        return [name for i, name in enumerate(NAMES) if self.batch.mask[row, i]]

    def q(self, name, row):
        """The raw expert and the private posterior of a modality."""
        out = self.apply(self.model.encoders[name], self.data[name][row], row)
        p = self.model.modalities[name].private_dim
        d = (len(out) - 2 * p) // 2
        own = self.kind(out[:d], self.scale(out[d : 2 * d])) if d else None
        private = self.kind(out[2 * d : 2 * d + p], self.scale(out[2 * d + p :])) if p else None
        return own, private

    def scale(self, raw):
        return (
            torch.softmax(raw, -1) * len(raw) + 1e-6
            if self.kind is Laplace
            else torch.exp(raw / 2)
        )

    def product(self, experts, prior):
        tau = sum(e.scale**-2 for e in experts) + prior
        return Normal(sum(e.scale**-2 * e.loc for e in experts) / tau, tau**-0.5)

    def log_px(self, name, row, z, w=None):
        """λ log p(x_m | z, w)."""
        latent = torch.cat([z, w] if w is not None else [z])
        out = self.apply(self.model.decoders[name].network, latent, row)
        x = self.data[name][row]
        if name == "a":
            value = Normal(out, 1.0).log_prob(x).sum()
        elif name == "b":
            value = -torch.nn.functional.binary_cross_entropy_with_logits(out, x, reduction="sum")
        else:
            value = (x * torch.log_softmax(out, -1)).sum()
        return self.model._likelihood_weights[name] * value

    def standard(self, like):
        return self.kind(torch.zeros_like(like), torch.ones_like(like))

    def kl(self, q, p=None):
        return kl_divergence(q, self.standard(q.loc) if p is None else p).sum()


def check(model, loop, oracle=None, **options):
    """The library's loss and gradients against the loop's, relative error 1e-9."""
    oracle = oracle or Oracle(model)
    with mvkit.testing.noise(oracle.source):
        found = model.loss(oracle.batch, **options).loss
    found.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    expected = -sum(loop(oracle, row) for row in range(ROWS)) / ROWS
    expected.backward()
    assert abs(found - expected) <= 1e-9 * abs(expected)
    for name, parameter in model.named_parameters():
        theirs = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        ours = gradients.get(name, torch.zeros_like(parameter))
        assert (ours - theirs).norm() <= 1e-9 * theirs.norm() + 1e-14, name


def joint_q(oracle, row):
    """JMVAE's and TELBO's joint posterior of a complete row, or the product of surrogates."""
    seen = oracle.observed(row)
    if len(seen) < len(NAMES):
        return oracle.product([oracle.q(name, row)[0] for name in seen], 0.0)
    fusion = oracle.model.aggregator
    features = torch.cat(
        [oracle.apply(fusion.trunks[name], oracle.data[name][row], row) for name in NAMES]
    )
    loc, raw = fusion.head(features[None])[0].chunk(2)
    return Normal(loc, torch.exp(raw / 2))


def elbo(oracle, row, q, names, beta=1.0, j=0, components=1):
    z = q.loc + q.scale * oracle.eps("z", 1, components)[0, j, row]
    return sum(oracle.log_px(name, row, z) for name in names) - beta * oracle.kl(q)


@pytest.mark.parametrize("form", ["one stage", "first stage", "second stage"])
def test_telbo(form):
    gammas, lambdas = {"a": 0.7, "c": 2.0}, {"b": 1.3}
    model = made("telbo", gammas=gammas, lambdas=lambdas, stages=2)
    assert model._likelihood_weights["a"] == pytest.approx(4 / 3)  # rescaled by default

    def scaled(oracle, factors):
        base = dict(oracle.model._likelihood_weights)
        oracle.model._likelihood_weights = {n: v * factors.get(n, 1.0) for n, v in base.items()}
        return base

    def loop(oracle, row):
        seen, value = oracle.observed(row), 0.0
        if form != "second stage" and len(seen) == len(NAMES):
            base = scaled(oracle, lambdas)
            value = value + elbo(oracle, row, joint_q(oracle, row), seen)
            oracle.model._likelihood_weights = base
        if form != "first stage":
            base = scaled(oracle, gammas)
            value = value + sum(elbo(oracle, row, oracle.q(name, row)[0], [name]) for name in seen)
            oracle.model._likelihood_weights = base
        return torch.zeros((), dtype=torch.float64, requires_grad=True) + value

    stages = model.spec.schedule.stages(model, 4)
    objective = {
        "one stage": None,
        "first stage": stages[0].objective,
        "second stage": stages[1].objective,
    }[form]
    check(model, loop, objective=objective)


def test_jmvae():
    model = made("jmvae", alpha=0.3, beta=0.8)

    def loop(oracle, row):
        q = joint_q(oracle, row)
        align = sum(oracle.kl(q, oracle.q(name, row)[0]) for name in oracle.observed(row))
        return elbo(oracle, row, q, oracle.observed(row), 0.8) - 0.3 * align

    check(model, loop)
    assert (
        made("jmvae", warmup=5).spec.schedule.stages(None, 10)[0].ramps["kl_weight"].at(1, 10)
        == 0.2
    )


def subsets(seen):
    return [s for n in range(1, len(seen) + 1) for s in itertools.combinations(seen, n)]


@pytest.mark.parametrize("prior_expert", ["none", "full", "all"])
@pytest.mark.parametrize("private_dim", [None, 2])
def test_mopoe(prior_expert, private_dim):
    """One subset a row, spread evenly; Σ_S w_S KL(q_S ‖ p) in closed form."""
    model = made("mopoe", beta=0.7, prior_expert=prior_expert, private_dim=private_dim)
    oracle = Oracle(model)
    first, second = oracle.eps("choice/component", 2, 0)
    rank = [sorted(first.tolist()).index(u) for u in first.tolist()]

    def loop(oracle, row):
        seen = oracle.observed(row)
        usable = subsets(seen)
        at = (rank[row] + second[row].item()) / ROWS
        picked = usable[min(int(at * len(usable)), len(usable) - 1)]
        q = {}
        for subset in usable:
            extra = prior_expert == "all" or (prior_expert == "full" and len(subset) == len(NAMES))
            q[subset] = oracle.product([oracle.q(name, row)[0] for name in subset], float(extra))
        z = q[picked].loc + q[picked].scale * oracle.eps("z", 1, 1)[0, 0, row]
        value = -0.7 * sum(oracle.kl(one) for one in q.values()) / len(usable)
        for name in seen:
            private = oracle.q(name, row)[1]
            w = (
                None
                if private is None
                else private.loc + private.scale * oracle.eps(f"w/{name}", 1, 1)[0, 0, row]
            )
            value = (
                value
                + oracle.log_px(name, row, z, w)
                - (0 if private is None else 0.7 * oracle.kl(private))
            )
        return value

    check(model, loop, oracle)


def mixture_weights(oracle, row, k, samples, prior, beta):
    """Log importance weights of expert k's draws: mixture density, private latents by evidence,
    (samples,).
    """
    seen, logs = oracle.observed(row), []
    experts = {name: oracle.q(name, row) for name in seen}
    own = experts[NAMES[k]][0]
    p = oracle.model.modalities["a"].private_dim
    for s in range(samples):
        z = own.loc + own.scale * oracle.eps("z", samples, 3)[s, k, row]
        log_q = torch.logsumexp(
            torch.stack([e.log_prob(z).sum() for e, _ in experts.values()]), 0
        ) - math.log(len(seen))
        value = beta * (prior(z) - log_q)
        for name in seen:
            w = None
            if p:
                private = experts[name][1]
                w = private.loc + private.scale * oracle.eps(f"w/{name}", samples, 3, p)[s, k, row]
                if name == NAMES[k]:
                    value = (
                        value + beta * (oracle.standard(w).log_prob(w) - private.log_prob(w)).sum()
                    )
                else:
                    w = (
                        oracle.scale(oracle.model.cross[name])
                        * oracle.eps(f"cross/{name}", samples, 3, p)[s, k, row]
                    )
            value = value + oracle.log_px(name, row, z, w)
        logs.append(value)
    return torch.stack(logs)


def check_cmvae(bound, family, covariance):
    model = made(
        "cmvae",
        private_dim=2,
        clusters=3,
        samples=3,
        gradient="iwae",
        bound=bound,
        beta=0.6,
        family=family,
        covariance=covariance,
    )
    if covariance != "diagonal":
        generator = torch.Generator().manual_seed(5)
        shape = model.prior.raw_root.shape
        with torch.no_grad():
            model.prior.raw_root.copy_(torch.randn(shape, generator=generator) / 3)

    def component(c):
        if covariance == "diagonal":
            kind = Laplace if family == "laplace_softmax" else Normal
            return Independent(kind(model.prior.loc[c, 0], 1.0), 1)
        raw = model.prior.raw_root[c if covariance == "full" else 0]
        root = raw.tril(-1) + torch.diag(raw.diagonal().exp())  # the prior's Σ⁻¹ is rootᵀ root
        return MultivariateNormal(model.prior.loc[c, 0], precision_matrix=root.T @ root)

    def prior(
        z,
    ):  # the bound of the paper: Σ_c q(c|z) [log π_c + log p(z|c) - log q(c|z)] with the exact q(c|z)
        pi = torch.log_softmax(model.prior.logits, 0)
        each = torch.stack([pi[c] + component(c).log_prob(z) for c in range(3)])
        log_qc = torch.log_softmax(each, 0)
        return (log_qc.exp() * (each - log_qc)).sum()

    def loop(oracle, row):
        seen = oracle.observed(row)
        each = {
            name: mixture_weights(oracle, row, NAMES.index(name), 3, prior, 0.6) for name in seen
        }
        if bound == "loose":
            return sum(torch.logsumexp(w, 0) - math.log(3) for w in each.values()) / len(seen)
        return torch.logsumexp(torch.cat(list(each.values())), 0) - math.log(3 * len(seen))

    check(model, loop)


@pytest.mark.parametrize("bound", ["loose", "tight"])
@pytest.mark.parametrize("family", ["normal", "laplace_softmax"])
def test_cmvae(bound, family):
    check_cmvae(bound, family, "diagonal")


@pytest.mark.parametrize("covariance", ["tied", "full"])
def test_cmvae_of_correlated_clusters(covariance):
    check_cmvae("loose", "normal", covariance)


@pytest.mark.parametrize("name", ["mmvae", "mmvaeplus"])
def test_mmvae_and_its_plus(name):
    options = {"private_dim": 2, "beta": 0.8} if name == "mmvaeplus" else {}
    model = made(name, samples=3, gradient="iwae", **options)

    def prior(z):
        return Laplace(torch.zeros(2), model.family.scale(model.prior.raw[0, 0])).log_prob(z).sum()

    def loop(oracle, row):
        seen = oracle.observed(row)
        each = [
            mixture_weights(oracle, row, NAMES.index(n), 3, prior, options.get("beta", 1.0))
            for n in seen
        ]
        return sum(torch.logsumexp(w, 0) - math.log(3) for w in each) / len(seen)

    check(model, loop)


def test_cmvae_gradient_is_dreg():
    """ŵ² through z and w, ŵ elsewhere, on each component apart (Shi 2019), at β = 1."""
    model = made("cmvae", private_dim=2, clusters=3, samples=3, gradient="dreg")
    oracle = Oracle(model)
    with mvkit.testing.noise(oracle.source):
        model.loss(oracle.batch).loss.backward()
    found = {
        n: p.grad.clone() for n, p in model.named_parameters() if not n.startswith("encoders")
    }
    model.zero_grad(set_to_none=True)
    twin = made("cmvae", private_dim=2, clusters=3, samples=3, gradient="iwae")
    with mvkit.testing.noise(oracle.source):
        twin.loss(oracle.batch).loss.backward()
    for name, gradient in found.items():  # everything but the encoder has IWAE's gradient
        torch.testing.assert_close(
            gradient, dict(twin.named_parameters())[name].grad, rtol=1e-9, atol=1e-12
        )


def test_mvae():
    model = made("mvae", subsets=2)
    oracle = Oracle(model)
    drawn = bound_noise(list(range(ROWS)), NAMES)(
        "choice/subset", (2, ROWS), torch.float64, torch.device("cpu")
    )

    def loop(oracle, row):
        seen = oracle.observed(row)
        total = 2 ** len(seen) - 1
        u, offset = drawn[0, row].item(), int(drawn[1, row].item() * total)
        code = 1 if total == 1 else (int(u * total) + offset) % total + 1
        subset = [name for i, name in enumerate(seen) if code >> i & 1]

        def bound(names):
            return elbo(
                oracle, row, oracle.product([oracle.q(n, row)[0] for n in names], 1.0), names
            )

        return bound(seen) + sum(bound([n]) for n in seen) + 2 * bound(subset)

    check(model, loop, oracle)


def raw_product(oracle, row):
    return oracle.product([oracle.q(n, row)[0] for n in oracle.observed(row)], 0.0)


def test_mvtcae():
    model = made("mvtcae", alpha=0.6, beta=1.7)

    def loop(oracle, row):
        seen, q = oracle.observed(row), raw_product(oracle, row)
        n = len(seen)
        z = q.loc + q.scale * oracle.eps("z", 1, 1)[0, 0, row]
        fit = sum(oracle.log_px(name, row, z) for name in seen)
        apart = sum(oracle.kl(q, oracle.q(name, row)[0]) for name in seen)
        return (n - 0.6) / n * fit - 1.7 * (0.4 * oracle.kl(q) + 0.6 / n * apart)

    check(model, loop)


def test_crmvae():
    model = made("crmvae", beta=0.9)

    def loop(oracle, row):
        seen, q = oracle.observed(row), raw_product(oracle, row)
        value = 0.0
        for name in seen:
            own = oracle.q(name, row)[0]
            for one in (q, own):
                z = one.loc + one.scale * oracle.eps("z", 1, 1)[0, 0, row]
                value = value + oracle.log_px(name, row, z) / 2
            value = value - 0.9 * oracle.kl(q, own)
        return (value - 0.9 * oracle.kl(q)) / (len(seen) + 1)

    check(model, loop)


def test_dmvae():
    model = made("dmvae", private_dim=2, beta=0.5)

    def loop(oracle, row):
        seen = oracle.observed(row)
        experts = {name: oracle.q(name, row) for name in seen}
        shared = [
            oracle.product([e for e, _ in experts.values()], 1.0),
            *(e for e, _ in experts.values()),
        ]
        value = 0.0
        for q in shared:
            z = q.loc + q.scale * oracle.eps("z", 1, 1)[0, 0, row]
            value = value - 0.5 * oracle.kl(q)
            for name, (_, private) in experts.items():
                w = private.loc + private.scale * oracle.eps(f"w/{name}", 1, 1)[0, 0, row]
                value = value + oracle.log_px(name, row, z, w) - 0.5 * oracle.kl(private)
        return value

    check(model, loop)


@pytest.mark.parametrize("standard", [0.0, 0.2])
def test_mmvm(standard):
    model = made("mmvm", beta=0.8, standard=standard)

    def loop(oracle, row):
        seen = oracle.observed(row)
        experts = {name: oracle.q(name, row)[0] for name in seen}
        value = 0.0
        for name, q in experts.items():
            z = q.loc + q.scale * oracle.eps("z", 1, 1)[0, 0, row]
            each = [
                math.log((1 - standard) / len(seen)) + e.log_prob(z).sum()
                for e in experts.values()
            ]
            if standard:
                each.append(math.log(standard) + oracle.standard(z).log_prob(z).sum())
            prior = torch.logsumexp(torch.stack(each), 0)
            value = value + oracle.log_px(name, row, z) - 0.8 * (q.log_prob(z).sum() - prior)
        return value

    check(model, loop)


@pytest.mark.parametrize("scale", [1.0, "optimal"])
def test_nexus(scale):
    """Bottom VAEs and, above their stopped draws, the mean of messages with forced dropout."""
    model = made(
        "nexus",
        bottom_dim=2,
        message_dim=5,
        dropout_rate=0.5,
        scale=scale,
        bottom_beta=0.7,
        top_beta=0.6,
        gammas={"a": 1.4},
    )
    model.train()
    bottom, top = model.levels
    oracle = Oracle(bottom)
    uniform = oracle.source("choice/dropout", (5, ROWS), torch.float64, torch.device("cpu"))
    kept, z_low, outs = {}, {}, {}
    for row in range(ROWS):
        seen = oracle.observed(row)
        count = 1 + int(uniform[4, row] * (len(seen) - 1))
        ordered = sorted(seen, key=lambda name: uniform[NAMES.index(name), row].item())
        kept[row] = ordered[:count] if uniform[3, row] < 0.5 and len(seen) > 1 else seen

    def above(row):
        seen = oracle.observed(row)
        for name in seen:
            q = oracle.q(name, row)[1]
            z_low[name, row] = q.loc + q.scale * oracle.eps(f"w/{name}", 1, 1)[0, 0, row]
        messages = [top.encoders[name](z_low[name, row].detach()[None])[0] for name in kept[row]]
        loc, raw = top.aggregator.head((sum(messages) / len(messages))[None])[0].chunk(2)
        q = Normal(loc, torch.exp(raw / 2))
        z = q.loc + q.scale * oracle.eps("z", 1, 1)[0, 0, row]
        for name in seen:
            outs[name, row] = top.decoders[name].network(z[None])[0]
        return q

    def residuals(name):
        return [
            (z_low[name, r].detach() - outs[name, r].detach())
            for r in range(ROWS)
            if (name, r) in outs
        ]

    tops = {row: above(row) for row in range(ROWS)}
    sigma = {
        name: 1.0 if scale == 1.0 else torch.stack(residuals(name)).square().mean().sqrt()
        for name in NAMES
    }

    def loop(oracle, row):
        value = -0.6 * oracle.kl(tops[row])
        for name in oracle.observed(row):
            low = z_low[name, row]
            value = value + oracle.log_px(name, row, low) - 0.7 * oracle.kl(oracle.q(name, row)[1])
            gamma = 1.4 if name == "a" else 1.0
            value = (
                value + gamma * Normal(outs[name, row], sigma[name]).log_prob(low.detach()).sum()
            )
        return value

    check(model, loop, oracle)


def test_likelihood_through_both_levels_is_that_of_the_linear_model():
    torch.manual_seed(4)
    nets = {"encoder": "linear", "decoder": "linear"}
    low = {
        k: Modality((3,), {"name": "normal", "scale": 0.8}, private_dim=2, **nets) for k in "ab"
    }
    high = {k: Modality((2,), {"name": "normal", "scale": 0.9}, **nets) for k in "ab"}
    bottom = mvkit.Model(low, latent_dim=0, seed=1)
    fusion = {"name": "mean_message", "message_dim": 4, "head": "linear"}
    stack = (
        mvkit.Stack([bottom, mvkit.Model(high, latent_dim=1, aggregator=fusion, seed=2)])
        .double()
        .eval()
    )
    with (
        torch.no_grad()
    ):  # posteriors broader than the true ones, so that no weight is far from the rest
        for level in stack.levels:
            for encoder in level.encoders.values():
                encoder[0].weight.mul_(0.3)
        for encoder in stack.bottom.encoders.values():
            encoder[0].bias[2:] = 0.5
        stack.top.aggregator.head[0].bias[1:] = 0.2
    x = {k: torch.randn(20, 3, dtype=torch.float64) for k in "ab"}
    weights, biases, noise = [], [], torch.zeros(6, 6, dtype=torch.float64)
    for i, k in enumerate("ab"):
        down, out = stack.top.decoders[k].network[0], stack.bottom.decoders[k].network[0]
        weights.append(out.weight @ down.weight)
        biases.append(out.weight @ down.bias + out.bias)
        noise[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] = (
            0.81 * out.weight @ out.weight.T + 0.64 * torch.eye(3)
        )
    weight = torch.cat(weights)
    normal = torch.distributions.MultivariateNormal(torch.cat(biases), weight @ weight.T + noise)
    truth = normal.log_prob(torch.cat(list(x.values()), 1)).detach()
    ratio = (stack.log_weights(mvkit.Batch(x), 100_000) - truth).exp()
    off = (ratio.mean(0) - 1) / (ratio.std(0) / len(ratio) ** 0.5)
    assert (off.abs() < 3).float().mean() >= 0.95
    assert abs(off.mean()) < 3 / 20**0.5
    only = normal_of(normal, slice(0, 3)).log_prob(x["a"]).detach()
    torch.testing.assert_close(
        stack.log_likelihood({"a": x["a"]}, n=50_000), only, rtol=0, atol=0.1
    )
    bound = torch.stack([stack.loss(x).bound for _ in range(200)]).mean()
    assert bound < truth.mean()
    # predictive: x_a under the top's posterior given b, a normal whose every layer is linear
    given = stack.posterior(x, given=["b"])
    loc, spread = (given.loc[0] @ weight[:3].T + biases[0]), given.scale[0].square()
    spread = torch.einsum("bd,xd,yd->bxy", spread, weight[:3], weight[:3]) + noise[:3, :3]
    predicted = torch.distributions.MultivariateNormal(loc.detach(), spread.detach()).log_prob(
        x["a"]
    )
    found = stack.log_likelihood(x, ["a"], ["b"], n=50_000, estimator="predictive")
    torch.testing.assert_close(found, predicted, rtol=0, atol=0.1)


def normal_of(normal, part):
    return torch.distributions.MultivariateNormal(
        normal.mean[part], normal.covariance_matrix[part, part]
    )


@pytest.mark.parametrize("name", RECIPES)
def test_life_of_a_recipe(name, tmp_path):
    """Trains on 30 % missing rows and on every pattern, saves and loads, answers with finite
    numbers.
    """
    model = made(name)
    generator = torch.Generator().manual_seed(0)
    batch = rows(40)
    mask = torch.rand(40, 3, generator=generator) > 0.3
    mask[~mask.any(1), 0] = True
    mvkit.fit(model, mvkit.Batch(batch.data, mask), validation=batch, epochs=2, batch_size=16)
    mvkit.save(model, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    assert again.header() == model.header()
    assert torch.equal(model.encode(rows()), again.encode(rows()))
    if name != "mmvm":
        assert all(torch.isfinite(x).all() for x in model.sample(5).values())
        assert torch.isfinite(model.log_likelihood(rows(), n=20)).all()
    assert all(torch.isfinite(x).all() for x in model.translate(rows(), n=2).values())
    if name == "mmvm":
        with pytest.raises(mvkit.RequestError, match="depends on rows"):
            model.sample(3)


def test_priors_that_would_cancel_are_refused():
    shapes = {"a": (2,), "b": (2,)}
    with pytest.raises(mvkit.SpecError, match=r"model\.prior: posterior_mixture is the posterior"):
        mvkit.Model(shapes, prior="posterior_mixture")
    for objective in ("iwae", {"name": "elbo", "density": "mixture"}):
        with pytest.raises(mvkit.SpecError, match="the two cancel in this objective's KL"):
            mvkit.Model(shapes, aggregator="moe", prior="posterior_mixture", objective=objective)


def test_pruning_finds_the_clusters_and_the_model_goes_on(tmp_path):
    model = made("cmvae", clusters=6, private_dim=2, samples=2)
    with torch.no_grad():
        model.prior.loc.copy_(
            torch.tensor([[5.0, 5], [-5, 5], [5, -5], [40, 40], [50, 50], [-60, 60]])[:, None]
        )
        for encoder in model.encoders.values():  # posterior means at three of the corners
            encoder[-1].weight[:2].mul_(40).clamp_(-5, 5)
    pruned, entropy = mvkit.prune_clusters(model, rows(64))
    assert set(entropy) == {2, 3, 4, 5, 6}
    assert model.n_clusters == 6
    assert (
        pruned.n_clusters
        == min(entropy, key=lambda n: (entropy[n], n))
        == pruned.spec.prior.components
    )
    mvkit.fit(pruned, rows(16), epochs=1)
    mvkit.save(pruned, tmp_path / "m")
    assert torch.equal(mvkit.load(tmp_path / "m").clusters(rows()), pruned.clusters(rows()))
    assert torch.isfinite(pruned.log_likelihood(rows(), n=5)).all()
    with pytest.raises(mvkit.RequestError, match="needs a mixture prior of two clusters"):
        mvkit.prune_clusters(made("mvae"), rows())


def test_pruning_entropy_is_the_formula():
    model = made("cmvae", clusters=3, private_dim=2)
    _, entropy = mvkit.prune_clusters(model, rows(), beta=0.7, rule="votes")
    batch, total, count = rows(), 0.0, 0
    experts = model.experts(model.conform(batch))
    for row, m in itertools.product(range(ROWS), range(3)):
        if batch.mask[row, m]:
            z = experts.loc[m, row]
            each = torch.log_softmax(model.prior.logits, 0) + Normal(
                model.prior.loc[:, 0], 1.0
            ).log_prob(z).sum(-1)
            p = torch.softmax(each, 0)
            h = -(p * p.log()).sum()
            total += 0.7 * h / math.log(3) - (p * (each - p.log())).sum() / 2
            count += 1
    assert entropy[3] == pytest.approx((total / count).item())


def test_stacks_that_do_not_fit():
    low = {k: Modality((3,), private_dim=2) for k in "ab"}
    with pytest.raises(mvkit.SpecError, match=r"stack\.levels\.0: the bottom needs latent_dim=0"):
        mvkit.Stack([mvkit.Model(low, latent_dim=1), mvkit.Model({"a": (2,), "b": (2,)})])
    with pytest.raises(
        mvkit.SpecError,
        match=r"stack\.levels\.1: its modalities are .* expected the bottom's latents",
    ):
        mvkit.Stack([mvkit.Model(low, latent_dim=0), mvkit.Model({"a": (2,), "b": (3,)})])


def test_a_stack_answers_like_a_model():
    low = {k: Modality((3,), private_dim=2) for k in "ab"}
    high = {k: Modality((2,), {"name": "normal", "scale": "optimal"}) for k in "ab"}
    top = mvkit.Model(
        high, latent_dim=3, aggregator="moe", prior={"name": "mog", "components": 4}, seed=0
    )
    stack = mvkit.Stack([mvkit.Model(low, latent_dim=0, seed=0), top])
    x = {"a": torch.randn(5, 3), "b": torch.randn(5, 3)}
    assert stack.encode(x, given="a").shape == (5, 3)
    assert stack.posterior(x, given=()).log_prob(torch.zeros(5, 3)).shape == (5,)
    assert stack.private(x)["a"].shape == (5, 2)
    assert stack.decode(torch.zeros(4, 3))["b"].shape == (4, 3)
    assert stack.clusters(x, soft=True).shape == (5, 4)
    data, latents = stack.sample(6, cluster=1, latents=True)
    assert data["a"].shape == (6, 3)
    assert latents.private["a"].shape == (6, 2)
    one, two = (stack.translate(x, ["a"], ["a"], latent="mean")["a"][0] for _ in range(2))
    assert torch.equal(one, two)
    own = stack.decode(torch.zeros(5, 3), {"a": stack.private(x)["a"]})["a"]
    torch.testing.assert_close(one, own)  # what was given comes from its own latent
    through = mvkit.Stack(list(stack.levels), through_top=True)
    down = through.translate(x, ["a"], ["a"], latent="mean")["a"][0]
    torch.testing.assert_close(down, stack.decode(stack.encode(x, given="a"))["a"])
    assert stack.log_likelihood(x, ["a"], ["b"], n=5).shape == (5,)
    with pytest.raises(mvkit.RequestError, match="take proposal='mixture'"):
        stack.log_likelihood(x, n=5, proposal="product")
    with pytest.raises(mvkit.SpecError, match="a stack takes objective 'levels'"):
        stack.loss(x, objective="elbo")
    assert "Stack(" in repr(stack)


def test_nexus_ramps_reach_a_level():
    model = made("nexus", bottom_dim=2, top_beta=1.0)
    stage = mvkit.Stage(None, 2, ramps={"levels.1.kl_weight": "linear"})
    at = stage.at(model.spec.objective, 1)
    assert at.levels[1].kl_weight == pytest.approx(0.1)
    assert at.levels[0].kl_weight == 1
    mvkit.fit(model, rows(16), stages=[stage])
    mvkit.fit(model, rows(16), stages=[mvkit.Stage(None, 1, ("levels.1.*",))])
