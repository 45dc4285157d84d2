"""Samplers: fitted after training, kept by files, used by sample."""

import pytest
import torch
from helpers import model, rows

import mvkit
from mvkit import Batch, DataError, Modality, Model, RequestError, UnknownComponent, recipes
from mvkit.parts.samplers import GMM


def two_groups(b=4000):
    """Latents of two far groups with correlated coordinates, and their moments."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(b, 2, generator=generator, dtype=torch.float64)
    z = z @ torch.tensor([[1.0, 0.8], [0.0, 0.6]], dtype=torch.float64)
    far = torch.arange(b) % 4 == 0
    z[far] = 0.5 * z[far] + 8
    return z, far


def test_gmm_finds_weights_means_and_covariances():
    z, far = two_groups()
    live = GMM(components=2).build(2).double()
    live.fit(z, 0)
    order = live.weight.argsort()
    torch.testing.assert_close(
        live.weight[order], torch.tensor([0.25, 0.75], dtype=torch.float64), rtol=0, atol=1e-3
    )
    for component, group in zip(order, (far, ~far), strict=True):
        torch.testing.assert_close(live.loc[component], z[group].mean(0), rtol=0, atol=0.01)
        factor = live.factor[component]
        torch.testing.assert_close(factor @ factor.T, torch.cov(z[group].T), rtol=0, atol=0.01)


def test_gmm_samples_what_it_holds():
    z, far = two_groups()
    live = GMM(components=2).build(2).double()
    live.fit(z, 0)
    drawn = live.sample(None, 20_000, torch.Generator().manual_seed(1))
    near = drawn.sum(1) > 8
    assert near.double().mean().item() == pytest.approx(0.25, abs=0.01)
    for picked, group in ((near, far), (~near, ~far)):
        torch.testing.assert_close(drawn[picked].mean(0), z[group].mean(0), rtol=0, atol=0.05)
        torch.testing.assert_close(
            torch.cov(drawn[picked].T), torch.cov(z[group].T), rtol=0, atol=0.05
        )


def stack():
    nets = {"encoder": {"name": "mlp", "hidden": [4]}, "decoder": {"name": "mlp", "hidden": [4]}}
    made = {"a": Modality((3,), **nets), "b": Modality((2, 2), "bernoulli", **nets)}
    return recipes.nexus(made, latent_dim=2, bottom_dim=2, seed=0).double()


@pytest.mark.parametrize(
    "make", [lambda: model("mopoe", private=1), stack], ids=["model", "stack"]
)
def test_a_fitted_sampler_is_saved_and_loaded(make, tmp_path):
    made = make().eval()
    batch = rows(60, names=made.names)
    mvkit.fit_sampler(made, batch, GMM(components=3), seed=1)
    mvkit.save(made, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    assert mvkit.describe(tmp_path / "m")["model"]["samplers"] == [
        {"name": "gmm", "components": 3, "floor": 1e-6}
    ]
    one, two = (
        m.sample(5, sampler="gmm", generator=torch.Generator().manual_seed(0))
        for m in (made, again)
    )
    assert all(torch.equal(one[name], two[name]) for name in made.names)
    plain = again.sample(5, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(plain["a"], one["a"])


def test_a_model_without_samplers_has_the_header_it_had():
    assert "samplers" not in model().header()


def test_private_latents_keep_their_priors():
    made = model("mopoe", private=1).eval()
    mvkit.fit_sampler(made, rows(60), GMM(components=2))
    _, latents = made.sample(
        4000, sampler="gmm", latents=True, generator=torch.Generator().manual_seed(0)
    )
    assert latents.cluster is None
    assert latents.private["a"].mean().abs() < 0.06
    assert latents.private["a"].std().item() == pytest.approx(1, abs=0.05)


def test_the_prior_is_a_sampler_too():
    made = model("poe", "mog").eval()
    one = made.sample(5, generator=torch.Generator().manual_seed(0))["a"]
    assert torch.equal(
        one, made.sample(5, sampler="prior", generator=torch.Generator().manual_seed(0))["a"]
    )


def test_a_prior_of_rows_needs_a_sampler_and_says_so():
    made = recipes.mmvm({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
    with pytest.raises(RequestError, match=r"call mvkit.fit_sampler\(model, data, 'gmm'\)"):
        made.sample(3)
    mvkit.fit_sampler(made, {"a": torch.randn(30, 3), "b": torch.randn(30, 2)}, GMM(components=2))
    assert made.sample(3, sampler="gmm")["a"].shape == (3, 3)


def test_training_goes_on_with_a_sampler_and_leaves_it_alone():
    made = model("poe").eval()
    live = mvkit.fit_sampler(made, rows(40), GMM(components=2))
    before = live.loc.clone()
    mvkit.fit(made, rows(40), epochs=1, validation=rows(8))
    assert torch.equal(made.samplers["gmm"].loc, before)


def test_another_fit_takes_the_place_of_the_first():
    made = model("poe").eval()
    mvkit.fit_sampler(made, rows(40), GMM(components=2))
    mvkit.fit_sampler(made, rows(40), GMM(components=3))
    assert made.samplers["gmm"].weight.shape == (3,)


def test_a_report_shows_each_sampler():
    made = model("poe").eval()
    batch = rows(40, missing=False)
    mvkit.fit_sampler(made, batch, GMM(components=2))
    judge = {n: lambda x: (x.flatten(1).sum(1) > 1).long() for n in made.names}
    labelled = Batch(batch.data, batch.mask, extra={"label": torch.arange(40) % 2})
    report = mvkit.evaluate(made, labelled, ["coherence"], classifiers=judge)
    assert 0 <= report["coherence/unconditional, gmm"] <= 1
    assert "coherence/unconditional" in {f"{s.metric}/{s.name}" for s in report.scores}


def test_requests_that_cannot_be():
    made = model("poe", "mog").eval()
    with pytest.raises(
        RequestError, match=r"sampler 'gmm' is not fitted yet; call mvkit.fit_sampler"
    ):
        made.sample(2, sampler="gmm")
    with pytest.raises(UnknownComponent, match="unknown sampler 'gm'; did you mean 'gmm'"):
        made.sample(2, sampler="gm")
    with pytest.raises(
        RequestError, match="a cluster is one of the prior's, not of sampler 'gmm'"
    ):
        made.sample(2, cluster=1, sampler="gmm")
    with pytest.raises(DataError, match="needs 10 rows at least; got 8"):
        mvkit.fit_sampler(made, rows(8))
    with torch.no_grad():
        next(made.encoders["a"].parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match="fit_sampler: the model's latents are not finite"):
        mvkit.fit_sampler(made, rows(20))
    nothing = {"a": Modality((3,), private_dim=1), "b": Modality((2,), private_dim=1)}
    with pytest.raises(RequestError, match="no shared latent"):
        mvkit.fit_sampler(Model(nothing, latent_dim=0), {"a": torch.zeros(3, 3)})
