"""Whether codes of two modalities can be told apart, before and after adversarial alignment.

    python benchmarks/adversary.py              # prints the lines of docs/benchmarks.md

Two views of polydigits, a mixture of experts with private latents, the same seeds and epochs for every line. A line is
trained by the bound alone, or against an opponent that tells codes apart. Probes learn to tell the
modality of posterior means of each modality alone on one half of the test rows, and are scored on
the other: logistic regression, a perceptron and a forest; chance is .5. Coherence is the share of
pictures, generated from the other view, that show the digit of the row. One torch thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mvkit
from mvkit import Batch, Modality, Model, Opponent, Stage

VIEWS = ("m0", "m1")


def batch_of(dataset: mvkit.MultimodalDataset, rows: int | None = None) -> Batch:
    """Both views of the first rows of a dataset, with their digits."""
    data = {name: dataset.batch.data[name][:rows] for name in VIEWS}
    return Batch(data, extra={"label": dataset.batch.extra["label"][:rows]})


def probes(model: Model, rows: Batch) -> dict[str, float]:
    """How well each probe tells the modality of a code, on rows that it did not learn from."""
    codes = [model.encode(rows, given=[name]).numpy() for name in VIEWS]
    half = len(rows) // 2
    learnt = np.concatenate([code[:half] for code in codes])
    scored = np.concatenate([code[half:] for code in codes])
    of_learnt = np.repeat(np.arange(2), half)
    of_scored = np.repeat(np.arange(2), len(rows) - half)
    kinds = {
        "linear": LogisticRegression(max_iter=2000),
        "perceptron": MLPClassifier((64,), max_iter=300, early_stopping=True, random_state=0),
        "forest": RandomForestClassifier(200, random_state=0),
    }
    scores = {}
    for name, kind in kinds.items():
        probe = make_pipeline(StandardScaler(), kind).fit(learnt, of_learnt)
        scores[name] = float(probe.score(scored, of_scored))
    return scores


def coherence(model: Model, train: Batch, test: Batch) -> float:
    """Share of pictures from the other view that show the row's digit."""
    report = mvkit.evaluate(model, test, ["coherence"], train=train, progress=False)
    (value,) = (line.value for line in report.scores if line.name == "given 1")
    return value


def stage(options: argparse.Namespace, alpha: float) -> Stage:
    """The one stage of a line."""
    decay = {"name": "CosineAnnealingLR", "T_max": options.epochs}
    if not alpha:
        return Stage("elbo", options.epochs, lr_schedule=decay)
    critic = {
        "name": "adversary",
        "alpha": alpha,
        "penalty": options.penalty,
        "aim": options.aim,
        "codes": options.codes,
        "hidden": options.critic,
    }
    fooling = {"name": "sum", "terms": ["elbo", {**critic, "side": options.side}]}
    opponent = None
    if options.side == "fool":
        opponent = Opponent(
            {**critic, "side": "tell"},
            optimizer={"name": "adam", "lr": options.critic_lr, "betas": (0.5, 0.99)},
            steps=options.steps,
        )
    ramp = {"name": "linear", "epochs": max(1, options.epochs // 3)}
    return Stage(
        fooling,
        options.epochs,
        ramps={"terms.1.kl_weight": ramp},
        lr_schedule=decay,
        opponent=opponent,
    )


def lines(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One line for each seed and weight of the adversary."""
    data = mvkit.load_dataset("polydigits")
    train, test = batch_of(data.train, options.rows), batch_of(data.test)
    network = {"name": "mlp", "hidden": options.hidden}
    modalities = {}
    for name in VIEWS:
        likelihood = data.modalities[name].likelihood
        modalities[name] = Modality(
            (1, 8, 8), likelihood, encoder=network, decoder=network, private_dim=options.private
        )
    for seed in options.seeds:
        for alpha in options.alphas:
            model = Model(
                modalities,
                latent_dim=options.latent,
                aggregator="moe",
                objective="elbo",
                seed=seed,
            )
            start = time.perf_counter()
            history = mvkit.fit(model, train, stages=stage(options, alpha), seed=seed)
            seconds = time.perf_counter() - start
            told = {key: history[key][-1] for key in ("opponent/told",) if alpha}
            yield {
                "seed": seed,
                "alpha": alpha,
                "coherence": coherence(model, train, test),
                **probes(model, test),
                "seconds": round(seconds),
                **told,
            }


def main() -> None:
    """Prints a line of JSON for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 10.0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--latent", type=int, default=8)
    parser.add_argument("--private", type=int, default=8)
    parser.add_argument("--critic", type=int, nargs="*", default=[64, 64])
    parser.add_argument("--critic-lr", type=float, default=2e-3)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256])
    parser.add_argument("--penalty", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--aim", default="uniform")
    parser.add_argument("--codes", default="means")
    parser.add_argument("--side", default="fool")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for line in lines(options):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
