"""Proteins imputed from RNA and cells clustered, on a mosaic of four batches of PBMC.

    python benchmarks/omics.py baselines --file FOLDER/quickstart_pbmc_mosaic.h5mu
    python benchmarks/omics.py ours --file … --recipes cite_mopoe midas --seeds 0 1 2
    python benchmarks/omics.py table

1,600 cells, 400 of each batch: p1_0 has RNA alone, p2_0 proteins alone, p3_0 and p4_0 both. The
proteins of p3_0 are hidden. Imputed from the RNA, they are compared with the truth by Pearson's
correlation over the cells, of log1p counts, protein by protein; the figure is the mean over the
proteins. Codes of all cells are clustered by Leiden's algorithm (resolution 1) and compared with
the cell types, which no model saw; iLISI, scaled to [0, 1], says how well batches mix in them.

`load`, `hide` and `score` need no mvkit, so that scripts in other environments import them.
Lines go to `omics.jsonl`; `table` prints medians and ranges over seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
import warnings
from pathlib import Path

import numpy as np

LINES = Path(__file__).with_suffix(".jsonl")
HIDDEN = "p3_0"  # the batch whose proteins are hidden
PAIRED = "p4_0"  # the batch that teaches proteins from RNA
EPOCHS = 200
NEIGHBOURS = 90
PERPLEXITY = 30.0
Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Cells:
    """Counts of cells, and what is known of them; rows of NaN where a modality is missing.

    Args:
        counts: by modality, (cells, features) each.
        features: their names, by modality.
        batch: of each cell, words (cells,).
        celltype: likewise; for scores alone.
        ids: names of the cells, (cells,).
    """

    counts: dict[str, Array]
    features: dict[str, list[str]]
    batch: Array
    celltype: Array
    ids: Array


def load(file: Path) -> Cells:
    """The cells of an h5mu file, in its order."""
    import mudata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = mudata.read_h5mu(file)
    counts = {}
    features = {}
    for name, part in cells.mod.items():
        values = np.full((cells.n_obs, part.n_vars), np.nan, dtype=np.float32)
        values[cells.obs_names.get_indexer(part.obs_names)] = part.X.toarray()
        counts[name] = values
        features[name] = list(part.var_names)
    columns = [cells.obs[name].to_numpy().astype(str) for name in ("batch", "celltype")]
    return Cells(counts, features, *columns, cells.obs_names.to_numpy())


def hide(cells: Cells) -> Cells:
    """The cells without the proteins of one batch."""
    proteins = cells.counts["adt"].copy()
    proteins[cells.batch == HIDDEN] = np.nan
    return dataclasses.replace(cells, counts={**cells.counts, "adt": proteins})


def score(cells: Cells, imputed: Array | None, codes: Array | None) -> dict[str, float]:
    """Scores of imputed proteins and of codes.

    Args:
        cells: as loaded, with the truth.
        imputed: expected counts of the proteins of the hidden batch, (400, proteins).
        codes: of all cells, (cells, d).
    """
    scores = {}
    if imputed is not None:
        truth = cells.counts["adt"][cells.batch == HIDDEN]
        scores["pearson"] = pearson(np.log1p(imputed), np.log1p(truth))
    if codes is not None:
        scores |= agreement(codes, cells.celltype)
        scores["ilisi"] = ilisi(codes, cells.batch)
    return scores


def pearson(imputed: Array, truth: Array) -> float:
    """Mean over the columns of their correlation over the rows; constant columns count as 0."""
    imputed = imputed - imputed.mean(0)
    truth = truth - truth.mean(0)
    spread = np.sqrt((imputed**2).sum(0) * (truth**2).sum(0))
    product = (imputed * truth).sum(0)
    return float(np.where(spread > 0, product / np.where(spread > 0, spread, 1), 0).mean())


def agreement(codes: Array, celltype: Array) -> dict[str, float]:
    """Adjusted Rand index and mutual information of Leiden's clusters with the cell types."""
    import anndata
    import scanpy
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    graph = anndata.AnnData(np.asarray(codes, dtype=np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scanpy.pp.neighbors(graph, use_rep="X", random_state=0)
        scanpy.tl.leiden(graph, flavor="igraph", n_iterations=2, directed=False, random_state=0)
    clusters = graph.obs["leiden"].to_numpy()
    return {
        "ari": float(adjusted_rand_score(celltype, clusters)),
        "nmi": float(normalized_mutual_info_score(celltype, clusters)),
        "clusters": len(set(clusters)),
    }


def ilisi(codes: Array, batch: Array) -> float:
    """Median over cells of the number of batches among neighbours, scaled from 0 to 1.

    Neighbours count by a normal kernel, whose width gives each cell a perplexity of 30.

    Reference: Korsunsky et al., Harmony, 2019, https://doi.org/10.1038/s41592-019-0619-0; the
    scale is that of Luecken et al., 2022, https://doi.org/10.1038/s41592-021-01336-8.
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(codes)
    distance, neighbour = search.kneighbors()
    kinds = np.unique(batch)
    numbers = []
    for row, near in zip(distance, neighbour, strict=True):
        weight = kernel(row**2)
        shares = [weight[batch[near] == kind].sum() for kind in kinds]
        numbers.append(1 / np.square(shares).sum())
    return float((np.median(numbers) - 1) / (len(kinds) - 1))


def kernel(squares: Array) -> Array:
    """Weights exp(-β d²) / Σ of squared distances, with β such that their perplexity is 30."""
    squares = squares - squares.min()
    low, high = 0.0, 1e6 / max(squares.max(), 1e-12)
    for _ in range(60):
        beta = (low + high) / 2
        weight = np.exp(-beta * squares)
        weight = weight / weight.sum()
        entropy = -(weight * np.log(np.maximum(weight, 1e-300))).sum()
        if entropy > np.log(PERPLEXITY):
            low = beta
        else:
            high = beta
    return weight


def baselines(cells: Cells) -> list[dict[str, object]]:
    """Scores of ridge regression and of nearest neighbours, taught by the paired batch alone.

    Both see principal components of log1p counts of RNA, fitted to all cells that have it.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import RidgeCV
    from sklearn.neighbors import KNeighborsRegressor

    rna = np.log1p(cells.counts["rna"])
    has_rna = ~np.isnan(rna[:, 0])
    components = PCA(50, random_state=0).fit(rna[has_rna])
    seen = components.transform(rna[cells.batch == PAIRED])
    wanted = components.transform(rna[cells.batch == HIDDEN])
    proteins = np.log1p(cells.counts["adt"][cells.batch == PAIRED])
    lines: list[dict[str, object]] = []
    models = {"ridge": RidgeCV(np.logspace(-1, 5, 13)), "kNN": KNeighborsRegressor(15)}
    for name, model in models.items():
        imputed = np.expm1(model.fit(seen, proteins).predict(wanted))
        lines.append({"model": name, "seed": 0, **score(cells, imputed, None)})
    return lines


def ours(cells: Cells, name: str, seed: int, epochs: int) -> dict[str, object]:
    """Scores of a recipe of mvkit-omics with its defaults, trained by those of `fit` but for epochs."""
    import torch

    import mvkit

    torch.set_num_threads(1)
    hidden = hide(cells)
    ids = list(cells.ids)
    arrays = dict(hidden.counts)
    options = {}
    if name == "midas":
        arrays["batch"] = np.unique(cells.batch, return_inverse=True)[1]
    data = mvkit.MultimodalDataset.from_arrays(
        arrays,
        ids=ids,
        covariates={"batch": dict(zip(ids, cells.batch, strict=True))},
        modalities=dict.fromkeys(hidden.counts, "negative_binomial"),
    )
    asked = {}
    if name != "midas":
        options["covariates"] = data.covariates
        asked["covariates"] = {"batch": PAIRED}  # whose proteins decoders know
    model = mvkit.recipes.get(f"mvkit-omics/{name}")(data.modalities, seed=seed, **options)
    start = time.process_time()
    mvkit.fit(model, data, epochs=epochs, seed=seed, progress=False)
    seconds = time.process_time() - start
    rows = data[torch.from_numpy(cells.batch == HIDDEN)].batch
    imputed = model.translate(rows, to=["adt"], latent="mean", **asked)["adt"][0].numpy()
    codes = model.encode(data.batch).numpy()
    if name == "midas":
        codes = codes[:, :-2]  # without the technical ones
    scores = score(cells, imputed, codes)
    return {"model": name, "seed": seed, "epochs": epochs, "seconds": round(seconds), **scores}


def table(lines: list[dict[str, object]]) -> str:
    """Medians, and the range over seeds, by model."""
    columns = ["pearson", "ari", "nmi", "ilisi", "seconds"]
    text = [f"| model | seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for name in dict.fromkeys(str(line["model"]) for line in lines):
        own = [line for line in lines if line["model"] == name]
        cells = [name, str(len(own))]
        for key in columns:
            values = [float(line[key]) for line in own if key in line]  # type: ignore[arg-type]
            cells.append(_spread(values) if values else "")
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def _spread(values: list[float]) -> str:
    """The median, and the range of several numbers."""
    digits = 3 if max(values) < 10 else 0
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def write(line: dict[str, object]) -> None:
    """Prints a line of results, and adds it to the file."""
    print(line, flush=True)
    with LINES.open("a") as file:
        file.write(json.dumps(line) + "\n")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["baselines", "ours", "table"])
    parser.add_argument("--file", type=Path, default=Path("quickstart_pbmc_mosaic.h5mu"))
    parser.add_argument("--recipes", nargs="+", default=["cite_mopoe"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    if options.what == "baselines":
        for line in baselines(load(options.file)):
            write(line)
    elif options.what == "ours":
        cells = load(options.file)
        for seed in options.seeds:
            for name in options.recipes:
                write(ours(cells, name, seed, options.epochs))
    print(table([json.loads(line) for line in LINES.read_text().splitlines()]))


if __name__ == "__main__":
    main()
