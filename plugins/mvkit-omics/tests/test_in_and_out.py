"""What the README and the docstrings say, done."""

import doctest
import re
from pathlib import Path

import anndata
import mvkit_omics
import numpy as np
import pytest
from made_up import GENES, PROTEINS, cells, counts, joined, mosaic

import mvkit

README = Path(__file__).parents[1] / "README.md"


def section():
    text = README.read_text().partition("## In and out")[2]
    return text.partition("\n## ")[0]


def written(folder):
    """The files that the README reads."""
    mdata = mosaic()
    mdata.obs["celltype"] = ["T", "B", "NK"] * 3
    mdata["rna"].layers["counts"] = mdata["rna"].X.copy()
    mdata["rna"].X = mdata["rna"].X * 0.5
    mdata.write_h5mu(folder / "pbmc.h5mu")
    other = joined(rna=counts(cells(20, 21), ["G9", *GENES[2:]]), adt=counts(cells(21), PROTEINS))
    other.write_h5mu(folder / "other.h5mu")
    cite = counts(cells(0, 1, 2), GENES)
    cite.layers["counts"] = cite.X.copy()
    cite.layers["unspliced"] = cite.X * 2
    cite.obsm["protein_expression"] = np.array([[1, 5, 0], [2, 0, 3], [1, 1, 2]])
    cite.uns["protein_names"] = np.array(PROTEINS)
    cite.write_h5ad(folder / "plain.h5ad")
    cite.var["feature_types"] = ["Gene Expression", "Peaks"] * 3
    cite.write_h5ad(folder / "typed.h5ad")


def test_the_readme_does_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    names = {}
    first, second, third = re.findall(r"```python\n(.*?)```", section(), re.DOTALL)
    exec(first, names)
    mdata = names["mdata"]
    assert mdata.obsm["X_mvkit"].shape == (9, 4)
    assert mdata.obs["mvkit_cluster"].notna().all()
    assert mdata["adt"].layers["mvkit_imputed"].shape == (6, 3)
    assert mdata.obsm["mvkit_imputed_adt"].shape == (9, 3)
    *reads, by_type, layers = [line for line in second.splitlines() if "from_anndata(" in line]
    head = "\n".join(second.splitlines()[:2])
    for lines, file in ((([*reads, layers]), "plain.h5ad"), ([by_type], "typed.h5ad")):
        exec(head, names)
        names["adata"] = anndata.read_h5ad(file)
        for line in lines:
            exec(f"data = {line}", names)
            assert names["data"].ids.tolist() == cells(0, 1, 2)
    exec(third, names)
    assert names["z"].shape == (2, 4)
    assert names["other"].obsm["X_mvkit"].shape == (2, 4)


@pytest.mark.parametrize("module", ["reading", "writing"])
def test_docstrings_do_what_they_say(module):
    place = __import__(f"mvkit_omics.{module}", fromlist=[module])
    results = doctest.testmod(place, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 5
    assert not results.failed


def test_names_are_listed_and_unknown_ones_refused():
    assert {"annotate", "from_anndata", "from_mudata"} <= set(dir(mvkit_omics))
    with pytest.raises(AttributeError, match="has no attribute 'from_loom'"):
        mvkit_omics.from_loom


def test_the_readme_of_the_project_opens_a_door_for_cells(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = mosaic()
    whole["rna"].layers["counts"] = whole["rna"].X.copy()
    whole.write_h5mu("cells.h5mu")
    text = (Path(__file__).parents[3] / "README.md").read_text()
    (door,) = [s for s in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "h5mu" in s]
    names = {"mvkit": mvkit}
    exec(door.replace("epochs=200", "epochs=2"), names)
    assert names["cells"].obsm["X_mvkit"].shape == (9, 16)
    assert names["cells"].obsm["mvkit_imputed_adt"].shape == (9, 3)
