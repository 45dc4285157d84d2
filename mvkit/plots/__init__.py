"""Pictures of a trained model.

Each function draws into `ax` or `figure`, or a new one, and returns the axes.

No global state of matplotlib is touched, and no window is opened: `axes.figure.savefig(path)`
writes what was drawn. Needs the extra `mvkit[plots]`.

Axes: n draws, b rows, m modalities, d latent, c clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from einops import rearrange, repeat
from numpy.typing import NDArray
from torch import Tensor

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.raw_values import full_precision
from mvkit.data.dataset import Rows, as_batch
from mvkit.errors import RequestError, check_option, suggest
from mvkit.evaluation.drivers import driver_shares
from mvkit.evaluation.latent_planes import principal_plane, umap_plane
from mvkit.evaluation.metric import Score
from mvkit.evaluation.point_colours import SIZE, colour_of, draw_points, plain_text
from mvkit.evaluation.report import Report, runs_of
from mvkit.evaluation.sensitivity import draw_sensitivity
from mvkit.models.multimodal import MultimodalModel
from mvkit.training import loss_curves
from mvkit.training.loss_curves import axes_of, new_figure

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

    Draw = Callable[..., Axes | NDArray[Any]]
    AxesLike = Axes | None  # None: those of a new figure
    FigureLike = FigureBase | None  # None: a new one

losses = loss_curves.losses
Grid = NDArray[Any]  # of matplotlib's axes
Line = tuple[str, Iterable[object]]  # a label, and values of modalities
Runs = Report | Mapping[str, Report | Sequence[Report]]


def grid(figure: FigureLike, rows: int, columns: int) -> Grid:
    """Axes (rows, columns) without ticks in a figure, or in a new one."""
    if figure is None:
        figure = new_figure(0.6 + 1.1 * columns, 0.5 + 1.1 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    return axes


def figure_of(axes: Axes | Grid) -> Figure:
    """The figure that axes belong to."""
    figure: Figure = np.array(axes, dtype=object, ndmin=1).flat[0].figure
    return figure


def gallery(
    figure: FigureLike, lines: Sequence[Line], titles: Sequence[str], *, fontsize: int = 9
) -> Grid:
    """Values of modalities in a grid.

    Args:
        figure: where to draw; None: a new one.
        lines: a label and the values of each line, one per column; None leaves a place empty.
        titles: of the columns.
        fontsize: of the titles.

    Returns:
        Axes (lines, columns).
    """
    axes = grid(figure, len(lines), len(titles))
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(plain_text(title), fontsize=fontsize)
    for row, (label, values) in zip(axes, lines, strict=True):
        row[0].set_ylabel(plain_text(label), fontsize=8)
        for ax, value in zip(row, values, strict=True):
            if value is not None:
                show(ax, value)
    return axes


def show(ax: Axes, x: object) -> Axes:
    """A row of a modality: (c, h, w) as a picture, channels first; anything else as a line."""
    values = torch.as_tensor(x).detach().cpu().float()
    if values.ndim == 3 and len(values) in (1, 3):
        picture = rearrange(values, "c h w -> h w c").clamp(0, 1).numpy()
        ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    elif values.ndim == 2:
        ax.imshow(values.numpy(), aspect="auto", interpolation="nearest")
    else:
        flat = values.reshape(-1)
        marker = "." if len(flat) < 40 else None
        ax.plot(flat.numpy(), marker=marker, linewidth=1)
    return ax


def translations(
    model: MultimodalModel,
    data: Rows,
    *,
    row: int = 0,
    latent: Literal["draw", "mean"] = "mean",
    seed: int = 0,
    figure: FigureLike = None,
) -> Grid:
    """Each modality of a row, generated from each of its modalities alone; axes (m + 1, m).

    The first line shows the row itself, where it is observed; below, one line per given modality,
    one column per generated one.
    """
    rows = _row(model, data, row)
    generator = noise.seeded(seed, model.like.device)
    real = real_values(model, rows)
    lines: list[Line] = [("real", real)]
    for given, value in zip(model.names, real, strict=True):
        generated: list[Tensor | None] = [None for _ in model.names]
        if value is not None:
            samples = model.translate(rows, given=given, latent=latent, generator=generator)
            generated = [samples[name][0, 0] for name in model.names]
        lines.append((f"from {given}", generated))
    return gallery(figure, lines, model.names)


def real_values(model: MultimodalModel, rows: Batch) -> list[Tensor | None]:
    """The modalities of the first of conformed rows in the user's units; None where unobserved."""
    values = []
    for name, observed in zip(model.names, rows.observed[0], strict=True):
        restored = model.modalities[name].restore(rows.data[name])
        values.append(restored[0] if observed else None)
    return values


def _row(model: MultimodalModel, data: Rows, row: int) -> Batch:
    batch = model.conform(data)
    if not -len(batch) <= row < len(batch):
        raise RequestError(f"plots: no row {row}; expected one of {len(batch)}")
    return batch.take([row % len(batch)])


def _check_modality(model: MultimodalModel, name: str, where: str) -> None:
    if name not in model.names:
        raise RequestError(f"{where}: unknown modality {name!r}; {suggest(name, model.names)}")


def latent_map(
    model: MultimodalModel,
    data: Rows,
    *,
    given: Iterable[str] | None = None,
    colour: str | None = "label",
    method: Literal["pca", "umap"] = "pca",
    seed: int = 0,
    ax: AxesLike = None,
) -> Axes:
    """Posterior means of rows in two dimensions.

    Args:
        model: a model.
        data: rows.
        given: modalities to look at; None: all that each row has.
        colour: `cluster`, a name in `Batch.extra`, or None. Words and few whole numbers are
            classes; other numbers have a scale of colours; rows without a label are grey.
        method: `pca`, or `umap` where umap-learn is installed.
        seed: of UMAP.
        ax: where to draw.
    """
    check_option("latent_map: method", method, "pca", "umap")
    ax = axes_of(ax)
    codes = model.encode(data, given).cpu().double()
    points = umap_plane(codes, seed) if method == "umap" else principal_plane(codes)
    labels = _labels(model, data, colour)
    if labels is None:
        x, y = points.T
        ax.scatter(x, y, SIZE, linewidths=0, color=colour_of(0))
    else:
        draw_points(ax, points, labels, str(colour))
    ax.set(xlabel=f"{method} 1", ylabel=f"{method} 2")
    return ax


def _labels(model: MultimodalModel, data: Rows, colour: str | None) -> NDArray[Any] | None:
    """What the rows are coloured by, (b,); None: nothing."""
    extra = as_batch(data).extra
    if colour is None or (colour == "label" and colour not in extra):
        return None
    if colour == "cluster":
        return model.clusters(data).cpu().numpy()
    if colour not in extra:
        known = suggest(colour, ("cluster", *extra))
        raise RequestError(f"latent_map: no {colour!r} in batch.extra; {known}")
    values = extra[colour]
    labels = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    if labels.ndim != 1:
        raise RequestError(
            f"latent_map: extra[{colour!r}] has shape {labels.shape}; expected a label per row"
        )
    return labels


def traversal(
    model: MultimodalModel,
    name: str,
    *,
    at: Tensor | None = None,
    dims: Sequence[int] | None = None,
    values: Sequence[float] = (-2.0, -1.0, 0.0, 1.0, 2.0),
    covariates: Mapping[str, object] | None = None,
    figure: FigureLike = None,
) -> Grid:
    """A modality as one latent dimension moves: one line per dimension, one column per value.

    Args:
        model: a model.
        name: the modality to show.
        at: latent (d,) that the others stay at; None: zeros.
        dims: dimensions to move; None: the first eight.
        values: added to the dimension.
        covariates: what the model is conditioned on, {name: value}, if it is.
        figure: where to draw.

    Returns:
        Axes (dims, values).
    """
    _check_modality(model, name, "traversal")
    chosen = list(range(min(8, model.latent_dim)) if dims is None else dims)
    if not chosen or not all(0 <= dim < model.latent_dim for dim in chosen):
        raise RequestError(
            f"traversal: dims={chosen}; expected some of 0 to {model.latent_dim - 1}"
        )
    model.row_context("traversal", covariates, None, ())  # so that messages name it
    if at is None:
        at = torch.zeros(model.latent_dim)
    sizes = {"r": len(chosen), "v": len(values)}
    z = repeat(at.to(model.like), "d -> r v d", **sizes).clone()
    steps = z.new_tensor(values)
    for line, dim in zip(z, chosen, strict=True):
        line[:, dim] += steps
    labels = [f"z{dim}" for dim in chosen]
    decoded = model.decode(z, covariates=covariates)[name]
    lines = list(zip(labels, decoded, strict=True))
    return gallery(figure, lines, [f"{value:g}" for value in values], fontsize=8)


def coherence(reports: Runs, *, ax: AxesLike = None) -> Axes:
    """Coherence by the number of given modalities, with standard errors.

    Of several reports of one name, the mean and the standard deviation are shown.
    """
    named = runs_of({"": reports} if isinstance(reports, Report) else reports, "coherence")
    ax = axes_of(ax)
    for name, runs in named.items():
        by_count = _pooled_scores(runs)
        if not by_count:
            raise RequestError(
                f"coherence: report {name!r} has none; evaluate with metrics=['coherence']"
            )
        means, spreads = [], []
        for scores in by_count.values():
            values = [score.value for score in scores]
            means.append(np.mean(values))
            spread = scores[0].error
            if len(scores) > 1:
                spread = float(np.std(values, ddof=1))
            spreads.append(spread)
        counts = list(by_count)
        label = plain_text(name) or None
        ax.errorbar(counts, means, spreads, marker="o", capsize=3, label=label)
    ax.set(xticks=sorted(by_count), ylim=(0, 1))
    ax.set(xlabel="modalities given", ylabel="coherence")
    if any(named):
        ax.legend(fontsize=8)
    return ax


def _pooled_scores(runs: Iterable[Report]) -> dict[int, list[Score]]:
    """Coherence by the number of given modalities, one score per report."""
    by_count: dict[int, list[Score]] = {}
    for report in runs:
        for score in report.scores:
            pooled = score.metric == "coherence" and score.name == f"given {score.given}"
            if pooled and score.given:
                by_count.setdefault(score.given, []).append(score)
    return by_count


def imputation(
    model: MultimodalModel,
    data: Rows,
    name: str,
    *,
    row: int = 0,
    level: float = 0.8,
    n: int = 199,
    seed: int = 0,
    ax: AxesLike = None,
) -> Axes:
    """A modality of a row, imputed from its others: by element, mean, interval and the real value.

    The interval is the central one that holds a share `level` of n draws.
    """
    _check_modality(model, name, "imputation")
    if not 0 < level < 1:
        raise RequestError(f"imputation: level {level!r}; expected a number between 0 and 1")
    rows = _row(model, data, row)
    others = [other for other in model.names if other != name]
    generator = noise.seeded(seed, model.like.device)
    samples = model.translate(rows, name, others, n, sample=True, generator=generator)
    draws = rearrange(samples[name], "n 1 ... -> n (...)").cpu().double()
    low, high = central_interval(draws, level)
    ax = axes_of(ax)
    elements = np.arange(draws.shape[1])
    interval = ax.fill_between(elements, low, high, step="mid", label=f"{level:.0%} interval")
    interval.set(alpha=0.3, linewidth=0)
    ax.plot(elements, draws.numpy().mean(0), linewidth=1, label="imputed mean")
    real = real_values(model, rows)[model.names.index(name)]
    if real is not None:
        truth = real.reshape(-1).cpu().double().numpy()
        ax.plot(elements, truth, ".k", markersize=4, label="real")
    ax.set_xlabel(plain_text(f"element of {name}"))
    ax.legend(fontsize=8)
    return ax


def central_interval(draws: Tensor, level: float) -> NDArray[np.floating]:
    """Ends (2, …) of the central interval that holds a share `level` of draws (n, …)."""
    ends = [(1 - level) / 2, (1 + level) / 2]
    return np.asarray(np.quantile(full_precision(draws).cpu().numpy(), ends, axis=0))


def cluster_sizes(model: MultimodalModel, data: Rows, *, ax: AxesLike = None) -> Axes:
    """How many rows each cluster of the prior has."""
    clusters = model.clusters(data).cpu()
    counts = torch.bincount(clusters, minlength=model.n_clusters)
    ax = axes_of(ax)
    ax.bar(np.arange(model.n_clusters), counts.numpy())
    ax.set(xlabel="cluster", ylabel="rows")
    return ax


def cluster_samples(
    model: MultimodalModel,
    *,
    clusters: Sequence[int] | None = None,
    covariates: Mapping[str, object] | None = None,
    seed: int = 0,
    figure: FigureLike = None,
) -> Grid:
    """A sample of each cluster of the prior; axes (c, m).

    Covariates that are not stated are those of random training rows; see `Model.sample`.
    """
    chosen = range(model.n_clusters) if clusters is None else clusters
    if not len(chosen):
        raise RequestError(
            "cluster_samples: the prior has no clusters; make the model with one, such as "
            "prior='mog'"
        )
    generator = noise.seeded(seed, model.like.device)
    lines = []
    for cluster in chosen:
        options: dict[str, Any] = {"covariates": covariates, "generator": generator}
        samples = model.sample(1, cluster=cluster, **options)
        values = [samples[name][0] for name in model.names]
        lines.append((str(cluster), values))
    return gallery(figure, lines, model.names)


def drivers(model: MultimodalModel, data: Rows, *, ax: AxesLike = None) -> Axes:
    """Which modality drives the posterior, by weights and by the precisions of q(z|x_m).

    See `mvkit.evaluation.drivers.driver_shares`.
    """
    weight, precision = map(full_precision, driver_shares(model, data))
    ax = axes_of(ax)
    where = np.arange(len(model.names))
    ax.bar(where - 0.2, weight.numpy(), 0.4, label="weight")
    ax.bar(where + 0.2, precision.numpy(), 0.4, label="precision")
    ax.set_xticks(where, [plain_text(name) for name in model.names])
    ax.set_ylabel("share of the posterior")
    ax.legend(fontsize=8)
    return ax


def sensitivity(
    table: pandas.DataFrame, *, coefficients: Iterable[object] | None = None, ax: AxesLike = None
) -> Axes:
    """Estimates and intervals as imputed values move by δ, of `evaluation.sensitivity`."""
    return draw_sensitivity(axes_of(ax), table, coefficients)
