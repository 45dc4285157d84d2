"""totalVI and MIDAS on the mosaic of `omics.py`, by their own packages and defaults.

    python -m venv rivals && rivals/bin/pip install torch scvi-tools scmidas mudata scanpy igraph leidenalg
    rivals/bin/python benchmarks/omics_rivals.py totalvi midas --file … --seeds 0 1 2 3 4

In an environment of their own, as their versions of torch differ; one thread. MIDAS:
`scmidas.integrate`, whose defaults are tuned for this very file. totalVI: 400 epochs; it needs RNA,
so p2_0 is left out, for it and for its scores of codes. Its proteins are decoded as of p4_0, with
and without their background, and both are scored; the better one is in the table. Lines go to
`omics.jsonl`.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from omics import HIDDEN, PAIRED, Array, Cells, hide, load, score, write

DRAWS = 25


def midas(cells: Cells, seed: int) -> tuple[float, dict[str, Array], Array, Array]:
    """CPU seconds of training, imputed proteins by how, codes, and which cells they are of."""
    import mudata
    import scmidas

    parts = {name: annotated(cells, name) for name in ("rna", "adt")}
    mdata = mudata.MuData(parts)
    places = {name: i for i, name in enumerate(cells.ids)}
    order = np.array([places[name] for name in mdata.obs_names])
    mdata.obs["batch"] = cells.batch[order]
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        model = scmidas.integrate(mdata, seed=seed, accelerator="cpu", save_model_path=folder)
        seconds = time.process_time() - start
    proteins = np.empty((len(cells.ids), len(cells.features["adt"])))
    proteins[order] = model.get_imputed_values(modality="adt")
    codes = np.empty((len(cells.ids), mdata.obsm["X_midas"].shape[1]))
    codes[order] = model.get_latent_representation()
    return seconds, {"mean": proteins[cells.batch == HIDDEN]}, codes, np.ones(len(order), bool)


def totalvi(cells: Cells, seed: int) -> tuple[float, dict[str, Array], Array, Array]:
    """Likewise."""
    import scvi

    scvi.settings.seed = seed
    has_rna = ~np.isnan(cells.counts["rna"][:, 0])
    adata = annotated(cells, "rna")
    proteins = cells.counts["adt"][has_rna]
    adata.obsm["protein_expression"] = np.nan_to_num(proteins)  # zeros in a batch: not measured
    scvi.model.TOTALVI.setup_anndata(
        adata, batch_key="batch", protein_expression_obsm_key="protein_expression"
    )
    model = scvi.model.TOTALVI(adata)
    start = time.process_time()
    model.train(accelerator="cpu")
    seconds = time.process_time() - start
    wanted = np.flatnonzero(cells.batch[has_rna] == HIDDEN)
    imputed = {}
    for name, background in (("with background", True), ("foreground", False)):
        answer = model.get_normalized_expression(
            indices=wanted,
            n_samples=DRAWS,
            return_mean=True,
            transform_batch=[PAIRED],
            include_protein_background=background,
        )
        imputed[name] = np.asarray(answer[1])
    return seconds, imputed, model.get_latent_representation(), has_rna


def annotated(cells: Cells, name: str) -> Any:
    """An AnnData of the cells that have a modality."""
    import anndata
    import pandas
    import scipy.sparse

    seen = ~np.isnan(cells.counts[name][:, 0])
    obs = pandas.DataFrame({"batch": cells.batch[seen]}, index=cells.ids[seen])
    var = pandas.DataFrame(index=cells.features[name])
    return anndata.AnnData(scipy.sparse.csr_matrix(cells.counts[name][seen]), obs=obs, var=var)


MODELS: dict[str, Callable[..., Any]] = {"midas": midas, "totalvi": totalvi}
TITLES = {"midas": "MIDAS (scmidas)", "totalvi": "totalVI (scvi-tools)"}


def run(cells: Cells, name: str, seed: int) -> dict[str, object]:
    """Scores of one training."""
    seconds, imputed, codes, seen = MODELS[name](hide(cells), seed)
    own = dataclasses.replace(cells, batch=cells.batch[seen], celltype=cells.celltype[seen])
    scores = score(own, None, codes)
    line: dict[str, object] = {"model": TITLES[name], "seed": seed, "seconds": round(seconds)}
    for how, values in imputed.items():
        figure = score(cells, np.maximum(values, 0), None)["pearson"]
        line["pearson"] = max(figure, float(line.get("pearson", -1.0)))  # type: ignore[arg-type]
        line[f"pearson, {how}"] = figure
    return line | scores


def main() -> None:
    """Reads the command line."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", choices=list(MODELS))
    parser.add_argument("--file", type=Path, default=Path("quickstart_pbmc_mosaic.h5mu"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    cells = load(options.file)
    for seed in options.seeds:
        for name in options.models:
            write(run(cells, name, seed))


if __name__ == "__main__":
    main()
