"""Samplers of latents in runs: several processes, run files, reports, fits that are cut short."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sampler_rows import EACH, NAMES, PATTERNS, SMALL

import mvkit
from mvkit import Batch, Modality, MultimodalDataset, recipes, spec
from mvkit.apps import cli
from mvkit.parts import Splits
from mvkit.registry import declare
from mvkit.registry.component import Component
from mvkit.training.events import CheckpointSaved

WORKER = str(Path(__file__).parent / "diffusion_ranks_worker.py")
MODALITIES = {"a": (3,), "b": (2,), "c": (2,)}
QUIET = {"progress": False, "device": "cpu"}


def rows(b=28, seed=0):
    generator = torch.Generator().manual_seed(seed)
    data = {
        name: torch.randn(b, *shape, generator=generator) for name, shape in MODALITIES.items()
    }
    return Batch(data, torch.tensor([PATTERNS[i % 7] for i in range(b)]))


# several processes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for launcher in (torchrun, []):
        command = [sys.executable, *launcher, WORKER, str(folder)]
        subprocess.run(command, check=True, timeout=600, capture_output=True)
    return {name: torch.load(folder / f"{name}.pt") for name in ("1-0", "2-0", "2-1")}


@pytest.mark.parametrize("case", ["pairs", "more"])
def test_two_processes_train_idmvae_as_one_also_where_one_has_no_rows(outcomes, case):
    alone, first, second = (outcomes[name][case] for name in ("1-0", "2-0", "2-1"))
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", [*NAMES, *(f"draws of {name}" for name in NAMES)])
def test_every_process_fits_the_same_sampler_to_all_rows(outcomes, case):
    alone, first, second = (outcomes[name][case] for name in ("1-0", "2-0", "2-1"))
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-7)


# a fit is one call: it is done, or nothing has changed


@EACH
def test_a_fit_that_is_cut_short_leaves_the_model_as_it_was(name, monkeypatch):
    model = mvkit.Model(MODALITIES, latent_dim=2, seed=0)
    mvkit.fit_sampler(model, rows(), {"name": name, **SMALL})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    steps = []

    def stopping(*arguments):
        steps.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("mvkit_diffusion.samplers.LatentSampler.mean_square", stopping)
    with pytest.raises(KeyboardInterrupt):
        mvkit.fit_sampler(model, rows(), {"name": name, **SMALL}, seed=5)
    assert len(steps) == 1
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


class StoppedError(Exception):
    """What ends a run in bad order."""


@EACH
def test_a_sampler_of_a_resumed_run_has_the_bits_of_one_that_never_stopped(name, tmp_path):
    def stop(event):
        if isinstance(event, CheckpointSaved):
            raise StoppedError

    options = {"epochs": 2, "batch_size": 8, "save_every": 0, **QUIET}
    whole, stopped, again = (recipes.mld(MODALITIES, 2, seed=0) for _ in range(3))
    mvkit.fit(whole, rows(), checkpoint=tmp_path / "whole", **options)
    options["checkpoint"] = tmp_path / "run"
    with pytest.raises(StoppedError):
        mvkit.fit(stopped, rows(), listeners=[stop], **options)
    mvkit.fit(again, rows(), resume="must", **options)
    for model in (whole, again):
        mvkit.fit_sampler(model, rows(), {"name": name, **SMALL}, seed=2)
    states = whole.state_dict(), again.state_dict()
    assert any("samplers" in key for key in states[0])
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


# run files, the command line, reports


@spec
class Views:
    """Two pictures, bright in a corner that says their class."""

    def load(self):
        modalities = {name: Modality((1, 4, 4)) for name in ("left", "right")}
        parts = []
        for seed, b in enumerate((60, 20, 30)):
            generator = torch.Generator().manual_seed(seed)
            label = torch.randint(3, (b,), generator=generator)
            bright = torch.eye(16)[label].reshape(b, 1, 4, 4)
            data = {
                name: bright + 0.1 * torch.rand(b, 1, 4, 4, generator=generator)
                for name in modalities
            }
            parts.append(MultimodalDataset(Batch(data, extra={"label": label}), modalities))
        return Splits(modalities, *parts)


RUN = """
[data]
name = "views"
[model]
recipe = "mld"
latent_dim = 2
[train]
epochs = 2
device = "cpu"
samplers = [
    {name = "latent_flow", steps = 5, width = 8},
    {name = "latent_diffusion", steps = 5, width = 8, integration = 4},
]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    declare(Component("dataset", "views", f"{__name__}:Views"))
    (folder / "views.toml").write_text(RUN)
    command = ["train", str(folder / "views.toml"), "--folder", str(folder / "run")]
    assert cli.main(command) == 0
    return folder / "run"


@EACH
def test_a_run_file_fits_samplers_after_training(run, name):
    model = mvkit.load(run / "model.safetensors")
    assert model.samplers[f"mvkit-diffusion/{name}"].spec.steps == 5
    assert model.sample(3, sampler=name)["left"].shape == (3, 1, 4, 4)
    assert name in (run / "run.toml").read_text()


@EACH
def test_the_command_line_reports_by_a_sampler(run, name, capsys):
    pytest.importorskip("matplotlib")
    page = run / f"{name}.html"
    command = ["report", str(run), "-o", str(page), "--sampler"]
    assert cli.main([*command, name]) == 0
    assert f"latents of sampler &#39;{name}&#39;" in page.read_text()
    assert cli.main([*command, "gmm"]) == 1
    assert "sampler 'gmm' is not fitted yet" in capsys.readouterr().err


def test_the_command_line_lists_the_parts_and_shows_the_model(run, capsys):
    for kind, name in (("sampler", "latent_flow"), ("objective", "mutual_information")):
        assert cli.main(["list", kind]) == 0
        assert name in capsys.readouterr().out
    assert cli.main(["show", str(run / "model.safetensors")]) == 0
    assert "latent_diffusion" in capsys.readouterr().out
