"""Clusters of a mixture prior against classes that no model saw, and how many pruning keeps.

    python benchmarks/clusters.py run mfeat "mfeat, half missing" polydigits --seeds 0 1 2 3 4
    python benchmarks/clusters.py table

One setting for all: `recipes.cmvae` with a latent of 16 numbers, one importance sample, no private
latents, ten clusters, and 960 steps, half of them with the standard prior. `run` adds lines to
`clusters.jsonl`; `table` prints medians of what is there, as in docs/benchmarks.md. `--clusters 20`
begins with more, and prunes. mfeat's rows are all clustered (`--folder` has it; mvkit-datasets
reads it); polydigits' are those of its test set.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import attrs
import numpy as np
import torch
from sklearn.cluster import KMeans

import mvkit
from mvkit import Batch, MultimodalDataset, recipes
from mvkit.evaluation.representation import agreement

LINES = Path(__file__).with_suffix(".jsonl")
STEPS = 960
BATCH = 128
NETWORK = {"name": "mlp", "hidden": (256,)}
PUBLISHED = {"mfeat": 0.969, "mfeat, half missing": 0.951}


def mfeat(folder: Path, missing: float, seed: int) -> tuple[MultimodalDataset, Batch]:
    """All rows, standardised, and the same rows to cluster."""
    splits = mvkit.load_dataset("mfeat", path=folder / "mfeat")
    parts = [part.batch for part in (splits.train, splits.valid, splits.test)]
    data = {name: torch.cat([part.data[name] for part in parts]) for name in parts[0].data}
    label = torch.cat([part.extra["label"] for part in parts])
    whole = attrs.evolve(splits.train, batch=Batch(data, extra={"label": label}))
    if missing:
        whole = whole.with_missing(missing, seed=seed)
    whole = whole.fit_transforms(dict.fromkeys(whole.modalities, "standardise"))
    return whole, whole.batch


def data_of(name: str, folder: Path, seed: int) -> tuple[MultimodalDataset, Batch]:
    """Rows to train on, and rows to cluster, which have `extra["label"]`."""
    if name == "polydigits":
        splits = mvkit.load_dataset("polydigits")
        return splits.train, splits.test.batch
    return mfeat(folder, 0.5 if "missing" in name else 0.0, seed)


def run(name: str, folder: Path, seed: int, clusters: int) -> dict[str, object]:
    """Trains one model; returns the accuracy of its clusters, and of k-means."""
    train, rows = data_of(name, folder, seed)
    modalities = {}
    for view, modality in train.modalities.items():
        networks = {} if name == "polydigits" else {"encoder": NETWORK, "decoder": NETWORK}
        modalities[view] = attrs.evolve(modality, **networks)
    options = {"private_dim": 0, "samples": 1, "clusters": clusters}
    model = recipes.cmvae(modalities, 16, seed=seed, **options)
    epochs = round(STEPS / np.ceil(len(train) / BATCH))
    start = time.process_time()
    mvkit.fit(model, train, epochs=epochs, batch_size=BATCH, seed=seed)
    line: dict[str, object] = {"data": name, "seed": seed, "clusters": clusters}
    line["seconds"] = round(time.process_time() - start)
    truth = rows.extra["label"].numpy()
    if clusters > 10:
        for rule in ("votes", "joint"):
            pruning = mvkit.prune_clusters(model, train, rule=rule)
            line[f"pruned by {rule}"] = len(pruning.kept)
            line[f"pruned by {rule}, accuracy"] = accuracy(pruning.model, rows, truth)
    for rule in ("joint", "votes"):
        line[rule] = accuracy(model, rows, truth, rule)
    codes = model.encode(rows).double().numpy()
    partition = KMeans(10, n_init=10, random_state=seed).fit(codes).labels_
    line["k-means"] = agreement(partition, truth)["accuracy"]
    return line


def accuracy(model: mvkit.Model, rows: Batch, truth: np.ndarray, rule: str = "joint") -> float:
    """Share of rows whose cluster is that of their class, by the best matching."""
    return agreement(model.clusters(rows, rule=rule).numpy(), truth)["accuracy"]


def table(lines: list[dict[str, object]]) -> str:
    """Medians, and the range over seeds, by data."""
    titles = ["data", "seeds", "own clusters", "by votes", "k-means", "published"]
    text = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name in dict.fromkeys(str(line["data"]) for line in lines):
        own = [line for line in lines if line["data"] == name and line["clusters"] == 10]
        if not own:
            continue
        cells = [name, str(len(own))]
        for key in ("joint", "votes", "k-means"):
            values = [float(line[key]) for line in own]  # type: ignore[arg-type]
            low, high = min(values), max(values)
            cells.append(f"{statistics.median(values):.4f} ({low:.4f} to {high:.4f})")
        cells.append(str(PUBLISHED.get(name, "")))
        text.append(f"| {' | '.join(cells)} |")
    for line in lines:
        if line["clusters"] != 10:
            kept = {rule: line[f"pruned by {rule}"] for rule in ("votes", "joint")}
            text.append(
                f"{line['data']}, seed {line['seed']}, {line['clusters']} clusters: {kept}"
            )
    return "\n".join(text)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("data", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path())
    options = parser.parse_args()
    if options.what == "run":
        torch.set_num_threads(1)
        for seed in options.seeds:
            for name in options.data:
                line = run(name, options.folder, seed, options.clusters)
                print(line, flush=True)
                with LINES.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    print(table([json.loads(line) for line in LINES.read_text().splitlines()]))


if __name__ == "__main__":
    main()
