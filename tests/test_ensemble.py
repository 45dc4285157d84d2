"""Several seeds: copies that are the runs of their seeds, and what an ensemble says of data."""

import math

import numpy as np
import pytest
import torch
from helpers import model, rows

import mvkit
from mvkit import CheckpointError, Ensemble, RequestError, SpecError
from mvkit.training.copies import final_loss
from mvkit.training.history import History

EPOCHS = {"epochs": 2, "batch_size": 4, "lr": 0.01}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(seed=0, **options):
    return mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=seed, **options)


def data(b=12, seed=0):
    x = torch.randn(b, 5, generator=seeded(seed))
    a, b = x[:, :3].clone(), x[:, 3:].clone()
    a[0] = torch.nan
    b[1] = torch.nan
    a[2, 1] = torch.nan
    return {"a": a, "b": b}


def same_weights(model, other):
    assert model.state_dict().keys() == other.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.fixture(scope="module")
def run():
    whole = tiny(seed=7)
    options = {"validation": data(8, 1), "stacked": False, **EPOCHS}  # the same bits
    history = mvkit.fit(whole, data(), seeds=3, **options)
    return whole, history


def test_copy_s_is_the_run_of_seed_s(run):
    _, history = run
    assert history["seed"] == [0, 0, 1, 1, 2, 2]
    for seed, copy in enumerate(history.ensemble.members):
        alone = tiny(seed=seed)
        own = mvkit.fit(alone, data(), seed=seed, validation=data(8, 1), **EPOCHS)
        same_weights(alone, copy)
        rows_of_seed = [row for row in history.rows if row["seed"] == seed]
        assert [{**row, "seed": seed} for row in own.rows] == rows_of_seed
    assert "seed" not in own.columns
    assert own.ensemble is None


def test_the_model_gets_the_weights_of_the_best_validation_loss(run):
    whole, history = run
    lowest = {}
    for row in history.rows:
        seed = row["seed"]
        lowest[seed] = min(row["valid/loss"], lowest.get(seed, math.inf))
    best = min(lowest, key=lowest.get)
    same_weights(whole, history.ensemble.members[best])
    assert not any(whole is member for member in history.ensemble.members)
    assert not whole.training


def test_notes_and_verdicts_say_of_which_seed_they_are(run):
    _, history = run
    assert all(sentence.startswith("seed ") for sentence in history.verdict)
    assert {sentence[:6] for sentence in history.verdict} == {"seed 0", "seed 1", "seed 2"}


def test_the_best_run_is_told_by_its_last_stage():
    rows = [{"stage": 0, "loss": 0.1, "valid/loss": 0.2}]
    rows += [{"stage": 1, "loss": 3.0, "valid/loss": value} for value in (4.0, 2.0, 5.0)]
    assert final_loss(History(rows)) == 2.0
    assert final_loss(History([{"stage": 0, "loss": 1.0}, {"stage": 0, "loss": 2.0}])) == 2.0
    assert final_loss(History([{"stage": 0, "loss": math.nan}])) == math.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 2, "seed": 0}, r"fit: seed=0 beside seeds=\[0, 1\]; expected one of them"),
        ({"seeds": 0}, "fit: seeds=0; expected a whole number of at least 1"),
        ({"seeds": []}, r"fit: seeds=\[\]; expected different whole numbers"),
        ({"seeds": [1, 1]}, r"fit: seeds=\[1, 1\]; expected different"),
        ({"seeds": "12"}, "fit: seeds='12'; expected a whole number"),
        ({"seeds": [0.5]}, "seed=0.5; expected a whole number"),
    ],
)
def test_seeds_that_cannot_be_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        mvkit.fit(tiny(), data(), **EPOCHS, **options)


def test_models_without_a_fresh_copy_are_refused():
    own = tiny()
    own.encoders["a"] = torch.nn.Linear(3, 4)
    with pytest.raises(RequestError, match=r"model.modalities.a.encoder is a module of the user"):
        mvkit.fit(own, data(), seeds=2, **EPOCHS)
    sampled = tiny()
    complete = {name: x[3:] for name, x in data(30).items()}
    mvkit.fit_sampler(sampled, complete, "gmm")
    with pytest.raises(RequestError, match="samplers or refiners"):
        mvkit.fit(sampled, data(), seeds=2, **EPOCHS)


def conditional():
    covariates = {"age": mvkit.Covariate(), "site": ("A", "B")}
    return model("poe", "standard", "elbo", covariates=covariates)


def conditional_rows():
    batch = rows()
    count = len(batch)
    site = ["AB"[i % 2] for i in range(count)]
    covariates = {"age": torch.arange(count).double(), "site": site}
    weight = torch.arange(count) % 3
    return mvkit.Batch(batch.data, batch.mask, covariates=covariates, row_weight=weight)


def test_what_training_adds_to_a_copy_comes_with_its_weights():
    whole, batch = conditional(), conditional_rows()
    contrast = {"name": "sum", "terms": ["elbo", {"name": "align", "estimate": "contrast"}]}
    stages = [mvkit.Stage(contrast, 1)]
    history = mvkit.fit(whole, batch, seeds=[3, 5], stages=stages, batch_size=8)
    assert len(whole.conditions.rows) == len(batch)
    assert history.ensemble.seeds == (3, 5)
    assert any(key.startswith("objectives.") for key in whole.state_dict())
    losses = [row["loss"] for row in history.rows]
    same_weights(whole, history.ensemble.members[int(np.argmin(losses))])


def stack():
    shapes = {"a": (3,), "b": (2,)}
    private = {name: {"shape": shape, "private_dim": 2} for name, shape in shapes.items()}
    bottom = mvkit.Model(private, latent_dim=0, seed=0)
    top = mvkit.Model(dict.fromkeys(shapes, (2,)), latent_dim=2, seed=0)
    return mvkit.Stack([bottom, top])


def test_two_levels_have_copies_that_are_saved_and_loaded(tmp_path):
    whole = stack()
    history = mvkit.fit(whole, data(), seeds=2, **EPOCHS)
    mvkit.save(history.ensemble, tmp_path / "ensemble.safetensors")
    again = mvkit.load(tmp_path / "ensemble.safetensors")
    assert isinstance(again.members[0], mvkit.Stack)
    same_weights(again, history.ensemble)


def test_a_run_of_several_seeds_resumes_with_the_same_bits(tmp_path):
    from mvkit.training.events import EpochFinished

    def crash(event):
        if isinstance(event, EpochFinished) and crash.after == 0:
            raise ArithmeticError("crashed")
        crash.after -= isinstance(event, EpochFinished)

    straight = tiny()
    expected = mvkit.fit(straight, data(), seeds=2, stacked=False, **EPOCHS)
    crash.after = 2  # in the first epoch of the second copy
    options = {"seeds": 2, "checkpoint": tmp_path / "run", **EPOCHS}
    with pytest.raises(ArithmeticError):
        mvkit.fit(tiny(), data(), listeners=[crash], **options)
    again = tiny()
    history = mvkit.fit(again, data(), resume="must", **options)
    assert history.rows == expected.rows
    same_weights(again, straight)
    same_weights(history.ensemble, expected.ensemble)
    same_weights(mvkit.load(tmp_path / "run" / "model.safetensors"), straight)
    same_weights(mvkit.load(tmp_path / "run" / "ensemble.safetensors"), expected.ensemble)
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert len(lines) == 4
    with pytest.raises(RequestError, match="holds a run already"):
        mvkit.fit(tiny(), data(), resume="never", **options)
    with pytest.raises(RequestError):  # nor does one run fit into the folder of several
        mvkit.fit(tiny(), data(), checkpoint=tmp_path / "run", **EPOCHS)


def test_the_folder_of_one_run_takes_no_copies(tmp_path):
    mvkit.fit(tiny(), data(), checkpoint=tmp_path, **EPOCHS)
    with pytest.raises(RequestError, match="is the folder of a run from one seed"):
        mvkit.fit(tiny(), data(), checkpoint=tmp_path, seeds=2, **EPOCHS)


def test_an_ensemble_comes_back_from_its_file(run, tmp_path):
    ensemble = run[1].ensemble
    path = tmp_path / "ensemble.safetensors"
    mvkit.save(ensemble, path)
    again = mvkit.load(path)
    assert isinstance(again, Ensemble)
    assert again.seeds == (0, 1, 2)
    same_weights(again, ensemble)
    assert mvkit.describe(path)["model"]["name"] == "ensemble"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="altered"):
        mvkit.load(path)


def test_reports_want_one_model(run, tmp_path):
    from mvkit.models.checkpoint import load_model

    mvkit.save(run[1].ensemble, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="an ensemble of 3 models; expected one model"):
        load_model(tmp_path / "model.safetensors")


def test_translations_are_draws_of_all_models_in_turn(run):
    ensemble = run[1].ensemble
    batch = {name: x[3:] for name, x in data().items()}
    drawn = ensemble.translate(batch, "a", "b", n=2, sample=True, generator=seeded())
    generator = seeded()
    for i, member in enumerate(ensemble.members):
        own = member.translate(batch, "a", "b", n=2, sample=True, generator=generator)
        assert torch.equal(drawn["a"][i::3], own["a"])


def test_the_likelihood_is_that_of_the_mean_density(run):
    ensemble = run[1].ensemble
    each = [
        m.log_likelihood(data(), n=50, generator=seeded(i)) for i, m in enumerate(ensemble.members)
    ]
    density = sum(log_px.double().exp() for log_px in each) / 3
    generators = iter(range(3))

    class Reseeding(Ensemble):
        @property
        def members(self):
            return tuple(Proxy(m, next(generators)) for m in super().members)

    class Proxy:
        def __init__(self, member, seed):
            self.member, self.seed = member, seed

        def log_likelihood(self, *arguments, **options):
            return self.member.log_likelihood(*arguments, **options, generator=seeded(self.seed))

    together = Ensemble(ensemble.members)
    together.__class__ = Reseeding
    log_px = together.log_likelihood(data(), n=50)
    torch.testing.assert_close(log_px.double(), density.log(), rtol=1e-5, atol=1e-5)


def test_answers_are_averaged_and_their_spread_is_told(run):
    ensemble = run[1].ensemble

    def question(model):
        return model.translate(data(), latent="mean")

    answers = ensemble.ask(question)
    values = np.stack([question(member)["a"].numpy() for member in ensemble.members])
    np.testing.assert_allclose(answers.mean["a"].numpy(), values.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        answers.sd["a"].numpy(), values.std(0, ddof=1), rtol=1e-4, atol=1e-6
    )
    alone = Ensemble(ensemble.members[:1]).ask(question)
    assert alone.sd["a"].isnan().all()
    assert torch.equal(alone.mean["a"], question(ensemble.members[0])["a"])


def test_latents_and_clusters_are_those_of_each_model(run):
    ensemble = run[1].ensemble
    codes = ensemble.encode(data())
    for member, own in zip(ensemble.members, codes):
        assert torch.equal(member.encode(data()), own)
    mixtures = Ensemble([tiny(seed, prior="mog") for seed in (0, 1)])
    assert mixtures.clusters(data()).shape == (2, 12)


def test_samples_come_from_all_models():
    members = [tiny(seed) for seed in (0, 1)]
    for member, value in zip(members, (-50.0, 50.0)):
        last = [
            layer for layer in member.decoders["a"].modules() if isinstance(layer, torch.nn.Linear)
        ][-1]
        torch.nn.init.constant_(last.bias, value)
    sampled = Ensemble(members).sample(5, generator=seeded())["a"]
    assert (sampled.mean(1) > 0).tolist() == [False, True, False, True, False]
    with pytest.raises(RequestError, match="sample: latents=True, which each model"):
        Ensemble(members).sample(5, latents=True)


def test_imputed_values_are_those_of_all_models(run):
    ensemble = run[1].ensemble
    filled = mvkit.impute(ensemble, data(), n=400, quantiles=(), draws=True, generator=seeded())
    means = []
    spreads = []
    for member in ensemble.members:
        own = mvkit.impute(member, data(), n=400, quantiles=(), generator=seeded())
        means.append(own.filled["a"][0])
        spreads.append(own.sd["a"][0])
    between = torch.stack(means).var(0, unbiased=False)
    expected = (torch.stack(spreads).square().mean(0) + between).sqrt()
    torch.testing.assert_close(filled.filled["a"][0], torch.stack(means).mean(0), rtol=0, atol=0.2)
    torch.testing.assert_close(filled.sd["a"][0], expected, rtol=0.15, atol=0)
    assert len(filled.draws) == 400
    assert torch.equal(filled.filled["a"][3:], data()["a"][3:])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "models: an ensemble of no models"),
        ([1], r"models.0: got int; expected a Model or a Stack"),
        (["a", "b"], r"models.0: got str"),
    ],
)
def test_members_are_models(members, message):
    with pytest.raises(SpecError, match=message):
        Ensemble(members)
    with pytest.raises(SpecError, match=r"models.1: its modalities \['a'\] are not those"):
        Ensemble([tiny(), mvkit.Model({"a": (3,)}, latent_dim=2)])


def test_double_precision_stays_so():
    history = mvkit.fit(tiny().double(), data(), seeds=2, **EPOCHS)
    assert history.ensemble.like.dtype == torch.float64


def test_a_run_file_trains_several_seeds(tmp_path):
    from mvkit.apps.cli import main

    text = """
[data]
name = "linear_gaussian"
[model]
latent_dim = 2
[train]
epochs = 1
seeds = 2
"""
    (tmp_path / "run.toml").write_text(text)
    folder = tmp_path / "run"
    assert main(["train", str(tmp_path / "run.toml"), "--folder", str(folder)]) in (0, None)
    assert len(mvkit.load(folder / "ensemble.safetensors")) == 2
    assert "seeds = 2" in (folder / "run.toml").read_text()
    assert main(["resume", str(folder)]) in (0, None)
