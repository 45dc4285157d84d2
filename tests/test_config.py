"""Run files: one TOML that gives the same numbers again, on the command line."""

import tomllib

import pytest
import torch

import mvkit
from mvkit import SpecError
from mvkit.apps.cli import main
from mvkit.apps.run_file import Plan, read

TEXT = """
[data]
name = "linear_gaussian"
rows = 60
missing = 0.3
[model]
recipe = "RECIPE"
latent_dim = 2
[model.modalities.m0]
encoder = "linear"
[train]
epochs = 2
batch_size = 20
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(TEXT.replace("RECIPE", "mopoe"))
    return path


@pytest.mark.parametrize("recipe", ["telbo", "nexus", "cmvae", "jmvae"])
def test_the_whole_file_gives_the_same_numbers(recipe, tmp_path):
    (tmp_path / "a.toml").write_text(TEXT.replace("RECIPE", recipe))
    one, other = tmp_path / "one", tmp_path / "other"
    assert main(["train", str(tmp_path / "a.toml"), "--folder", str(one)]) == 0
    assert main(["train", str(one / "run.toml"), "--folder", str(other)]) == 0
    assert (one / "run.toml").read_text() == (other / "run.toml").read_text()
    assert (one / "history.jsonl").read_text() == (other / "history.jsonl").read_text()
    left, right = (
        mvkit.load(folder / "model.safetensors").state_dict() for folder in (one, other)
    )
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_every_default_is_written_out(file):
    config = Plan.of(read(file)).config
    assert config["data"]["orthogonal"] is True
    assert config["model"]["aggregator"] == {
        "name": "mopoe",
        "prior_expert": "full",
        "inference": "product",
    }
    assert config["model"]["seed"] == 0
    assert config["train"]["lr"] == 1e-3
    assert config["train"]["stages"][0]["optimizer"]["name"] == "adam"


def test_changes(file):
    changes = [
        "model.prior=mog",
        "model.prior.components=3",
        "train.epochs=1",
        "data.missing=0.5",
        "model.beta=2.5",
    ]
    config = Plan.of(read(file, changes)).config
    assert config["model"]["prior"]["components"] == 3
    assert config["model"]["objective"]["kl_weight"] == 2.5
    assert config["train"]["epochs"] == config["train"]["stages"][0]["epochs"] == 1
    assert config["data"]["missing"] == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.epoch=3", r"train\.epoch: unknown option; did you mean 'epochs'"),
        ("model.latent=3", r"model\.latent: unknown option; did you mean 'latent_dim'"),
        ("model.recipe=mopo", r"model\.recipe: no recipe 'mopo'; did you mean 'mopoe'"),
        ("model.prior=mgo", r"unknown prior 'mgo'; did you mean 'mog'"),
        ("model.modalities.m9.encoder=mlp", r"model\.modalities: no modality 'm9'"),
        ("data.name=polydigit", r"unknown dataset 'polydigit'; did you mean 'polydigits'"),
        ("model.latent_dim.x=3", r"'latent_dim' holds 2, which has no options"),
        (
            "tarin.epochs=3",
            r"--set tarin\.epochs=3: no table \[tarin\] is known; did you mean 'train'",
        ),
        ("epochs", r"--set epochs: expected TABLE\.OPTION=VALUE"),
    ],
)
def test_what_is_wrong_is_said(file, change, message, capsys):
    with pytest.raises(mvkit.MvkitError, match=message):
        Plan.of(read(file, [change]))
    assert main(["train", str(file), "--set", change]) == 1
    assert "mvkit: " in capsys.readouterr().err


def test_no_toml(tmp_path):
    (tmp_path / "bad.toml").write_text("[data\n")
    with pytest.raises(SpecError, match=r"bad\.toml: no TOML: "):
        read(tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_text("[train]\nepochs = 1\n")
    (tmp_path / "other.toml").write_text("[tarin]\nepochs = 1\n")
    with pytest.raises(
        SpecError, match=r"other\.toml: no table \[tarin\] is known; did you mean 'train'"
    ):
        read(tmp_path / "other.toml")
    with pytest.raises(SpecError, match="data: expected the name of a dataset"):
        Plan.of(read(tmp_path / "bad.toml"))
    assert main(["train", str(tmp_path / "none.toml")]) == 1


def test_resume_on_the_command_line(file, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", str(file), "--folder", str(run), "--set", "train.epochs=1"]) == 0
    assert main(["resume", str(run)]) == 0
    again = ["train", str(file), "--folder", str(run)]
    assert main([*again, "--set", "train.lr=0.5"]) == 1
    assert "was begun with another lr" in capsys.readouterr().err
    assert tomllib.loads((run / "run.toml").read_text())["train"]["epochs"] == 1
    assert main(again) == 0  # more epochs than it was begun with
    assert tomllib.loads((run / "run.toml").read_text())["train"]["epochs"] == 2
    assert main([*again, "--set", "train.epochs=1"]) == 1
    assert "was begun with another stages" in capsys.readouterr().err
    assert main(["resume", str(tmp_path)]) == 1
    assert main(["show", str(next((run / "checkpoints").iterdir()))]) == 0
    assert '"training"' in capsys.readouterr().out


def test_doctor(capsys, monkeypatch):
    monkeypatch.setenv("MVKIT_NOTE", "here")
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for part in (
        f"mvkit {mvkit.__version__}",
        f"torch {torch.__version__}",
        "extra [demo]: ",
        "MVKIT_NOTE='here'",
    ):
        assert part in shown
    assert "accelerator: " in shown
