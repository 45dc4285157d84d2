"""Recipes and parts of the package at every door: specs, runs that resume, two levels, several
processes, no condition, double precision, a share without rows.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_recipes import LEVELS, MODALITIES, NAMED, SHAPES, cells, made, recipe

import mvkit
from mvkit import Batch, Modality, Model, SpecError, Stack
from mvkit.registry import as_part, to_dict
from mvkit.training.events import CheckpointSaved

WORKER = str(Path(__file__).parent / "recipe_ranks_worker.py")
WITH_COVARIATES = sorted(set(NAMED) - {"midas"})
LINEAR = {"encoder": "linear", "decoder": "linear"}
PARTS = {
    "aggregator": {"name": "mvkit-omics/mean"},
    "objective": {
        "name": "sum",
        "terms": [
            "elbo",
            {"name": "mvkit-omics/jeffreys", "alpha": 0.5},
            {"name": "mvkit-omics/consistency", "alpha": 0.5, "anchor": "b"},
            {"name": "mvkit-omics/latent_kl", "dims": 1},
        ],
    },
    "schedule": {
        "name": "mvkit-omics/warmup",
        "epochs": 2,
        "groups": {"decoders.*.likelihood.*": 0.1},
    },
}


def of_parts(**options):
    """A model of all parts of the package that fit together."""
    modalities = {
        "a": Modality((3,), "mvkit-omics/discretised_normal", input="log1p", **LINEAR),
        "b": Modality((2,), decoder={"name": "mvkit-omics/last_latents", "dims": 1}),
    }
    return Model(modalities, latent_dim=2, seed=0, **PARTS, **options)


def mixed(rows=14):
    """Rows for `of_parts`, with gaps."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((rows, 3), 4.0), generator=generator)
    mask = torch.ones(rows, 2, dtype=torch.bool)
    mask[::5, 0] = False
    mask[1::5, 1] = False
    return Batch({"a": counts, "b": torch.randn(rows, 2, generator=generator)}, mask)


def in_double(rows):
    data = {name: values.double() for name, values in rows.data.items()}
    return Batch(data, rows.mask, extra=rows.extra)


CASES = {name: (lambda name=name: made(name), lambda name=name: cells(name)) for name in NAMED}
CASES["parts"] = (of_parts, mixed)
each_case = pytest.mark.parametrize("case", CASES)


# specs


@each_case
def test_specs_are_plain_data(case):
    model = CASES[case][0]()
    for kind in ("aggregator", "objective", "schedule"):
        part = getattr(model.spec, kind)
        assert as_part(kind, json.loads(json.dumps(to_dict(part)))) == part
    for modality in model.modalities.values():
        likelihood = json.loads(json.dumps(to_dict(modality.likelihood)))
        assert as_part("likelihood", likelihood) == modality.likelihood


def test_rates_of_groups_are_left_out_of_specs_where_there_are_none():
    plain = as_part("schedule", "mvkit-omics/warmup")
    assert "groups" not in to_dict(plain)
    own = as_part("schedule", PARTS["schedule"])
    assert to_dict(own)["groups"] == {"decoders.*.likelihood.*": 0.1}
    with pytest.raises(SpecError, match="groups"):
        as_part("schedule", {"name": "mvkit-omics/warmup", "groups": 3})


# runs


class StoppedError(Exception):
    """What ends a run in bad order."""


class StopAfter:
    """Ends a run after some checkpoints."""

    def __init__(self, saves):
        self.saves = saves

    def __call__(self, event):
        self.saves -= isinstance(event, CheckpointSaved)
        if not self.saves:
            raise StoppedError


@each_case
def test_a_run_that_stops_within_an_epoch_resumes_with_the_same_bits(case, tmp_path):
    make, rows = CASES[case]
    data = rows()
    options = {"epochs": 2, "batch_size": 5, "save_every": 0, "progress": False}
    whole, stopped, again = make(), make(), make()
    mvkit.fit(whole, data, validation=data, checkpoint=tmp_path / "whole", **options)
    options |= {"validation": data, "checkpoint": tmp_path / "run"}
    with pytest.raises(StoppedError):
        mvkit.fit(stopped, data, listeners=[StopAfter(2)], **options)
    mvkit.fit(again, data, resume="must", **options)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for launcher in (torchrun, []):
        command = [sys.executable, *launcher, WORKER, str(folder)]
        subprocess.run(command, check=True, timeout=300, capture_output=True)
    return {name: torch.load(folder / f"{name}.pt") for name in ("1-0", "2-0", "2-1")}


# each process balances the components of `cite_mopoe` among its own rows
@pytest.mark.parametrize("case", sorted(set(CASES) - {"cite_mopoe"}))
def test_two_processes_train_as_one_also_where_one_has_no_rows(case, outcomes):
    alone, first, second = (outcomes[name][case] for name in ("1-0", "2-0", "2-1"))
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-7, atol=1e-9)


# two levels


def top_of(names, **options):
    modalities = {name: Modality((2,), **LINEAR) for name in names}
    return Model(modalities, latent_dim=2, seed=0, **options)


@pytest.mark.parametrize("name", WITH_COVARIATES)
def test_recipes_are_the_bottom_of_a_stack(name):
    modalities = {n: Modality(SHAPES[n], private_dim=2) for n in MODALITIES[name]}
    options = {"hidden": (8,), "covariates": {"batch": LEVELS}}
    bottom = recipe(name)(modalities, latent_dim=0, seed=0, **options)
    stack = Stack([bottom, top_of(bottom.names)])
    rows = cells(name)
    history = mvkit.fit(stack, rows, epochs=2, batch_size=16, progress=False)
    assert all(map(math.isfinite, history["loss"]))
    assert torch.isfinite(stack.log_likelihood(rows, n=3)).all()


def test_parts_of_the_package_are_the_top_of_a_stack():
    modalities = {n: Modality((3,), private_dim=2, **LINEAR) for n in "ab"}
    bottom = Model(modalities, latent_dim=0, seed=0)
    options = {name: PARTS[name] for name in ("aggregator", "objective")}
    stack = Stack([bottom, top_of("ab", **options)])
    rows = Batch({n: torch.randn(12, 3) for n in "ab"}, mixed(12).mask)
    history = mvkit.fit(stack, rows, epochs=2, batch_size=6, progress=False)
    assert all(map(math.isfinite, history["loss"]))


def test_midas_has_no_place_in_a_stack():
    modalities = {"rna": Modality((3,), private_dim=2), "batch": Modality((2,), private_dim=2)}
    with pytest.raises(SpecError, match="got 2 of 0 latents; expected no more than there are"):
        recipe("midas")(modalities, latent_dim=0, seed=0)


@pytest.mark.parametrize("name", NAMED)
def test_recipes_of_counts_are_no_top_of_a_stack(name):
    names = MODALITIES[name]
    modalities = {n: Modality((3,), private_dim=SHAPES[n][0], **LINEAR) for n in names}
    bottom = Model(modalities, latent_dim=0, seed=0)
    expected = r"stack\.levels\.1\.modalities\.rna\.likelihood: it refuses -0.5, and the data"
    with pytest.raises(SpecError, match=expected):
        Stack([bottom, made(name, covariates={})])


# what a model is asked


@each_case
def test_given_nothing_a_model_answers_from_the_prior(case):
    make, rows = CASES[case]
    model, data = make().eval(), rows()
    posterior = model.posterior(data, given=())
    assert torch.equal(posterior.mean, torch.zeros_like(posterior.mean))
    for name, values in model.translate(data, given=(), n=2, empty="prior").items():
        assert values.shape == (2, len(data), *model.modalities[name].shape)
        assert torch.isfinite(values).all()


@each_case
def test_double_precision_is_kept(case):
    make, rows = CASES[case]
    single, double = make().eval(), make().double().eval()
    z = double.encode(in_double(rows()))
    assert z.dtype == torch.float64
    torch.testing.assert_close(single.encode(rows()).double(), z, rtol=1e-3, atol=1e-4)
    mvkit.fit(double, in_double(rows()), epochs=1, batch_size=16, progress=False)
    kinds = {value.dtype for value in double.parameters()}
    assert kinds == {torch.float64}


@each_case
def test_a_share_without_rows_has_a_loss_and_gradients(case):
    make, rows = CASES[case]
    model = make()
    nothing = model.conform(rows()).take(slice(0, 0))
    loss = model.loss(nothing).loss
    assert loss.item() == 0.0
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@each_case
def test_descriptions_name_the_parts(case, tmp_path, capsys):
    from mvkit.apps.cli import main

    model = CASES[case][0]()
    mvkit.save(model, tmp_path / "m")
    assert main(["show", str(tmp_path / "m")]) == 0
    assert "mvkit-omics/" in capsys.readouterr().out
