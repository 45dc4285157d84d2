"""The main job, start to end: train on partially observed pictures, show what was learnt, save, load.

`mvkit demo` needs the extra `mvkit[demo]` (matplotlib, scikit-learn).
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mvkit
from mvkit.data.datasets.catalogue import Splits
from mvkit.models.model import Model


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
    observed = train.mask.double().mean() if train.mask is not None else 1.0
    print(
        f"polydigits: {rows:,} training rows of five pictures, {observed:.0%} of the pictures observed"
    )
    model = Model(
        data.modalities, latent_dim=16, aggregator="mopoe", prior="mog", objective="dreg", seed=0
    )
    mvkit.fit(model, train, validation=data.valid, epochs=epochs, seed=0, progress=True)
    print(f"trained in {time.perf_counter() - start:.0f} s\n")
    table = measure(model, data, n=n)
    for name, value in table.items():
        print(f"  {name:<48}{value:9.3f}")
    mvkit.save(model, folder / "model.safetensors")
    draw(model, data, folder / "demo.png")
    print(
        f"\npicture: {folder / 'demo.png'}\nmodel:   mvkit.load({str(folder / 'model.safetensors')!r})"
    )
    return table


def measure(model: Model, data: Splits, *, n: int) -> dict[str, float]:
    """Joint log-likelihood, coherence by number of given modalities, and cluster accuracy, on the test rows."""
    generator = torch.Generator().manual_seed(0)
    test, label = data.test.batch, data.test.batch.extra["label"]
    part = test.take(slice(0, 500))
    table = {
        f"joint log-likelihood, nats (n={n}, 500 rows)": float(
            model.log_likelihood(part, n=n).mean()
        )
    }
    judges = [_judge(data, name) for name in model.names]
    m = len(judges)
    for count in range(1, m):
        right = []
        for target, judge in enumerate(judges):
            given = [model.names[(target + 1 + i) % m] for i in range(count)]
            made = model.translate(
                test, to=[model.names[target]], given=given, generator=generator
            )
            right.append(
                np.mean(judge.predict(_flat(made[model.names[target]][0])) == label.numpy())
            )
        table[f"coherence given {count} of the other pictures"] = float(np.mean(right))
    samples = model.sample(1000, generator=generator)
    seen = np.stack(
        [judge.predict(_flat(samples[k])) for judge, k in zip(judges, model.names, strict=True)]
    )
    table["coherence of samples (all five agree)"] = float((seen == seen[0]).all(0).mean())
    table["cluster accuracy (10 clusters, no labels seen)"] = _accuracy(
        model.clusters(test).numpy(), label.numpy()
    )
    return table


def _flat(pictures: Tensor) -> Any:
    return pictures.flatten(1).cpu().numpy()


def _judge(data: Splits, name: str) -> Any:
    """A classifier of a modality's real pictures."""
    from sklearn.neural_network import MLPClassifier

    full = mvkit.load_dataset("polydigits").train.batch
    judge = MLPClassifier((128,), max_iter=12, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # a dozen passes are enough, whatever its stopping rule says
        return judge.fit(_flat(full.data[name]), full.extra["label"].numpy())


def _accuracy(cluster: Any, label: Any) -> float:
    """Share of rows in the cluster matched to their label, by the best matching."""
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((cluster.max() + 1, label.max() + 1))
    np.add.at(counts, (cluster, label), 1)
    return float(counts[linear_sum_assignment(-counts)].sum() / len(label))


def draw(model: Model, data: Splits, path: Path) -> None:
    """Rows of observed and imputed pictures, and samples by cluster."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    generator = torch.Generator().manual_seed(1)
    rows = mvkit.load_dataset("polydigits", missing_test=0.5, seed=3).test.batch.take(slice(0, 8))
    mask = rows.mask if rows.mask is not None else torch.ones(8, 5, dtype=torch.bool)
    imputed = model.translate(rows, latent="mean")
    # three blocks of five pictures, a narrow empty column between them
    figure, axes = plt.subplots(
        8, 17, figsize=(10.5, 5.8), width_ratios=[*[1] * 5, 0.3, *[1] * 5, 0.3, *[1] * 5]
    )
    clusters = min(8, model.n_clusters)
    samples = [model.sample(1, cluster=c, generator=generator) for c in range(clusters)]
    for axis in axes.flat:
        axis.axis("off")
    for r in range(8):
        for i, name in enumerate(model.names):
            shown = rows.data[name][r, 0] if mask[r, i] else torch.full((8, 8), torch.nan)
            sample = samples[r][name][0, 0] if r < clusters else shown * torch.nan
            for block, picture in enumerate((shown, imputed[name][0, r, 0], sample)):
                axes[r, 6 * block + i].imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
    for block, title in enumerate(
        ("observed", "reconstructed and imputed", "sampled, a cluster a row")
    ):
        axes[0, 6 * block + 2].set_title(title, fontsize=10)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.94, 0.05, 0.05)
    figure.savefig(path, dpi=110)
    plt.close(figure)
