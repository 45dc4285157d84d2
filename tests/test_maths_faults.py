"""Faults of mathematics that people outside found; each right value is computed another way."""

import math

import attrs
import pytest
import torch

import mvkit
from mvkit import Modality, Model, RequestError, SpecError, recipes
from mvkit.core import bounds
from mvkit.parts import Joint

LINEAR = {"name": "linear"}
UNIMODAL = {"name": "elbo", "condition": "unimodal", "reduce": "sum", "reconstruct": "own"}


def linear(names="ab", width=1, likelihood="normal", private_dim=0):
    """Modalities whose networks are linear."""
    return {
        name: Modality(
            (width,), likelihood, encoder=LINEAR, decoder=LINEAR, private_dim=private_dim
        )
        for name in names
    }


def rows(n=5, names="ab", width=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, width, generator=generator).double() for name in names}


# posteriors of one modality see that modality alone


MESSAGES = [
    {"name": "mean_message", "message_dim": 4},
    {"name": "mean_message", "message_dim": 4, "dropout_rate": 0.5},
    {"name": "set", "message_dim": 4},
]


@pytest.mark.parametrize("aggregator", MESSAGES)
def test_unimodal_posteriors_are_those_given_one_modality(aggregator):
    model = Model(linear("abc", 2), latent_dim=2, aggregator=aggregator, seed=0).double().eval()
    batch = model.conform(rows(4, "abc", 2))
    unimodal = model.aggregator.unimodal(model.experts(batch), batch)
    for name in "abc":
        given = model.posterior(batch, given=[name])
        torch.testing.assert_close(unimodal[name].mean, given.mean)


@pytest.mark.parametrize("aggregator", MESSAGES)
@pytest.mark.parametrize("condition", ["unimodal", "subset"])
def test_bounds_of_hidden_modalities_do_not_see_them(aggregator, condition):
    objective = {"name": "elbo", "condition": condition, "reconstruct": "own"}
    x = rows(64, "ab", 2)
    other = {**x, "b": x["b"] + 7.0}
    model = Model(
        linear("ab", 2), latent_dim=2, aggregator=aggregator, objective=objective, seed=0
    )
    model = model.double().eval()
    first = model.loss(x, generator=torch.Generator().manual_seed(0)).metrics["log_px/a"]
    second = model.loss(other, generator=torch.Generator().manual_seed(0)).metrics["log_px/a"]
    if condition == "unimodal":
        assert first == second
    else:  # both modalities are in some subsets
        assert first != second


def test_clusters_of_messages_are_those_given_one_modality():
    aggregator = {"name": "mean_message", "message_dim": 4}
    model = Model(linear("ab", 2), latent_dim=2, aggregator=aggregator, prior="mog", seed=0)
    x = rows(6, "ab", 2)
    both = model.double().clusters(x, by_modality=True)
    for name in "ab":
        alone = model.clusters({name: x[name]}, soft=True)
        torch.testing.assert_close(both[name], alone)


# pruning weighs the clusters that are left


def pruned_model(seed, clusters=6):
    model = Model(
        linear("ab"), latent_dim=1, aggregator="moe", prior={"name": "mog", "components": clusters}
    ).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).double())
    return model


@pytest.mark.parametrize("seed", range(4))
def test_pruning_agrees_with_itself_about_the_clusters_that_are_left(seed):
    model = pruned_model(seed)
    x = rows(60)
    pruning = mvkit.prune_clusters(model, x, beta=0.3)
    again = mvkit.prune_clusters(pruning.model, x, beta=0.3)
    n = pruning.model.n_clusters
    assert again.entropy[n] == pytest.approx(pruning.entropy[n], abs=1e-12)


def test_pruning_is_the_entropy_of_the_paper():
    model = pruned_model(9, clusters=3)
    x = rows(20)
    pruning = mvkit.prune_clusters(model, x, beta=0.7)
    log_pi = torch.log_softmax(model.prior.logits, 0)
    scale = model.prior_at().scale[:, 0, 0]
    values = []
    for name in "ab":
        z = model.posterior({name: x[name]}).mean
        components = torch.distributions.Normal(model.prior.loc[:, 0, 0], scale)
        log_joint = log_pi + components.log_prob(z)
        log_p = torch.log_softmax(log_joint, -1)
        p = log_p.exp()
        spread = -(p * log_p).sum(-1) / math.log(3)
        values.append(0.7 * spread - (p * (log_joint - log_p)).sum(-1))
    assert pruning.entropy[3] == pytest.approx(float(torch.stack(values).mean().detach()))


# no likelihood where nothing normalises


@pytest.mark.parametrize("standard", [0.0, 0.3])
def test_a_prior_that_depends_on_the_row_leaves_no_likelihood(standard):
    prior = {"name": "posterior_mixture", "standard": standard}
    model = Model(linear(), latent_dim=1, aggregator="moe", prior=prior, seed=0).double()
    x = rows()
    with pytest.raises(RequestError, match="no likelihood under a prior that depends on the row"):
        model.log_likelihood(x, n=5)
    with pytest.raises(RequestError, match="no likelihood"):
        model.log_likelihood(x, of=["a"], given=["b"], n=5)
    with pytest.raises(RequestError, match="no likelihood"):
        model.log_weights(x, 5)
    conditional = model.log_likelihood(x, of=["a"], given=["b"], n=5, estimator="predictive")
    assert torch.isfinite(conditional).all()


def test_a_stack_whose_top_has_such_a_prior_has_no_likelihood():
    bottom = Model(linear(private_dim=1), latent_dim=0, seed=0)
    top = Model(linear(), latent_dim=1, aggregator="moe", prior="posterior_mixture", seed=0)
    with pytest.raises(RequestError, match="no likelihood"):
        mvkit.Stack([bottom, top]).double().log_likelihood(rows(), n=5)


# DReG and trained component weights


def log_weight_gradient(objective, samples, n=20_000):
    """The gradient of the trained logits of a two-component mixture, by the objective."""
    torch.manual_seed(0)
    model = Model(linear(), latent_dim=1, aggregator="moe", seed=3).double().train()
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    forward = model.aggregator.forward

    def trained(experts, batch):
        posterior = forward(experts, batch)
        log_weight = torch.log_softmax(logits, 0)[:, None].expand(-1, len(batch))
        return attrs.evolve(posterior, log_weight=log_weight)

    model.aggregator.forward = trained
    x = {"a": torch.full((n, 1), 1.5).double(), "b": torch.full((n, 1), -0.5).double()}
    options = {"name": objective, "samples": samples, "draw": "stratified", "bound": "tight"}
    generator = torch.Generator().manual_seed(0)
    model.loss(x, objective=options, generator=generator).loss.backward()
    return logits.grad


@pytest.mark.parametrize("samples", [1, 5, 20])
def test_dreg_gives_trained_weights_the_gradient_of_iwae(samples):
    n = 20_000 // samples
    iwae = log_weight_gradient("iwae", samples, n)
    dreg = log_weight_gradient("dreg", samples, n)
    torch.testing.assert_close(dreg, iwae, atol=1e-12, rtol=1e-9)


# the optimal scale counts what the objective counts


@pytest.mark.parametrize(
    ("aggregator", "objective"),
    [
        ("moe", {"name": "elbo", "reconstruct": "own"}),
        ("mopoe", {"name": "elbo", "reconstruct": "own"}),
        ("moe", {"name": "elbo", "condition": "subset", "reconstruct": "own"}),
        ("poe", {"name": "elbo", "condition": "subset", "reconstruct": "own"}),
        ("moe", {"name": "elbo", "reconstruct": "own", "samples": 3, "draw": "iid"}),
    ],
)
def test_the_optimal_scale_is_the_best_fixed_scale_of_the_objective(aggregator, objective):
    x = rows(200)
    x["b"][::3] = torch.nan
    options = {"aggregator": aggregator, "objective": objective, "latent_dim": 1, "seed": 0}
    likelihood = {"name": "normal", "scale": "optimal"}
    model = Model(linear(likelihood=likelihood), **options).double().train()
    model.loss(x, generator=torch.Generator().manual_seed(1))
    best = {name: float(model.decoders[name].likelihood.scale.running) for name in "ab"}

    def loss(scales):
        fixed = {
            name: Modality(
                (1,), {"name": "normal", "scale": scale}, encoder=LINEAR, decoder=LINEAR
            )
            for name, scale in scales.items()
        }
        other = Model(fixed, **options).double().train()
        return float(other.loss(x, generator=torch.Generator().manual_seed(1)).loss.detach())

    here = loss(best)
    for name in "ab":
        for factor in (0.97, 1.03):
            assert loss({**best, name: factor * best[name]}) > here


# what is called a bound bounds log p(x_O)


def exact_log_p(model, x):
    """Log p of complete rows of a linear model with one latent and unit noise, by quadrature."""
    z = torch.linspace(-12, 12, 4001).double()[:, None]
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z[:, 0])
    for name, values in x.items():
        decoder = model.decoders[name]
        scale = decoder.likelihood.scale()
        means = decoder.likelihood.mean(decoder(z))
        density = torch.distributions.Normal(means[:, None], scale).log_prob(values[None])
        log_p = log_p[:, None] if log_p.ndim == 1 else log_p
        log_p = log_p + density.sum(-1)
    return torch.logsumexp(log_p, 0) + math.log(24 / 4000)


@pytest.mark.parametrize("aggregator", ["poe", "moe", "mopoe"])
@pytest.mark.parametrize("reconstruct", ["all", "own"])
@pytest.mark.parametrize("condition", ["aggregator", "unimodal", "expert", "subset"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_a_bound_is_below_the_likelihood_or_has_another_name(
    aggregator, reconstruct, condition, reduce
):
    objective = {
        "name": "elbo", "condition": condition, "reduce": reduce, "reconstruct": reconstruct
    }  # fmt: skip
    likelihood = {"name": "normal", "scale": 0.05}
    modalities = linear(likelihood=likelihood)
    model = Model(modalities, latent_dim=1, aggregator=aggregator, objective=objective, seed=0)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    close = {name: torch.zeros(400, 1).double() for name in "ab"}  # sums exceed log p here
    far = {name: torch.full((400, 1), 0.4).double() for name in "ab"}  # what is left out does here
    with torch.no_grad():
        for x in (close, far):
            found = model.loss(x, generator=torch.Generator().manual_seed(0))
            if "bound" in found.metrics:
                assert float(found.bound.mean()) <= float(exact_log_p(model, x).mean()) + 1e-9
            else:
                assert "surrogate_bound" in found.metrics
    is_sum = reduce == "sum" and condition in ("unimodal", "expert")
    partial = reconstruct == "own" and not (condition == "aggregator" and aggregator == "poe")
    assert ("bound" in found.metrics) == (not is_sum and not partial)


def test_the_bound_of_a_sum_is_that_of_the_first_term_that_has_one():
    objective = {"name": "sum", "terms": ["align", "elbo"]}
    model = Model(linear(), latent_dim=1, objective=objective, seed=0).double()
    alone = Model(linear(), latent_dim=1, objective="elbo", seed=0).double()
    x = rows()
    both = model.loss(x, generator=torch.Generator().manual_seed(0))
    elbo = alone.loss(x, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(both.bound, elbo.bound)
    assert both.metrics["bound"] == elbo.metrics["bound"]


def test_a_bound_under_a_prior_of_the_row_has_another_name():
    model = Model(linear(), latent_dim=1, aggregator="moe", prior="posterior_mixture", seed=0)
    metrics = model.double().loss(rows()).metrics
    assert "surrogate_bound" in metrics
    assert "bound" not in metrics


# products that learnt surrogates leave without a normaliser


def product_of(variance, n=2):
    names = "abcdef"[: n + 1]
    aggregator = {"name": "joint", "correct_prior": True}
    options = {"aggregator": aggregator, "objective": "jmvae", "seed": 0}
    model = Model(linear(names), latent_dim=1, **options).double()
    with torch.no_grad():
        for encoder in model.encoders.values():
            encoder[0].weight.zero_()
            encoder[0].bias.copy_(torch.tensor([1.0, math.log(variance)]))
    x = {name: torch.zeros(1, 1).double() for name in names}
    x[names[-1]] = torch.full((1, 1), torch.nan).double()
    with torch.no_grad():
        return model.posterior(x)


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("variance", [0.5, 0.9, 1.0])
def test_products_of_proper_surrogates_are_divided_by_the_prior(variance, n):
    posterior = product_of(variance, n)
    precision = n / variance - (n - 1)
    assert float(posterior.mean) == pytest.approx(n / variance / precision)
    assert float(posterior.scale) == pytest.approx(precision**-0.5)


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("variance", [2.0, 2.1, 2.5, 50.0])
def test_products_of_broad_surrogates_are_no_broader_than_each(variance, n):
    posterior = product_of(variance, n)
    assert float(posterior.scale) ** 2 <= variance * (1 + 1e-6)
    assert abs(float(posterior.mean)) <= n * (1 + 1e-6)


# edges


def test_likelihoods_of_nothing_are_refused():
    model = Model(linear(), latent_dim=1, seed=0).double()
    with pytest.raises(RequestError, match="given=None; expected names of modalities"):
        model.log_likelihood(rows(), given=None)
    with pytest.raises(RequestError, match="nothing to score, with of="):
        model.log_likelihood(rows(), of=())
    with pytest.raises(RequestError, match="nothing to score"):
        model.log_likelihood(rows(), given=["a", "b"])


@pytest.mark.parametrize(
    ("aggregator", "prior"),
    [
        ({"name": "mean_message", "message_dim": 1}, "standard"),
        ({"name": "set", "message_dim": 3}, "standard"),
        ({"name": "top_down_poe", "features": 1}, {"name": "top_down", "levels": 1}),
    ],
)
def test_subsets_are_drawn_whatever_the_width_of_messages(aggregator, prior):
    objective = {"name": "elbo", "condition": "subset"}
    model = Model(linear(), latent_dim=1, aggregator=aggregator, prior=prior, objective=objective)
    assert torch.isfinite(model.double().loss(rows()).loss)


@pytest.mark.parametrize("form", ["tight", "loose"])
def test_weights_of_zero_count_for_nothing(form):
    log_w = torch.tensor([[[-math.inf]], [[1.0]]], dtype=torch.float64, requires_grad=True)
    log_pi = torch.zeros(1, 1).double()
    right = 1 - math.log(2)
    for bound in (bounds.iwae, bounds.dreg):
        value = bound(log_w, log_pi, bound=form)
        assert float(value.detach()) == pytest.approx(right)
        (gradient,) = torch.autograd.grad(value.sum(), log_w)
        assert gradient.flatten().tolist() == [0.0, 1.0]


def test_components_without_weight_count_for_nothing():
    log_w = torch.tensor([[[-math.inf], [2.0]]]).double()
    log_pi = torch.tensor([[-math.inf], [0.0]]).double()
    for form in ("tight", "loose"):
        assert float(bounds.iwae(log_w, log_pi, bound=form)) == pytest.approx(2.0)
    assert float(bounds.average(log_w, log_pi)) == pytest.approx(2.0)


def test_a_modality_of_weight_zero_is_silent_even_where_it_overflows():
    modalities = linear()
    silent = {**modalities, "a": Modality((1,), encoder=LINEAR, decoder=LINEAR, weight=0.0)}
    model = Model(silent, latent_dim=1, seed=0)
    x = {"a": torch.full((1, 1), 3e19), "b": torch.ones(1, 1)}
    loss = model.loss(x).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(model.decoders["b"].network[0].weight.grad).all()


def test_bf16_of_a_float64_model_is_refused():
    model = Model(linear(), latent_dim=1, seed=0).double()
    with pytest.raises(RequestError, match="precision='bf16' and a model in float64"):
        mvkit.fit(model, rows(), epochs=1, precision="bf16", progress=False)


# recipes


def test_rescaling_nexus_weighs_the_bottom_alone():
    modalities = {"a": Modality((8,)), "b": Modality((2,))}
    model = recipes.nexus(modalities, latent_dim=2, rescale="dims", gammas={"a": 3.0}, seed=0)
    assert model.bottom.likelihood_weights().tolist() == [1.0, 4.0]
    assert model.top.likelihood_weights().tolist() == [3.0, 1.0]


def test_nexus_keeps_the_factors_of_private_latents():
    modalities = {"a": Modality((3,), private_beta=0.5), "b": Modality((2,))}
    model = recipes.nexus(modalities, latent_dim=2, bottom_beta=2.0, seed=0)
    assert model.bottom.private_betas.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("recipe", ["telbo", "jmvae"])
def test_recipes_of_joint_encoders_take_one(recipe):
    fusion = Joint(features=7, correct_prior=True)
    model = getattr(recipes, recipe)(linear(), latent_dim=1, aggregator=fusion, seed=0)
    assert model.spec.aggregator == fusion


@pytest.mark.parametrize("recipe", ["mopoe", "mmvae", "nexus", "telbo"])
def test_options_that_a_recipe_sets_are_refused_by_name(recipe):
    with pytest.raises(SpecError, match="objective: the recipe sets it"):
        getattr(recipes, recipe)(linear(), latent_dim=1, objective="elbo")
