"""mmJSD against a plain loop, row by row, written from its paper, and its divergence against
draws.
"""

import pytest
import torch
from helpers import fillers, loss_and_gradients, model, rows
from test_recipes import NAMES, ROWS, Oracle, check, made
from torch.distributions import Normal

import mvkit
from mvkit.core.mixture import Mixture
from mvkit.parts.families import Normal as NormalFamily
from mvkit.parts.objectives.jensen_shannon import jensen_shannon


def dynamic_prior(experts, shares):
    """The weighted geometric mean of normals, by completing the square."""
    precision = sum(share * q.scale**-2 for share, q in zip(shares, experts, strict=True))
    pairs = zip(shares, experts, strict=True)
    mean = sum(share * q.scale**-2 * q.loc for share, q in pairs) / precision
    return Normal(mean, precision**-0.5)


@pytest.mark.parametrize("private_dim", [None, 2])
@pytest.mark.parametrize("options", [{}, {"shares": {"a": 2.0, "c": 0.5}, "prior_share": 0.7}])
def test_mmjsd(options, private_dim):
    """E_q log p(X|z) - β Σ_ν π_ν KL(q_ν ‖ f) - β Σ_m KL(q(w_m|x_m) ‖ p(w_m))."""
    vae = made("mmjsd", beta=0.7, private_dim=private_dim, **options)
    relative = options.get("shares", {})

    def loop(oracle, row):
        seen = oracle.observed(row)
        experts = {name: oracle.q(name, row) for name in seen}
        pi = {name: relative.get(name, 1.0) for name in seen}
        whole = sum(pi.values()) + options.get("prior_share", 1.0)
        value = 0.0
        for name in seen:
            own = experts[name][0]
            j = NAMES.index(name)
            z = own.loc + own.scale * oracle.eps("z", 1, 3)[0, j, row]
            for other in seen:
                private = experts[other][1]
                w = None
                if private is not None:
                    w = private.loc + private.scale * oracle.eps(f"w/{other}", 1, 3)[0, j, row]
                value = value + pi[name] / sum(pi.values()) * oracle.log_px(other, row, z, w)
        every = [q for q, _ in experts.values()]
        every.append(oracle.standard(every[0].loc))
        shares = [pi[name] / whole for name in seen]
        shares.append(1 - sum(shares))
        f = dynamic_prior(every, shares)
        value = value - 0.7 * sum(s * oracle.kl(q, f) for s, q in zip(shares, every, strict=True))
        for _, private in experts.values():
            value = value - (0 if private is None else 0.7 * oracle.kl(private))
        return value

    check(vae, loop)


def test_the_divergence_is_that_of_the_definition_by_draws():
    """Σ_ν π_ν E_{q_ν} [log q_ν - Σ_k π_k log q_k + log ∫ ∏ q_k^π_k], on a grid."""
    loc = torch.tensor([0.3, -1.0], dtype=torch.float64).reshape(2, 1, 1)
    scale = torch.tensor([0.5, 2.0]).double().reshape(2, 1, 1)
    prior = Mixture(NormalFamily(), loc[:1] * 0, scale[:1] * 0 + 1, loc[:1, :, 0] * 0)
    q = Mixture(NormalFamily(), loc, scale, loc[..., 0] * 0)
    shares = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    z = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    every = [
        Normal(*q)
        for q in torch.tensor([[0.3, 0.5], [-1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
    ]
    log_q = torch.stack([p.log_prob(z) for p in every])
    log_f = torch.einsum("v,vz->z", shares, log_q)
    log_f = log_f - torch.trapezoid(log_f.exp(), z).log()
    expected = sum(
        share * torch.trapezoid(log.exp() * (log - log_f), z)
        for share, log in zip(shares, log_q, strict=True)
    )
    torch.testing.assert_close(
        jensen_shannon(q, prior, shares.reshape(3, 1))[0], expected, rtol=1e-9, atol=0
    )


def test_equal_experts_that_are_the_prior_do_not_diverge():
    vae = made("mmjsd")
    with torch.no_grad():
        for encoder in vae.encoders.values():
            for parameter in encoder.parameters():
                parameter.zero_()
    found = vae.loss(rows(ROWS)).metrics["jsd"]
    torch.testing.assert_close(found, torch.zeros(()).double(), rtol=0, atol=1e-12)


def test_what_is_reported_is_the_elbo_of_the_mixture():
    vae = made("mmjsd")
    oracle = Oracle(vae)
    with mvkit.testing.noise(oracle.source):
        bound = vae.loss(oracle.batch).bound
        elbo = vae.loss(oracle.batch, objective={"name": "elbo", "draw": "stratified"}).bound
    torch.testing.assert_close(bound, elbo, rtol=1e-9, atol=0)


def test_covariates_and_row_weights():
    from ranks_worker import given_rows

    counts = {"shape": (3,), "likelihood": "poisson"}
    covariates = {"age": mvkit.Covariate(into=("encoders", "prior")), "site": ("A", "B")}
    vae = model("moe", "learnable", "jsd", first=counts, covariates=covariates)
    batch = given_rows(9)
    history = mvkit.fit(vae, batch, validation=given_rows(3, seed=1), epochs=2, batch_size=4)
    assert all(torch.isfinite(torch.tensor(history["loss"] + history["valid/jsd"])))


@pytest.mark.parametrize("prior", ["mog", "vamp", "top_down"])
def test_what_has_no_geometric_mean_is_refused(prior):
    shapes = {"a": (2,), "b": (2,)}
    with pytest.raises(mvkit.SpecError, match="takes the geometric mean of normals"):
        mvkit.Model(shapes, aggregator="moe", prior=prior, objective="jsd")
    with pytest.raises(mvkit.SpecError, match="which this family has not in closed form"):
        mvkit.Model(shapes, aggregator="moe", family="laplace_softmax", objective="jsd")
    with pytest.raises(mvkit.SpecError, match="got 0.0 for 'a'; expected a number above 0"):
        mvkit.recipes.mmjsd(shapes, shares={"a": 0.0})
    with pytest.raises(mvkit.SpecError, match="no modality 'z'"):
        mvkit.recipes.mmjsd(shapes, shares={"z": 1.0})


@pytest.mark.parametrize("aggregator", ["poe", "mopoe", "set", "wasserstein"])
def test_other_aggregators_and_fillers(aggregator):
    vae = model(aggregator, "learnable", "jsd", private=2)
    loss, gradients = loss_and_gradients(vae, rows())
    for value in (torch.nan, torch.inf, 1e6):
        other, others = loss_and_gradients(vae, fillers(rows(), value))
        assert torch.equal(loss.bound, other.bound)
        for name, gradient in gradients.items():
            assert torch.isfinite(gradient).all()
            assert torch.equal(gradient, others[name]), name


@pytest.mark.parametrize("private_dim", [None, 2])
def test_life(private_dim, tmp_path):
    vae = made("mmjsd", private_dim=private_dim)
    mask = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) > 0.3
    mask[~mask.any(1), 0] = True
    batch = mvkit.Batch(rows(40).data, mask)
    mvkit.fit(vae, batch, validation=rows(40), epochs=2, batch_size=16)
    mvkit.save(vae, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    assert again.header() == vae.header()
    assert torch.equal(vae.encode(rows()), again.encode(rows()))
    assert torch.isfinite(vae.log_likelihood(rows(), n=20)).all()
    assert all(torch.isfinite(x).all() for x in vae.translate(rows(), n=2).values())
    assert all(torch.isfinite(x).all() for x in vae.sample(5).values())


@pytest.mark.parametrize("objective", ["jsd", "meme"])
def test_the_top_of_a_stack(objective, tmp_path):
    low = {name: mvkit.Modality((3,), private_dim=2, encoder="linear") for name in "ab"}
    high = {name: mvkit.Modality((2,), encoder="linear", decoder="linear") for name in "ab"}
    top = mvkit.Model(high, latent_dim=2, aggregator="moe", objective=objective, seed=0)
    stack = mvkit.Stack([mvkit.Model(low, latent_dim=0, seed=0), top])
    x = {"a": torch.randn(9, 3), "b": torch.randn(9, 3)}
    history = mvkit.fit(stack, x, epochs=2, batch_size=4)
    assert all(torch.isfinite(torch.tensor(history["loss"] + history["bound"])))
    mvkit.save(stack, tmp_path / "m")
    assert torch.equal(mvkit.load(tmp_path / "m").encode(x), stack.encode(x))
