"""Held-out log-likelihood of counts: negative binomial against a normal law of log1p counts.

    python benchmarks/omics_likelihood.py run --folder shared/data --seeds 0 1 2
    python benchmarks/omics_likelihood.py table

The normal law is made one of counts, P(x) = Φ((log1p(x + ½) - μ)/σ) - Φ((log1p(x - ½) - μ)/σ),
the interval of 0 beginning at -∞, so that both are probabilities of the same counts, in nats. Both
have the same networks, exposure (the total of RNA, none of proteins), covariates, one trained
number for each feature beside the mean, and the same training: until the validation loss has not
fallen for `PATIENCE` epochs, with the rate `RATE` of the numbers beside the means, which in the few
steps of an epoch hardly move at that of the networks (`--rate 0`: at theirs). A fifth of the cells
is held out; log p, that of all a cell has, of its RNA alone and of its proteins alone, is estimated
by importance sampling. It is given the cell's own total of RNA, as in training; without
`exposure=`, `log_likelihood` takes the median total of training, with which cells of many counts
decide (up to 3,000 nats each), and laws that fit less well are ahead. Data: the two CITE-seq files of 200 cells each (their
500 genes of largest variance in log1p, and all proteins), as one dataset with the file as a
covariate, and the mosaic of four batches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from pathlib import Path

import numpy as np
import torch
from omics import load

import mvkit
from mvkit import Modality, MultimodalDataset

LINES = Path(__file__).with_suffix(".jsonl")
LAWS = {
    "negative binomial": {"name": "negative_binomial", "start": "data"},
    "discretised normal": {"name": "mvkit-omics/discretised_normal"},
}
GENES = 500
DRAWS = 100
EPOCHS = 200
PATIENCE = 20
RATE = 0.02
OWN = "decoders.*.likelihood.*"  # the numbers of laws beside their means
NETWORK = {"name": "mlp", "hidden": (128,)}


def citeseq(folder: Path) -> MultimodalDataset:
    """Cells of both files, with the genes and proteins that both have."""
    import anndata

    files = {}
    for name in ("5k", "10k"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            files[name] = anndata.read_h5ad(folder / f"pbmc_{name}_protein_v3.h5ad")
    first, second = files.values()
    genes = first.var_names.intersection(second.var_names)
    rna = [_dense(file[:, genes].X) for file in files.values()]
    counts = np.concatenate(rna)
    chosen = np.sort(np.argsort(-np.log1p(counts).var(0))[:GENES])
    proteins = [_proteins(file) for file in files.values()]
    names = [name for name in proteins[0] if name in proteins[1]]
    adt = np.concatenate([np.stack([p[name] for name in names], 1) for p in proteins])
    batch = np.repeat(list(files), [len(part) for part in rna])
    return _dataset({"rna": counts[:, chosen], "adt": adt}, batch)


def _dense(values: object) -> np.ndarray:
    """Counts as an array, of a sparse matrix or one."""
    dense = values.toarray() if hasattr(values, "toarray") else values  # type: ignore[attr-defined]
    return np.asarray(dense, dtype=np.float32)


def _proteins(file: object) -> dict[str, np.ndarray]:
    """Counts of proteins by name, (cells,) each."""
    table = file.obsm["protein_expression"]  # type: ignore[attr-defined]
    if hasattr(table, "columns"):
        return {name: table[name].to_numpy(dtype=np.float32) for name in table.columns}
    names = [str(name) for name in file.uns["protein_names"]]  # type: ignore[attr-defined]
    return dict(zip(names, np.asarray(table, dtype=np.float32).T, strict=True))


def mosaic(folder: Path) -> MultimodalDataset:
    """All cells of the mosaic with what they have."""
    cells = load(folder / "quickstart_pbmc_mosaic.h5mu")
    return _dataset(cells.counts, cells.batch)


def _dataset(arrays: dict[str, np.ndarray], batch: np.ndarray) -> MultimodalDataset:
    return MultimodalDataset.from_arrays(
        arrays,
        ids=[f"cell {i}" for i in range(len(batch))],
        covariates={"batch": {f"cell {i}": word for i, word in enumerate(batch)}},
        modalities=dict.fromkeys(arrays, "negative_binomial"),
    )


def run(data: MultimodalDataset, law: str, seed: int, rate: float) -> dict[str, object]:
    """Trains one model; returns its held-out log p in nats per cell.

    Args:
        data: all cells.
        law: a name of `LAWS`.
        seed: of the split, of the weights and of training.
        rate: learning rate of dispersions and scales; 0: that of the networks.
    """
    shuffled = np.random.default_rng(seed).permutation(len(data))
    held = torch.from_numpy(np.isin(np.arange(len(data)), shuffled[: len(data) // 5]))
    train = data[~held]
    modalities = {}
    for name, modality in data.modalities.items():
        modalities[name] = Modality(
            modality.shape,
            LAWS[law],
            encoder=NETWORK,
            decoder=NETWORK,
            input="log1p",
            exposure="total" if name == "rna" else None,
        )
    options = {"latent_dim": 10, "aggregator": "mopoe", "covariates": data.covariates}
    schedule = {"name": "mvkit-omics/warmup", "epochs": 20, "weight_decay": 0.1}
    schedule |= {"groups": {OWN: rate}} if rate else {}
    model = mvkit.Model(modalities, seed=seed, schedule=schedule, **options)
    train, valid = _split(train, seed)
    settings = {"epochs": EPOCHS, "patience": PATIENCE, "batch_size": 64, "seed": seed}
    history = mvkit.fit(model, train, validation=valid, progress=False, **settings)
    line: dict[str, object] = {"law": law, "seed": seed, "rate": rate}
    line |= held_out(model, data[held], seed)
    losses = history["valid/loss"]
    return line | {"cells": int(held.sum()), "epochs": len(losses), "valid": min(losses)}


def held_out(model: mvkit.Model, cells: MultimodalDataset, seed: int) -> dict[str, float]:
    """Mean log p of cells given their totals of RNA, in nats: of all that each has, and of each
    modality alone in the cells that have it.
    """
    rows = model.conform(cells)
    totals = {"rna": rows.exposure["rna"].nan_to_num(1.0)}
    means = {}
    for name in (None, *model.names):
        generator = torch.Generator().manual_seed(seed)
        options = {"n": DRAWS, "exposure": totals, "generator": generator}
        log_p = model.log_likelihood(rows, name, **options)
        if name is not None:
            log_p = log_p[rows.observed[:, model.names.index(name)]]
        means["log p" if name is None else f"log p {name}"] = float(log_p.mean())
    return means


def _split(data: MultimodalDataset, seed: int) -> tuple[MultimodalDataset, MultimodalDataset]:
    """Nine tenths to train on, and a tenth by which the best epoch is chosen."""
    shuffled = np.random.default_rng(seed + 1).permutation(len(data))
    valid = torch.from_numpy(np.isin(np.arange(len(data)), shuffled[: len(data) // 10]))
    return data[~valid], data[valid]


def table(lines: list[dict[str, object]]) -> str:
    """Medians and ranges over seeds, by data and law."""
    groups: dict[tuple[str, ...], list[dict[str, object]]] = {}
    for line in lines:
        key = tuple(str(line[name]) for name in ("data", "law", "rate"))
        groups.setdefault(key, []).append(line)
    text = ["| data | law | rate of its numbers | seeds | all | RNA alone | proteins alone |"]
    text.append("|---|---|---|---|---|---|---|")
    for (data, law, rate), own in groups.items():
        cells = [data, law, rate, str(len(own))]
        for name in ("log p", "log p rna", "log p adt"):
            values = [float(line[name]) for line in own]  # type: ignore[arg-type]
            spread = f"{min(values):.1f} to {max(values):.1f}"
            cells.append(f"{statistics.median(values):.1f} ({spread})")
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", nargs="+", default=["citeseq", "mosaic"])
    parser.add_argument("--laws", nargs="+", default=list(LAWS), choices=list(LAWS))
    parser.add_argument("--rate", type=float, default=RATE)
    options = parser.parse_args()
    if options.what == "run":
        torch.set_num_threads(1)
        readers = {"citeseq": (citeseq, "pbmc_citeseq"), "mosaic": (mosaic, "midas_mosaic")}
        for name in options.data:
            reader, folder = readers[name]
            data = reader(options.folder / folder)
            for seed in options.seeds:
                for law in options.laws:
                    line = {"data": name, **run(data, law, seed, options.rate)}
                    print(line, flush=True)
                    with LINES.open("a") as file:
                        file.write(json.dumps(line) + "\n")
    print(table([json.loads(line) for line in LINES.read_text().splitlines()]))


if __name__ == "__main__":
    main()
