"""Recipes of single cells: roles of modalities, batches, gaps, files, and real cells."""

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import mvkit
from mvkit import Batch, Modality, MultimodalDataset, SpecError, Stage, recipes
from mvkit.core import Context
from mvkit.parts import MLP, Bernoulli, Categorical
from mvkit.testing import check_component

MOSAIC = Path("/work/shared/data/midas_mosaic/quickstart_pbmc_mosaic.h5mu")
NAMED = ("cite_mopoe", "midas", "multivi", "scvi", "totalvi")
ROLES = {
    "cite_mopoe": {"peaks": "b"},
    "midas": {"batch": "c", "technical_dim": 1, "peaks": ["b"]},
    "multivi": {"peaks": "b"},
    "scvi": {},
    "totalvi": {"proteins": "b"},
}
MODALITIES = {
    "cite_mopoe": ("rna", "adt", "atac"),
    "midas": ("rna", "adt", "batch"),
    "multivi": ("rna", "atac"),
    "scvi": ("rna",),
    "totalvi": ("rna", "adt"),
}
SHAPES = {"rna": (6,), "adt": (4,), "atac": (5,), "batch": (2,)}
LEVELS = ("A", "B")


def recipe(name):
    return recipes.get(f"mvkit-omics/{name}")


def made(name, **options):
    options = {"latent_dim": 4, "seed": 0, "hidden": (8,), **options}
    if name == "midas":
        options.pop("covariates", None)
    elif "covariates" not in options:
        options["covariates"] = {"batch": LEVELS}
    return recipe(name)({n: SHAPES[n] for n in MODALITIES[name]}, **options)


def cells(name, rows=40, levels=LEVELS):
    """Counts and bits of two batches; each modality is missing in some cells."""
    generator = torch.Generator().manual_seed(0)
    level = torch.arange(rows) % 2
    rate = {"rna": 3.0, "adt": 20.0, "atac": 0.3}
    data = {}
    for modality in MODALITIES[name]:
        if modality == "batch":
            data[modality] = torch.eye(2)[level]
            continue
        mean = torch.full((rows, *SHAPES[modality]), rate[modality])
        counts = torch.poisson(mean, generator=generator)
        data[modality] = counts.clamp(max=1) if modality == "atac" else counts
    mask = torch.ones(rows, len(data), dtype=torch.bool)
    for i in range(len(data)):
        if len(data) > 1:
            mask[i::5, i] = False
    return Batch(data, mask, extra={"batch": [levels[i] for i in level.tolist()]})


@pytest.mark.parametrize("name", NAMED)
def test_the_rules_of_recipes(name):
    check_component("recipe", f"mvkit-omics/{name}", **ROLES[name])


@pytest.mark.parametrize("name", NAMED)
def test_recipes_train_on_incomplete_cells_and_come_back_from_files(name, tmp_path):
    model, rows = made(name), cells(name)
    history = mvkit.fit(model, rows, validation=rows, epochs=2, batch_size=16, progress=False)
    assert all(map(math.isfinite, history["loss"] + history["valid/loss"]))
    mvkit.save(model, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    assert again.header() == model.header()
    assert torch.equal(again.encode(rows), model.encode(rows))
    assert torch.isfinite(model.log_likelihood(rows, n=5)).all()
    assert "LastLatents" not in str(again.header())  # parts are named, not classes


@pytest.mark.parametrize("name", NAMED)
def test_recipes_resume_with_the_same_bits(name, tmp_path):
    rows = cells(name)
    whole, halves = made(name), made(name)
    options = {"batch_size": 16, "progress": False}
    mvkit.fit(whole, rows, epochs=3, checkpoint=tmp_path / "whole", **options)

    class Stop:
        def __call__(self, event):
            if type(event).__name__ == "EpochFinished":
                raise mvkit.training.events.StopTraining

    mvkit.fit(halves, rows, epochs=3, checkpoint=tmp_path / "run", listeners=[Stop()], **options)
    fresh = made(name)
    mvkit.fit(fresh, rows, epochs=3, checkpoint=tmp_path / "run", resume="must", **options)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key]), key


@pytest.mark.parametrize("name", sorted(set(NAMED) - {"midas"}))
def test_a_new_batch_is_a_new_level(name):
    model, rows = made(name), cells(name)
    mvkit.fit(model, rows, epochs=2, batch_size=16, progress=False)
    before = model.encode(rows)
    model.add_level("batch", "C")
    assert torch.equal(model.encode(rows), before)
    new = cells(name, levels=("C", "C"))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    stage = Stage(None, 2, ["covariates.batch.C"])
    mvkit.fit(model, new, stages=[stage], batch_size=16, progress=False)
    assert torch.equal(model.encode(rows), before)
    assert any(not torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert torch.isfinite(model.log_likelihood(new, n=5)).all()


def test_midas_takes_cells_of_no_batch_that_it_knows():
    model, rows = made("midas"), cells("midas")
    mvkit.fit(model, rows, epochs=2, batch_size=16, progress=False)
    unknown = Batch({"rna": rows.data["rna"]})
    assert torch.isfinite(model.encode(unknown)).all()
    batches = model.translate(unknown, to=["batch"])["batch"][0]
    assert torch.allclose(batches.sum(-1), torch.ones(len(batches)))


def test_batches_of_midas_are_told_by_the_technical_latents_alone():
    model = made("midas", technical_dim=1).eval()
    decoder = model.decoders["batch"]
    z = torch.randn(7, 4)
    other = torch.cat([torch.randn(7, 3), z[:, 3:]], 1)
    assert torch.equal(decoder(z), decoder(other))
    assert not torch.equal(model.decoders["rna"](z), model.decoders["rna"](other))


def test_roles_say_what_modalities_are():
    model = made("cite_mopoe")
    rna, adt, atac = (model.modalities[name] for name in ("rna", "adt", "atac"))
    assert (rna.exposure, adt.exposure, atac.exposure) == ("total", None, None)
    assert (rna.input, adt.input, atac.input) == ("log1p", "log1p", "values")
    assert atac.likelihood == Bernoulli()
    assert rna.likelihood.start == "data"


def test_backgrounds_are_by_batch_where_there_are_batches():
    live = made("totalvi").decoders["adt"].likelihood
    assert live.background.shape == (2, 4)
    live = made("totalvi", covariates={}).decoders["adt"].likelihood
    assert live.background.shape == (4,)


def test_dispersions_by_batch():
    live = made("scvi", dispersion="feature_and_level").decoders["rna"].likelihood
    assert live.log_theta.shape == (2, 6)
    live = made("scvi", dispersion="decoded", zero_inflated=False).decoders["rna"].likelihood
    assert live.params == 2


def test_networks_of_the_user_stay():
    own = MLP(hidden=(3,))
    modalities = {"rna": Modality((6,), encoder=own), "adt": (4,)}
    model = recipe("totalvi")(modalities, latent_dim=2, seed=0, hidden=(7,))
    assert model.modalities["rna"].encoder == own
    assert model.modalities["rna"].decoder == MLP(hidden=(7,))
    model = recipe("totalvi")(modalities, latent_dim=2, seed=0, hidden=None)
    assert model.modalities["rna"].decoder == MLP()


def test_the_order_of_modalities_is_that_given():
    model = recipe("midas")({"batch": (2,), "rna": (6,)}, latent_dim=3, seed=0)
    assert model.names == ("batch", "rna")
    assert model.modalities["batch"].likelihood == Categorical()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "scvi",
            {"batch": "site"},
            r"batch: no covariate 'site' with levels; expected one of \['batch'\]",
        ),
        (
            "scvi",
            {"dispersion": "feature_and_level", "covariates": {}},
            "dispersion: got 'feature_and_level' without batches",
        ),
        ("totalvi", {"proteins": "prot"}, "proteins: no modality 'prot'"),
        ("multivi", {"peaks": ["x"]}, "peaks: no modality 'x'"),
        ("midas", {"batch": "site"}, "batch: no modality 'site'"),
        ("midas", {"technical_beta": 0.5}, "technical_beta: got 0.5; expected at least beta=1.0"),
        ("midas", {"technical_dim": 5}, "got 5 of 4 latents"),
        ("cite_mopoe", {"aggregator": "poe"}, "aggregator: the recipe sets it"),
    ],
)
def test_what_cannot_be_is_refused_in_place(name, options, message):
    with pytest.raises(SpecError, match=message):
        made(name, **options)


def test_totalvi_without_proteins_says_what_to_name():
    with pytest.raises(SpecError, match=r"proteins: none of \['rna'\] is called adt"):
        recipe("totalvi")({"rna": (6,)}, latent_dim=2)


def test_counts_that_are_none_are_refused():
    model, rows = made("scvi"), cells("scvi")
    rows.data["rna"][0, 0] = 0.5
    with pytest.raises(mvkit.DataError, match="counts"):
        mvkit.fit(model, rows, epochs=1, progress=False)


@functools.cache
def mosaic():
    """Every eighth cell of the mosaic is held out; 60 genes and 30 proteins."""
    import warnings

    import mudata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = mudata.read_h5mu(MOSAIC)
    arrays, ids = {}, {}
    for name, width in (("rna", 60), ("adt", 30)):
        part = file.mod[name]
        arrays[name] = np.asarray(part.X[:, :width].toarray())
        ids[name] = list(part.obs_names)
    batch = dict(zip(file.obs_names, file.obs["batch"].astype(str), strict=True))
    data = MultimodalDataset.from_arrays(
        arrays,
        ids=ids,
        covariates={"batch": batch},
        modalities=dict.fromkeys(arrays, "negative_binomial"),
    )
    held = torch.arange(len(data)) % 8 == 0
    return data[~held], data[held]


def with_batches(data):
    """The data with the batch as a modality of classes, as midas takes it."""
    levels = data.levels["batch"]
    index = data.batch.extra["batch"]
    codes = torch.tensor(
        [levels.index(word) if isinstance(word, str) else int(word) for word in index]
    )
    batch = data.batch
    mask = torch.cat([batch.mask, torch.ones(len(batch), 1, dtype=torch.bool)], 1)
    return Batch({**batch.data, "batch": torch.eye(len(levels))[codes]}, mask)


def constant_log_likelihood(model, train, held):
    """Held-out log p of the model's own likelihoods with outputs that no cell changes."""
    train, held = model.conform(train), model.conform(held)
    total = torch.zeros(len(held))
    for i, name in enumerate(model.names):
        decoder = model.decoders[name]
        live = mvkit.registry.as_part("likelihood", model.modalities[name].likelihood)
        live = (
            live.build(model.sizes.__class__.alone(model.modalities[name]))
            if name == "batch"
            else decoder.likelihood
        )
        raw = torch.zeros(decoder.shape, requires_grad=True)

        def log_px(batch, live=live, raw=raw, name=name, i=i):
            there = batch.observed[:, i]
            covariates = {key: value[there] for key, value in batch.covariates.items()}
            exposure = batch.exposure.get(name)
            context = Context(
                covariates=covariates, exposure=None if exposure is None else exposure[there]
            )
            x = batch.data[name][there]
            value = live.log_prob(raw.expand(1, len(x), *raw.shape), x, context)[0]
            return there, value.reshape(len(x), -1).sum(1)

        parameters = [raw, *(live.parameters() if isinstance(live, torch.nn.Module) else [])]
        optimizer = torch.optim.Adam(parameters, 0.05)
        for _ in range(300):
            optimizer.zero_grad()
            (-log_px(train)[1].mean()).backward()
            optimizer.step()
        with torch.no_grad():
            there, value = log_px(held)
            total[there] += value
    return total.mean()


@pytest.mark.slow
@pytest.mark.skipif(not MOSAIC.exists(), reason="needs the shared folder midas_mosaic")
@pytest.mark.parametrize("name", ["cite_mopoe", "midas"])
def test_recipes_beat_the_constant_model_on_held_out_cells(name):
    train, held = mosaic()
    modalities = {"rna": (60,), "adt": (30,)}
    options = {"latent_dim": 8, "seed": 0, "hidden": (32,)}
    if name == "midas":
        train, held = with_batches(train), with_batches(held)
        modalities["batch"] = (4,)
        options |= {"technical_dim": 2, "batch_weight": 10.0}
    else:
        options["covariates"] = train.covariates
    model = recipe(name)(modalities, **options)
    mvkit.fit(model, train, epochs=15, batch_size=64, lr=3e-3, progress=False)
    ours = model.log_likelihood(held, n=50).mean()
    constant = constant_log_likelihood(recipe(name)(modalities, **options), train, held)
    assert ours > constant + 5


def test_encoders_of_cite_mopoe_see_the_batch_when_asked():
    modalities = {"rna": (5,), "adt": (3,)}
    blind = {"batch": mvkit.Covariate(("p1", "p2"))}
    model = mvkit.recipes.cite_mopoe(modalities, covariates=blind, seed=0)
    assert model.spec.covariates["batch"].into == ("decoders",)
    model = mvkit.recipes.cite_mopoe(modalities, covariates=blind, encode_batch=True, seed=0)
    assert model.spec.covariates["batch"].into == ("decoders", "encoders")
    said = {"batch": mvkit.Covariate(("p1", "p2"), into=("encoders",))}
    assert mvkit.recipes.cite_mopoe(modalities, covariates=said).spec.covariates == said
    assert mvkit.recipes.cite_mopoe(modalities, seed=0).spec.covariates == {}
