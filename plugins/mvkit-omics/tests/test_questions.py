"""What the README says of questions and of the façade, done."""

import re
import runpy
from pathlib import Path

import pytest
from made_up import GENES, PROTEINS, cells, counts, joined

README = Path(__file__).parents[1] / "README.md"
KINDS = ["T", "B", "T", "T", "B", "B"]


def section(title):
    return README.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]


def snippets(title):
    return re.findall(r"```python\n(.*?)```", section(title), re.DOTALL)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Cells of two batches, and others of a third."""
    names = cells(*range(24))
    mdata = joined(rna=counts(names, GENES), adt=counts(names[2:], PROTEINS, seed=1))
    mdata.obs["celltype"] = KINDS * 4
    new = joined(rna=counts(cells(*range(30, 40)), GENES[::-1]))
    for each, batches in ((mdata, ["p1", "p2"] * 12), (new, ["p3"] * 10)):
        each.obs["batch"] = batches
        for adata in each.mod.values():
            del adata.obs["batch"]
    mdata.write_h5mu(tmp_path / "cite.h5mu")
    new.write_h5mu(tmp_path / "new.h5mu")
    monkeypatch.chdir(tmp_path)


def ran(text, path):
    """The names of a snippet that trains for fewer epochs."""
    path.write_text(re.sub(r"epochs=[0-9]+", "epochs=3", text))
    return runpy.run_path(str(path))


def test_questions_are_answered_as_the_readme_says(files, tmp_path):
    first, second = snippets("Questions")
    names = ran(first + second, tmp_path / "questions.py")
    assert names["z"].shape == (24, 20)
    assert abs(names["rho"].sum(1) - 1).max() < 1e-5
    assert names["proteins"].mean.shape == (24, 3)
    assert (names["low"] <= names["high"]).all(axis=None)
    assert set(names["found"].index) <= set(GENES)
    assert set(names["table"]["comparison"]) == {"T vs B"}
    assert names["relevance"].shape == (6, 20)
    assert names["z_new"].shape == (10, 20)
    moved = names["mapped"].moved
    assert moved.loc["all", "cells"] == 24
    assert (moved[["mean", "largest"]] == 0).all(axis=None)
    metrics = {score.metric for score in names["report"].scores}
    assert "protein_imputation" in {metric.rpartition("/")[2] for metric in metrics}


def test_hands_that_know_scvi_tools_find_their_calls(files, tmp_path):
    [text] = snippets("For hands that know scvi-tools")
    names = ran(text, tmp_path / "facade.py")
    assert names["mdata"].obsm["X_mvkit"].shape == (24, 10)
    assert names["rho"].shape == (24, 6)
    assert set(names["table"]["comparison"]) == {"T vs B"}
    z = names["again"].get_latent_representation()
    assert abs(z - names["mdata"].obsm["X_mvkit"]).max() == 0
