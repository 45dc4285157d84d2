"""What the recipes learn at their defaults: coherence, clusters, likelihood, collapse, by seed.

    python benchmarks/learning.py mopoe jmvae telbo cmvae nexus --seeds 0 1 2
    python benchmarks/learning.py nexus telbo --data crops --rows 4000 --folder DATA

Latent 16, 20 epochs, batch 128, MLP 512-512, normal likelihood with scale 0.25, complete rows.
Appends to learning.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import digits
import torch
from sklearn.neural_network import MLPClassifier
from torch import Tensor

import mvkit
from mvkit import recipes

ALIVE = 0.3  # sd over rows of a posterior's mean, above which a latent is alive
Judges = Mapping[str, Callable[[Tensor], object]]


def judges(data: mvkit.data.datasets.catalogue.Splits) -> Judges:
    """A classifier of each modality's real pictures; their accuracy is in the report."""
    train = data.train.batch
    label = train.extra["label"].numpy()
    classifiers = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, x in train.data.items():
            classifier = MLPClassifier((256,), max_iter=25, random_state=0)
            classifiers[name] = classifier.fit(x.flatten(1).numpy(), label)
    return {
        name: lambda x, judge=judge: judge.predict(x.flatten(1).numpy())
        for name, judge in classifiers.items()
    }


def measured(model: mvkit.Model, data: object, judge: Judges) -> dict[str, float]:
    """Coherence given one and four others, by draws and means of z; of samples; likelihood."""
    row = {}
    for latent in ("draw", "mean"):
        coherence = {"name": "coherence", "latent": latent, "sets": "cyclic"}
        report = mvkit.evaluate(model, data.test, [coherence], classifiers=judge)
        row |= {f"coherence {n}, {latent}": report[f"coherence/given {n}"] for n in (1, 4)}
    if any(score.name == "unconditional" for score in report.scores):  # mmvm has no samples
        row["unconditional"] = report["coherence/unconditional"]
    likelihood = {"name": "likelihood", "queries": [[list(model.names), []]], "limit": 500}
    row["log-likelihood"] = mvkit.evaluate(model, data.test, [likelihood])["likelihood/log p(all)"]
    return row


@torch.no_grad()
def collapse(model: mvkit.Model, data: mvkit.data.datasets.catalogue.Splits) -> dict[str, object]:
    """Latents alive, and squared errors on test rows against those of the mean of train rows.

    A level collapsed if fewer than two of its latents are alive: of z, of all private latents
    together, and of every modality's latents at the bottom of a stack. An error of 1 is that of
    the mean, which is the decoder of a collapsed model. Each modality is also decoded from itself
    alone: under a mixture of experts, all others together say less of it.
    """
    test, train = data.test.batch, data.train.batch
    row: dict[str, object] = {}
    if model.latent_dim:
        row["alive"] = _alive(model.encode(test))
    private = {name: w for name, w in model.private(test).items() if w.shape[-1]}
    if private:
        row["alive, private"] = [_alive(w) for w in private.values()]
    means = {name: x.mean(0) for name, x in train.data.items()}
    pictures = {name: x[0] for name, x in model.translate(test, latent="mean").items()}
    errors = _errors(pictures, test.data, means)
    row["error"] = round(sum(errors) / len(errors), 3)
    row["error, worst"] = max(errors)
    own = {}
    for name in means:
        own[name] = model.translate(test, [name], [name], latent="mean")[name][0]
    errors = _errors(own, test.data, means)
    row["error, own"] = round(sum(errors) / len(errors), 3)
    if isinstance(model, mvkit.Stack):
        row["error of codes"] = _error_of_codes(model, train, test)
    row["collapsed"] = _collapsed(row, isinstance(model, mvkit.Stack))
    return row


def _collapsed(row: Mapping[str, Any], stacked: bool) -> bool:
    private = row.get("alive, private", [2])
    levels = [row.get("alive", 2), min(private) if stacked else sum(private)]
    errors = [min(row["error"], row["error, own"]), row.get("error of codes", 0.0)]
    return min(levels) < 2 or max(errors) > 0.9


def _alive(z: Tensor) -> int:
    """Columns of (b, d) whose standard deviation over the rows is 0.3 at least."""
    return int((z.std(0) >= ALIVE).sum())


def _errors(
    predictions: Mapping[str, Tensor], x: Mapping[str, Tensor], means: Mapping[str, Tensor]
) -> list[float]:
    """For each modality the squared error of predictions, divided by that of the means."""
    errors = []
    for name, mean in means.items():
        own = (predictions[name] - x[name]).square().mean()
        errors.append(round(float(own / (mean - x[name]).square().mean()), 3))
    return errors


def _error_of_codes(stack: mvkit.Stack, train: mvkit.Batch, test: mvkit.Batch) -> float:
    """The same for the bottom's codes, through the top."""
    means = {name: w.mean(0) for name, w in stack.private(train).items()}
    codes = stack.private(test)
    decoded = stack.top.translate(codes, latent="mean")
    errors = _errors({name: x[0] for name, x in decoded.items()}, codes, means)
    return round(sum(errors) / len(errors), 3)


def accuracy(model: mvkit.Model, data: object) -> float:
    """Share of test rows in the cluster matched to their label, by the best matching."""
    return mvkit.evaluate(model, data.test, ["clusters"])["clusters/mixture, accuracy"]


def run(
    name: str,
    seed: int,
    data: mvkit.data.datasets.catalogue.Splits,
    judge: Judges | None,
    options: argparse.Namespace,
) -> dict[str, object]:
    """One training, measured."""
    start = time.process_time()
    # a part of `--set` that this recipe does not take is an error, which is meant
    model = getattr(recipes, name)(data.modalities, latent_dim=16, seed=seed, **options.set)
    mvkit.fit(
        model, data.train, validation=data.valid, epochs=options.epochs, seed=seed, progress=False
    )
    row = {"recipe": name, "data": options.data, "rows": len(data.train), "epochs": options.epochs}
    row |= {"seed": seed, "cpu seconds": round(time.process_time() - start), **options.set}
    if options.save:
        mvkit.save(model, options.save / f"{name}-{seed}.safetensors")
    row |= collapse(model, data)
    if judge is not None:
        row |= measured(model, data, judge)
    if name == "telbo":
        scale = model.experts(model.conform(data.test)).scale.detach()
        row["mean log-variance"] = float(2 * scale.log().mean())
    if model.n_clusters and judge is not None:
        row["cluster accuracy"] = accuracy(model, data)
        pruned, _ = mvkit.prune_clusters(model, data.train)
        row["clusters kept"] = pruned.n_clusters
        row["cluster accuracy, pruned"] = accuracy(pruned, data)
    return row


def parser() -> argparse.ArgumentParser:
    """The options of runs, with their defaults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--data", choices=digits.VARIANTS, default="polydigits")
    parser.add_argument("--rows", type=int, help="of train, at most")
    parser.add_argument("--folder", type=Path, default=Path(), help="has mfeat and rosmap")
    parser.add_argument("--no-judges", action="store_true", help="measure collapse alone")
    parser.add_argument(
        "--set", type=json.loads, default={}, help="options of the recipe, as JSON"
    )
    parser.add_argument("--save", type=Path, help="folder for the trained models")
    return parser


def main() -> None:
    options = parser().parse_args()
    data = digits.splits(options.data, options.folder, seed=1, rows=options.rows)
    judged = options.data in ("polydigits", "flat", "crops") and not options.no_judges
    judge = judges(data) if judged else None
    for name in options.recipes:
        for seed in options.seeds:
            row = run(name, seed, data, judge, options)
            print(json.dumps(row), flush=True)
            with Path(__file__).with_name("learning.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
