"""The main job, start to end: train on partially observed pictures, show what was learnt, save.

`mvkit demo` needs the extra `mvkit[demo]` (matplotlib, scikit-learn).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import mvkit
from mvkit import plots
from mvkit.core import noise
from mvkit.data.datasets.catalogue import Splits
from mvkit.evaluation.perceptron import fit_perceptron
from mvkit.evaluation.representation import agreement
from mvkit.models.model import Model
from mvkit.training.loss_curves import new_figure

ROWS = 8  # of the picture, each with a sample of another cluster
BLOCKS = ("observed", "reconstructed and imputed", "sampled, one cluster per row")


def run(folder: Path, *, epochs: int = 35, rows: int = 10_000, n: int = 200) -> dict[str, float]:
    """Trains the demo's model and writes `model.safetensors` and `demo.png` into a folder.

    Args:
        folder: where to write.
        epochs: epochs of training.
        rows: training rows, 10,000 at most.
        n: importance samples of the likelihood.

    Returns:
        The table's numbers by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    data = mvkit.load_dataset("polydigits", missing=0.3)
    train = data.train.batch.take(slice(0, rows))
    observed = 1.0 if train.mask is None else train.mask.double().mean()
    print(
        f"polydigits: {rows:,} training rows of five pictures, {observed:.0%} of the pictures "
        "observed"
    )
    model = Model(
        data.modalities,
        latent_dim=16,
        aggregator="mopoe",
        prior={"name": "mog", "covariance": "tied"},
        objective="dreg",
        schedule="warmup_then_mixture",
        seed=0,
    )
    mvkit.fit(model, train, validation=data.valid, epochs=epochs, seed=0, progress=True)
    print(f"trained in {time.perf_counter() - start:.0f} s\n")
    table = measure(model, data, n=n)
    for name, value in table.items():
        print(f"  {name:<48}{value:9.3f}")
    weights = folder / "model.safetensors"
    mvkit.save(model, weights)
    picture = folder / "demo.png"
    draw(model, picture)
    print(f"\npicture: {picture}\nmodel:   mvkit.load({str(weights)!r})")
    return table


def measure(model: Model, data: Splits, *, n: int) -> dict[str, float]:
    """Joint log-likelihood, coherence by number of given modalities, and cluster accuracy.

    All on the test rows, in their order. `mvkit.evaluate` measures the same and more, with draws
    of its own for each block of rows, so that its numbers differ in their last digits.
    """
    test = data.test.batch
    labels = test.extra["label"].numpy()
    log_p = model.log_likelihood(test.take(slice(0, 500)), n=n)
    table = {f"joint log-likelihood, nats (n={n}, 500 rows)": float(log_p.mean())}
    judges = _judges(model.names)
    generator = noise.seeded(0)
    m = len(model.names)
    for count in range(1, m):
        shares = []
        for i, name in enumerate(model.names):
            given = [model.names[(i + offset) % m] for offset in range(1, count + 1)]
            pictures = model.translate(test, name, given, generator=generator)[name][0]
            shares.append(np.mean(judges[name](pictures) == labels))
        table[f"coherence given {count} of the other pictures"] = float(np.mean(shares))
    samples = model.sample(1000, generator=generator)
    classes = np.stack([judge(samples[name]) for name, judge in judges.items()])
    agree = (classes == classes[0]).all(0)
    table["coherence of samples (all five agree)"] = float(agree.mean())
    scores = agreement(model.clusters(test).numpy(), labels)
    table["cluster accuracy (10 clusters, no labels seen)"] = scores["accuracy"]
    return table


def _judges(names: Sequence[str]) -> dict[str, Callable[[Tensor], NDArray[np.int64]]]:
    """Classifiers of the real pictures of each modality."""
    rows = mvkit.load_dataset("polydigits").train.batch
    labels = rows.extra["label"]
    judges: dict[str, Callable[[Tensor], NDArray[np.int64]]] = {}
    for name in names:
        judges[name] = fit_perceptron(rows.data[name], labels, hidden=128, passes=12)
    return judges


def draw(model: Model, path: Path) -> None:
    """Rows of observed pictures, of what the model makes of them, and of samples by cluster."""
    data = mvkit.load_dataset("polydigits", missing_test=0.5, seed=3)
    rows = model.conform(data.test.batch.take(slice(0, ROWS)))
    means = model.translate(rows, latent="mean")
    generator = noise.seeded(1)
    blocks: dict[str, list[plots.Line]] = {title: [] for title in BLOCKS}
    for r in range(ROWS):
        samples = model.sample(1, cluster=r, generator=generator)
        observed = plots.real_values(model, rows.take([r]))
        imputed = [means[name][0, r] for name in model.names]
        sampled = [samples[name][0] for name in model.names]
        pictures: list[Iterable[object]] = [observed, imputed, sampled]
        for lines, values in zip(blocks.values(), pictures, strict=True):
            lines.append(("", values))
    figure = new_figure(10.5, 5.8)
    parts = figure.subfigures(1, 3, squeeze=False, wspace=0.04).flat
    for part, (title, lines) in zip(parts, blocks.items(), strict=True):
        part.suptitle(title, fontsize=10)
        for ax in plots.gallery(part, lines, ["" for _ in model.names]).flat:
            ax.axis("off")
    figure.savefig(path, dpi=110)
