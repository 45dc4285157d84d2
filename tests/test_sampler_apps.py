"""Fitted samplers in the explorer and in `mvkit report`."""

import base64

import numpy as np
import pytest
import torch
from test_page import METRICS, run  # noqa: F401, a fixture

import mvkit
from mvkit import plots
from mvkit.apps import cli, report_figures
from mvkit.apps.explorer_answers import Explorer
from mvkit.apps.explorer_draws import DRAWS
from mvkit.apps.html_report import write_page
from mvkit.core import noise
from mvkit.data.datasets.catalogue import Splits
from mvkit.evaluation.report import Report

pytest.importorskip("matplotlib")
SPEC = {"name": "gmm", "components": 2, "floor": 0.1, "conditional": True}


@pytest.fixture
def fitted(run):  # noqa: F811
    """The run with a conditional sampler in its model's file."""
    model = mvkit.load(run / "model.safetensors")
    mvkit.fit_sampler(model, mvkit.load_dataset("few").train, SPEC)
    mvkit.save(model, run / "model.safetensors")
    return run


def pixels(text):
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(4, 4)


def test_the_explorer_generates_by_a_sampler(fitted):
    model = mvkit.load(fitted / "model.safetensors")
    rows = mvkit.load_dataset("few").test
    asked = {"number": 4, "given": ["left"], "sampler": "gmm", "dim": 1, "shift": 0.5}
    answer = Explorer(model, rows).answer(asked)["modalities"]["right"]
    options = {"to": model.names, "given": ["left"], "n": DRAWS}
    by_sampler, by_posterior = (
        model.translate(rows[4], sampler=sampler, generator=noise.seeded(0), **options)["right"]
        for sampler in ("gmm", None)
    )
    expected = (by_sampler.mean(0)[0, 0].clamp(0, 1) * 255).round()
    np.testing.assert_allclose(pixels(answer["mean"]), expected, atol=1)
    assert not torch.equal(by_sampler, by_posterior)
    # the latent that moves is the sampler's too
    centre = model.translate(rows[4], given=["left"], sampler="gmm", latent="mean")["right"]
    expected = (centre[0, 0, 0].clamp(0, 1) * 255).round()
    np.testing.assert_allclose(pixels(answer["centre"]), expected, atol=1)


def test_the_explorer_offers_samplers_and_says_which_know_a_row(fitted):
    model = mvkit.load(fitted / "model.safetensors")
    data = mvkit.load_dataset("few")
    explorer = Explorer(model, data.test)
    assert explorer.description()["samplers"] == [{"name": "gmm", "given": True}]
    mvkit.fit_sampler(model, data.train, {"name": "gmm", "components": 2})
    assert explorer.description()["samplers"] == [{"name": "gmm", "given": False}]
    answer = explorer.answer(
        {"number": 0, "given": ["left"], "sampler": "gmm", "dim": 0, "shift": 1}
    )
    options = {"sampler": "gmm", "generator": noise.seeded(0)}
    expected = model.sample(DRAWS, **options)["right"].mean(0)[0]
    expected = (expected.clamp(0, 1) * 255).round()
    np.testing.assert_allclose(pixels(answer["modalities"]["right"]["mean"]), expected, atol=1)
    with torch.no_grad():
        next(model.decoders["left"].parameters()).mul_(1.5)
    (note,) = explorer.answer({"number": 0, "sampler": "gmm"})["notes"]
    assert "gmm" in note
    with pytest.raises(mvkit.RequestError, match="give one of them"):
        explorer.answer({"number": 0, "sampler": "gmm", "cluster": 1})


TRANSLATIONS = "Each modality imputed from each other, one test row"


def test_a_report_by_a_sampler(fitted, tmp_path, capsys):
    command = ["report", str(fitted), "-o", str(tmp_path / "page.html"), "--sampler"]
    assert cli.main([*command, "flow"]) == 1
    assert "sampler" in capsys.readouterr().err
    report = write_page(
        fitted, tmp_path / "page.html", metrics=METRICS, sampler="gmm", progress=False
    )
    assert report.about["sampler"] == "gmm"
    assert "latents of sampler &#39;gmm&#39;" in (tmp_path / "page.html").read_text()


def test_pictures_of_a_report_are_a_samplers(fitted):
    model = mvkit.load(fitted / "model.safetensors")
    test = mvkit.load_dataset("few").test
    shown = plots.imputed_row(model, test, "right", sampler="gmm", n=20)
    options = {"sample": True, "generator": noise.seeded(0), "sampler": "gmm"}
    expected = model.translate(test[0], "right", ["left"], 20, **options)["right"]
    np.testing.assert_allclose(shown.mean, expected.mean(0).flatten(), rtol=1e-5, atol=1e-6)
    own = plots.imputed_row(model, test, "right", n=20)
    assert not np.allclose(own.mean, shown.mean)
    splits = Splits(test.modalities, test, test, test)
    by_sampler = report_figures.pictures(model, splits, [], Report(()), 0, sampler="gmm")
    by_posterior = report_figures.pictures(model, splits, [], Report(()), 0)
    for title, same in ((TRANSLATIONS, False), ("Which modality drives the posterior", True)):
        assert (by_sampler[title] == by_posterior[title]) == same
