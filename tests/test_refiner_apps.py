"""Refiners in `mvkit report` and `mvkit list`, and in runs that TOML describes."""

import base64

import numpy as np
import pytest
from test_page import METRICS, run  # noqa: F401, a fixture
from test_samplers import stack

import mvkit
from mvkit.apps import cli
from mvkit.apps.explorer_answers import Explorer
from mvkit.apps.explorer_controls import why_unrefined
from mvkit.apps.explorer_draws import DRAWS
from mvkit.apps.html_report import write_page
from mvkit.core import noise

pytest.importorskip("matplotlib")


def test_a_report_by_a_refiner(run, tmp_path, capsys):  # noqa: F811
    command = ["report", str(run), "-o", str(tmp_path / "page.html"), "--refine", "right"]
    assert cli.main(command) == 1
    assert "evaluate: no refiner was trained for 'right'" in capsys.readouterr().err
    model = mvkit.load(run / "model.safetensors")
    spec = {"name": "energy", "hidden": 8}
    train = mvkit.load_dataset("few").train
    mvkit.fit_refiner(model, train, spec, "right", epochs=1, progress=False, device="cpu")
    mvkit.save(model, run / "model.safetensors")
    page = tmp_path / "page.html"
    report = write_page(run, page, metrics=METRICS, refine=["right"], progress=False)
    assert report.about["refine"] == ["right"]
    assert "draws of refiners" in page.read_text()
    plain = write_page(run, page, metrics=METRICS, progress=False)
    assert "refine" not in plain.about


def test_refiners_are_listed(capsys):
    assert cli.main(["list", "refiner"]) == 0
    assert "energy" in capsys.readouterr().out


@pytest.fixture
def refined(run):  # noqa: F811
    """A model of the run with a refiner of one modality."""
    model = mvkit.load(run / "model.safetensors")
    train = mvkit.load_dataset("few").train
    spec = {"name": "energy", "hidden": 8}
    mvkit.fit_refiner(model, train, spec, "right", epochs=1, progress=False, device="cpu")
    return model


def pixels(text):
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(4, 4)


def test_the_explorer_draws_by_refiners(refined):
    rows = mvkit.load_dataset("few").test
    explorer = Explorer(refined, rows)
    asked = {"number": 4, "given": ["left"]}
    sharp, plain = (explorer.answer({**asked, "refine": refine}) for refine in (True, False))
    generator = noise.seeded(0)
    options = {"given": ["left"], "refine": ["right"], "generator": generator}
    means = refined.translate(rows[4], n=DRAWS, **options)["right"]
    samples = refined.translate(rows[4], n=DRAWS, sample=True, **options)["right"]
    shown = refined.translate(rows[4], n=2, **options)["right"]
    right = sharp["modalities"]["right"]
    low = samples[:, 0, 0].sort(0).values[9]
    expected = {"mean": means.mean(0)[0, 0], "low": low}
    for key, values in expected.items():
        shade = (values.clamp(0, 1) * 255).round()
        np.testing.assert_allclose(pixels(right[key]), shade, atol=1)
    for text, values in zip(right["draws"], shown[:, 0, 0], strict=True):
        np.testing.assert_allclose(pixels(text), (values.clamp(0, 1) * 255).round(), atol=1)
    assert right["low"] != plain["modalities"]["right"]["low"]
    assert right["real"] == plain["modalities"]["right"]["real"]


def test_the_explorer_offers_refiners_of_models_that_have_some(refined):
    explorer = Explorer(refined, mvkit.load_dataset("few").test)
    about = explorer.description()
    assert about["refiners"] == ["right"]
    assert about["unrefined"] == ""
    refined.refiners.clear()
    about = explorer.description()
    assert about["refiners"] == []
    assert about["unrefined"] == "no refiner was trained: mvkit.fit_refiner"


def test_a_stack_has_no_refiners_to_offer():
    assert why_unrefined(stack()) == "a stack has no refiners"
