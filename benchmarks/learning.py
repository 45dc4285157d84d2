"""What the recipes learn on polydigits: coherence, clusters, likelihood, by seed.

    python benchmarks/learning.py mopoe jmvae telbo cmvae nexus --seeds 0 1 2

Latent 16, 20 epochs, batch 128, MLP 512-512, normal likelihood with scale 0.25, complete rows.
Appends to learning.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.neural_network import MLPClassifier

import mvkit
from mvkit import recipes

SETTINGS: dict[str, dict[str, object]] = {
    "cmvae": {"samples": 1, "clusters": 20},
    "nexus": {"bottom_dim": 8, "dropout_rate": 0.7, "top_beta": 0.5},
}


def judges(data: mvkit.data.datasets.Splits) -> list[MLPClassifier]:
    """A classifier of each modality's real pictures; their accuracy is printed with the results."""
    train = data.train.batch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            MLPClassifier((256,), max_iter=25, random_state=0).fit(x.flatten(1).numpy(), train.extra["label"].numpy())
            for x in train.data.values()
        ]


def coherence(model: mvkit.Model, data: object, judge: list[MLPClassifier], count: int, latent: str) -> float:
    """Share of generated pictures that show the row's digit, given `count` of the others, by draws or means of z."""
    test = data.test.batch
    label, right = test.extra["label"].numpy(), []
    generator = torch.Generator().manual_seed(0)
    for target, classify in enumerate(judge):
        for shift in range(4 if count == 1 else 1):
            given = [model.names[(target + 1 + shift + i) % 5] for i in range(count)]
            made = model.translate(test, to=[model.names[target]], given=given, latent=latent, generator=generator)
            right.append(np.mean(classify.predict(made[model.names[target]][0].flatten(1).numpy()) == label))
    return float(np.mean(right))


def accuracy(model: mvkit.Model, data: object) -> float:
    """Share of test rows in the cluster matched to their label, by the best matching."""
    counts = np.zeros((model.n_clusters, 10))
    np.add.at(counts, (model.clusters(data.test).numpy(), data.test.labels.numpy()), 1)
    return float(counts[linear_sum_assignment(-counts)].sum() / len(data.test))


def scores(model: mvkit.Model, data: object, judge: list[MLPClassifier], *, rows: int = 500, n: int = 200) -> dict:
    """Coherence given one and four others, by draws and by means of z; unconditional; log-likelihood of `rows` rows."""
    found = {
        f"coherence {count}, {latent}": coherence(model, data, judge, count, latent)
        for latent in ("draw", "mean")
        for count in (1, 4)
    }
    samples = model.sample(2000, generator=torch.Generator().manual_seed(0))
    seen = [j.predict(x.flatten(1).numpy()) for j, x in zip(judge, samples.values(), strict=True)]
    found["unconditional"] = float((np.stack(seen) == seen[0]).all(0).mean())
    found["log-likelihood"] = float(model.log_likelihood(data.test.batch.take(slice(0, rows)), n=n).mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--set", type=json.loads, default={}, help="options of the recipe, as JSON")
    parser.add_argument("--save", type=Path, help="folder for the trained models")
    options = parser.parse_args()
    data = mvkit.load_dataset("polydigits")
    judge = judges(data)
    for name in options.recipes:
        for seed in options.seeds:
            start = time.perf_counter()
            settings = SETTINGS.get(name, {}) | options.set
            model = getattr(recipes, name)(data.modalities, latent_dim=16, seed=seed, **settings)
            mvkit.fit(model, data.train, validation=data.valid, epochs=options.epochs, seed=seed, progress=False)
            row = {"recipe": name, "seed": seed, "seconds": round(time.perf_counter() - start), **options.set}
            if options.save:
                mvkit.save(model, options.save / f"{name}-{seed}.safetensors")
            row |= scores(model, data, judge)
            if name == "telbo":
                scale = model.experts(model.conform(data.test)).scale.detach()
                row["mean log-variance"] = float(2 * scale.log().mean())
            if model.n_clusters:
                row["cluster accuracy"] = accuracy(model, data)
                pruned, _ = mvkit.prune_clusters(model, data.train)
                row |= {"clusters kept": pruned.n_clusters, "cluster accuracy, pruned": accuracy(pruned, data)}
            print(json.dumps(row), flush=True)
            with Path(__file__).with_name("learning.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
