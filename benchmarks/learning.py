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
from collections.abc import Callable
from pathlib import Path

from sklearn.neural_network import MLPClassifier
from torch import Tensor

import mvkit
from mvkit import recipes

SETTINGS: dict[str, dict[str, object]] = {
    "cmvae": {"samples": 1, "clusters": 40},
    "telbo": {"stages": 1},
    "nexus": {"bottom_dim": 8, "dropout_rate": 0.7, "top_beta": 0.5},
}


def judges(data: mvkit.data.datasets.catalogue.Splits) -> dict[str, Callable[[Tensor], object]]:
    """A classifier of each modality's real pictures; their accuracy is in the report."""
    train = data.train.batch
    label, made = train.extra["label"].numpy(), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, x in train.data.items():
            made[name] = MLPClassifier((256,), max_iter=25, random_state=0).fit(
                x.flatten(1).numpy(), label
            )
    return {
        name: lambda x, one=one: one.predict(x.flatten(1).numpy()) for name, one in made.items()
    }


def measured(
    model: mvkit.Model, data: object, judge: dict[str, Callable[[Tensor], object]]
) -> dict[str, float]:
    """Coherence given one and four others, by draws and means of z; of samples; likelihood;
    clusters.
    """
    row = {}
    for latent in ("draw", "mean"):
        coherence = {"name": "coherence", "latent": latent, "sets": "cyclic"}
        report = mvkit.evaluate(model, data.test, [coherence], classifiers=judge)
        row |= {f"coherence {n}, {latent}": report[f"coherence/given {n}"] for n in (1, 4)}
    row["unconditional"] = report["coherence/unconditional"]
    likelihood = {"name": "likelihood", "queries": [[list(model.names), []]], "limit": 500}
    row["log-likelihood"] = mvkit.evaluate(model, data.test, [likelihood])["likelihood/log p(all)"]
    return row


def accuracy(model: mvkit.Model, data: object) -> float:
    """Share of test rows in the cluster matched to their label, by the best matching."""
    return mvkit.evaluate(model, data.test, ["clusters"])["clusters/mixture, accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument(
        "--set", type=json.loads, default={}, help="options of the recipe, as JSON"
    )
    parser.add_argument("--save", type=Path, help="folder for the trained models")
    options = parser.parse_args()
    data = mvkit.load_dataset("polydigits")
    judge = judges(data)
    for name in options.recipes:
        for seed in options.seeds:
            start = time.perf_counter()
            settings = SETTINGS.get(name, {}) | options.set
            model = getattr(recipes, name)(data.modalities, latent_dim=16, seed=seed, **settings)
            mvkit.fit(
                model,
                data.train,
                validation=data.valid,
                epochs=options.epochs,
                seed=seed,
                progress=False,
            )
            row = {
                "recipe": name,
                "seed": seed,
                "seconds": round(time.perf_counter() - start),
                **options.set,
            }
            if options.save:
                mvkit.save(model, options.save / f"{name}-{seed}.safetensors")
            row |= measured(model, data, judge)
            if name == "telbo":
                scale = model.experts(model.conform(data.test)).scale.detach()
                row["mean log-variance"] = float(2 * scale.log().mean())
            if model.n_clusters:
                row["cluster accuracy"] = accuracy(model, data)
                pruned, _ = mvkit.prune_clusters(model, data.train)
                row |= {
                    "clusters kept": pruned.n_clusters,
                    "cluster accuracy, pruned": accuracy(pruned, data),
                }
            print(json.dumps(row), flush=True)
            with Path(__file__).with_name("learning.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
