"""Models of what is missing, against plain loops: p(s|x) with what is missing drawn from the
decoders, in bounds, in their gradients, and in what is asked of a trained model.
"""

import contextlib
import math

import attrs
import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

import mvkit
from mvkit import Batch, Modality, Model, SpecError
from mvkit.testing import bound_noise, noise
from mvkit.testing.tiny_models import loss_and_gradients

LINEAR = {"encoder": "linear", "decoder": "linear"}
SHAPES = {"a": (3,), "b": (2, 2)}
NAMES = tuple(SHAPES)
ROWS = 6
SELF = {"name": "self"}
HIGH = {"name": "self", "sign": "high"}
SITES = ["A", "B", "A", "A", "B", "B"]


def data(seed=0):
    """Two modalities; rows 1 and 4 lack one of them, rows 0 and 5 single values."""
    generator = torch.Generator().manual_seed(seed)
    x = {
        name: torch.randn(ROWS, *shape, generator=generator).double()
        for name, shape in SHAPES.items()
    }
    x["a"][0, 1] = x["b"][0, 0, 1] = x["b"][5, 1, 0] = math.nan
    x["a"][1] = x["b"][4] = math.nan
    return x


def made(private=0, likelihood="normal", **options):
    modalities = {
        name: Modality(shape, likelihood, private_dim=private, **LINEAR)
        for name, shape in SHAPES.items()
    }
    options = {"missingness": SELF, "latent_dim": 2, "seed": 0, **options}
    model = Model(modalities, **options).double()
    with torch.no_grad():  # away from where slopes start
        for i, parameter in enumerate(model.missingness.parameters()):
            values = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_(torch.sin(values + i).reshape(parameter.shape))
    return model


def log_prob_of_self_masking(part, name, x, observed):
    """One row of self-masking, value by value."""
    slope, threshold = part.slope(name).flatten(), part.threshold[name].flatten()
    total = 0.0
    for f, value in enumerate(x.flatten()):
        p = torch.sigmoid(-slope[f] * (value - threshold[f]))
        total = total + (p.log() if observed.flatten()[f] else (1 - p).log())
    return total


def log_prob_of_logistic(part, name, x, observed):
    """One row of logistic regressions, value by value."""
    total = 0.0
    for f in range(x.numel()):
        logit = part.bias[name][f]
        for g, value in enumerate(x.flatten()):
            logit = logit + part.weight[name][f, g] * value
        p = torch.sigmoid(logit)
        total = total + (p.log() if observed.flatten()[f] else (1 - p).log())
    return total


class Loop:
    """Every density of a model with linear decoders, one draw of one row at a time."""

    def __init__(self, model, batch, log_prob=log_prob_of_self_masking, ids=range(ROWS)):
        self.model, self.log_prob = model, log_prob
        self.rows = model.conform(batch)
        self.source = bound_noise(list(ids), NAMES)
        with noise(self.source):
            self.experts = model.experts(self.rows, training=True)
            self.posterior = model.joint_posterior(self.rows, self.experts)

    def eps(self, site, samples, components, shape):
        shape = (samples, components, ROWS, *shape)
        return self.source(site, shape, torch.float64, torch.device("cpu"))

    def decoded(self, name, z, w, b):
        latent = z if w is None else torch.cat([z, w])
        inputs = [latent]
        if self.model.conditions is not None:
            inputs.append(self.model.decoding.context(self.rows.covariates)[b])
        mean = self.model.decoders[name].network(*(value[None] for value in inputs))
        return mean.reshape(SHAPES[name])

    def draw(self, s, k, b, samples, z=None):
        """(log p(x_O|z), log p(s|x), log p(z), log q_k(z), log p(w) - log q(w)) of one draw."""
        posterior, model = self.posterior, self.model
        components = len(posterior.loc)
        q = Normal(posterior.loc[k, b], posterior.scale[k, b])
        if z is None:
            z = q.loc + q.scale * self.eps("z", samples, components, (2,))[s, k, b]
        log_px, log_ps, ratio = 0.0, 0.0, 0.0
        for name in NAMES:
            present = self.rows.present(name)[b]
            w = None
            if model.modalities[name].private_dim:
                eps = self.eps(f"w/{name}", samples, components, (1,))[s, k, b]
                w = eps  # of a modality that the row lacks, from the prior
                if present.any():
                    loc, scale = (value[b] for value in self.experts.private[name])
                    w = loc + scale * eps
                    log_q = Normal(loc, scale).log_prob(w).sum()
                    ratio = ratio + Normal(0.0, 1.0).log_prob(w).sum() - log_q
            mean = self.decoded(name, z, w, b)
            x = self.rows.data[name][b]
            log_p = Normal(mean, 1.0).log_prob(x)
            log_px = log_px + log_p[present].sum()
            drawn = mean + self.eps("x", samples, components, SHAPES[name])[s, k, b]
            complete = torch.where(present, x, drawn)
            log_ps = log_ps + self.log_prob(model.missingness, name, complete, present)
        return log_px, log_ps, Normal(0.0, 1.0).log_prob(z).sum(), z, ratio

    def log_qz(self, z, b):
        """The mixture's density."""
        posterior = self.posterior
        of_components = []
        for k in range(len(posterior.loc)):
            log_q = Normal(posterior.loc[k, b], posterior.scale[k, b]).log_prob(z).sum()
            of_components.append(posterior.log_weight[k, b] + log_q)
        return torch.logsumexp(torch.stack(of_components), 0)

    def elbo(self, b, samples):
        total = 0.0
        for k in range(len(self.posterior.loc)):
            weight = self.posterior.log_weight[k, b].exp()
            if not weight:
                continue
            q = Normal(self.posterior.loc[k, b], self.posterior.scale[k, b])
            total = total - weight * kl_divergence(q, Normal(0.0, 1.0)).sum()
            for s in range(samples):
                log_px, log_ps, *_ = self.draw(s, k, b, samples)
                total = total + weight * (log_px + log_ps) / samples
        for name, (loc, scale) in self.experts.private.items():
            if self.rows.present(name)[b].any():
                q = Normal(loc[b], scale[b])
                total = total - kl_divergence(q, Normal(0.0, 1.0)).sum()
        return total

    def log_w(self, s, k, b, samples):
        log_px, log_ps, log_pz, z, ratio = self.draw(s, k, b, samples)
        return log_px + log_ps + log_pz - self.log_qz(z, b) + ratio

    def iwae(self, b, samples):
        """Draws of every component, normalised together."""
        log_w = []
        for s in range(samples):
            for k in range(len(self.posterior.loc)):
                log_pi = self.posterior.log_weight[k, b]
                log_w.append(self.log_w(s, k, b, samples) + log_pi)
        return torch.logsumexp(torch.stack(log_w), 0) - math.log(samples)


def compared(model, batch, loop_bound, weight=None):
    """Asserts that bound and gradients of a model are those of a loop."""
    loss, gradients = loss_and_gradients(model, batch)
    model.zero_grad(set_to_none=True)
    expected = torch.stack([loop_bound(b) for b in range(ROWS)])
    weighted = expected if weight is None else expected * weight
    (-weighted.mean()).backward()
    torch.testing.assert_close(loss.bound, expected.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(loss.loss, -weighted.mean(), rtol=1e-9, atol=1e-9)
    for name, parameter in model.named_parameters():
        want = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        got = torch.zeros_like(parameter) if gradients[name] is None else gradients[name]
        torch.testing.assert_close(
            got, want, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
        )
    reached = [name for name in gradients if name.startswith("missingness.")]
    assert reached
    assert all(gradients[name].any() for name in reached)


@pytest.mark.parametrize("private", [0, 1])
@pytest.mark.parametrize("aggregator", ["poe", "mopoe"])
def test_the_elbo_has_the_probability_of_what_is_missing(aggregator, private):
    model = made(
        private,
        aggregator=aggregator,
        objective={"name": "elbo", "samples": 2, "draw": "stratified"},
    )
    batch = Batch(data())
    loop = Loop(model, batch)
    compared(model, batch, lambda b: loop.elbo(b, 2))


@pytest.mark.parametrize("private", [0, 1])
@pytest.mark.parametrize("aggregator", ["poe", "mopoe"])
def test_importance_weights_have_it(aggregator, private):
    objective = {"name": "iwae", "samples": 3, "bound": "tight", "draw": "stratified"}
    model = made(private, aggregator=aggregator, objective=objective, missingness=HIGH)
    batch = Batch(data())
    loop = Loop(model, batch)
    compared(model, batch, lambda b: loop.iwae(b, 3))


def test_logistic_regressions_of_all_values_of_a_modality():
    model = made(missingness="logistic", objective={"name": "iwae", "samples": 2})
    batch = Batch(data())
    loop = Loop(model, batch, log_prob_of_logistic)
    compared(model, batch, lambda b: loop.iwae(b, 2))


def test_covariates_and_weights_of_rows():
    weight = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0, 1.0], dtype=torch.float64)
    model = made(covariates={"site": ("A", "B")}, objective={"name": "iwae", "samples": 2})
    batch = Batch(data(), covariates={"site": SITES}, row_weight=weight)
    loop = Loop(model, batch)
    compared(model, batch, lambda b: loop.iwae(b, 2), weight)
    metrics = model.loss(batch).metrics
    assert metrics["log_ps"] < 0


def test_the_doubly_reparametrised_gradient_goes_through_what_is_drawn():
    """ŵ² on the way through z, of the log-weight with all that depends on z; else ŵ."""
    samples = 3
    model = made(objective={"name": "dreg", "samples": samples})
    batch = Batch(data())
    loss, gradients = loss_and_gradients(model, batch)
    model.zero_grad(set_to_none=True)
    loop = Loop(model, batch)
    frozen = Loop(model, batch)
    frozen.posterior = loop.posterior.detach()
    surrogate = 0.0
    for b in range(ROWS):
        latents, weights = [], []
        for s in range(samples):
            _, _, _, z, _ = loop.draw(s, 0, b, samples)
            leaf = z.detach().requires_grad_()
            log_px, log_ps, log_pz, _, _ = frozen.draw(s, 0, b, samples, leaf)
            latents.append((z, leaf))
            weights.append(log_px + log_ps + log_pz - frozen.log_qz(leaf, b))
        share = torch.softmax(torch.stack(weights), 0).detach()
        for s, (z, leaf) in enumerate(latents):
            (slope,) = torch.autograd.grad(weights[s], leaf, retain_graph=True)
            surrogate = surrogate + share[s] * weights[s] + share[s] ** 2 * (slope @ z)
    (-surrogate / ROWS).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            gradients[name],
            parameter.grad,
            rtol=1e-9,
            atol=1e-9,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.filterwarnings("ignore:.*unimodal encoders")
@pytest.mark.parametrize("aggregator", ["poe", "moe", "mopoe", "joint"])
@pytest.mark.parametrize("objective", ["elbo", "iwae", "dreg", "mvtcae", "crmvae"])
def test_what_is_stored_in_a_gap_changes_no_bit(aggregator, objective):
    model = made(1, aggregator=aggregator, objective=objective)
    rows = data()
    mask = torch.tensor([[not rows[name][i].isnan().all() for name in NAMES] for i in range(ROWS)])
    elements = {name: ~x.isnan() for name, x in rows.items()}
    outcomes = []
    for filler in (0.0, math.nan, math.inf, 1e6):
        filled = {name: torch.where(elements[name], x, filler) for name, x in rows.items()}
        batch = Batch(
            filled,
            mask,
            {
                n: e | ~mask[:, [i]].reshape(-1, *[1] * (e.ndim - 1))
                for i, (n, e) in enumerate(elements.items())
            },
        )
        loss, gradients = loss_and_gradients(model, batch)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            likelihood = model.log_likelihood(batch, n=5)
        filled = model.translate(batch, n=3, generator=torch.Generator().manual_seed(0))
        outcomes.append((loss.loss, likelihood, filled["a"], *gradients.values()))
    for other in outcomes[1:]:
        for first, second in zip(outcomes[0], other, strict=True):
            assert first is None and second is None or torch.equal(first, second)


def test_permuted_rows_permute_the_bounds():
    model = made(1, aggregator="mopoe", objective="iwae")
    order = [3, 1, 5, 0, 4, 2]
    batch = model.conform(Batch(data()))
    loss, _ = loss_and_gradients(model, batch)
    permuted, _ = loss_and_gradients(model, batch.take(torch.tensor(order)), ids=order)
    torch.testing.assert_close(permuted.bound, loss.bound[order], rtol=1e-9, atol=1e-12)


def test_a_model_without_it_keeps_its_bits_and_keys():
    modalities = {name: Modality(shape, **LINEAR) for name, shape in SHAPES.items()}
    plain = Model(modalities, latent_dim=2, seed=0)
    explained = Model(modalities, latent_dim=2, missingness="self", seed=0)
    own = {key for key in explained.state_dict() if key.startswith("missingness.")}
    assert set(explained.state_dict()) - own == set(plain.state_dict())
    assert own
    for key, value in plain.state_dict().items():
        assert torch.equal(value, explained.state_dict()[key])
    assert "missingness" not in plain.header()
    assert plain.loss({"a": torch.zeros(2, 3)}).metrics.keys().isdisjoint({"log_ps"})


def test_what_a_question_hides_says_nothing():
    model = made(missingness=HIGH)
    rows = data()
    other = {**rows, "b": torch.full_like(rows["b"], math.nan)}  # nobody has b
    kept = [0, 2, 3, 4, 5]  # rows that have a
    options = {"of": "a", "n": 20}
    scored = []
    for batch in (rows, other):
        with noise(bound_noise(range(len(kept)), NAMES)):
            picked = {name: x[kept] for name, x in batch.items()}
            scored.append(model.log_likelihood(picked, **options))
    assert torch.equal(*scored)
    one = model.translate(rows, to="b", given="a", empty="prior", generator=seeded(0))
    two = model.translate(other, to="b", given="a", empty="prior", generator=seeded(0))
    assert torch.equal(one["b"], two["b"])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class OneNumber:
    """x ~ N(m, v), of which a value above a threshold is mostly missing; z explains a share.

    p(z) = N(0, 1), p(x|z) = N(loading z + centre, 1), one feature.
    """

    loading, centre, slope, threshold = 1.5, 0.4, 2.0, 0.6

    def __init__(self):
        missingness = {"name": "self", "sign": "free"}
        self.model = Model(
            {"a": Modality((1,), **LINEAR), "b": Modality((1,), **LINEAR)},
            latent_dim=1,
            missingness=missingness,
            seed=0,
        ).double()
        with torch.no_grad():
            for decoder in self.model.decoders.values():
                (weight, bias) = decoder.network.parameters()
                weight.fill_(self.loading)
                bias.fill_(self.centre)
            for name in ("a", "b"):
                self.model.missingness.raw[name].fill_(self.slope)
                self.model.missingness.threshold[name].fill_(self.threshold)

    def seen(self, x):
        return 1 / (1 + np.exp(self.slope * (x - self.threshold)))

    def integrals(self, a):
        """Log p(a, s) with b missing, and E[b|a, s], by a grid of z and of b."""
        z = np.linspace(-9, 9, 1201)
        b = np.linspace(-14, 14, 1601)
        normal = lambda x, m: np.exp(-0.5 * (x - m) ** 2) / math.sqrt(2 * math.pi)  # noqa: E731
        of_z = normal(z, 0.0) * normal(a, self.loading * z + self.centre)
        of_b = normal(b[None], self.loading * z[:, None] + self.centre) * (1 - self.seen(b))
        joint = of_z[:, None] * of_b * (z[1] - z[0]) * (b[1] - b[0])
        p = joint.sum()
        return math.log(p * self.seen(a)), float((joint * b).sum() / p)


@pytest.mark.parametrize("a", [-1.5, 0.3, 2.0])
def test_estimates_converge_to_integrals(a):
    world = OneNumber()
    expected, mean = world.integrals(a)
    rows = {"a": torch.tensor([[a]]).double(), "b": torch.tensor([[math.nan]]).double()}
    estimate = world.model.log_likelihood(rows, n=200_000, generator=seeded(0))
    assert float(estimate) == pytest.approx(expected, abs=0.01)
    imputed = mvkit.impute(world.model, rows, n=20_000, generator=seeded(1))
    assert float(imputed["b"]) == pytest.approx(mean, abs=0.03)
    drawn = world.model.translate(rows, to="b", n=20_000, generator=seeded(2))["b"]
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.04)


def test_a_slope_of_zero_is_missing_at_random():
    """p(s) is then a number of each value, and imputation that of the plain model."""
    world = OneNumber()
    spec = {"name": "self", "slope": 0.0}
    model = Model(
        {"a": Modality((1,), **LINEAR), "b": Modality((1,), **LINEAR)},
        latent_dim=1,
        missingness=spec,
        seed=0,
    ).double()
    model.decoders.load_state_dict(world.model.decoders.state_dict())
    rows = {"a": torch.tensor([[0.7]]).double(), "b": torch.tensor([[math.nan]]).double()}
    c, f = world.loading, world.centre
    truth = Normal(f, math.sqrt(c * c + 1)).log_prob(torch.tensor(0.7)) + 2 * math.log(0.5)
    estimate = model.log_likelihood(rows, n=100_000, generator=seeded(0))
    assert float(estimate) == pytest.approx(float(truth), abs=0.01)
    mean = f + c * c / (c * c + 1) * (0.7 - f)
    imputed = mvkit.impute(model, rows, n=20_000, generator=seeded(1))
    assert float(imputed["b"]) == pytest.approx(mean, abs=0.03)


def test_a_row_without_anything_has_the_probability_of_that():
    world = OneNumber()
    rows = {name: torch.tensor([[math.nan], [0.1]]).double() for name in ("a", "b")}
    log_p = world.model.log_weights(rows, 200_000, generator=seeded(0)).logsumexp(0)[0]
    x = torch.randn(1_000_000, 3, generator=seeded(1)).double()
    values = world.loading * x[:, :1] + world.centre + x[:, 1:]
    truth = torch.tensor(1 - world.seen(values.numpy())).prod(1).mean().log()
    assert float(log_p) - math.log(200_000) == pytest.approx(float(truth), abs=0.01)


@pytest.mark.parametrize("likelihood", ["normal", "laplace", "student_t", "lognormal"])
def test_likelihoods_whose_draws_have_gradients(likelihood):
    model = made(likelihood=likelihood)
    rows = {name: x.exp() for name, x in data().items()}
    loss = model.loss(rows, generator=seeded(0)).loss
    loss.backward()
    gradient = next(model.decoders["a"].network.parameters()).grad
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"missingness": "selff"}, "unknown missingness 'selff'; did you mean 'self'"),
        ({"missingness": {"name": "self", "sign": "up"}}, "sign: got 'up'; expected 'free' or"),
        ({"missingness": {"name": "self", "slope": -1.0, "sign": "low"}}, "slope.*at least 0"),
        ({"missingness": {"name": "self", "slope": "x"}}, "slope: got 'x'; expected 'trained'"),
        ({"missingness": {"name": "self", "modalities": ["c"]}}, "no modality 'c'"),
        ({"missingness": {"name": "logistic", "modalities": []}}, "lists none; expected one"),
        (
            {"likelihood": "bernoulli"},
            r"model.missingness: draws of 'a' \(likelihood 'bernoulli'\) have no gradients",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_place(options, reason):
    with pytest.raises(SpecError, match=reason):
        made(**options)


def test_a_modality_left_out_may_have_any_likelihood():
    modalities = {"a": Modality((3,), **LINEAR), "b": Modality((2, 2), "bernoulli", **LINEAR)}
    missingness = {"name": "self", "modalities": ["a"]}
    model = Model(modalities, latent_dim=2, missingness=missingness, seed=0)
    assert list(model.missingness.threshold) == ["a"]
    rows = {name: x.float() for name, x in data().items()}
    rows["b"] = torch.sigmoid(rows["b"])
    assert torch.isfinite(model.loss(rows).loss)
    assert model.translate(rows, n=2)["b"].shape == (2, ROWS, 2, 2)


def test_a_stack_refuses_it():
    bottom = {name: Modality(shape, private_dim=2, **LINEAR) for name, shape in SHAPES.items()}
    top = {name: Modality((2,), **LINEAR) for name in SHAPES}
    for explained in (0, 1):
        levels = [
            Model(m, latent_dim=2 * i, missingness="self" if i == explained else None)
            for i, m in enumerate((bottom, top))
        ]
        with pytest.raises(SpecError, match=f"stack.levels.{explained}.missingness: it explains"):
            mvkit.Stack(levels)


def test_it_is_saved_described_and_resumed(tmp_path):
    rows = {name: x.float() for name, x in data().items()}

    def make():
        return made(1, aggregator="mopoe", objective="iwae", missingness=HIGH).float()

    whole, stopped = make(), make()
    mvkit.fit(whole, rows, epochs=4, batch_size=4, seed=0, progress=False)
    options = {"batch_size": 4, "seed": 0, "progress": False, "save_every": 0}

    def stop(event):
        if isinstance(event, mvkit.training.events.EpochFinished) and event.row["epoch"] == 2:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        mvkit.fit(
            stopped, rows, epochs=4, checkpoint=tmp_path / "run", listeners=[stop], **options
        )
    again = make()
    mvkit.fit(again, rows, epochs=4, checkpoint=tmp_path / "run", **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    mvkit.save(whole, tmp_path / "model.safetensors")
    loaded = mvkit.load(tmp_path / "model.safetensors")
    assert loaded.header() == whole.header()
    first = whole.translate(rows, n=3, generator=seeded(0))
    second = loaded.translate(rows, n=3, generator=seeded(0))
    assert all(torch.equal(first[name], second[name]) for name in NAMES)
    shown = repr(loaded)
    assert "missingness SelfMasking(sign='high', slope='trained', modalities=None): 14" in shown
    assert mvkit.available("missingness") == ["logistic", "self"]


def test_weights_that_are_resampled_follow_their_shares():
    from mvkit.models.weighted_draws import WeightedDraws, averaged, resampled

    generator = seeded(0)
    log_w = torch.randn(30, 2, generator=generator).double()
    z = torch.arange(30.0).double().reshape(30, 1, 1).expand(30, 2, 1)
    blocks = [WeightedDraws(z[i : i + 7], {}, {}, log_w[i : i + 7]) for i in range(0, 30, 7)]
    share = torch.softmax(log_w, 0)
    exact = (share * z[..., 0]).sum(0)
    mean = averaged(iter(blocks), lambda draws: {"z": draws.z})["z"][:, 0]
    torch.testing.assert_close(mean, exact, rtol=1e-12, atol=1e-12)
    picked = resampled(iter(blocks), 40_000, generator).z[..., 0]
    for b in range(2):
        counts = torch.bincount(picked[:, b].long(), minlength=30) / 40_000
        assert (counts - share[:, b]).abs().max() < 5 * math.sqrt(0.25 / 40_000)


def test_no_processes_rows_and_float64():
    model = made(1, objective="iwae")
    batch = model.conform(Batch(data()))
    nothing = batch.take(torch.tensor([], dtype=torch.long))
    loss = model.loss(attrs.evolve(nothing, first_empty_row=None)).loss
    assert loss == 0
    assert loss.dtype == torch.float64
    loss.backward()


def test_patterns_sum_to_one():
    model = made(missingness="logistic")
    x = torch.randn(1, 1, 1, 3).double()
    total = 0.0
    for pattern in range(8):
        flags = torch.tensor([[bool(pattern >> i & 1) for i in range(3)]])
        log_p = model.missingness.log_prob(
            {"a": x}, {"a": flags}, torch.zeros(1, 1, 1, 2).double()
        )
        total += log_p.detach().exp().item()
    assert total == pytest.approx(1.0, abs=1e-12)
    assert functional.logsigmoid(torch.tensor(-800.0)) == -800.0  # no pattern is -inf


def test_a_report_says_that_what_is_missing_is_scored():
    model = made(objective="iwae")
    report = mvkit.evaluate(model, Batch(data()), ["likelihood"], progress=False)
    names = [score.name for score in report.scores]
    assert "log p(all), what is missing included" in names
    assert "log p(a | b), what is missing included" in names
