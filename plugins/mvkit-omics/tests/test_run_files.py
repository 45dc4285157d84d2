"""Recipes of cells from a run file, parts that learn at rates of their own, and sparse rows that
are embedded.
"""

import numpy as np
import pandas
import pytest
import torch
from matrices import GENES, ROWS, counts, stored
from mvkit_omics import SparseRows
from mvkit_omics.schedules import Warmup
from test_recipes import cells, made

import mvkit
from mvkit import Modality, MultimodalDataset
from mvkit.apps.cli import main

CELLS = 40
MODELS = {
    "scvi": "",
    "totalvi": 'proteins = "adt_numbers"',
    "multivi": 'peaks = "atac_bits"',
    "cite_mopoe": "",
}
FILES = {
    "scvi": ["rna"],
    "totalvi": ["rna", "adt"],
    "multivi": ["rna", "atac"],
    "cite_mopoe": ["rna", "adt"],
}
SHAPES = {"rna": (6, 3.0), "adt": (4, 20.0), "atac": (5, 0.6)}


def write_run(folder, recipe):
    """Counts of cells as CSV files, of which all but the first lack some, and a run of them."""
    random = np.random.default_rng(0)
    files = []
    transforms = []
    for place, name in enumerate(FILES[recipe]):
        width, mean = SHAPES[name]
        counts = random.poisson(mean, (CELLS - 5 * place, width))
        counts = counts.clip(max=1) if name == "atac" else counts
        table = pandas.DataFrame(counts, columns=[f"{name} {i}" for i in range(width)])
        table.insert(0, "cell", [f"cell {i}" for i in range(len(table))])
        table.to_csv(folder / f"{name}.csv", index=False)
        files.append(f'{name} = "{name}.csv"')
        prefix = f"{name}_" if len(FILES[recipe]) > 1 else ""
        if name != "atac":  # zeros and ones are bits, which nothing scales
            transforms.append(f"{prefix}numbers = []")
    lines = ["[data]", 'name = "files"', 'id = "cell"', "[data.files]", *files]
    lines += ["[data.transforms]", *transforms, "[model]", f'recipe = "mvkit-omics/{recipe}"']
    lines += ["latent_dim = 3", "hidden = [8]", MODELS[recipe]]
    lines += ["[train]", "epochs = 2", "batch_size = 20"]
    (folder / "cells.toml").write_text("\n".join(lines))


@pytest.mark.parametrize("recipe", sorted(MODELS))
def test_a_run_file_trains_a_recipe_of_cells(recipe, tmp_path):
    write_run(tmp_path, recipe)
    folders = tmp_path / "one", tmp_path / "other"
    assert main(["train", str(tmp_path / "cells.toml"), "--folder", str(folders[0])]) == 0
    assert main(["train", str(folders[0] / "run.toml"), "--folder", str(folders[1])]) == 0
    first, second = (mvkit.load(folder / "model.safetensors") for folder in folders)
    assert set(first.names) == set(second.names)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def dispersions(model):
    values = {}
    for name, value in model.named_parameters():
        if name.startswith("decoders.") and ".likelihood." in name:
            values[name] = value.detach().clone()
    return values


def test_parts_of_a_model_learn_at_rates_of_their_own():
    moved = {}
    for groups in ({}, {"decoders.*.likelihood.*": 0.1}):
        model = made("scvi", schedule=Warmup(epochs=2, weight_decay=0.0, groups=groups))
        before = dispersions(model)
        assert before
        # trained twice, since the first time places dispersions at those of the data
        options = {"epochs": 3, "batch_size": 20, "lr": 1e-3, "seed": 0, "progress": False}
        mvkit.fit(model, cells("scvi"), **options)
        before = dispersions(model)
        mvkit.fit(model, cells("scvi"), **options)
        change = [(value - before[name]).abs().max() for name, value in dispersions(model).items()]
        moved[bool(groups)] = max(change)
    assert moved[False] <= 6 * 1.1e-3  # Adam moves by the rate a step at most, of 6
    assert moved[True] > 20 * moved[False]


@pytest.mark.parametrize("storage", ["memory", "in chunks"])
def test_embeddings_of_sparse_rows_are_those_of_dense_ones(tmp_path, storage):
    matrix = counts()
    rows = SparseRows({"rna": stored(tmp_path, matrix, storage)}, {"rna": "poisson"})
    dense = MultimodalDataset.from_arrays({"rna": matrix.toarray()}, modalities={"rna": "poisson"})
    modality = Modality((GENES,), "poisson", input="log1p")
    model = mvkit.Model({"rna": modality}, latent_dim=2, seed=0)
    z = mvkit.embed(model, rows)
    assert z.shape == (ROWS, 2)
    assert torch.allclose(z, model.encode(dense), atol=1e-6)
    with pytest.raises(mvkit.DataError):
        mvkit.embed(model, rows, id="cell")
