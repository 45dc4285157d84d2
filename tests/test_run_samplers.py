"""Samplers in run files: fitted after training, kept, resumed and refused with a path."""

import tomllib

import pytest
import torch

import mvkit
from mvkit.apps import cli
from mvkit.registry.component import Component
from mvkit.registry.plugins import declare

GMM = "{name = 'gmm', components = 2, floor = 0.1, conditional = true}"
RUN = """
[data]
name = "few"
[model]
latent_dim = 2
[train]
epochs = 1
device = "cpu"
samplers = [SAMPLERS]
"""


@pytest.fixture
def run_file(tmp_path):
    declare(Component("dataset", "few", "test_page:Few"))

    def write(samplers, more=""):
        path = tmp_path / "few.toml"
        path.write_text(RUN.replace("SAMPLERS", samplers) + more)
        return str(path)

    return write


def train(path, folder, *options):
    return cli.main(["train", path, "--folder", str(folder), *options])


def test_samplers_are_fitted_to_the_trained_model_and_kept(run_file, tmp_path):
    assert train(run_file(f"{GMM}, 'prior'"), tmp_path / "run") == 0
    model = mvkit.load(tmp_path / "run/model.safetensors")
    assert set(model.samplers) == {"gmm", "prior"}
    assert train(run_file(""), tmp_path / "plain") == 0
    plain = mvkit.load(tmp_path / "plain/model.safetensors")
    for key, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    spec = tomllib.loads(f"sampler = {GMM}")["sampler"]
    mvkit.fit_sampler(plain, mvkit.load_dataset("few").train, spec, seed=0)
    first, second = (
        m.sample(3, sampler="gmm", generator=torch.Generator().manual_seed(0))
        for m in (plain, model)
    )
    assert torch.equal(first["left"], second["left"])
    written = tomllib.loads((tmp_path / "run/run.toml").read_text())["train"]["samplers"]
    assert [sampler["name"] for sampler in written] == ["gmm", "prior"]
    assert "samplers" not in tomllib.loads((tmp_path / "plain/run.toml").read_text())["train"]


def test_a_run_that_ended_is_given_a_sampler_and_resumed_with_the_same_bits(run_file, tmp_path):
    folder = tmp_path / "run"
    assert train(run_file(""), folder) == 0
    before = mvkit.load(folder / "model.safetensors")
    assert not before.samplers
    assert train(run_file(""), folder, "--set", f"train.samplers=[{GMM}]") == 0
    after = mvkit.load(folder / "model.safetensors")
    assert set(after.samplers) == {"gmm"}
    for key, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[key]), key
    assert cli.main(["resume", str(folder)]) == 0
    again = mvkit.load(folder / "model.safetensors").state_dict()
    for key, value in after.state_dict().items():
        assert torch.equal(value, again[key]), key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.samplers=gmm", "train.samplers: got 'gmm'; expected a list of samplers"),
        ("train.samplers=['gmn']", "train.samplers.0"),
        ("train.samplers=['gmm', {name = 'gmm', components = 0}]", "train.samplers.1.components"),
        ("train.seeds=2", "train.samplers: samplers are fitted to one model"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_training(
    run_file, tmp_path, capsys, change, message
):
    assert train(run_file("'gmm'"), tmp_path / "run", "--set", change) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_samplers_outside_of_the_table_are_told_where_they_belong(run_file, tmp_path, capsys):
    path = tmp_path / "wrong.toml"
    path.write_text("samplers = 'gmm'\n[data]\nname = 'few'\n")
    assert train(str(path), tmp_path / "run") == 1
    assert "put it below [train]" in capsys.readouterr().err
