"""Samplers at every door: files, runs that resume, run files, processes, bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import model, rows
from test_resume import assert_same, interrupted, uninterrupted
from test_samplers import stack

import mvkit
from mvkit import Covariate, DataError, Model, RequestError, SpecError, Stage
from mvkit.parts import GMM
from mvkit.parts.conditional_samplers import Condition
from mvkit.registry.spec import as_part, to_dict

WORKER = str(Path(__file__).parent / "fits_worker.py")
SPEC = GMM(components=2, floor=0.1, conditional=True)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def fitted():
    made = model("mopoe", private=1).eval()
    mvkit.fit_sampler(made, rows(40), SPEC)
    return made


# files, runs, processes


@pytest.mark.parametrize("spec", [SPEC, GMM(components=2)], ids=["conditional", "of new rows"])
def test_specs_are_plain_data(spec):
    assert as_part("sampler", json.loads(json.dumps(to_dict(spec)))) == spec


@pytest.mark.parametrize(
    "make", [lambda: model("mopoe", private=1), stack], ids=["model", "stack"]
)
def test_a_run_of_a_model_with_a_sampler_resumes_with_the_same_bits(make, tmp_path):
    def with_sampler():
        made = make()
        mvkit.fit_sampler(made, rows(14, names=made.names), SPEC)
        return made

    names = with_sampler().names
    stages = [Stage("elbo", 2)] if make is not stack else None
    options = {"data": rows(14, names=names), "progress": False, "stages": stages, "epochs": 2}
    whole = uninterrupted(with_sampler, tmp_path / "whole", **options)
    again = interrupted(with_sampler, 3, tmp_path / "parts", **options)
    assert_same(whole, again)
    loaded = mvkit.load(tmp_path / "parts" / "model.safetensors")
    assert list(loaded.samplers) == ["gmm"]
    with pytest.warns(UserWarning, match="weights have changed since it was fitted"):
        loaded.sample(2, sampler="gmm")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What one process and two fitted."""
    folder = tmp_path_factory.mktemp("fits")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for launcher in (torchrun, []):
        command = [sys.executable, *launcher, WORKER, str(folder)]
        subprocess.run(command, check=True, timeout=300, capture_output=True)
    return {name: torch.load(folder / f"{name}.pt") for name in ("1-0", "2-0", "2-1")}


@pytest.mark.parametrize("fit", ["sampler", "refiner", "mixture"])
def test_two_processes_fit_what_one_does(outcomes, fit):
    alone, first, second = (outcomes[name][fit] for name in ("1-0", "2-0", "2-1"))
    assert alone.keys() == first.keys() == second.keys()
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-7, atol=1e-9)


# answers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_condition_without_rows_has_no_draws(fitted, dtype):
    made = fitted.to(dtype)
    sampler = made.conditional_sampler("gmm", "test")
    empty = Condition.nothing(made.sampler_sizes(), 0, like=made.like)
    z, private = sampler.sample(empty, 3, seeded())
    assert z.shape == (3, 0, 2)
    assert z.dtype == dtype
    assert private["a"].shape == (3, 0, 1)
    mean, _ = sampler.mean(empty, seeded())
    assert mean.shape == (0, 2)


# bad input

NO_NAMES = [3, True, ("gmm",), SPEC, {"name": "gmm"}]


@pytest.mark.parametrize("name", NO_NAMES, ids=repr)
def test_a_sampler_is_asked_for_by_name(fitted, name):
    asked = {
        "translate": lambda: fitted.translate(rows(2), sampler=name),
        "sample": lambda: fitted.sample(2, sampler=name),
        "evaluate": lambda: mvkit.evaluate(fitted, rows(8), ["imputation"], sampler=name),
    }
    for where, ask in asked.items():
        with pytest.raises(RequestError, match=f"{where}: sampler=.*expected the name"):
            ask()
    with pytest.raises(RequestError, match="expected the name of a sampler"):
        mvkit.impute(fitted, rows(8), sampler=name)


@pytest.mark.parametrize("floor", [-1.0, float("nan"), "much", None])
def test_floors_that_are_none(floor):
    with pytest.raises(SpecError, match="floor: got"):
        GMM(floor=floor)


@pytest.mark.parametrize("conditional", [True, False])
def test_rows_that_do_not_vary_need_a_floor(conditional):
    same = rows(20, missing=False).take([0] * 4 + [1] * 4)
    made = model("poe").eval()
    spec = GMM(components=6 if not conditional else 2, floor=0.0, conditional=conditional)
    with pytest.raises(DataError, match="do not vary in every direction.*larger floor"):
        mvkit.fit_sampler(made, same, spec)
    assert not made.samplers


def test_a_failed_fit_leaves_the_sampler_that_there_was(fitted):
    before = fitted.samplers["gmm"]
    with pytest.raises(DataError, match="needs 9 rows at least"):
        mvkit.fit_sampler(fitted, rows(5), GMM(components=9, conditional=True))
    assert fitted.samplers["gmm"] is before


@pytest.mark.parametrize(
    "other",
    [
        lambda: model("mopoe", private=2),
        lambda: model("mopoe"),
        lambda: model("mopoe", private=1, names=("c", "b", "a")),
    ],
    ids=["wider latents", "no private latents", "another order"],
)
def test_the_sampler_of_another_model_is_refused(fitted, other):
    made = other().eval()
    made.samplers["gmm"] = fitted.samplers["gmm"]
    for ask in (
        lambda: made.translate(rows(4, missing=False), sampler="gmm"),
        lambda: made.sample(4, sampler="gmm"),
    ):
        with pytest.raises(RequestError, match="fitted to a model of other modalities or latents"):
            ask()


def test_rows_are_checked_before_a_sampler_sees_them(fitted):
    bad = rows(6, missing=False)
    bad.data["a"][1, 2] = torch.inf
    for ask in (
        lambda: fitted.translate(bad, sampler="gmm"),
        lambda: mvkit.fit_sampler(fitted, bad, SPEC),
        lambda: mvkit.impute(fitted, bad, sampler="gmm"),
    ):
        with pytest.raises(DataError, match=r"batch.data\['a'\]: row 1, element \(2,\): inf"):
            ask()
    lacking = rows(6, missing=False)
    lacking.mask[2] = False
    with pytest.raises(DataError, match="row 2 observes none"):
        mvkit.fit_sampler(fitted, lacking, SPEC)
    with pytest.raises(RequestError, match="unknown modality 'd'"):
        fitted.translate(rows(2), "a", "d", sampler="gmm")


def test_a_new_level_is_no_matter_of_samplers_that_see_no_covariates():
    covariates = {"site": Covariate(levels=("A", "B"))}
    made = model("mopoe", covariates=covariates).eval()
    batch = rows(8)
    batch.extra["site"] = ["A", "B"] * 4
    mvkit.fit_sampler(made, batch, SPEC)
    made.add_level("site", "C")
    batch.extra["site"] = ["C"] * 8
    with pytest.warns(UserWarning, match="weights have changed"):
        values = made.translate(batch, "a", sampler="gmm")["a"]
    assert torch.isfinite(values).all()


def test_a_model_without_shared_latent_has_no_sampler():
    alone = Model({"a": {"shape": (3,), "private_dim": 2}}, latent_dim=0)
    with pytest.raises(RequestError, match="fit_sampler: the model has no shared latent"):
        mvkit.fit_sampler(alone, {"a": torch.randn(20, 3)}, SPEC)
