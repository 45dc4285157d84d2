"""The main job, start to end: train on partially observed pictures, show what was learnt, save.

`mvkit demo` needs the extra `mvkit[demo]` (matplotlib, scikit-learn).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

import mvkit
from mvkit import plots
from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.data.datasets.catalogue import Splits
from mvkit.evaluation.perceptron import fit_perceptron
from mvkit.evaluation.representation import agreement
from mvkit.models.model import Model
from mvkit.training.loss_curves import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

ROWS = 5  # of the test rows that are drawn
ENLARGED = 8  # times, in the picture
IMPUTED = "#D55E00"  # vermilion, which the colour-blind tell from grey
GIVEN = "Given: a digit in each row, half of its pictures hidden"
MADE = "Generated from them; framed ones were hidden"
SAMPLED = "Made up: a sample of each cluster, whose five pictures should show one digit"
NOTE = (
    "Test digits, whose handwriting was never seen in training; no labels were. Pictures of 8 x 8 "
    "pixels, enlarged by bicubic interpolation."
)


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
    """Rows of observed pictures, what the model makes of them, and a sample of each cluster."""
    data = mvkit.load_dataset("polydigits", missing_test=0.5, seed=3)
    figure = new_figure(10, 9.6)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 1.04]).flat
    given, generated = upper.subfigures(1, 2, squeeze=False).flat
    _draw_rows(model, data.test.batch.take(slice(0, ROWS)), given, generated)
    _draw_samples(model, data, lower)
    figure.supxlabel(NOTE, fontsize=9)
    figure.savefig(path, dpi=100)


def _draw_rows(model: Model, batch: Batch, given: SubFigure, generated: SubFigure) -> None:
    """Rows as they are given, and beside them what the model makes of them."""
    rows = model.conform(batch)
    means = model.translate(rows, latent="mean")
    observed: list[plots.Line] = []
    decoded: list[plots.Line] = []
    for r in range(len(rows)):
        values = plots.real_values(model, rows.take([r]))
        title = f"a {int(rows.extra['label'][r])}"
        observed.append((title, [None if x is None else enlarged(x) for x in values]))
        decoded.append(("", [enlarged(means[name][0, r]) for name in model.names]))
    given.suptitle(GIVEN, fontsize=11)
    generated.suptitle(MADE, fontsize=11)
    for ax in plots.gallery(given, observed, model.names).flat:
        if not ax.images:
            ax.set(box_aspect=1, facecolor="0.93")
            ax.text(0.5, 0.5, "?", ha="center", va="center", color="0.4", fontsize=16)
    axes = plots.gallery(generated, decoded, model.names)
    for ax, known in zip(axes.flat, rows.observed.flatten(), strict=True):
        if not known:
            ax.spines[:].set(color=IMPUTED, linewidth=3)


def _draw_samples(model: Model, data: Splits, figure: SubFigure) -> None:
    """A sample of each cluster in a column, in the order of the digits that clusters hold."""
    clusters = model.clusters(data.valid).cpu()
    medians = []
    for c in range(model.n_clusters):
        digits = data.valid.labels[clusters == c].double()
        medians.append(float(digits.median()) if len(digits) else np.inf)
    order = np.argsort(medians, kind="stable").tolist()
    generator = noise.seeded(1)
    samples = [model.sample(1, cluster=c, generator=generator) for c in order]
    lines: list[plots.Line] = []
    for name in model.names:
        lines.append((name, [enlarged(sample[name][0]) for sample in samples]))
    figure.suptitle(SAMPLED, fontsize=11)
    plots.gallery(figure, lines, [f"cluster {c}" for c in order])


def enlarged(x: Tensor) -> Tensor:
    """A picture (1, h, w) with sides of 8 times as many pixels, by bicubic interpolation."""
    pictures = rearrange(x, "c h w -> 1 c h w")
    larger = functional.interpolate(pictures, scale_factor=ENLARGED, mode="bicubic")
    return rearrange(larger, "1 c h w -> c h w")
