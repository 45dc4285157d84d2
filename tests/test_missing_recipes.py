"""MIWAE and not-MIWAE, loss and every gradient, against loops written from their papers."""

import json
import math
import tomllib

import pytest
import torch
from torch.distributions import Normal

import mvkit
from mvkit import Modality, SpecError, recipes
from mvkit.models.checkpoint import rebuilt
from mvkit.testing import bound_noise
from mvkit.testing.tiny_models import loss_and_gradients

ROWS, FEATURES, LATENT = 5, 4, 3
TANH = {"name": "mlp", "hidden": [6], "activation": "tanh"}
DECODED = {"name": "normal", "scale": "decoded"}


def table(likelihood=DECODED):
    return {"x": Modality((FEATURES,), likelihood, encoder=TANH, decoder=TANH)}


def rows():
    x = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(0)).double()
    x[0, 1] = x[2, :3] = x[3, 2] = math.nan
    return x


class Paper:
    """Ingredients of both papers: zero imputation, K draws, log-weights of a row."""

    def __init__(self, model, x, samples):
        self.model, self.samples = model, samples
        self.s = ~x.isnan()
        self.x = torch.where(self.s, x, 0.0)
        source = bound_noise(range(ROWS), ("x",))
        shape = (samples, 1, ROWS)
        device = torch.device("cpu")
        self.eps = source("z", (*shape, LATENT), torch.float64, device)[:, 0]
        self.eps_x = source("x", (*shape, FEATURES), torch.float64, device)[:, 0]

    def bound(self, row, log_p_of_mask=None):
        """E log 1/K Σ_k p(x_o|z_k) p(s|x_o, x_m) p(z_k) / q(z_k|x_o): eq. 4 of either paper."""
        x, s = self.x[row], self.s[row]
        loc, log_variance = self.model.encoders["x"](x[None])[0].chunk(2)
        q = Normal(loc, torch.exp(log_variance / 2))
        weights = []
        for k in range(self.samples):
            z = q.loc + q.scale * self.eps[k, row]
            out = self.model.decoders["x"].network(z[None])[0]
            mean, scale = out.reshape(FEATURES, 2).unbind(-1)
            p = Normal(mean, scale.exp())
            log_w = Normal(0.0, 1.0).log_prob(z).sum() - q.log_prob(z).sum()
            for f in range(FEATURES):
                if s[f]:
                    log_w = log_w + Normal(p.loc[f], p.scale[f]).log_prob(x[f])
            if log_p_of_mask is not None:
                mixed = torch.where(s, x, p.loc + p.scale * self.eps_x[k, row])
                log_w = log_w + log_p_of_mask(mixed, s)
            weights.append(log_w)
        return torch.logsumexp(torch.stack(weights), 0) - math.log(self.samples)


def compared(model, samples, log_p_of_mask=None):
    x = rows()
    loss, gradients = loss_and_gradients(model, mvkit.Batch({"x": x}))
    model.zero_grad(set_to_none=True)
    paper = Paper(model, x, samples)
    bound = torch.stack([paper.bound(row, log_p_of_mask) for row in range(ROWS)])
    (-bound.mean()).backward()
    torch.testing.assert_close(loss.bound, bound.detach(), rtol=1e-9, atol=1e-9)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-9)
        assert parameter.grad.any(), name


def test_miwae():
    model = recipes.miwae(table(), LATENT, samples=4, seed=0).double()
    compared(model, 4)


@pytest.mark.parametrize("sign", ["free", "high", "low"])
def test_not_miwae_with_self_masking(sign):
    missingness = {"name": "self", "sign": sign}
    model = recipes.not_miwae(table(), LATENT, samples=4, missingness=missingness, seed=0).double()
    part = model.missingness
    with torch.no_grad():
        part.raw["x"].copy_(torch.tensor([0.3, -1.0, 0.6, 2.0]))
        part.threshold["x"].copy_(torch.tensor([0.1, 0.0, -0.4, 1.0]))

    def log_p_of_mask(x, s):
        slope = part.raw["x"]
        if sign != "free":
            slope = torch.log(1 + torch.exp(slope))
        p = 1 / (1 + torch.exp((-1 if sign == "low" else 1) * slope * (x - part.threshold["x"])))
        return torch.where(s, p, 1 - p).log().sum()

    compared(model, 4, log_p_of_mask)


def test_not_miwae_with_logistic_regressions():
    model = recipes.not_miwae(table(), LATENT, samples=3, missingness="logistic", seed=0).double()
    part = model.missingness
    with torch.no_grad():
        part.weight["x"].copy_(torch.sin(torch.arange(16.0)).reshape(4, 4))

    def log_p_of_mask(x, s):
        p = torch.sigmoid(part.weight["x"] @ x + part.bias["x"])
        return torch.where(s, p, 1 - p).log().sum()

    compared(model, 3, log_p_of_mask)


def test_defaults_are_those_of_the_papers():
    for name in ("miwae", "not_miwae"):
        model = getattr(recipes, name)(table(), seed=0)
        assert model.objective == mvkit.parts.IWAE(samples=20)
        assert model.spec.aggregator == mvkit.parts.PoE(prior_expert=False)
        assert model.latent_dim == 10
    assert model.spec.missingness == mvkit.parts.SelfMasking(sign="free")
    assert recipes.miwae(table()).missingness is None


def test_what_a_recipe_sets_is_refused():
    with pytest.raises(SpecError, match="objective: the recipe sets it"):
        recipes.not_miwae(table(), objective="elbo")


def test_single_imputation_is_self_normalised():
    """E[x_m|x_o, s] ≈ Σ_k w_k x_k, of the draws that the weights were computed at (section 3.4)."""
    missingness = {"name": "self", "sign": "high"}
    model = recipes.not_miwae(table(), LATENT, missingness=missingness, seed=0).double().eval()
    x = rows()[2:3]
    exact = []
    with torch.no_grad():
        loc, log_variance = model.encoders["x"](torch.nan_to_num(x)).chunk(2, -1)
        generator = torch.Generator().manual_seed(5)
        eps = torch.randn(40_000, LATENT, generator=generator).double()
        z = loc + torch.exp(log_variance / 2) * eps
        out = model.decoders["x"].network(z).reshape(-1, FEATURES, 2)
        p = Normal(out[..., 0], out[..., 1].exp())
        drawn = p.loc + p.scale * torch.randn(40_000, FEATURES, generator=generator).double()
        s = ~x.isnan()
        mixed = torch.where(s, x, drawn)
        slope, threshold = model.missingness.slope("x"), model.missingness.threshold["x"]
        seen = torch.sigmoid(-slope * (mixed - threshold))
        log_w = torch.where(s, p.log_prob(torch.nan_to_num(x)), 0.0).sum(-1)
        log_w = log_w + torch.where(s, seen, 1 - seen).log().sum(-1)
        log_w = log_w + Normal(0.0, 1.0).log_prob(z).sum(-1)
        log_w = log_w - Normal(loc, torch.exp(log_variance / 2)).log_prob(z).sum(-1)
        exact = (torch.softmax(log_w, 0)[:, None] * mixed).sum(0)
    generator = torch.Generator().manual_seed(1)
    filled = mvkit.impute(model, {"x": x}, n=4000, generator=generator)["x"]
    torch.testing.assert_close(filled[0], exact, rtol=0, atol=0.03)


def test_a_run_file_names_it(tmp_path):
    """[model.missingness] of a TOML, and specs that come back from JSON."""
    text = '[model]\nlatent_dim = 2\n[model.missingness]\nname = "self"\nsign = "high"\n'
    options = tomllib.loads(text)["model"]
    model = mvkit.Model({"a": (2,)}, **options)
    assert model.spec.missingness == mvkit.parts.SelfMasking(sign="high")
    again = rebuilt(json.loads(json.dumps(model.header())))
    assert again.spec == model.spec
