"""Answers that the core writes as h5ad: AnnData reads them, in memory and from the disk."""

import anndata
import numpy as np
import pandas
import pytest
import torch

import mvkit


@pytest.mark.parametrize("backed", [None, "r"])
def test_anndata_reads_embeddings(tmp_path, backed):
    model = mvkit.Model({"rna": (5,)}, latent_dim=3, seed=0)
    x = torch.randn(11, 5)
    batch = mvkit.Batch({"rna": x}, extra={"id": [f"cell {i}" for i in range(11)]})
    path = mvkit.embed(model, batch, into=tmp_path / "z.h5ad")
    cells = anndata.read_h5ad(path, backed=backed)
    assert cells.obs_names.tolist() == batch.extra["id"]
    assert cells.var_names.tolist() == ["z0", "z1", "z2"]
    assert (np.asarray(cells.X[:]) == model.encode(batch).numpy()).all()
    assert cells.obs.shape == (11, 0)


def test_anndata_reads_rows_without_ids(tmp_path):
    model = mvkit.Model({"rna": (5,)}, latent_dim=3, seed=0)
    path = mvkit.embed(model, {"rna": torch.randn(4, 5)}, into=tmp_path / "z.h5ad")
    assert anndata.read_h5ad(path).obs_names.tolist() == ["0", "1", "2", "3"]


def test_anndata_reads_filled_numbers_and_words(tmp_path):
    words = pandas.DataFrame({"x": ["u", "v", None, "ü"]}, index=list("abcd"))
    numbers = pandas.DataFrame({"y": [1.0, 2, None, 4.5], "z": 0.5}, index=list("abcd"))
    frames = {"w": words, "n": numbers}
    data = mvkit.MultimodalDataset.from_tables(frames, modalities={"w": "categorical"})
    model = mvkit.Model(data.modalities, latent_dim=1, seed=0)
    cells = anndata.read_h5ad(mvkit.impute(model, data, into=tmp_path / "filled.h5ad"))
    assert cells.obs_names.tolist() == list("abcd")
    assert cells.var_names.tolist() == ["n.y", "n.z"]
    assert cells.obs["w.x"].tolist()[:2] == ["u", "v"]
    assert set(cells.obs["w.x"]) <= {"u", "v", "ü"}
    assert np.isfinite(cells.X).all()
    assert cells.X[0].tolist() == [1.0, 0.5]
