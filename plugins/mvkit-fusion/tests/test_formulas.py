"""Each fusion against an oracle written from its formula; limits, normalisation, extremes. Axes as
in mvkit.
"""

import itertools

import numpy as np
import pytest
import torch

import mvkit
from mvkit import Batch, Model
from mvkit.core.experts import Experts
from mvkit.parts.families import Normal

NAMES = ("c", "a", "d", "b")  # not in the order of names
PATTERNS = torch.tensor(list(itertools.product([True, False], repeat=4))[:-1])


def fusion_model(aggregator, names=NAMES, d=3, dtype=torch.float64, **options):
    nets = {"encoder": {"name": "mlp", "hidden": [4]}, "decoder": "linear"}
    modalities = {name: mvkit.Modality((2,), **nets) for name in names}
    return Model(modalities, latent_dim=d, aggregator=aggregator, seed=0, **options).to(dtype)


def pooled(model, loc, log_variance, mask=None, *, training=False, inference=False):
    """The posterior of experts with these parameters (m, b, d), whatever encoders would say."""
    mask = torch.ones(loc.shape[1], loc.shape[0], dtype=torch.bool) if mask is None else mask
    data = {name: torch.zeros(len(mask), 2, dtype=loc.dtype) for name in model.names}
    batch = model.conform(Batch(data, mask))
    generator = torch.Generator().manual_seed(0)
    experts = Experts(
        {},
        model.modalities,
        batch,
        family=Normal(),
        width=model.width,
        training=training,
        generator=generator,
    )
    experts.__dict__["_located"] = (loc, torch.exp(log_variance / 2))
    fuse = model.aggregator.inference if inference else model.aggregator.forward
    return fuse(experts, batch)


def drawn(m=4, b=15, d=3, spread=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return tuple(spread * torch.randn(m, b, d, generator=generator, dtype=dtype) for _ in range(2))


def subsets_of(observed):
    every = range(1, len(observed) + 1)
    names = np.flatnonzero(observed)
    return [subset for n in every for subset in itertools.combinations(names, n)]


def components(posterior, row):
    """{evidence: (weight, loc, scale)} of the components that a row uses."""
    computed = {}
    for k in range(posterior.components):
        weight = posterior.log_weight[k, row].exp().item()
        if weight:
            members = tuple(posterior.evidence[k, row].nonzero().flatten().tolist())
            assert members not in computed
            computed[members] = (
                weight,
                posterior.loc[k, row].detach().numpy(),
                posterior.scale[k, row].detach().numpy(),
            )
    return computed


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9, None])
def test_code_is_the_matrix_formula_in_every_subset_row_and_dimension(rho):
    model, (loc, log_variance) = fusion_model({"name": "code", "rho": rho}), drawn()
    with torch.no_grad():
        model.aggregator.logits.copy_(torch.randn(15, dtype=torch.float64))
        if rho is None:
            model.aggregator.raw.fill_(0.8)
            rho = 0.999 / (1 + np.exp(-0.8))
    posterior, sd = pooled(model, loc, log_variance, PATTERNS), torch.exp(log_variance / 2).numpy()
    order = sorted(range(4), key=lambda i: NAMES[i])
    for row, observed in enumerate(PATTERNS.numpy()):
        computed, expected = components(posterior, row), subsets_of(observed)
        assert set(computed) == set(expected)
        numbers = {s: sum(2 ** order.index(i) for i in s) - 1 for s in expected}
        pi = {s: np.exp(model.aggregator.logits[n].item()) for s, n in numbers.items()}
        for s in expected:
            weight, mean, scale = computed[s]
            assert weight == pytest.approx(pi[s] / sum(pi.values()))
            for d in range(3):
                sigma, mu, u = sd[list(s), row, d], loc[list(s), row, d].numpy(), np.ones(len(s))
                correlation = np.where(np.eye(len(s)), 1.0, rho)
                inverse = np.linalg.inv(np.outer(sigma, sigma) * correlation)
                assert scale[d] == pytest.approx((u @ inverse @ u) ** -0.5, rel=1e-9)
                assert mean[d] == pytest.approx(
                    u @ inverse @ mu / (u @ inverse @ u), rel=1e-8, abs=1e-10
                )


def test_code_without_correlation_is_mopoe_without_prior_expert():
    loc, log_variance = drawn()
    code = pooled(fusion_model({"name": "code", "rho": 0.0}), loc, log_variance, PATTERNS)
    mopoe = pooled(
        fusion_model({"name": "mopoe", "prior_expert": "none"}), loc, log_variance, PATTERNS
    )
    z = torch.randn(5, 15, 3, dtype=torch.float64)
    torch.testing.assert_close(code.log_prob(z), mopoe.log_prob(z), rtol=1e-10, atol=1e-10)


def test_code_of_equal_experts_counts_them_less_than_once_each():
    loc, log_variance = (t[:1].expand(4, -1, -1) for t in drawn())
    posterior = pooled(
        fusion_model({"name": "code", "rho": 0.7}), loc, log_variance, inference=True
    )
    torch.testing.assert_close(posterior.loc[0], loc[0])
    torch.testing.assert_close(
        posterior.scale[0].square(), torch.exp(log_variance[0]) * (1 + 3 * 0.7) / 4
    )


def test_code_may_leave_the_hull_of_its_experts():
    """Two experts: where one scale is more than 1/ρ times the other."""
    loc = torch.tensor([0.0, 1.0]).double().reshape(2, 1, 1)
    for ratio, outside in ((1.9, False), (2.1, True)):
        variance = torch.tensor([1.0, ratio**2]).double().reshape(2, 1, 1)
        posterior = pooled(
            fusion_model({"name": "code", "rho": 0.5}, ("a", "b"), 1),
            loc,
            variance.log(),
            inference=True,
        )
        assert (posterior.mean.item() < 0) == outside


def test_mwb_is_the_barycentre_of_every_subset():
    model, (loc, log_variance) = fusion_model("mwb"), drawn()
    posterior, sd = pooled(model, loc, log_variance, PATTERNS), torch.exp(log_variance / 2).numpy()
    for row, observed in enumerate(PATTERNS.numpy()):
        computed, expected = components(posterior, row), subsets_of(observed)
        assert set(computed) == set(expected)
        for s in expected:
            weight, mean, scale = computed[s]
            assert weight == pytest.approx(1 / len(expected))
            np.testing.assert_allclose(
                mean, loc[list(s), row].numpy().mean(0), rtol=1e-10, atol=1e-12
            )
            np.testing.assert_allclose(scale, sd[list(s), row].mean(0), rtol=1e-10)


def test_all_of_mwb_is_the_built_in_barycentre():
    loc, log_variance = drawn()
    whole = pooled(fusion_model("mwb"), loc, log_variance, PATTERNS, inference=True)
    other = pooled(fusion_model("wasserstein"), loc, log_variance, PATTERNS)
    torch.testing.assert_close(whole.loc, other.loc)
    torch.testing.assert_close(whole.scale, other.scale)


GRID = torch.linspace(-40, 40, 40_001, dtype=torch.float64)


def pool_on_grid(model, loc, log_variance, observed):
    """(Σ w √q)², normalised by quadrature."""
    weight = (
        torch.ones(4)
        if model.aggregator.logits is None
        else [model.aggregator.logits[n].exp() for n in NAMES]
    )
    normals = torch.distributions.Normal(loc, torch.exp(log_variance / 2))
    roots = torch.exp(normals.log_prob(GRID.reshape(-1, 1)).reshape(-1, 4) / 2)
    pool = sum(weight[i].item() * roots[:, i] for i in range(4) if observed[i]) ** 2
    return pool / torch.trapezoid(pool, GRID)


@pytest.mark.parametrize("trained", [False, True])
def test_hoelder_is_the_squared_sum_of_roots(trained):
    model, (loc, log_variance) = (
        fusion_model({"name": "hoelder", "trained": trained}, d=1),
        drawn(d=1, spread=1.5),
    )
    for i, name in enumerate(NAMES if trained else ()):
        model.aggregator.logits[name].data.fill_(0.4 * i)
    with torch.no_grad():
        posterior = pooled(model, loc, log_variance, PATTERNS)
        density = posterior.log_prob(GRID.reshape(-1, 1, 1).expand(-1, 15, 1)).exp()
    for row, observed in enumerate(PATTERNS):
        expected = pool_on_grid(model, loc[:, row, 0], log_variance[:, row, 0], observed)
        torch.testing.assert_close(density[:, row], expected, rtol=1e-6, atol=1e-9)


def test_hoelder_factorises_over_no_dimension_but_each_component_does():
    """In two dimensions the coefficient of a pair is the product over dimensions: quadrature on a
    square.
    """
    model = fusion_model("hoelder", ("a", "b"), d=2)
    loc, log_variance = drawn(m=2, b=1, d=2)
    line = torch.linspace(-12, 12, 801, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 1, 2)
    normals = torch.distributions.Normal(loc[:, 0], torch.exp(log_variance[:, 0] / 2))
    pool = torch.exp(normals.log_prob(z).sum(-1) / 2).sum(1) ** 2
    pool = pool / (pool.sum() * (line[1] - line[0]) ** 2)
    density = pooled(model, loc, log_variance).log_prob(z).exp()[:, 0]
    torch.testing.assert_close(density, pool, rtol=1e-5, atol=1e-9)


def test_hellinger_has_the_moments_of_the_pool():
    (loc, log_variance), model = drawn(d=1, spread=1.5), fusion_model("hoelder", d=1)
    posterior = pooled(fusion_model("hellinger", d=1), loc, log_variance, PATTERNS)
    for row, observed in enumerate(PATTERNS):
        density = pool_on_grid(model, loc[:, row, 0], log_variance[:, row, 0], observed)
        mean = torch.trapezoid(GRID * density, GRID)
        variance = torch.trapezoid((GRID - mean) ** 2 * density, GRID)
        assert posterior.loc[0, row, 0].item() == pytest.approx(mean.item(), abs=1e-7)
        assert posterior.scale[0, row, 0].square().item() == pytest.approx(
            variance.item(), rel=1e-6
        )


@pytest.mark.parametrize("aggregator", ["code", "mwb", "hoelder", "hellinger"])
def test_densities_integrate_to_one(aggregator):
    loc, log_variance = drawn(d=1, spread=1.5)
    posterior = pooled(fusion_model(aggregator, d=1), loc, log_variance, PATTERNS)
    density = posterior.log_prob(GRID.reshape(-1, 1, 1).expand(-1, 15, 1)).exp()
    torch.testing.assert_close(
        torch.trapezoid(density, GRID, dim=0), torch.ones(15).double(), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(posterior.log_weight.exp().sum(0), torch.ones(15).double())


@pytest.mark.parametrize("aggregator", ["code", "mwb", "hoelder", "hellinger"])
def test_one_expert_is_itself(aggregator):
    loc, log_variance = drawn(b=4)
    posterior = pooled(fusion_model(aggregator), loc, log_variance, torch.eye(4, dtype=torch.bool))
    for i in range(4):
        k = posterior.log_weight[:, i].argmax()
        torch.testing.assert_close(posterior.log_weight[k, i].exp().item(), 1.0)
        torch.testing.assert_close(posterior.loc[k, i], loc[i, i])
        torch.testing.assert_close(posterior.scale[k, i], torch.exp(log_variance[i, i] / 2))


@pytest.mark.parametrize("aggregator", ["mwb", "hoelder", "hellinger"])
def test_equal_experts_are_one(aggregator):
    loc, log_variance = (t[:1].expand(4, -1, -1) for t in drawn())
    posterior = pooled(fusion_model(aggregator), loc, log_variance, PATTERNS)
    z = torch.randn(5, 15, 3, dtype=torch.float64)
    expected = (
        torch.distributions.Normal(loc[0], torch.exp(log_variance[0] / 2)).log_prob(z).sum(-1)
    )
    torch.testing.assert_close(posterior.log_prob(z), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "aggregator", [{"name": "code", "rho": 0.999}, "code", "mwb", "hoelder", "hellinger"]
)
def test_extreme_variances_leave_all_finite(aggregator, dtype):
    """Every pair of log-variances from -50, 0 and 50, far and near means, every pattern of
    gaps.
    """
    values = torch.tensor(list(itertools.product([-50.0, 0.0, 50.0], repeat=4)), dtype=dtype)
    log_variance = values.T.repeat_interleave(15, 1).unsqueeze(-1).requires_grad_()
    loc = (
        torch.linspace(-30, 30, 4, dtype=dtype)
        .reshape(4, 1, 1)
        .expand(-1, 81 * 15, 1)
        .clone()
        .requires_grad_()
    )
    posterior = pooled(
        fusion_model(aggregator, d=1, dtype=dtype), loc, log_variance, PATTERNS.repeat(81, 1)
    )
    assert (posterior.scale > 0).all()
    weight = posterior.log_weight.exp()
    value = (
        weight.unsqueeze(-1) * (posterior.scale.log() + posterior.loc)
    ).sum() + weight.square().sum()
    value.backward()
    for tensor in (posterior.loc, posterior.scale, loc.grad, log_variance.grad):
        assert torch.isfinite(tensor).all()
    z = posterior.draw(2, "stratified", torch.Generator().manual_seed(0)).z.detach()
    computed = posterior.log_prob(z)[:, weight > 0]
    assert torch.isfinite(computed).all()


@pytest.mark.parametrize("aggregator", ["code", "mwb"])
def test_drawn_subsets_are_components_of_all(aggregator):
    model, (loc, log_variance) = fusion_model({"name": aggregator, "max_subsets": 3}), drawn()
    if aggregator == "code":
        model.aggregator.logits.data.normal_()
    every = pooled(model, loc, log_variance, PATTERNS)
    some = pooled(model, loc, log_variance, PATTERNS, training=True)
    assert (every.components, some.components) == (15, 3)
    for row, observed in enumerate(PATTERNS):
        all_of_row, drawn_of_row = components(every, row), components(some, row)
        assert len(drawn_of_row) == min(3, 2 ** observed.sum().item() - 1)
        total = sum(all_of_row[s][0] for s in drawn_of_row)
        for s, (weight, mean, scale) in drawn_of_row.items():
            assert weight == pytest.approx(all_of_row[s][0] / total)
            np.testing.assert_allclose(mean, all_of_row[s][1], rtol=1e-9)
            np.testing.assert_allclose(scale, all_of_row[s][2], rtol=1e-9)


def test_ten_modalities():
    names = tuple("abcdefghij")
    loc, log_variance = drawn(m=10, b=3, d=2)
    for aggregator, k in (("code", 1023), ("mwb", 1023), ("hoelder", 55)):
        posterior = pooled(fusion_model(aggregator, names, 2), loc, log_variance)
        assert posterior.components == k
        assert torch.isfinite(posterior.log_prob(loc[0])).all()
