"""JNF: both stages against a plain loop, products of flows against closed forms, and a model's
life.
"""

import itertools
import math

import mvkit_flows
import pytest
import torch
import zuko
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import mvkit
from mvkit import Batch, Modality, Model, SpecError, recipes
from mvkit.testing import bound_noise

NAMES = ("a", "b", "c")
LINEAR = {"encoder": "linear", "decoder": "linear"}
ROWS, D = 8, 2
SMALL = {"name": "maf", "transforms": 2, "hidden": [6]}


def modalities():
    return {
        "a": Modality((3,), **LINEAR),
        "b": Modality((2, 2), "bernoulli", **LINEAR),
        "c": Modality((4,), "categorical", weight=1.5, **LINEAR),
    }


def jnf(flow="maf", **options):
    return recipes.jnf(
        modalities(), latent_dim=D, flow=SMALL | {"name": flow}, seed=0, **{"steps": 4, **options}
    ).double()


def rows(b=ROWS):
    generator = torch.Generator().manual_seed(0)
    data = {
        "a": torch.randn(b, 3, generator=generator, dtype=torch.float64),
        "b": torch.rand(b, 2, 2, generator=generator, dtype=torch.float64),
        "c": torch.eye(4, dtype=torch.float64)[torch.randint(4, (b,), generator=generator)],
    }
    patterns = [p for p in itertools.product([True, False], repeat=3) if any(p)]
    return Batch(data, torch.tensor([patterns[i % 7] for i in range(b)]))


def log_px(model, name, x, z):
    out = model.decoders[name].network(z[None])[0]
    if name == "a":
        return Normal(out, 1.0).log_prob(x).sum()
    if name == "b":
        return -torch.nn.functional.binary_cross_entropy_with_logits(out, x, reduction="sum")
    return 1.5 * (x * torch.log_softmax(out, -1)).sum()


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize(("flow", "conditional"), [("maf", True), ("maf", False), ("nsf", True)])
def test_a_stage_is_the_loop_of_the_paper(stage, flow, conditional):
    """ELBO of the joint posterior; then Σ_m KL(q(z|X) ‖ q_m(z|x_m)) at its draws. Complete rows
    alone can count.
    """
    model, batch = jnf(flow, conditional=conditional, beta=0.7, samples=2), rows()
    objective = model.spec.schedule.stages(model, 2)[stage].objective
    source = bound_noise(list(range(ROWS)), NAMES)
    with mvkit.testing.noise(source):
        loss = model.loss(batch, objective=objective).loss
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    samples = 2 if stage else 1
    eps = source("z", (samples, 1, ROWS, D), torch.float64, torch.device("cpu"))
    total, fusion = torch.zeros((), dtype=torch.float64), model.aggregator
    for row in range(ROWS):
        if not batch.mask[row].all():
            continue
        x = {name: batch.data[name][row] for name in NAMES}
        features = torch.cat([fusion.joint.trunks[name](x[name][None])[0] for name in NAMES])
        loc, raw = fusion.joint.head(features[None])[0].chunk(2)
        q = Normal(loc, torch.exp(raw / 2))
        for s in range(samples):
            z = q.loc + q.scale * eps[s, 0, row]
            if stage == 0:
                total = total + sum(log_px(model, name, x[name], z) for name in NAMES)
                total = total - 0.7 * kl_divergence(q, Normal(torch.zeros(D), torch.ones(D))).sum()
                continue
            for name in NAMES:
                out = model.encoders[name](x[name][None])[0]
                base = zuko.distributions.DiagNormal(out[:D], torch.exp(out[D:] / 2))
                bent = zuko.distributions.NormalizingFlow(
                    fusion.flows[name](out if conditional else None), base
                )
                total = total - (q.log_prob(z).sum() - bent.log_prob(z)) / samples
    expected = -total / ROWS
    expected.backward()
    assert abs(loss - expected) <= 1e-9 * abs(expected)
    for name, parameter in model.named_parameters():
        theirs = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        ours = torch.zeros_like(parameter) if gradients[name] is None else gradients[name]
        assert (ours - theirs).norm() <= 1e-9 * theirs.norm() + 1e-14, name
        trained = name.startswith(("encoders", "aggregator.flows"))
        if stage == 0:
            assert not (trained and theirs.any()), name
        elif trained:
            assert theirs.any(), name


def test_the_second_stage_trains_encoders_and_flows_alone():
    model = jnf()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stages = model.spec.schedule.stages(model, 2)
    mvkit.fit(model, rows(14), stages=stages[1:], lr=0.01)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name.rpartition(".")[0].split(".")[0] for name in moved} == {"encoders", "aggregator"}
    assert all(name.startswith(("encoders.", "aggregator.flows.")) for name in moved)


@pytest.mark.parametrize("flow", ["maf", "nsf"])
def test_life(flow, tmp_path):
    model = jnf(flow)
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(40, 3, generator=generator) > 0.3
    mask[~mask.any(1), 0] = True
    history = mvkit.fit(
        model, Batch(rows(40).data, mask), validation=rows(40), epochs=2, batch_size=16
    )
    assert history["stage"] == [0, 1]
    assert all(map(math.isfinite, history["valid/loss"]))
    mvkit.save(model, tmp_path / "m")
    assert mvkit.describe(tmp_path / "m")["packages"] == {"mvkit-flows": "0.1.0"}
    again = mvkit.load(tmp_path / "m")
    assert again.header() == model.header()
    assert torch.equal(model.encode(rows()), again.encode(rows()))
    assert all(torch.isfinite(x).all() for x in model.sample(5).values())
    assert torch.isfinite(model.log_likelihood(rows(), n=20)).all()
    assert torch.isfinite(
        model.log_likelihood(rows(), ["a"], ["b", "c"], n=20, empty="prior")
    ).all()
    assert torch.isfinite(
        model.log_likelihood(rows(), ["a"], ["b"], n=20, estimator="predictive", empty="prior")
    ).all()
    first, second = (
        model.translate(rows(), n=2, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    for name in NAMES:
        assert torch.isfinite(first[name]).all()
        assert torch.equal(first[name], second[name])
    assert model.encode(rows(), ["a", "b"], empty="prior").shape == (ROWS, D)
    assert model.posterior(rows()).evidence.shape == (1, ROWS, 3)
    with torch.inference_mode():
        assert torch.isfinite(model.encode(rows())).all()
    clustered = jnf(prior={"name": "mog", "components": 3})
    assert clustered.clusters(rows()).shape == (ROWS,)


def test_fillers_change_nothing():
    model, batch = jnf(), rows()
    junk = {name: x.clone() for name, x in batch.data.items()}
    for i, name in enumerate(NAMES):
        junk[name][~batch.mask[:, i]] = torch.nan
    other = Batch(junk, batch.mask)
    first, second = (
        model.loss(each, generator=torch.Generator().manual_seed(0)).loss
        for each in (batch, other)
    )
    assert torch.equal(first, second)
    assert torch.equal(model.encode(batch), model.encode(other))


def test_an_answer_does_not_depend_on_other_rows():
    model, batch = jnf(), rows()
    alone = torch.cat([model.encode(batch.take(slice(i, i + 1))) for i in range(ROWS)])
    torch.testing.assert_close(model.encode(batch), alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("flow", ["maf", "nsf"])
def test_densities_integrate_to_one_and_are_those_of_the_draws(flow):
    model = recipes.jnf(
        dict.fromkeys(NAMES, (2,)), latent_dim=1, flow={"name": flow, "hidden": [8]}, seed=1
    ).double()
    x = {k: torch.randn(1, 2, generator=torch.Generator().manual_seed(2)).double() for k in "ab"}
    q = model.posterior(x)
    grid = torch.linspace(-15, 15, 6001, dtype=torch.float64)
    density = q.log_prob(grid.reshape(-1, 1, 1)).exp().flatten()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-3)
    z = q.rsample(40_000, torch.Generator().manual_seed(0)).flatten()
    for power in (1, 2):
        truth = torch.trapezoid(density * grid**power, grid)
        assert abs((z**power).mean() - truth) < 4 * (z**power).std() / 200
    batch = model.conform(x)
    for name, each in model.aggregator.unimodal(model.experts(batch), batch).items():
        draws = each.draw(5, "stratified")
        torch.testing.assert_close(
            draws.log_qk[:, 0], each.log_prob(draws.z[:, 0]), rtol=1e-6, atol=1e-6
        )
        assert each.active.all() == (name in x)


def linear_gaussian():
    """x_m = W_m z + ε with exact Gaussian posteriors: linear encoders, flows that are the
    identity.
    """
    scale, d = 0.6, 2
    nets = {"likelihood": {"name": "normal", "scale": scale}, **LINEAR}
    model = recipes.jnf(
        {k: Modality((3,), **nets) for k in NAMES}, latent_dim=d, flow=SMALL, seed=3
    ).double()
    weights = {}
    with torch.no_grad():
        for p in model.aggregator.flows.parameters():
            p.zero_()
        for i, name in enumerate(NAMES):
            w = torch.linalg.qr(
                torch.randn(3, d, generator=torch.Generator().manual_seed(i)).double()
            )[0]
            w = w * torch.tensor([1.0 + i, 0.5 + i / 2])
            precision = 1 + (w * w).sum(0) / scale**2
            decoder, encoder = model.decoders[name].network[0], model.encoders[name][0]
            decoder.weight.copy_(w)
            decoder.bias.zero_()
            encoder.weight.copy_(torch.cat([(w / scale**2 / precision).T, torch.zeros(d, 3)]))
            encoder.bias.copy_(torch.cat([torch.zeros(d), -precision.log()]))
            weights[name] = w
    return model, weights, scale


def test_products_of_exact_posteriors_are_exact():
    model, weights, scale = linear_gaussian()
    given = ("a", "b")
    x = {k: torch.randn(6, 3, generator=torch.Generator().manual_seed(9)).double() for k in given}
    precision = 1 + sum((weights[k] ** 2).sum(0) for k in given) / scale**2
    mean = sum(x[k] @ weights[k] for k in given) / scale**2 / precision
    torch.testing.assert_close(
        model.encode(x), mean, rtol=1e-5, atol=1e-5
    )  # chains in mirrored pairs
    single = x["a"] @ weights["a"] / scale**2 / (1 + (weights["a"] ** 2).sum(0) / scale**2)
    torch.testing.assert_close(model.encode(x, "a"), single, rtol=1e-9, atol=1e-9)
    n = 500
    posterior = model.posterior_given(model.conform(x), model.names, "error", inference=True)
    z = posterior.rsample(n, torch.Generator().manual_seed(0))
    off = (z.mean(0) - mean) * precision.sqrt() * n**0.5
    assert off.abs().max() < 4
    assert off.square().mean() < 3
    assert ((z.var(0) * precision - 1).abs() < 4 * (2 / n) ** 0.5).all()
    down = model.translate(x, "c", n=200, generator=torch.Generator().manual_seed(0))["c"]
    torch.testing.assert_close(down.mean(0), mean @ weights["c"].T, rtol=0, atol=0.25)


def test_likelihoods_of_incomplete_rows_are_exact():
    model, weights, scale = linear_gaussian()
    x = {k: torch.randn(6, 3, generator=torch.Generator().manual_seed(9)).double() for k in "ab"}
    w = torch.cat([weights["a"], weights["b"]])
    truth = MultivariateNormal(
        torch.zeros(6).double(), w @ w.T + scale**2 * torch.eye(6)
    ).log_prob(torch.cat([x["a"], x["b"]], 1))
    ratio = (
        model.log_weights(Batch(x), 5_000, generator=torch.Generator().manual_seed(0)) - truth
    ).exp()
    assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / 5_000**0.5).all()
    only = MultivariateNormal(
        torch.zeros(3).double(), weights["a"] @ weights["a"].T + scale**2 * torch.eye(3)
    )
    torch.testing.assert_close(
        model.log_likelihood({"a": x["a"]}, n=10), only.log_prob(x["a"])
    )  # no variance at all


@pytest.mark.parametrize("correct_prior", [True, False])
def test_chains_reach_a_product_that_is_not_normal(correct_prior):
    shapes, flow = dict.fromkeys(NAMES, (2,)), {"name": "nsf", "hidden": [8]}
    fusion = {
        "name": "joint_flow",
        "flow": flow,
        "correct_prior": correct_prior,
        "chains": 32,
        "steps": 60,
    }
    model = Model(
        shapes, latent_dim=1, aggregator=fusion, schedule="joint_then_unimodal", seed=1
    ).double()
    x = {
        k: 2 * torch.randn(3, 2, generator=torch.Generator().manual_seed(2)).double() for k in "ab"
    }
    batch = model.conform(x)
    flows, n = model.aggregator.unimodal(model.experts(batch), batch), 1500
    grid = torch.linspace(-12, 12, 8001, dtype=torch.float64).reshape(-1, 1, 1)
    log_prior = Normal(0.0, 1.0).log_prob(grid[..., 0]) if correct_prior else 0.0
    log_p = sum(flows[k].log_prob(grid) for k in "ab") - log_prior
    p = torch.softmax(log_p, 0)
    cdf = p.cumsum(0).detach()
    z = model.posterior_given(batch, model.names, "error", inference=True).rsample(
        n, torch.Generator().manual_seed(0)
    )
    for row in range(3):
        drawn = z[:, row, 0].sort().values
        at = cdf[torch.searchsorted(grid.flatten(), drawn).clamp(max=8000), row]
        gap = (at - (torch.arange(n) + 0.5) / n).abs().max()
        assert gap < 1.95 / n**0.5  # Kolmogorov-Smirnov at 0.1 %
    mean = (p * grid[..., 0]).sum(0)
    spread = ((p * (grid[..., 0] - mean) ** 2).sum(0)).sqrt()
    assert ((model.encode(x)[:, 0] - mean).abs() < 0.25 * spread).all()


def test_what_does_not_fit_is_refused():
    shapes = dict.fromkeys(NAMES, (2,))
    options = {"schedule": "joint_then_unimodal"}
    with pytest.raises(
        SpecError, match=r"model\.aggregator\.flow: got Standard\(\); expected a flow"
    ):
        Model(shapes, aggregator={"name": "joint_flow", "flow": "standard"}, **options)
    with pytest.raises(
        SpecError, match=r"model\.aggregator\.joint: got PoE\(.*\); expected 'joint'"
    ):
        Model(shapes, aggregator={"name": "joint_flow", "joint": "poe"}, **options)
    with pytest.raises(SpecError, match=r"correct_prior: this prior depends on encoders"):
        Model(shapes, aggregator="joint_flow", prior="vamp", **options)
    with pytest.raises(SpecError, match="a flow needs a latent_dim of 1 at least"):
        Model(
            {"a": Modality((2,), private_dim=1)}, latent_dim=0, aggregator="joint_flow", **options
        )
    posterior = jnf().posterior_given(jnf().conform(rows()), ("a", "b"), "prior", inference=True)
    with pytest.raises(mvkit.RequestError, match="known up to a constant only"):
        posterior.log_prob(torch.zeros(ROWS, D))


def test_mvkit_knows_what_this_package_offers():
    from mvkit.registry.builtin_parts import EXTERNAL_PARTS

    offered = {(component.kind, component.name) for component in mvkit_flows.mvkit_components()}
    assert offered == {
        (kind, name) for kind, names in EXTERNAL_PARTS["mvkit-flows"].items() for name in names
    }


@pytest.mark.parametrize("objective", ["telbo", "jmvae", "iwae", "dreg"])
def test_other_objectives_train_it(objective):
    model = Model(
        modalities(),
        latent_dim=D,
        aggregator="joint_flow",
        objective=objective,
        schedule="joint_then_unimodal",
    )
    model.double().loss(rows()).loss.backward()
    gradients = [
        p.grad for name, p in model.named_parameters() if name.startswith("aggregator.flows")
    ]
    assert all(
        (g is not None and torch.isfinite(g).all()) == (objective in ("telbo", "jmvae"))
        for g in gradients
    )


@pytest.mark.parametrize("variance", [1.0, 1.6, 2.1, 50.0])
def test_encodings_by_broad_surrogates_do_not_depend_on_the_length_of_chains(variance):
    """Without flows, a product of two N(1, v) over N(0, 1): proper below v = 2."""
    means = []
    for steps in (20, 200):
        aggregator = {"name": "mvkit-flows/joint_flow", "steps": steps}
        linear = {"encoder": {"name": "linear"}, "decoder": {"name": "linear"}}
        modalities = {name: Modality((1,), **linear) for name in "abc"}
        model = Model(modalities, latent_dim=1, aggregator=aggregator, objective="jmvae", seed=0)
        with torch.no_grad():
            for name in "abc":
                model.encoders[name][0].weight.zero_()
                model.encoders[name][0].bias.copy_(torch.tensor([1.0, math.log(variance)]))
            for parameter in model.aggregator.flows.parameters():
                parameter.zero_()
        x = {name: torch.zeros(1, 1) for name in "ab"} | {"c": torch.full((1, 1), torch.nan)}
        means.append(float(model.encode(x)))
    precision = 2 / variance - 1
    right = 2 / variance / precision if precision > 0 else 2.0
    assert means == pytest.approx([right, right], rel=0.15)
