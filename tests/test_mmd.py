"""Maximum mean discrepancy: against loops written from the papers, and what it does in training."""

import math

import attrs
import pytest
import torch
from helpers import loss_and_gradients, model, rows
from torch import nn
from torch.distributions import Independent, Laplace

import mvkit
from mvkit import Batch, Covariate, Model, SpecError, spec
from mvkit.registry import component, plugins
from mvkit.testing import noise
from mvkit.testing.injected_noise import bound_noise

WEIGHTS = [0.5, 2.0, 0.0, 1.0, 3.0, 0.25, 1.0, 0.25]
SKIP = {"name": "joint", "incomplete": "skip"}


def kernel(x, y, name, scales):
    distance = sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))
    total = 0.0
    for scale in scales:
        c = 2 * len(x) * scale
        total += c / (c + distance) if name == "imq" else math.exp(-distance / c)
    return total / len(scales)


def terms(z, y, counted, name, scales):
    """Each row's own terms of the U-statistic, by loops."""
    rows_ = [i for i in range(len(z)) if counted[i]]
    n = len(rows_)
    values = []
    for i in range(len(z)):
        value = 0.0
        for j in rows_:
            if j != i:
                pair = kernel(z[i], z[j], name, scales) + kernel(y[i], y[j], name, scales)
                value += pair / max(n - 1, 1)
            value -= (kernel(z[i], y[j], name, scales) + kernel(y[i], z[j], name, scales)) / n
        values.append(value if counted[i] else 0.0)
    return values


def draws(tiny, batch):
    """The draws of posterior and prior that the objective takes, with noise bound to rows."""
    tiny_rows = tiny.conform(batch)
    with noise(bound_noise(range(len(tiny_rows)), tiny.names)), torch.no_grad():
        experts = tiny.experts(tiny_rows)
        posterior = tiny.joint_posterior(tiny_rows, experts)
        z = posterior.draw(1, "iid").z[0, 0]
        prior = tiny.prior_at(experts, posterior)
        y = prior.expand(*tiny_rows.observed.shape).draw(1, "iid", None, "prior").z[0, 0]
    return z, y, posterior.active


PARTS = [("poe",), ("moe", "mog"), ("mopoe", "learnable"), (SKIP, "vamp"), ("poe", "mog")]


@pytest.mark.parametrize("name", ["imq", "rbf"])
@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_it_is_the_loop_of_the_papers(parts, name, weights):
    scales = (0.3, 2.0)
    into = ["decoders", "encoders"]
    if "mog" in parts or "learnable" in parts:
        into.append("prior")
    site = Covariate(("A", "B"), into=into)
    options = {"private": 1} if "vamp" in parts else {"private": 1, "covariates": {"site": site}}
    objective = {"name": "mmd", "kernel": name, "scales": scales, "alpha": 2.0, "kl_weight": 0.5}
    tiny = model(*parts, objective=objective, **options).eval()
    extra = {} if "vamp" in parts else {"site": ["AB"[i % 2] for i in range(8)]}
    if weights is not None:
        extra["row_weight"] = weights
    with torch.no_grad():
        for key, parameter in tiny.named_parameters():
            if "shift" in key:
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
    batch = attrs.evolve(rows(), extra=extra)
    z, y, active = draws(tiny, batch)
    active = torch.ones(8, dtype=torch.bool) if active is None else active
    row_weight = [1.0] * 8 if weights is None else weights
    counted = [bool(active[i]) and row_weight[i] > 0 for i in range(8)]
    values = terms(z, y, counted, name, scales)
    total = sum(weight * value for weight, value in zip(row_weight, values, strict=True))
    loss, _ = loss_and_gradients(tiny, batch)
    assert float(loss.loss.detach()) == pytest.approx(total / 8, rel=1e-9, abs=1e-12)
    shares = [weight * float(on) for weight, on in zip(row_weight, active, strict=True)]
    assert float(loss.metrics["mmd"]) == pytest.approx(total / sum(shares), rel=1e-9)


def test_its_mean_is_that_of_the_discrepancy_of_two_gaussians():
    """For N(μ, I) against N(0, I) and one rbf kernel, MMD² has a closed form."""
    d, mu = 2, torch.tensor([1.0, -0.5], dtype=torch.float64)
    part = mvkit.parts.MMD(kernel="rbf", scales=(1.0,))
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(400):  # small batches, in which a biased estimate would be 0.02 too large
        z, y = torch.randn(2, 50, d, dtype=torch.float64, generator=generator)
        values.append(part._terms(z + mu, y, torch.ones(50, dtype=torch.bool)).mean())
    value = torch.stack(values).mean()
    width = 2.0 * d
    same = (1 + 4 / width) ** (-d / 2)
    across = same * math.exp(-float(mu @ mu) / (width + 4))
    assert float(value) == pytest.approx(2 * same - 2 * across, abs=0.008)


def linear_gaussian(n):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(n, 2, generator=generator)
    first = z @ torch.tensor([[1.0, 0.3, -0.4], [0.2, -1.0, 0.5]])
    second = z @ torch.tensor([[0.5, 1.0], [-1.0, 0.4]])
    data = {"a": first, "b": second}
    return Batch({k: x + 0.1 * torch.randn(x.shape, generator=generator) for k, x in data.items()})


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["standard", "mog"])
def test_the_aggregate_posterior_moves_to_the_prior(prior):
    """Without a KL, draws of the posterior become those of the prior by the discrepancy alone."""
    plain = {"name": "elbo", "kl_weight": 0.0}
    data = linear_gaussian(1024)
    modalities = {
        "a": mvkit.Modality((3,), encoder="linear", decoder="linear"),
        "b": mvkit.Modality((2,), encoder="linear", decoder="linear"),
    }
    distance = {}
    for name, objective in (
        ("without", plain),
        ("with", {"name": "sum", "terms": [plain, {"name": "mmd", "alpha": 20.0}]}),
    ):
        tiny = Model(modalities, latent_dim=2, prior=prior, objective=objective, seed=0)
        stages = [
            mvkit.Stage(
                None, 60, ["encoders.*", "decoders.*"], optimizer={"name": "adam", "lr": 0.01}
            )
        ]
        mvkit.fit(tiny, data, stages=stages, batch_size=256)
        z = tiny.posterior(data).rsample(1, torch.Generator().manual_seed(0))[0].detach()
        y = tiny.prior_draws(len(z), None, torch.Generator().manual_seed(1))[0].detach()
        counted = torch.ones(len(z), dtype=torch.bool)
        distance[name] = float(mvkit.parts.MMD()._terms(z, y, counted).mean())
    print(prior, distance)
    assert distance["with"] < 0.01
    assert distance["with"] < 0.2 * distance["without"]


class Foreign(nn.Module, mvkit.Prior):
    """A prior that is a distribution of torch's."""

    def forward(self, posterior=None):
        loc = torch.zeros(2, dtype=torch.float64)
        return Independent(Laplace(loc, loc + 1), 1)


@spec
class Heavy:
    """Laplace's, of torch."""

    def build(self, sizes):
        return Foreign()


def test_a_prior_of_torch_is_drawn_from_and_one_row_has_no_within():
    plugins.declare(component.Component("prior", "heavy", "test_mmd:Heavy"))
    tiny = model(prior="heavy", objective="mmd")
    loss = tiny.loss(rows(), generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(loss.loss)
    alone = tiny.loss(rows().take([0]), generator=torch.Generator().manual_seed(0))
    assert -2 <= float(alone.loss.detach()) < 0


def test_what_it_cannot_take_is_refused():
    with pytest.raises(SpecError, match="latent_dim=0"):
        Model({"a": {"shape": (3,), "private_dim": 1}}, latent_dim=0, objective="mmd")
    for bad in ((), (0.0,), ("a",)):
        with pytest.raises(SpecError, match="scales: got.*greater than 0"):
            model(objective={"name": "mmd", "scales": bad})
