"""The explorer of a model with covariates: they are those of the row, or chosen."""

import numpy as np
import pytest
import torch

import mvkit
from mvkit import Batch, Covariate, MultimodalDataset
from mvkit.apps import explorer
from mvkit.apps.explorer import imputed, moved
from mvkit.apps.explorer_controls import OF_THE_ROW, stated_by

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def model_and_rows():
    generator = torch.Generator().manual_seed(0)
    age = torch.linspace(20, 80, 40)
    site = ["x" if i % 2 else "y" for i in range(40)]
    a = torch.randn(40, 1, 4, 4, generator=generator).sigmoid()
    data = {"a": a, "b": torch.randn(40, 3, generator=generator) + age[:, None] / 20}
    rows = Batch(data, covariates={"age": age, "site": site})
    shapes = {"a": (1, 4, 4), "b": (3,)}
    covariates = {"age": Covariate(), "site": ("x", "y")}
    model = mvkit.Model(shapes, latent_dim=2, covariates=covariates, seed=0)
    mvkit.fit(model, rows, epochs=2, progress=False)
    return model, rows


def picture(axes, line):
    return np.asarray(axes[line, 0].images[0].get_array())


def test_imputed_rows_have_the_covariates_chosen(model_and_rows):
    model, rows = model_and_rows
    row = model.conform(rows.take([3]))
    stated = {"site": "y", "age": 70.0}
    axes = imputed(model, row, ["b"], covariates=stated)
    options = {"given": ["b"], "latent": "mean"}
    expected = model.translate(row, covariates=stated, **options)["a"][0, 0, 0]
    own = model.translate(row, **options)["a"][0, 0, 0]
    np.testing.assert_allclose(picture(axes, 1), expected.clamp(0, 1), rtol=1e-5)
    assert not torch.allclose(own, expected)
    axes = imputed(model, row, ["b"])
    np.testing.assert_allclose(picture(axes, 1), own.clamp(0, 1), rtol=1e-5)


def test_moved_latents_have_the_covariates_chosen(model_and_rows):
    model, rows = model_and_rows
    row = model.conform(rows.take([3]))
    axes = moved(model, row, ["a", "b"], 0, 1.0, covariates={"site": "y"})
    own = float(rows.extra["age"][3])
    expected = model.decode(model.encode(row)[0], covariates={"site": "y", "age": own})["a"][0]
    np.testing.assert_allclose(picture(axes, 0), expected.clamp(0, 1), rtol=1e-5)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_the_page_draws_what_its_widgets_choose(model_and_rows, monkeypatch):
    pytest.importorskip("panel", reason="needs panel: pip install 'mvkit[explore]'")
    asked = []

    def note(*arguments, covariates, refine):
        asked.append(covariates)
        raise mvkit.RequestError("nothing to draw")

    monkeypatch.setattr(explorer, "imputed", note)
    model, rows = model_and_rows
    page = explorer.layout(model, MultimodalDataset(rows, model.modalities))
    named = {widget.name: widget for widget in page[0] if hasattr(widget, "value")}
    assert named["site"].value is None
    assert list(named["site"].options) == [OF_THE_ROW, "x", "y"]
    assert named[f"age {OF_THE_ROW}"].value is True
    assert (named["age"].start, named["age"].end) == (20.0, 80.0)
    draw = page[1][0].object
    draw()
    named["site"].value = "y"
    draw()
    named[f"age {OF_THE_ROW}"].value = False
    named["age"].value = 35.0
    draw()
    assert asked[0] == {}
    assert {"site": "y"} in asked
    assert asked[-1] == {"age": 35.0, "site": "y"}


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_controls_state_what_is_not_of_the_row(model_and_rows):
    pytest.importorskip("panel", reason="needs panel: pip install 'mvkit[explore]'")
    model, _ = model_and_rows
    controls = [explorer.CovariateControl.of(model, name) for name in ("age", "site")]
    assert stated_by(controls, [True, 50.0, None]) == {}
    assert stated_by(controls, [False, 50.0, None]) == {"age": 50.0}
    assert stated_by(controls, [True, 50.0, "y"]) == {"site": "y"}
