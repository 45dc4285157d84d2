"""Parts of recipes of cells: the rules of their kinds, and formulas computed another way."""

import mvkit_omics
import numpy as np
import pytest
import torch
from mvkit_omics.networks import LastLatents
from mvkit_omics.schedules import Warmup
from scipy.stats import norm

import mvkit
from mvkit import Modality, SpecError
from mvkit.core import Context
from mvkit.registry.builtin_parts import EXTERNAL_PARTS
from mvkit.testing import check_component


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("aggregator", "mean", {}),
        ("objective", "consistency", {}),
        ("objective", "jeffreys", {}),
        ("objective", "latent_kl", {"dims": 1}),
        ("network", "last_latents", {"dims": 1}),
        ("schedule", "warmup", {}),
    ],
)
def test_parts_keep_the_rules_of_their_kind(kind, name, options):
    check_component(kind, f"mvkit-omics/{name}", **options)


def test_mvkit_says_which_package_has_these_parts():
    offered = {(component.kind, component.name) for component in mvkit_omics.mvkit_components()}
    for kind, names in EXTERNAL_PARTS["mvkit-omics"].items():
        assert {(kind, name) for name in names} <= offered


def test_the_discretised_normal_keeps_the_rules_of_likelihoods():
    # its median is proportional to the exposure, its mean is not
    check_component("likelihood", "mvkit-omics/discretised_normal", skip=["exposures"])


def live(features=3, **options):
    modality = Modality((features,), "mvkit-omics/discretised_normal", **options)
    model = mvkit.Model({"a": modality}, latent_dim=1, seed=0).double()
    return model.decoders["a"].likelihood


def test_the_discretised_normal_is_a_difference_of_normal_probabilities():
    likelihood = live()
    out = torch.tensor([[[-1.0, 0.5, 2.0]]]).double()
    with torch.no_grad():
        likelihood.log_scale.copy_(torch.tensor([-0.5, 0.0, 0.4]))
    for x in (0, 1, 2, 7, 60):
        counts = torch.full((1, 3), float(x)).double()
        ours = likelihood.log_prob(out, counts, Context())[0, 0].detach().numpy()
        mu, sigma = np.log1p(np.exp(out[0, 0].numpy())), np.exp([-0.5, 0.0, 0.4])
        upper = norm.cdf((np.log1p(x + 0.5) - mu) / sigma)
        lower = norm.cdf((np.log1p(x - 0.5) - mu) / sigma) if x else 0.0
        assert np.allclose(np.exp(ours), upper - lower, rtol=1e-6, atol=1e-15), x
        if x < 8:
            assert np.allclose(ours, np.log(upper - lower), rtol=1e-9)


def test_the_discretised_normal_sums_to_one_and_knows_its_mean():
    likelihood = live(1)
    with torch.no_grad():
        likelihood.log_scale.fill_(-0.4)
    out = torch.tensor([[[1.5]]]).double()
    x = torch.arange(3000).double().reshape(-1, 1)
    p = likelihood.log_prob(out.expand(1, 3000, 1), x, Context()).exp()[0]
    assert abs(p.sum() - 1) < 1e-9
    assert torch.allclose(likelihood.mean(out)[0, 0], (p * x).sum(0), rtol=1e-4)


def test_the_discretised_normal_is_finite_far_from_its_median():
    likelihood = live(1).float()
    out = torch.tensor([[[-20.0]], [[12.0]]]).requires_grad_()
    for x in (0.0, 3.0, 1e5):
        log_p = likelihood.log_prob(out, torch.tensor([[x]]), Context())
        (slope,) = torch.autograd.grad(log_p.sum(), out)
        assert torch.isfinite(log_p).all(), x
        assert torch.isfinite(slope).all(), x


def test_the_discretised_normal_shares_out_a_total():
    likelihood = live(exposure="total")
    x = torch.tensor([[4.0, 0.0, 6.0]]).double()
    out = torch.tensor([[[0.3, -0.2, 0.9]]]).double()
    share = torch.softmax(out, -1)
    named = live().log_prob((10 * share).log(), x, Context())
    assert torch.allclose(likelihood.log_prob(out, x, Context()), named)


def test_last_latents_refuse_more_latents_than_there_are():
    with pytest.raises(SpecError, match="got 3 of 2 latents; expected no more than there are"):
        mvkit.Model({"a": Modality((2,), decoder=LastLatents(dims=3))}, latent_dim=2)


def test_last_latents_see_covariates_too():
    modality = Modality((2,), decoder=LastLatents(dims=1), encoder="linear")
    model = mvkit.Model({"a": modality}, latent_dim=3, covariates={"site": ("A", "B")}, seed=0)
    z = torch.randn(4, 3)
    first = model.decode(z, covariates={"site": "A"})["a"]
    assert not torch.equal(first, model.decode(z, covariates={"site": "B"})["a"])
    z[:, :2] = 0
    assert torch.equal(first, model.decode(z, covariates={"site": "A"})["a"])


def test_a_warm_up_reaches_its_end_value():
    model = mvkit.Model({"a": (2,)}, latent_dim=1)
    (stage,) = Warmup(epochs=4, weight_decay=0.2, lr=0.01, clip=5.0).stages(model, 9)
    weights = [stage.at(model.objective, epoch).kl_weight for epoch in (1, 2, 4, 9, None)]
    assert weights == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert (stage.epochs, stage.optimizer.weight_decay, stage.optimizer.lr) == (9, 0.2, 0.01)
    assert stage.clip == 5.0
    (stage,) = Warmup(epochs=0).stages(model, 3)
    assert not stage.ramps


def test_objectives_of_midas_refuse_what_is_no_mixture():
    with pytest.raises(SpecError, match="dims: got 3 of 2 latents"):
        mvkit.Model(
            {"a": (2,)}, latent_dim=2, objective={"name": "mvkit-omics/latent_kl", "dims": 3}
        )
    with pytest.raises(SpecError, match="prior: 'latent_kl' is that to a standard normal prior"):
        mvkit.Model(
            {"a": (2,)}, latent_dim=2, prior="learnable", objective="mvkit-omics/latent_kl"
        )
    consistency = {"name": "mvkit-omics/consistency", "anchor": "b"}
    with pytest.raises(SpecError, match="anchor: no modality 'b'"):
        mvkit.Model({"a": (2,)}, latent_dim=2, objective=consistency)
