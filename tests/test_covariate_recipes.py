"""Recipes with covariates, against the loops of `test_recipes` and one for CVAE."""

import pytest
import test_recipes
import torch
from test_recipes import NAMES, RECIPES, ROWS, check, made, modalities
from torch.distributions import Normal

import mvkit
from mvkit import Covariate, recipes
from mvkit.testing.tiny_models import rows

SITES = ("A", "B", "C")
COVARIATES = {"age": Covariate(missing="average"), "site": Covariate(SITES, missing="average")}
AGES = [31.0, None, 52.0, 47.0, 25.0, 60.0, 33.0, 41.0]
ROW_SITES = ["A", "C", None, "B", "B", "A", "C", "A"]


def batch():
    """Incomplete rows, of which two lack a covariate."""
    data = rows(ROWS)
    data.extra.update({"age": AGES, "site": ROW_SITES})
    return data


def contexts():
    """What networks see of each row, by hand: the standardised age, then ones at the sites."""
    known = torch.tensor([age for age in AGES if age is not None]).double()
    shares = torch.tensor([ROW_SITES.count(site) / 7 for site in SITES], dtype=torch.float64)
    table = []
    for age, site in zip(AGES, ROW_SITES, strict=True):
        number = 0.0 if age is None else (age - known.mean()) / known.std(correction=0)
        ones = torch.tensor([float(site == level) for level in SITES]).double()
        ones = shares if site is None else ones
        table.append(torch.cat([torch.as_tensor(number).double()[None], ones]))
    return torch.stack(table)


class Oracle(test_recipes.Oracle):
    """Networks see a row's context concatenated to what they are given."""

    def __init__(self, model, data=None):
        super().__init__(model, batch() if data is None else data)
        self.contexts = contexts()

    def apply(self, network, x, row):
        if not hasattr(network, "projections"):
            return super().apply(network, x, row)
        linear = next(layer for layer in network.network if isinstance(layer, torch.nn.Linear))
        (projection,) = network.projections.values()
        weight = torch.cat([linear.weight, projection.weight], 1)
        out = weight @ torch.cat([x.flatten(), self.contexts[row]]) + linear.bias
        unflatten = [layer for layer in network.network if isinstance(layer, torch.nn.Unflatten)]
        return out.reshape(unflatten[0].unflattened_size) if unflatten else out


def placed(model):
    bottom = getattr(model, "bottom", model)
    bottom.conditions.place(bottom.conform(batch()).covariates)
    return model


LOOPS = {
    "jmvae": test_recipes.test_jmvae,
    "mopoe": lambda: test_recipes.test_mopoe("full", None),
    "mopoe, private": lambda: test_recipes.test_mopoe("all", 2),
    "cmvae": lambda: test_recipes.test_cmvae("loose", "normal"),
    "cmvae, tight": lambda: test_recipes.test_cmvae("tight", "laplace_softmax"),
    "nexus": lambda: test_recipes.test_nexus("optimal"),
}


@pytest.mark.parametrize("name", LOOPS)
def test_losses_and_gradients_with_covariates_are_those_of_the_loops(name, monkeypatch):
    monkeypatch.setattr(test_recipes, "Oracle", Oracle)
    plain = made

    def conditional(recipe, **options):
        return placed(plain(recipe, covariates=COVARIATES, **options))

    monkeypatch.setattr(test_recipes, "made", conditional)
    LOOPS[name]()


@pytest.mark.parametrize("prior", ["standard", "learnable"])
def test_cvae(prior):
    model = recipes.cvae(
        modalities(), latent_dim=2, covariates=COVARIATES, beta=0.7, prior=prior, seed=0
    ).double()
    placed(model)
    if prior == "learnable":
        with torch.no_grad():
            for parameter in model.prior.parameters():
                parameter.copy_(0.3 * torch.randn_like(parameter))

    def loop(oracle, row):
        seen = oracle.observed(row)
        q = oracle.product([oracle.q(name, row)[0] for name in seen], 0.0)
        z = q.loc + q.scale * oracle.eps("z", 1, 1)[0, 0, row]
        p = oracle.standard(z)
        if prior == "learnable":
            live = model.prior
            loc = live.loc[0, 0] + live.loc_shift.weight @ oracle.contexts[row]
            raw = live.raw[0, 0] + live.raw_shift.weight @ oracle.contexts[row]
            p = Normal(loc, torch.exp(raw / 2))
        value = sum(oracle.log_px(name, row, z) for name in seen)
        return value - 0.7 * torch.distributions.kl_divergence(q, p).sum()

    check(model, loop, Oracle(model))


@pytest.mark.parametrize("name", [*RECIPES, "cvae"])
def test_every_recipe_takes_covariates(name, tmp_path):
    model = placed(made(name, covariates=COVARIATES))
    data = batch()
    loss = model.train().loss(data).loss
    loss.backward()
    assert torch.isfinite(loss)
    seen = [p for key, p in model.named_parameters() if "projections" in key]
    assert sum(p.grad is not None and float(p.grad.abs().max()) > 0 for p in seen) >= 3
    drawn = model.translate(data, to=[NAMES[0]], empty="prior", covariates={"site": "B"})
    assert torch.isfinite(drawn[NAMES[0]]).all()
    mvkit.save(model, tmp_path / "model")
    again = mvkit.load(tmp_path / "model")
    if model.latent_dim:
        assert torch.equal(again.encode(data), model.encode(data))
