"""Refiners in `mvkit report` and `mvkit list`, and in runs that TOML describes."""

import numpy as np
import pytest
import torch
from test_page import METRICS, run  # noqa: F401, a fixture
from test_samplers import stack

import mvkit
from mvkit.apps import cli
from mvkit.apps.explorer import imputed, layout
from mvkit.apps.explorer_controls import refined_control
from mvkit.apps.html_report import write_page

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


def test_the_explorer_draws_by_refiners(refined):
    row = refined.conform(mvkit.load_dataset("few").test.batch.take([4]))
    sharp, plain = (imputed(refined, row, ["left"], 0, refine=refine) for refine in (True, False))
    generator = torch.Generator().manual_seed(0)
    options = {"given": ["left"], "refine": ["right"], "generator": generator}
    refined.translate(row, n=99, sample=True, **options)
    expected = refined.translate(row, n=2, **options)["right"][0, 0, 0].clamp(0, 1)

    def picture(axes, line, column):
        return axes[line, column].images[0].get_array()

    np.testing.assert_allclose(picture(sharp, 2, 1), expected, rtol=1e-5)
    assert not np.array_equal(picture(sharp, 2, 1), picture(plain, 2, 1))
    assert not np.array_equal(picture(sharp, 4, 1), picture(plain, 4, 1))  # of the interval
    for same in (picture(axes, 1, 1) for axes in (sharp, plain)):  # means are the decoder's
        np.testing.assert_array_equal(same, picture(plain, 1, 1))
    np.testing.assert_array_equal(picture(sharp, 0, 0), picture(plain, 0, 0))


@pytest.mark.filterwarnings("ignore:Widget.name is deprecated")
@pytest.mark.parametrize("sampler", [False, True])
def test_the_explorer_offers_refiners_of_models_that_have_some(refined, sampler):
    panel = pytest.importorskip("panel", reason="needs panel: pip install 'mvkit[explore]'")
    data = mvkit.load_dataset("few")
    if sampler:
        spec = {"name": "gmm", "components": 2, "floor": 0.1, "conditional": True}
        mvkit.fit_sampler(refined, data.train, spec)

    def box_of(page):
        boxes = page.select(panel.widgets.Checkbox)
        (checkbox,) = [box for box in boxes if box.name.startswith("refined")]
        return checkbox

    page = layout(refined, data.test)
    checkbox = box_of(page)
    assert (checkbox.name, checkbox.disabled, checkbox.value) == ("refined: right", False, False)
    before = len(page.select(panel.pane.Matplotlib))
    checkbox.value = True  # the pictures are drawn again, without an error in their place
    assert len(page.select(panel.pane.Matplotlib)) == before > 0
    refined.refiners.clear()
    checkbox = box_of(layout(refined, data.test))
    assert checkbox.disabled
    assert checkbox.name == "refined (no refiner was trained: mvkit.fit_refiner)"


@pytest.mark.filterwarnings("ignore:Widget.name is deprecated")
def test_a_stack_has_no_refiners_to_offer():
    panel = pytest.importorskip("panel", reason="needs panel: pip install 'mvkit[explore]'")
    checkbox = refined_control(stack())
    assert isinstance(checkbox, panel.widgets.Checkbox)
    assert checkbox.disabled
    assert checkbox.name == "refined (a stack has no refiners)"
