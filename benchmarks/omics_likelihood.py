"""Held-out log-likelihood of counts: negative binomial against a normal law of log1p counts.

    python benchmarks/omics_likelihood.py run --folder shared/data --seeds 0 1 2
    python benchmarks/omics_likelihood.py table

The normal law is made one of counts, P(x) = Φ((log1p(x + ½) - μ)/σ) - Φ((log1p(x - ½) - μ)/σ),
the interval of 0 beginning at -∞, so that both are probabilities of the same counts, in nats. Both
have the same networks, exposure (the total of RNA, none of proteins), covariates, one trained
number for each feature beside the mean, and the same training. A fifth of the cells is held out;
log p is estimated by importance sampling. Data: the two CITE-seq files of 200 cells each (their
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
EPOCHS = 60
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


def run(data: MultimodalDataset, law: str, seed: int) -> dict[str, object]:
    """Trains one model; returns its held-out log p in nats per cell."""
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
    model = mvkit.Model(modalities, seed=seed, schedule=schedule, **options)
    train, valid = _split(train, seed)
    history = mvkit.fit(
        model, train, validation=valid, epochs=EPOCHS, batch_size=64, seed=seed, progress=False
    )
    generator = torch.Generator().manual_seed(seed)
    log_p = model.log_likelihood(data[held], n=DRAWS, generator=generator)
    line: dict[str, object] = {"law": law, "seed": seed, "log p": float(log_p.mean())}
    return line | {"cells": int(held.sum()), "valid": history["valid/loss"][-1]}


def _split(data: MultimodalDataset, seed: int) -> tuple[MultimodalDataset, MultimodalDataset]:
    """Nine tenths to train on, and a tenth by which the best epoch is chosen."""
    shuffled = np.random.default_rng(seed + 1).permutation(len(data))
    valid = torch.from_numpy(np.isin(np.arange(len(data)), shuffled[: len(data) // 10]))
    return data[~valid], data[valid]


def table(lines: list[dict[str, object]]) -> str:
    """Medians and ranges over seeds, by data and law."""
    text = ["| data | law | seeds | held-out log p, nats per cell |", "|---|---|---|---|"]
    for data, law in dict.fromkeys((str(line["data"]), str(line["law"])) for line in lines):
        own = [line for line in lines if line["data"] == data and line["law"] == law]
        values = [float(line["log p"]) for line in own]  # type: ignore[arg-type]
        spread = f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
        text.append(f"| {data} | {law} | {len(own)} | {spread} |")
    return "\n".join(text)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", nargs="+", default=["citeseq", "mosaic"])
    parser.add_argument("--laws", nargs="+", default=list(LAWS), choices=list(LAWS))
    options = parser.parse_args()
    if options.what == "run":
        torch.set_num_threads(1)
        readers = {"citeseq": (citeseq, "pbmc_citeseq"), "mosaic": (mosaic, "midas_mosaic")}
        for name in options.data:
            reader, folder = readers[name]
            data = reader(options.folder / folder)
            for seed in options.seeds:
                for law in options.laws:
                    line = {"data": name, **run(data, law, seed)}
                    print(line, flush=True)
                    with LINES.open("a") as file:
                        file.write(json.dumps(line) + "\n")
    print(table([json.loads(line) for line in LINES.read_text().splitlines()]))


if __name__ == "__main__":
    main()
