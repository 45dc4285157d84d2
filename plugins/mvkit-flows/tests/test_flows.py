"""Flow priors in models: trained on incomplete rows, sampled, saved, loaded, scored."""

import math

import pytest
import torch

import mvkit
from mvkit import Batch, Model

SHAPES = {"a": (3,), "b": (2,)}


def batch(b=12):
    generator = torch.Generator().manual_seed(0)
    data = {k: torch.randn(b, *shape, generator=generator) for k, shape in SHAPES.items()}
    mask = torch.tensor([[i % 3 != 0, i % 3 != 1] for i in range(b)])
    return Batch(data, mask)


@pytest.mark.parametrize("name", ["nsf", "maf"])
@pytest.mark.parametrize("objective", ["elbo", "dreg"])
@pytest.mark.parametrize("aggregator", ["poe", "moe", "mopoe"])
def test_life(name, objective, aggregator, tmp_path):
    prior = {"name": name, "transforms": 1, "hidden": [8]}
    model = Model(
        SHAPES, latent_dim=2, aggregator=aggregator, prior=prior, objective=objective, seed=0
    )
    mvkit.fit(model, batch(), validation=batch(), epochs=2)
    mvkit.save(model, tmp_path / "m")
    assert mvkit.describe(tmp_path / "m")["packages"] == {"mvkit-flows": "0.1.0"}
    assert mvkit.describe(tmp_path / "m")["model"]["prior"]["name"] == f"mvkit-flows/{name}"
    again = mvkit.load(tmp_path / "m")
    assert torch.equal(model.encode(batch()), again.encode(batch()))
    first, second = (
        again.sample(5, generator=torch.Generator().manual_seed(1))["a"] for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.isfinite(again.log_likelihood(batch(), n=10)).all()


@pytest.mark.parametrize("name", ["nsf", "maf"])
def test_every_parameter_of_the_flow_is_trained(name):
    model = Model(SHAPES, latent_dim=2, prior={"name": name, "hidden": [8]}, seed=0)
    model.loss(batch()).loss.backward()
    for key, parameter in model.prior.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name", ["nsf", "maf"])
def test_the_density_integrates_to_one(name):
    model = Model(SHAPES, latent_dim=1, prior={"name": name, "hidden": [8]}, seed=0)
    grid = torch.linspace(-12, 12, 4001).reshape(-1, 1, 1)
    density = model.prior().log_prob(grid).exp().flatten()
    assert torch.trapezoid(density, grid.flatten()).item() == pytest.approx(1, abs=1e-2)


def test_a_flow_prior_learns_what_a_standard_one_cannot():
    """Latents of two far clusters: the flow's density of them is higher than any Gaussian's."""
    z = torch.cat([torch.randn(200, 2) * 0.3 + 3, torch.randn(200, 2) * 0.3 - 3])
    prior = Model(SHAPES, latent_dim=2, prior={"name": "nsf", "hidden": [32]}, seed=0).prior
    optimizer = torch.optim.Adam(prior.parameters(), 5e-3)
    for _ in range(300):
        optimizer.zero_grad()
        (-prior().log_prob(z).mean()).backward()
        optimizer.step()
    gaussian = -0.5 * math.log(
        (2 * math.pi * math.e) ** 2 * torch.linalg.det(torch.cov(z.T)).item()
    )
    assert prior().log_prob(z).mean() > gaussian + 0.5


def test_a_flow_sampler_is_fitted_saved_and_used(tmp_path):
    model = Model(SHAPES, latent_dim=2, seed=0)
    spec = {"name": "flow", "transforms": 1, "hidden": [8], "steps": 3}
    mvkit.fit_sampler(model, batch(), spec)
    mvkit.save(model, tmp_path / "m")
    assert mvkit.describe(tmp_path / "m")["packages"] == {"mvkit-flows": "0.1.0"}
    again = mvkit.load(tmp_path / "m")
    first, second = (
        m.sample(5, sampler="flow", generator=torch.Generator().manual_seed(1))["a"]
        for m in (model, again)
    )
    assert torch.equal(first, second)
    assert not any(p.requires_grad for p in again.samplers.parameters())


def test_a_flow_sampler_learns_two_groups():
    from mvkit_flows.samplers import Flow

    z = torch.cat([torch.randn(300, 2) * 0.3 + 3, torch.randn(100, 2) * 0.3 - 3])
    live = Flow(transforms=2, hidden=[32], steps=300, lr=5e-3).build(2)
    live.fit(z, 0)
    drawn = live.sample(None, 4000, torch.Generator().manual_seed(0))
    assert (drawn[:, 0] > 0).float().mean().item() == pytest.approx(0.75, abs=0.05)
    assert drawn[drawn[:, 0] > 0].mean().item() == pytest.approx(3, abs=0.2)


def correlated(b, seed=0):
    """Rows of two modalities that show one latent each, with noise; a third of each is missing."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(b, 2, generator=generator)
    a = torch.cat([z, z[:, :1]], 1) + 0.5 * torch.randn(b, 3, generator=generator)
    data = {"a": a, "b": z + 0.5 * torch.randn(b, 2, generator=generator)}
    mask = torch.tensor([[i % 3 != 0, i % 3 != 1] for i in range(b)])
    return Batch(data, mask)


def test_a_conditional_flow_is_fitted_saved_and_asked_for_any_subset(tmp_path):
    model = Model({"a": (3,), "b": mvkit.Modality((2,), private_dim=1)}, latent_dim=2, seed=0)
    spec = {"name": "flow", "transforms": 1, "hidden": [8], "steps": 3, "conditional": True}
    mvkit.fit_sampler(model, batch(), spec)
    mvkit.save(model, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    for given in (None, ("a",), ()):
        first, second = (
            m.translate(
                batch(),
                "b",
                given,
                n=2,
                sampler="flow",
                empty="prior",
                generator=torch.Generator().manual_seed(1),
            )["b"]
            for m in (model, again)
        )
        assert first.shape == (2, 12, 2)
        assert torch.equal(first, second)
    assert model.sample(3, sampler="flow")["a"].shape == (3, 3)


def test_a_flow_of_latents_alone_is_refused_for_conditions():
    model = Model(SHAPES, latent_dim=2, seed=0)
    mvkit.fit_sampler(model, batch(), {"name": "flow", "steps": 1})
    with pytest.raises(mvkit.RequestError, match="fit it again: .*'conditional': True"):
        model.translate(batch(), sampler="flow")


def test_a_conditional_flow_learns_what_every_subset_tells():
    """Its means and spreads are those of a mixture of one normal, which are exact here."""
    model = Model(SHAPES, latent_dim=2, seed=0, family="normal").eval()
    with torch.no_grad():  # linear encoders that tell a scale, so that all is normal
        for name, shape in SHAPES.items():
            linear = torch.nn.Linear(shape[0], 4)
            linear.weight.zero_()
            linear.weight[:2, :2] = torch.eye(2)
            linear.bias.copy_(torch.tensor([0.0, 0.0, -1.4, -1.4]))
            model.encoders[name] = torch.nn.Sequential(torch.nn.Flatten(), linear)
    rows = correlated(3000)
    mvkit.fit_sampler(model, rows, {"name": "gmm", "components": 1, "conditional": True})
    flow = {"name": "flow", "transforms": 1, "hidden": [32], "steps": 400, "lr": 1e-2}
    mvkit.fit_sampler(model, rows, {**flow, "conditional": True})
    asked = correlated(200, seed=1)
    complete = Batch(asked.data)
    for given in (("a",), ("b",), ("a", "b"), ()):
        draws = {}
        for name in ("gmm", "flow"):
            sampler = model.conditional_sampler(name, "test")
            sets = mvkit.models.inference.ConditioningSets(
                [given], "error", True, torch.Generator().manual_seed(2)
            )
            latents = model.sampled_given(model.conform(complete), sets, sampler)
            with torch.no_grad():
                draws[name] = latents.draw(300, sets.generator)[0]
        exact, learnt = draws["gmm"], draws["flow"]
        spread = exact.std(0).mean()
        assert (learnt.mean(0) - exact.mean(0)).square().mean().sqrt() < 0.3 * spread
        assert (learnt.std(0).mean() / spread).item() == pytest.approx(1, abs=0.15)


def test_the_sampler_conforms():
    from mvkit.testing import check_component

    check_component("sampler", "flow", steps=20)
    check_component("sampler", "flow", steps=300, lr=1e-2, conditional=True)
