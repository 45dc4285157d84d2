"""Fitted samplers in the explorer and in `mvkit report`."""

import numpy as np
import pytest
import torch
from test_page import METRICS, run  # noqa: F401, a fixture

import mvkit
from mvkit.apps import cli
from mvkit.apps.explorer import imputed, layout
from mvkit.apps.explorer_controls import conditional_samplers
from mvkit.apps.html_report import write_page

pytest.importorskip("matplotlib")
SPEC = {"name": "gmm", "components": 2, "floor": 0.1, "conditional": True}


@pytest.fixture
def fitted(run):  # noqa: F811
    """The run with a conditional sampler in its model's file."""
    model = mvkit.load(run / "model.safetensors")
    mvkit.fit_sampler(model, mvkit.load_dataset("few").train, SPEC)
    mvkit.save(model, run / "model.safetensors")
    return run


def test_the_explorer_generates_by_a_sampler(fitted):
    model = mvkit.load(fitted / "model.safetensors")
    row = model.conform(mvkit.load_dataset("few").test.batch.take([4]))
    axes = imputed(model, row, ["left"], 0, "gmm")
    options = {"to": ["right"], "given": ["left"], "latent": "mean"}
    by_sampler, by_posterior = (
        model.translate(row, sampler=sampler, **options)["right"][0, 0, 0].clamp(0, 1)
        for sampler in ("gmm", None)
    )
    shown = axes[1, 1].images[0].get_array()
    np.testing.assert_allclose(shown, by_sampler, rtol=1e-5)
    assert not torch.equal(by_sampler, by_posterior)


@pytest.mark.filterwarnings("ignore:Widget.name is deprecated")
def test_the_explorer_offers_samplers_that_know_a_condition(fitted):
    panel = pytest.importorskip("panel", reason="needs panel: pip install 'mvkit[explore]'")
    model = mvkit.load(fitted / "model.safetensors")
    assert conditional_samplers(model) == ["gmm"]
    data = mvkit.load_dataset("few").test

    def choices(model):
        return [
            dict(widget.options)
            for widget in layout(model, data).select(panel.widgets.Select)
            if widget.name == "latents from"
        ]

    assert choices(model) == [{"posterior": None, "gmm": "gmm"}]
    mvkit.fit_sampler(model, mvkit.load_dataset("few").train, {"name": "gmm", "components": 2})
    assert choices(model) == []


def test_a_report_by_a_sampler(fitted, tmp_path, capsys):
    command = ["report", str(fitted), "-o", str(tmp_path / "page.html"), "--sampler"]
    assert cli.main([*command, "flow"]) == 1
    assert "sampler" in capsys.readouterr().err
    report = write_page(
        fitted, tmp_path / "page.html", metrics=METRICS, sampler="gmm", progress=False
    )
    assert report.about["sampler"] == "gmm"
    assert "latents of sampler &#39;gmm&#39;" in (tmp_path / "page.html").read_text()
