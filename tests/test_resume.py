"""A run resumes exactly where it stopped: the same bits as an uninterrupted one."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from helpers import AGGREGATORS, OBJECTIVES, modalities, model, rows
from safetensors.torch import load_file
from torch import nn

import mvkit
from mvkit import CheckpointError, Modality, Model, RequestError, Stage, recipes
from mvkit.training.events import CheckpointSaved, RunFinished, StageStarted
from mvkit.training.run_folder import decoded, encoded


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def nobody_pulls_the_plug(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # tens of milliseconds each


def stop_after(saves):
    """A listener that ends the run after so many checkpoints."""
    count = 0

    def listen(event):
        nonlocal count
        count += isinstance(event, CheckpointSaved)
        if count == saves and isinstance(event, CheckpointSaved):
            raise Stopped

    return listen


def outcome(tiny, history):
    return {name: value.clone() for name, value in tiny.state_dict().items()}, history.rows


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def assert_same(first, second):
    """Compares two outcomes, or two checkpoints: tensors by name, and everything else."""
    assert first[1] == second[1]
    assert_same_weights(first[0], second[0])


def final(folder):
    """Everything in the newest checkpoint: weights, optimizer, numbers."""
    path = sorted((folder / "checkpoints").iterdir())[-1]
    return load_file(path), mvkit.describe(path)["training"]


def interrupted(make, saves, folder, **options):
    """A run stopped after some checkpoints and taken up again with a fresh model."""
    options = {"batch_size": 3, "save_every": 0, "checkpoint": folder, **options}
    with pytest.raises(Stopped):
        mvkit.fit(make(), listeners=[stop_after(saves)], **options)
    torch.rand(5)
    tiny = make()
    return outcome(tiny, mvkit.fit(tiny, resume="must", **options))


def uninterrupted(make, folder, **options):
    tiny = make()
    options = {"batch_size": 3, "save_every": 0, "checkpoint": folder, **options}
    return outcome(tiny, mvkit.fit(tiny, **options))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_every_part_goes_on_with_the_same_bits(aggregator, objective, tmp_path):
    place = AGGREGATORS.index(aggregator) * len(OBJECTIVES) + OBJECTIVES.index(objective)
    data = rows(7, missing=bool(place % 2))
    options = {"epochs": 2, "data": data, "validation": rows(4, seed=1)}

    def make():
        return model(aggregator, "mog", objective, private=1)

    whole = uninterrupted(make, tmp_path / "whole", **options)
    assert_same(whole, interrupted(make, 1 + place % 7, tmp_path / "parts", **options))
    assert_same(final(tmp_path / "whole"), final(tmp_path / "parts"))


ONE_CYCLE = {"name": "OneCycleLR", "max_lr": 0.01, "total_steps": 9, "every": "step"}
RICH = [
    Stage(
        "elbo", 2, ["aggregator.*", "decoders.*"], ramps={"kl_weight": "linear"}, ema=0.9, clip=1.0
    ),
    Stage("jmvae", 2, optimizer="adamw", lr_schedule=ONE_CYCLE),
    Stage(
        "elbo",
        9,
        ["encoders.*"],
        accumulate=2,
        steps=5,
        patience=2,
        lr_schedule="ReduceLROnPlateau",
    ),
]


@pytest.mark.parametrize("saves", range(1, 20, 2))
def test_every_moment_of_every_stage(saves, tmp_path):
    def make():
        torch.manual_seed(3)
        encoder = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.3), nn.Linear(6, 4))
        every = {**modalities(), "a": Modality((3,), encoder=encoder)}
        parts = {"aggregator": "joint", "objective": "telbo", "seed": 0}
        return Model(every, latent_dim=2, **parts).double()

    options = {"data": rows(8), "validation": rows(4, seed=1), "stages": RICH}
    whole = uninterrupted(make, tmp_path / "whole", **options)
    assert whole[1][-1]["stage"] == 2
    assert_same(whole, interrupted(make, saves, tmp_path / "parts", **options))


class Items(torch.utils.data.Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, i):
        every = rows(7)
        return {name: every.data[name][i] for k, name in enumerate(every.data) if every.mask[i, k]}


@pytest.mark.parametrize("workers", [0, 2])
def test_with_workers(workers, tmp_path):
    options = {"data": Items(), "epochs": 2}
    whole = uninterrupted(model, tmp_path / "whole", **options)
    assert_same(whole, interrupted(model, 4, tmp_path / "parts", workers=workers, **options))


def test_a_loader_of_ones_own(tmp_path):
    options = {"data": [rows(4), rows(3), rows(2)], "epochs": 2}
    whole = uninterrupted(model, tmp_path / "whole", **options)
    assert_same(whole, interrupted(model, 5, tmp_path / "parts", **options))


def test_a_stack_and_a_scale_that_learns(tmp_path):
    def make():
        sizes = {"latent_dim": 2, "bottom_dim": 2, "message_dim": 4}
        return recipes.nexus(modalities(), **sizes, seed=0).double()

    options = {"data": rows(8), "epochs": 2}
    whole = uninterrupted(make, tmp_path / "whole", **options)
    assert_same(whole, interrupted(make, 2, tmp_path / "parts", **options))


def test_in_a_fresh_process(tmp_path):
    code = """
        import sys, torch, mvkit
        sys.path.insert(0, "tests")
        from helpers import model, rows
        torch.set_num_threads(1)
        tiny = model("mopoe", "mog", "dreg")
        mvkit.fit(tiny, rows(7), epochs=2, batch_size=3, checkpoint=sys.argv[1], resume="must", save_every=0)
    """

    def make():
        return model("mopoe", "mog", "dreg")

    whole = uninterrupted(make, tmp_path / "whole", data=rows(7), epochs=2)
    options = {"batch_size": 3, "save_every": 0, "checkpoint": tmp_path / "parts"}
    with pytest.raises(Stopped):
        mvkit.fit(make(), rows(7), epochs=2, listeners=[stop_after(2)], **options)
    program = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run([*program, str(tmp_path / "parts")], check=True)
    for name in ("history.jsonl", "history.csv"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()
    again = mvkit.load(tmp_path / "parts" / "model.safetensors")
    assert_same_weights(whole[0], again.state_dict())


def test_the_folder(tmp_path):
    tiny = model()
    events = []
    options = {"epochs": 5, "batch_size": 4, "checkpoint": tmp_path, "keep": 2}
    options |= {"data": rows(8), "validation": rows(4), "listeners": [events.append]}
    history = mvkit.fit(tiny, **options)
    checkpoints = sorted((tmp_path / "checkpoints").iterdir())
    assert [path.stem for path in checkpoints] == ["00000008", "00000010"]
    files = " ".join(sorted(path.name for path in tmp_path.iterdir() if path.is_file()))
    assert files == ".lock best.safetensors history.csv history.jsonl model.safetensors"
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history.rows
    header = (tmp_path / "history.csv").read_text().splitlines()[0]
    assert header.split(",") == history.columns
    assert isinstance(events[-1], RunFinished)
    assert events[-1].error is None
    best = mvkit.load(tmp_path / "best.safetensors")
    assert_same_weights(best.state_dict(), tiny.state_dict())
    with pytest.raises(CheckpointError, match="the state of a training run; load the run's best"):
        mvkit.load(checkpoints[-1])
    again = model()
    events.clear()
    assert mvkit.fit(again, **options).rows == history.rows
    assert_same_weights(again.state_dict(), tiny.state_dict())
    assert not any(isinstance(event, StageStarted) for event in events)


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(tmp_path):
    options = {"data": rows(7), "epochs": 2}
    whole = uninterrupted(model, tmp_path / "whole", **options)
    extra = {"batch_size": 3, "save_every": 0, "checkpoint": tmp_path / "parts"}
    with pytest.raises(Stopped):
        mvkit.fit(model(), listeners=[stop_after(3)], **extra, **options)
    newest = sorted((tmp_path / "parts/checkpoints").iterdir())[-1]
    blob = bytearray(newest.read_bytes())
    blob[-1] ^= 1
    newest.write_bytes(blob)
    tiny = model()
    with pytest.warns(
        UserWarning, match=r"altered since it was saved.*the checkpoint before it is used"
    ):
        history = mvkit.fit(tiny, **extra, **options)
    assert_same(whole, outcome(tiny, history))


def test_what_does_not_fit_the_run(tmp_path):
    options = {"epochs": 1, "checkpoint": tmp_path}
    with pytest.raises(RequestError, match=r"no good checkpoint in .*take resume='auto'"):
        mvkit.fit(model(), rows(), resume="must", **options)
    options["epochs"] = 2
    mvkit.fit(model(), rows(), **options)
    with pytest.raises(
        RequestError, match=r"another lr: 0\.001, got 0\.01; take the same, or another folder"
    ):
        mvkit.fit(model(), rows(), lr=0.01, **options)
    with pytest.raises(RequestError, match=r"another stages: 0: epochs: 2, got 1"):
        mvkit.fit(model(), rows(), **{**options, "epochs": 1})
    with pytest.raises(RequestError, match=r"another model: .*prior"):
        mvkit.fit(model(prior="mog"), rows(), **options)
    with pytest.raises(
        RequestError, match=r"holds a run already; take another folder, or resume='auto'"
    ):
        mvkit.fit(model(), rows(), resume="never", **options)


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    pytest.importorskip("fcntl")

    def intrude(event):
        mvkit.fit(model(), rows(), epochs=1, checkpoint=tmp_path)

    with pytest.raises(RequestError, match="another process trains in"):
        mvkit.fit(model(), rows(), epochs=1, checkpoint=tmp_path, listeners=[intrude])


def test_numbers_that_json_lacks():
    value = {"a": [float("inf"), -float("inf"), 1.5], "b": {"c": float("nan")}}
    again = decoded(json.loads(json.dumps(encoded(value), allow_nan=False)))
    assert again["a"] == value["a"]
    assert again["b"]["c"] != again["b"]["c"]
