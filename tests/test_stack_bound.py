"""The bound that a stack reports, by formula and by sampling; entropies and densities of
families.
"""

import math

import pytest
import torch
from helpers import FAMILIES, declare_logistic, rows
from torch.distributions import Laplace, Normal

import mvkit
from mvkit import Batch, Modality, Model, RequestError, Stack
from mvkit.registry import plugins
from mvkit.testing import bound_noise

LINEAR = {"name": "linear"}
NETS = {"encoder": LINEAR, "decoder": LINEAR}
NAMES = ("a", "b", "c")
TORCH_KIND = {"normal": Normal, "normal_softplus": Normal, "laplace_softmax": Laplace}
OBJECTIVES = {
    "elbo": "elbo",
    "mixture density": {"name": "elbo", "density": "mixture"},
    "unimodal": {"name": "elbo", "condition": "unimodal"},
    "unimodal sum": {"name": "elbo", "condition": "unimodal", "reduce": "sum"},
    "subset": {"name": "elbo", "condition": "subset"},
    "own": {"name": "elbo", "reconstruct": "own"},
    "iwae": {"name": "iwae", "samples": 20},
    "dreg": {"name": "dreg", "samples": 20},
    "sum": {"name": "sum", "terms": ["iwae", "align"]},
    "align first": {"name": "sum", "terms": ["align", "elbo"]},
    "align": "align",
    "telbo": "telbo",
}
THREE_SAMPLES = {"name": "elbo", "samples": 3}


def stack(objective="elbo", family="normal", aggregator="mean_message", modalities=None):
    """Three modalities, two latents each at the bottom, one at the top."""
    low = {
        "a": Modality((3,), private_dim=2, **NETS),
        "b": Modality((2, 2), "bernoulli", private_dim=2, **NETS),
        "c": Modality((4,), "categorical", private_dim=2, weight=0.5, **NETS),
    }
    low |= modalities or {}
    high = {name: Modality((2,), **NETS) for name in NAMES}
    options = {"objective": objective, "family": family, "aggregator": aggregator}
    bottom = Model(low, latent_dim=0, seed=0, **options)
    top = Model(high, latent_dim=1, aggregator="mean_message", seed=1)
    return Stack([bottom, top]).double()


def gapped():
    """Rows with every pattern of modalities, and single elements missing."""
    batch = rows(8)
    elements = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) < 0.7
    elements[:, 0] = True
    return Batch(batch.data, batch.mask, {"a": elements})


def source_of(batch):
    return bound_noise(range(len(batch)), NAMES)


def latents_of(model, batch):
    """Each modality's q(z|x) by torch, and the draw of it that the top sees."""
    source = source_of(batch)
    kind = TORCH_KIND[plugins.name_of("family", type(model.bottom.family))]
    posteriors, draws = {}, {}
    for i, name in enumerate(NAMES):
        x = batch.data[name]
        if name in batch.elements:
            x = torch.where(batch.elements[name], x, 0.0)
        numbers = model.bottom.encoders[name](x)[:, -4:]
        # what no row observes is zero
        numbers = torch.where(batch.mask[:, i : i + 1], numbers, 0.0)
        loc, raw = numbers.chunk(2, -1)
        posteriors[name] = kind(loc, model.bottom.family.scale(raw))
        eps = source(f"w/{name}", (1, 1, 8, 2), torch.float64, loc.device)[0, 0]
        draws[name] = loc + posteriors[name].scale * eps
    return posteriors, draws


def log_likelihood_of(model, batch, draws):
    """Σ_{m∈O} log p(x_m|z_m), by torch's own losses."""
    outputs = {name: model.bottom.decoders[name].network(draws[name]) for name in NAMES}
    pixels = outputs["b"].reshape(8, 2, 2)
    x = batch.data
    log_a = torch.where(batch.elements["a"], Normal(outputs["a"], 1.0).log_prob(x["a"]), 0.0)
    log_b = x["b"] * torch.sigmoid(pixels).log() + (1 - x["b"]) * torch.sigmoid(-pixels).log()
    log_c = x["c"] * torch.log_softmax(outputs["c"], -1)
    columns = torch.stack([log_a.sum(-1), log_b.sum((-1, -2)), log_c.sum(-1)], -1)
    return torch.where(batch.mask, columns, 0.0).sum(-1)


def expected_bound(model, batch):
    """Log-likelihoods at the draws, entropies by torch, and the top's own bound on the draws."""
    posteriors, draws = latents_of(model, batch)
    with mvkit.testing.noise(source_of(batch)):
        above = model.top.loss(Batch(draws, batch.mask)).bound
    entropies = torch.stack([q.entropy().sum(-1) for q in posteriors.values()], -1)
    entropy = torch.where(batch.mask, entropies, 0.0).sum(-1)
    return (log_likelihood_of(model, batch, draws) + entropy + above).detach()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("label", OBJECTIVES)
def test_the_bound_is_likelihoods_entropies_and_the_tops_bound(label, family, training):
    model = stack(OBJECTIVES[label], family).train(training)
    batch = gapped()
    with mvkit.testing.noise(source_of(batch)):
        bound = model.loss(batch).bound
    torch.testing.assert_close(bound, expected_bound(model, batch), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", ["normal", "laplace_softmax"])
@pytest.mark.parametrize("objective", ["elbo", "iwae", {"name": "elbo", "condition": "expert"}])
def test_the_bound_is_the_same_where_experts_count_their_own_latent_alone(objective, family):
    model = stack(objective, family, "moe")
    assert model.bottom.spec.private_from == "evidence"
    batch = gapped()
    with mvkit.testing.noise(source_of(batch)):
        bound = model.loss(batch).bound
    torch.testing.assert_close(bound, expected_bound(model, batch), rtol=1e-10, atol=1e-10)


def one_dimension(objective):
    """q(z|x) = N(4, 1), x|z ~ N(z, 1), z ~ N(4, 1): log p(0) = -4 - ½ log 4π."""
    low = {"a": Modality((1,), private_dim=1, **NETS)}
    high = {"a": Modality((1,), **NETS)}
    fusion = {"name": "mean_message", "message_dim": 2, "head": LINEAR}
    bottom = Model(low, latent_dim=0, objective=objective, aggregator=fusion, seed=0)
    top = Model(high, latent_dim=1, aggregator=fusion, seed=1)
    model = Stack([bottom, top]).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.bottom.encoders["a"][0].bias[2] = 4.0
        model.bottom.decoders["a"].network[0].weight.fill_(1.0)
        model.top.decoders["a"].network[0].bias.fill_(4.0)
    return model.eval()


@pytest.mark.parametrize("objective", [*OBJECTIVES.values(), THREE_SAMPLES], ids=str)
def test_the_mean_of_the_bound_is_the_elbo_of_both_levels_below_the_likelihood(objective):
    x = {"a": torch.zeros(5_000, 1, dtype=torch.float64)}
    bound = one_dimension(objective).loss(x, generator=torch.Generator().manual_seed(0)).bound
    # E log p(x|z) + H(q) + E log p(z), and the top's q(z_top) is its prior
    elbo = -0.5 * (16 + 1) - 0.5 * math.log(2 * math.pi)
    error = bound.std() / len(bound) ** 0.5
    assert abs(bound.mean() - elbo) < 4 * error
    assert bound.mean() < -4 - 0.5 * math.log(4 * math.pi)


def test_a_laplace_stack_adds_the_cross_entropy_of_its_latents():
    """-E_q log p(z) = log 2 + |loc| + scale exp(-|loc| / scale) per dimension; also by
    sampling.
    """
    model = stack(family="laplace_softmax")
    batch = gapped()
    posteriors, draws = latents_of(model, batch)
    with mvkit.testing.noise(source_of(batch)):
        bound = model.loss(batch).bound
        low = model.bottom.loss(batch).bound
        high = model.top.loss(Batch(draws, batch.mask)).bound
    added = bound - low - high
    n = 20_000
    closed, sampled, variance = [], [], []
    for i, q in enumerate(posteriors.values()):
        distance = q.loc.abs()
        each = math.log(2) + distance + q.scale * torch.exp(-distance / q.scale)
        surprise = -Laplace(0.0, 1.0).log_prob(q.sample((n,))).sum(-1)
        observed = batch.mask[:, i]
        closed.append(observed * each.sum(-1))
        sampled.append(observed * surprise.mean(0))
        variance.append(observed * surprise.var(0) / n)
    torch.testing.assert_close(added, sum(closed).detach(), rtol=1e-10, atol=1e-10)
    assert ((added - sum(sampled)).abs() < 4 * sum(variance).sqrt()).all()


def test_the_bound_draws_nothing_of_its_own():
    model = stack("iwae")
    batch = gapped()
    _, draws = latents_of(model, batch)
    sites = []

    def recorded(site, shape, dtype, device):
        sites.append((site, shape))
        return source_of(batch)(site, shape, dtype, device)

    with mvkit.testing.noise(recorded):
        model.loss(batch)
        together = list(sites)
        sites.clear()
        model.bottom.loss(batch)
        below = list(sites)
        sites.clear()
        model.top.loss(Batch(draws, batch.mask))
    to_the_top = [(f"w/{name}", (1, 1, 8, 2)) for name in NAMES]
    assert together == below + to_the_top + sites


def buffers_after_a_loss(level):
    """Running values of the bottom's decoders after the loss of a stack, or of its bottom."""
    layers = [torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.5), torch.nn.Linear(2, 3)]
    normal = {"name": "normal", "scale": "optimal"}
    torch.manual_seed(0)
    layers[2].reset_parameters()
    decoder = torch.nn.Sequential(*layers)
    a = Modality((3,), normal, encoder=LINEAR, decoder=decoder, private_dim=2)
    model = stack("iwae", modalities={"a": a}).train()
    batch = gapped()
    with mvkit.testing.noise(source_of(batch)):
        loss = model.loss(batch) if level == "whole" else model.bottom.loss(batch)
    assert torch.isfinite(loss.bound).all()
    assert all(module.training for module in model.modules())
    return dict(model.bottom.decoders.named_buffers())


def test_the_bound_moves_no_running_value_of_the_bottom_again():
    whole, bottom = buffers_after_a_loss("whole"), buffers_after_a_loss("bottom")
    assert whole["a.likelihood.scale.updates"] == 1
    assert whole["a.network.0.num_batches_tracked"] == 1
    for name, value in bottom.items():
        assert torch.equal(whole[name], value), name


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_a_family_without_closed_forms_is_refused_by_name(objective):
    declare_logistic()
    missing = "KL" if objective == "elbo" else "entropy"
    message = f"the {missing} of the bottom's family .* family 'local/logistic' has none"
    with pytest.raises(RequestError, match=message):
        stack(objective, "logistic").loss(gapped())


def test_a_family_has_no_entropy_unless_it_says_so():
    declare_logistic()
    assert plugins.lookup("family", "logistic")().entropy(torch.ones(3, 2)) is None


@pytest.mark.parametrize("name", mvkit.available("family"))
def test_entropies_are_integrals(name):
    family = plugins.lookup("family", name)()
    scale = torch.tensor([[0.3, 2.0, 1.0], [1e-3, 50.0, 4.0]], dtype=torch.float64)
    eps = torch.linspace(-60.0, 60.0, 240_001, dtype=torch.float64)
    integrals = torch.zeros(2, dtype=torch.float64)
    for row in range(2):
        for each in scale[row]:
            log_density = family.log_density(eps) - each.log()
            surprise = -log_density.exp() * log_density
            integrals[row] += torch.trapezoid(surprise, each * eps)
    torch.testing.assert_close(family.entropy(scale), integrals, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", mvkit.available("family"))
def test_log_densities_and_entropies_are_torchs(name):
    family = plugins.lookup("family", name)()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    loc = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    scale = torch.rand(4, 3, generator=generator, dtype=torch.float64) + 0.1
    theirs = TORCH_KIND[name](loc, scale)
    torch.testing.assert_close(family.log_prob(z, loc, scale), theirs.log_prob(z).sum(-1))
    torch.testing.assert_close(family.entropy(scale), theirs.entropy().sum(-1))
