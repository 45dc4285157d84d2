"""Recipes and the schedule of models with refiners: their stages, their files, their rows."""

import json

import pytest
import torch
from mvkit_diffusion.diffusion import Diffusion
from mvkit_diffusion.refined import ThenRefine

import mvkit
from mvkit import Batch, Modality, Model, SpecError, recipes
from mvkit.parts import Refine
from mvkit.registry import as_part, to_dict
from mvkit.testing import check_component

QUIET = {"progress": False, "device": "cpu"}
SMALL = Diffusion(hidden=8, layers=1, steps=2)


def modalities():
    return {
        "a": Modality((3,)),
        "b": Modality((1, 8, 8), "bernoulli"),
        "c": Modality((4,), "categorical"),
    }


def rows(b=14):
    generator = torch.Generator().manual_seed(0)
    data = {
        "a": torch.randn(b, 3, generator=generator),
        "b": torch.rand(b, 1, 8, 8, generator=generator),
        "c": torch.eye(4)[torch.randint(4, (b,), generator=generator)],
    }
    return Batch(data, torch.tensor([[i % 3 != m for m in range(3)] for i in range(b)]))


@pytest.mark.parametrize(
    ("kind", "name"), [("recipe", "d_cmvae"), ("recipe", "mld"), ("schedule", "then_refine")]
)
def test_it_conforms(kind, name):
    check_component(kind, f"mvkit-diffusion/{name}")


def test_d_cmvae_is_cmvae_and_refiners_in_a_last_stage():
    options = {"latent_dim": 3, "private_dim": 2, "clusters": 4, "seed": 0}
    model = recipes.d_cmvae(modalities(), refiner=SMALL, share=0.4, **options)
    plain = recipes.cmvae(modalities(), **options)
    different = {"schedule"}
    header, other = model.header(), plain.header()
    assert {k: v for k, v in header.items() if k not in different} == {
        k: v for k, v in other.items() if k not in different
    }
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    first, second, last = model.spec.schedule.stages(model, 10)
    assert (first.epochs, second.epochs, last.epochs) == (3, 3, 4)
    assert (first.place, second.place) == ("standard", "prior")
    assert last.trainable == ("refiners.a.*", "refiners.b.*")
    assert last.objective == Refine(refiners={"a": SMALL, "b": SMALL})


def test_one_fit_trains_all_of_d_cmvae(tmp_path):
    model = recipes.d_cmvae(modalities(), 3, private_dim=2, clusters=2, refiner=SMALL, seed=0)
    history = mvkit.fit(model, rows(), epochs=4, batch_size=7, seed=0, **QUIET)
    assert [row["stage"] for row in history.rows] == [0, 1, 2, 2]
    assert int(model.refiners["b"].average.steps) == 4
    mvkit.save(model, tmp_path / "m")
    loaded = mvkit.load(tmp_path / "m")
    options = {"refine": ["a", "b"]}
    first, second = (
        m.sample(4, generator=torch.Generator().manual_seed(1), **options) for m in (model, loaded)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert 0 <= first["b"].min() <= first["b"].max() <= 1


def test_then_refine_goes_with_any_recipe():
    spec = {"name": "then_refine", "refiner": "energy", "modalities": ["b"], "share": 0.25}
    model = recipes.mopoe(modalities(), latent_dim=2, schedule=spec, seed=0)
    first, last = model.spec.schedule.stages(model, 8)
    assert (first.epochs, last.epochs) == (6, 2)
    assert last.trainable == ("refiners.b.*",)
    assert not model.spec.schedule.places_prior
    assert recipes.d_cmvae(modalities()).spec.schedule.places_prior
    (alone,) = model.spec.schedule.stages(model, 1)
    assert alone.objective is None
    assert [stage.epochs for stage in model.spec.schedule.stages(model, 2)] == [1, 1]


def test_json():
    for spec in (ThenRefine(), ThenRefine(first="warmup_then_mixture", refiner=SMALL, share=0.3)):
        assert as_part("schedule", json.loads(json.dumps(to_dict(spec)))) == spec


def test_classes_alone_cannot_be_refined():
    model = Model({"c": modalities()["c"]}, latent_dim=2, schedule="then_refine", seed=0)
    with pytest.raises(SpecError, match="no modality has continuous values"):
        mvkit.fit(model, {"c": rows().data["c"]}, epochs=2, **QUIET)


def test_a_share_is_one():
    with pytest.raises(SpecError, match="share: got 2"):
        ThenRefine(share=2)


def views(b=600):
    """Two views of two numbers, with little noise."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(b, 2, generator=generator)
    noisy = 0.1 * torch.randn(b, 7, generator=generator)
    maps = torch.tensor(
        [[1.0, 0.5, 0.0, 0.5, 0.0, 1.0, -1.0], [0.0, -1.0, 1.0, 1.0, 1.0, 0.0, 0.5]]
    )
    x = z @ maps + noisy
    return {"a": x[:, :3], "b": x[:, 3:]}


def test_mld_is_autoencoders_without_a_shared_latent():
    data = views()
    model = recipes.mld({"a": (3,), "b": (4,)}, latent_dim=2, seed=0)
    assert model.latent_dim == 0
    assert [modality.private_dim for modality in model.modalities.values()] == [2, 2]
    mvkit.fit(model, data, epochs=15, lr=3e-3, seed=0, **QUIET)
    scale = model.experts(model.conform(Batch(data))).private["a"][1]
    assert scale.mean() < 0.1  # nearly deterministic
    draws = model.translate({"a": data["a"]}, n=2)
    assert (draws["a"][0] - data["a"]).square().mean() < 0.05
    assert (draws["b"][0] - data["b"]).square().mean() > 0.5  # of the prior: they share nothing


@pytest.mark.skipif(
    "latent_diffusion" not in mvkit.available("sampler"), reason="the sampler is not there"
)
def test_mld_with_latent_diffusion_knows_views_from_one_another():
    data = views()
    model = recipes.mld({"a": (3,), "b": (4,)}, latent_dim=2, seed=0)
    mvkit.fit(model, data, epochs=15, lr=3e-3, seed=0, **QUIET)
    spec = {"name": "latent_diffusion", "steps": 600, "width": 64, "lr": 3e-3}
    mvkit.fit_sampler(model, data, spec)
    options = {"sampler": "latent_diffusion", "generator": torch.Generator().manual_seed(0)}
    drawn = model.translate({"a": data["a"]}, "b", **options)["b"][0]
    assert (drawn - data["b"]).square().mean() < 0.15 * data["b"].var()
    new = model.sample(2000, **options)
    joint = torch.corrcoef(torch.cat([new["a"], new["b"]], 1).T)
    truth = torch.corrcoef(torch.cat([data["a"], data["b"]], 1).T)
    assert (joint - truth).abs().max() < 0.2


@pytest.mark.parametrize("name", ["aggregator", "objective", "prior"])
def test_what_mld_sets_cannot_be_set_again(name):
    with pytest.raises(SpecError, match="the recipe sets it"):
        recipes.mld({"a": (3,)}, **{name: "elbo"})
