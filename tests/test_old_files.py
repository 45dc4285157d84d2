"""Checkpoints and a run folder that were written before the package had folders still load."""

import itertools
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import mvkit
from mvkit import Batch, Modality, Model

FILES = Path(__file__).parent / "files" / "before_layers"
ANSWERS = json.loads((FILES / "answers.json").read_text())


def assert_answer(codes, name):
    expected = torch.tensor(ANSWERS[name]["encode"])
    torch.testing.assert_close(codes, expected, rtol=1e-5, atol=1e-6)


def rows(b=11):
    """The rows that the answers were computed for."""
    generator = torch.Generator().manual_seed(1)
    data = {
        "a": torch.randn(b, 3, generator=generator),
        "b": torch.rand(b, 2, 2, generator=generator),
        "c": torch.eye(4)[torch.randint(4, (b,), generator=generator)],
    }
    data["a"][0, 1] = torch.nan
    data["b"][2, 0, 1] = torch.nan
    patterns = list(itertools.product([True, False], repeat=3))[:-1]  # all but none of them
    mask = [patterns[i % len(patterns)] for i in range(b)]
    return Batch(data, torch.tensor(mask))


@pytest.mark.parametrize("name", ["clusters", "nexus", "mhvae", "telbo"])
def test_models_load_and_encode_as_they_did(name):
    model = mvkit.load(FILES / f"{name}.safetensors")
    codes = model.encode(rows(), empty="prior")
    assert_answer(codes, name)


def test_a_fitted_sampler_comes_back():
    model = mvkit.load(FILES / "clusters.safetensors")
    assert list(model.samplers) == ["gmm"]
    assert model.sample(3, sampler="gmm")["a"].shape == (3, 3)


def test_a_model_of_tables_keeps_its_transforms():
    model = mvkit.load(FILES / "table.safetensors")
    ids = list("wxyz")
    columns = {"p": [1.0, 2.0, None, 4.0], "q": [3.0, 1.0, 2.0, 8.0]}
    numbers = pd.DataFrame(columns, index=ids)
    kinds = pd.DataFrame({"kind": ["u", "v", "u", "v"]}, index=ids)
    codes = model.encode({"x": numbers, "k": kinds})
    assert_answer(codes, "table")


def test_a_run_resumes_and_ends_as_it_would_have(tmp_path):
    shutil.copytree(FILES / "run", tmp_path / "run")
    network = {"name": "mlp", "hidden": [5]}
    options = {"encoder": network, "decoder": network}
    modalities = {
        "a": Modality((3,), {"name": "normal", "scale": "optimal"}, **options),
        "b": Modality((2, 2), "bernoulli", **options),
        "c": Modality((4,), "categorical", private_beta=0.7, weight=1.5, **options),
    }
    model = Model(modalities, latent_dim=2, aggregator="mopoe", prior="mog", seed=0)
    settings = {"epochs": 3, "batch_size": 4, "validation": rows(7), "progress": False}
    history = mvkit.fit(model, rows(), checkpoint=tmp_path / "run", resume="must", **settings)
    expected = ANSWERS["run"]
    assert history["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert history["valid/loss"] == pytest.approx(expected["valid"], rel=1e-5)
    sums = {name: value.double().sum().item() for name, value in model.state_dict().items()}
    assert sums == pytest.approx(expected["weights"], rel=1e-4, abs=1e-5)
