"""Refiners in `mvkit report` and `mvkit list`, and in runs that TOML describes."""

import pytest
from test_page import METRICS, run  # noqa: F401, a fixture

import mvkit
from mvkit.apps import cli
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
