"""Likelihoods, networks and priors on their own."""

import pytest
import torch
from torch import distributions

import mvkit
from mvkit import Modality, Model
from mvkit.core.likelihood import Context
from mvkit.core.modality import Sizes
from mvkit.parts.families import LaplaceSoftmax, Normal
from mvkit.registry.spec import as_part

SIZES = Sizes(2, Normal(), {"a": Modality((3,))}, None)
SCALED = {
    "normal": distributions.Normal,
    "laplace": distributions.Laplace,
    "student_t": lambda out, s: distributions.StudentT(4.0, out, s),
}


def likelihood(name, **options):
    return as_part("likelihood", {"name": name, **options}).build(SIZES)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("scale", [1.0, 0.3, "trained"])
def test_densities_are_torchs(name, scale):
    made = likelihood(name, scale=scale)
    out, x = torch.randn(2, 5, 3).double(), torch.randn(5, 3).double()
    oracle = SCALED[name](out, 1.0 if scale == "trained" else scale)
    torch.testing.assert_close(
        made.log_prob(out, x, Context()).double(), oracle.log_prob(x), rtol=1e-6, atol=1e-6
    )
    assert torch.equal(made.mean(out), out)
    drawn = made.sample(torch.zeros(20_000), Context(generator=torch.Generator().manual_seed(0)))
    median = drawn.abs().median().item()
    torchs = SCALED[name](torch.tensor(0.0), 1.0 if scale == "trained" else scale)
    expected = torchs.sample((200_000,)).abs().median()
    assert median == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "normal", "scale": "trained"},
        {"name": "student_t", "df": "trained", "scale": "trained"},
    ],
)
def test_trained_scales_get_gradients(options):
    made = Model({"a": Modality((3,), options)}, seed=0)
    made.loss(mvkit.Batch({"a": torch.randn(4, 3)})).loss.backward()
    found = dict(made.decoders["a"].likelihood.named_parameters())
    assert len(found) == len(options) - 1
    assert all(p.grad is not None and p.grad != 0 for p in found.values())


def test_bernoulli_takes_grey_values():
    made = likelihood("bernoulli")
    out, x = torch.randn(2, 5, 3), torch.rand(5, 3)
    oracle = -torch.nn.functional.binary_cross_entropy_with_logits(
        out, x.expand_as(out), reduction="none"
    )
    torch.testing.assert_close(made.log_prob(out, x, Context()), oracle)
    assert made.sample(torch.zeros(10_000)).mean() == pytest.approx(0.5, abs=0.03)


def test_bernoulli_samples_are_those_of_torch():
    """One uniform per element, below p: the bits that torch.bernoulli draws on a CPU."""
    out = 3 * torch.randn(500, 7)
    samples = likelihood("bernoulli").sample(
        out, Context(generator=torch.Generator().manual_seed(3))
    )
    expected = torch.bernoulli(torch.sigmoid(out), generator=torch.Generator().manual_seed(3))
    assert torch.equal(samples, expected)


@pytest.mark.parametrize("name", mvkit.available("likelihood"))
def test_injected_noise_reaches_samples(name):
    part = {"name": name, **({"levels": 5} if name == "ordinal" else {})}
    shape = (2,) if name == "hazard" else (3,)
    model = Model({"a": Modality(shape, part), "b": (2,)}, latent_dim=2, seed=0)
    x = {"b": torch.randn(4, 2)}
    with mvkit.testing.noise(lambda site, shape, dtype, device: torch.zeros(shape, dtype=dtype)):
        first, second = (model.translate(x, ["a"], n=2, sample=True)["a"] for _ in range(2))
    assert torch.isfinite(first).all()
    assert torch.equal(first, second)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    one, other = (model.translate(x, ["a"], n=99, sample=True, generator=g) for g in generators)
    assert not torch.equal(one["a"], other["a"])


def test_categorical():
    made = likelihood("categorical")
    out, index = torch.randn(2, 5, 4, 3), torch.randint(3, (5, 4))
    x = torch.nn.functional.one_hot(index, 3).float()
    oracle = distributions.Categorical(logits=out).log_prob(index)
    torch.testing.assert_close(made.log_prob(out, x, Context()), oracle)
    torch.testing.assert_close(made.mean(out).sum(-1), torch.ones(2, 5, 4))
    drawn = made.sample(torch.tensor([0.0, 1.0, 2.0]).expand(20_000, 3))
    torch.testing.assert_close(
        drawn.mean(0), torch.softmax(torch.tensor([0.0, 1, 2]), 0), rtol=0, atol=0.02
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (28, 28), (2, 33, 8)])
def test_conv_takes_any_size_from_8(shape):
    check_network("conv", shape)


@pytest.mark.parametrize("shape", [(1, 8), (3, 9), (100,)])
def test_conv1d_takes_any_length_from_8(shape):
    check_network("conv1d", shape)


@pytest.mark.parametrize("name", ["mlp", "linear"])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 8, 8)])
def test_dense_networks_take_any_shape(name, shape):
    check_network(name, shape)


def check_network(name, shape):
    network = as_part("network", name)
    encoder, decoder = network.encoder(shape, 7), network.decoder(5, shape)
    for n in (0, 1, 4):
        assert encoder(torch.randn(n, *shape)).shape == (n, 7)
        assert decoder(torch.randn(n, 5)).shape == (n, *shape)
    x = torch.randn(4, *shape)
    torch.testing.assert_close(
        encoder(x)[1:2], encoder(x[1:2]), rtol=1e-4, atol=1e-5
    )  # rows apart: no batch norm
    assert decoder(1e3 * torch.randn(64, 5)).abs().max() > 2  # unbounded
    made = Model(
        {"a": Modality(shape, encoder=name, decoder=name)}, latent_dim=2, objective="iwae", seed=0
    )
    mask = torch.zeros(2, 1, dtype=torch.bool) | torch.tensor([[True], [True]])
    made.loss(mvkit.Batch({"a": torch.randn(2, *shape)}, mask)).loss.backward()


def test_convolutions_of_a_modality_that_nobody_has_get_zero_gradient():
    pictures = {k: Modality((1, 9, 9), encoder="conv", decoder="conv") for k in ("a", "b")}
    made = Model(pictures, latent_dim=2, aggregator="moe", seed=0)
    made.loss(mvkit.Batch({"a": torch.randn(2, 1, 9, 9)})).loss.backward()
    for name, parameter in made.named_parameters():
        if name.split(".")[1] == "b":
            assert (parameter.grad == 0).all(), name


@pytest.mark.parametrize("family", [Normal(), LaplaceSoftmax()])
@pytest.mark.parametrize(
    "options",
    [
        {"name": "standard"},
        {"name": "learnable"},
        {"name": "mog", "components": 4, "learn_scale": True},
    ],
)
def test_priors_start_as_they_should_and_integrate_to_one(options, family):
    prior = as_part("prior", options).build(Sizes(1, family, {}, None))
    grid = torch.linspace(-30, 30, 20_001).reshape(-1, 1, 1)
    density = prior().log_prob(grid).exp()
    assert torch.trapezoid(density.flatten(), grid.flatten()).item() == pytest.approx(1, abs=1e-3)
    z, component = prior().sample(50_000, generator=torch.Generator().manual_seed(0))
    assert z.shape == (50_000, 1)
    assert component.shape == (50_000,)
    assert z.mean().item() == pytest.approx(prior().mean.item(), abs=0.03)


def test_mog_responsibilities_are_bayes_rule():
    prior = as_part("prior", {"name": "mog", "components": 3}).build(SIZES)
    with torch.no_grad():
        prior.logits.copy_(torch.randn(3))
    z = torch.randn(4, 2)
    each = (
        distributions.Normal(prior.loc, 1.0).log_prob(z).sum(-1)
        + torch.log(prior.weights)[:, None]
    )
    torch.testing.assert_close(prior.assign(z), torch.softmax(each.T, -1))


def test_the_mixture_prior_is_the_cluster_bound_in_value_and_gradient():
    """With the exact q(c|z), Σ_c q(c|z) [log π_c + log p(z|c) - log q(c|z)] is log p(z)."""
    prior = as_part("prior", {"name": "mog", "components": 3}).build(SIZES)
    z = torch.randn(6, 2, requires_grad=True)
    each = (
        distributions.Normal(prior.loc, 1.0).log_prob(z).sum(-1)
        + torch.log_softmax(prior.logits, 0)[:, None]
    )
    q = prior.assign(z).T
    loop = (q * (each - torch.log(q))).sum(0)
    leaves = [z, prior.loc, prior.logits]
    torch.testing.assert_close(prior().log_prob(z), loop)
    for one, other in zip(
        *(
            torch.autograd.grad(v.sum(), leaves, retain_graph=True)
            for v in (prior().log_prob(z), loop)
        ),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_kmeans_puts_the_components_at_the_centres():
    pytest.importorskip("sklearn")
    made = Model(
        {"a": (3,)}, latent_dim=2, prior={"name": "mog", "components": 3, "init": "kmeans"}, seed=0
    )
    x = {"a": torch.randn(60, 3)}
    codes = made.encode(x)
    before = made.prior.loc.clone()
    made.prior.initialise(lambda: codes, 0)
    assert not torch.equal(before, made.prior.loc)
    assert made.prior.loc[:, 0].min() >= codes.min()
    mvkit.fit(made, x, epochs=1)
