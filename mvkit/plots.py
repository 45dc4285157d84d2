"""Pictures of a trained model. Each function draws into `ax` or `figure`, or a new one, and returns the axes.

No global state of matplotlib is touched, and no window is opened: `axes.figure.savefig(path)` writes what was drawn.
Needs the extra `mvkit[plots]`.

Axes: n draws, b rows, m modalities, d latent, c clusters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import einsum, rearrange, repeat
from numpy.typing import NDArray
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.mixture import Mixture
from mvkit.data.dataset import as_batch
from mvkit.errors import RequestError, suggest
from mvkit.evaluation.report import Report, runs_of
from mvkit.models.multimodal import MultimodalModel
from mvkit.training.loss_curves import axes_of, new_figure
from mvkit.training.loss_curves import losses as losses


def grid(figure: Any, rows: int, columns: int) -> NDArray[Any]:
    """Axes (rows, columns) without ticks in a figure, or in a new one."""
    figure = new_figure(0.6 + 1.1 * columns, 0.5 + 1.1 * rows) if figure is None else figure
    axes: NDArray[Any] = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.set_xticks([])
        one.set_yticks([])
    return axes


def show(ax: Any, x: Any) -> Any:
    """A row of a modality: (c, h, w) as a picture, channels first; anything else as a line."""
    values = torch.as_tensor(x).detach().cpu().float()
    if values.ndim == 3 and len(values) in (1, 3):
        shown = rearrange(values, "c h w -> h w c").clamp(0, 1)
        ax.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    elif values.ndim == 2:
        ax.imshow(values.numpy(), aspect="auto", interpolation="nearest")
    else:
        flat = values.reshape(-1).numpy()
        ax.plot(np.arange(len(flat)), flat, marker="." if len(flat) < 40 else None, linewidth=1)
    return ax


def translations(
    model: MultimodalModel,
    data: Any,
    *,
    row: int = 0,
    latent: str = "mean",
    seed: int = 0,
    figure: Any = None,
) -> NDArray[Any]:
    """What each modality of a row, alone, says of every other: a line is given, a column wanted; axes (m + 1, m).

    The first line shows the row itself, where it is observed.
    """
    rows = _row(model, data, row)
    axes = grid(figure, len(model.names) + 1, len(model.names))
    generator = torch.Generator(model.like.device).manual_seed(seed)
    for i, name in enumerate(model.names):
        axes[0, i].set_title(name, fontsize=9)
        axes[i + 1, 0].set_ylabel(f"from {name}", fontsize=8)
        if not bool(rows.observed[0, i]):
            continue
        show(axes[0, i], model.modalities[name].restore(rows.data[name])[0])
        made = model.translate(rows, given=[name], latent=latent, generator=generator)
        for j, wanted in enumerate(model.names):
            show(axes[i + 1, j], made[wanted][0, 0])
    axes[0, 0].set_ylabel("real", fontsize=8)
    return axes


def _row(model: MultimodalModel, data: Any, row: int) -> Batch:
    batch = model.conform(data)
    if not -len(batch) <= row < len(batch):
        raise RequestError(f"plots: no row {row}; expected one of {len(batch)}")
    return batch.take([row % len(batch)])


def latent_map(
    model: MultimodalModel,
    data: Any,
    *,
    given: Iterable[str] | None = None,
    colour: str | None = "label",
    method: str = "pca",
    seed: int = 0,
    ax: Any = None,
) -> Any:
    """Posterior means of rows in two dimensions.

    Args:
        model: a model.
        data: rows.
        given: modalities to look at; None: all that each row has.
        colour: `cluster`, a name in `Batch.extra`, or None.
        method: `pca`, or `umap` where umap-learn is installed.
        seed: of UMAP.
        ax: where to draw.
    """
    ax = axes_of(ax)
    points = _plane(model.encode(data, given).cpu().double(), method, seed)
    extra = as_batch(data).extra
    if colour is None or (colour == "label" and colour not in extra):
        ax.scatter(*points.T, s=6, linewidths=0)
    elif colour != "cluster" and colour not in extra:
        raise RequestError(
            f"latent_map: no {colour!r} in batch.extra; {suggest(colour, ('cluster', *extra))}"
        )
    else:
        values = np.asarray(model.clusters(data).cpu() if colour == "cluster" else extra[colour])
        for i, value in enumerate(np.unique(values)):
            ax.scatter(
                *points[values == value].T, s=6, linewidths=0, color=_colour(i), label=str(value)
            )
        ax.legend(
            title=colour,
            fontsize=7,
            title_fontsize=7,
            markerscale=2,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )
    ax.set_xlabel(f"{method} 1")
    ax.set_ylabel(f"{method} 2")
    return ax


def _colour(i: int) -> Any:
    import matplotlib as mpl

    return mpl.colormaps["tab20"]((2 * i + (i // 10) % 2) % 20)


def _plane(z: Tensor, method: str, seed: int) -> NDArray[Any]:
    """Points (b, 2) for latents (b, d)."""
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError:
            raise RequestError(
                "latent_map: method='umap' needs umap-learn; pip install umap-learn"
            ) from None
        return np.asarray(UMAP(random_state=seed).fit_transform(z.numpy()))
    if method != "pca":
        raise RequestError(
            f"latent_map: unknown method {method!r}; {suggest(method, ('pca', 'umap'))}"
        )
    centred = z - z.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    axes = (
        axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    )  # the same picture every time
    flat = centred @ axes.T
    return torch.cat([flat, flat.new_zeros(len(flat), 2 - flat.shape[1])], 1).numpy()


def traversal(
    model: MultimodalModel,
    name: str,
    *,
    at: Tensor | None = None,
    dims: Sequence[int] | None = None,
    values: Sequence[float] = (-2.0, -1.0, 0.0, 1.0, 2.0),
    figure: Any = None,
) -> NDArray[Any]:
    """A modality as one latent dimension moves from `at`: a line a dimension, a column a value; axes (dims, values).

    Args:
        model: a model.
        name: the modality to show.
        at: latent (d,) that the others stay at; None: zeros.
        dims: dimensions to move; None: the first eight.
        values: added to the dimension.
        figure: where to draw.
    """
    if name not in model.names:
        raise RequestError(f"traversal: unknown modality {name!r}; {suggest(name, model.names)}")
    chosen = range(min(8, model.latent_dim)) if dims is None else dims
    wrong = [d for d in chosen if not 0 <= d < model.latent_dim]
    if wrong or not len(chosen):
        raise RequestError(
            f"traversal: dims={list(chosen)}; expected some of 0 to {model.latent_dim - 1}"
        )
    start = model.like.new_zeros(model.latent_dim) if at is None else at.to(model.like)
    z = repeat(start, "d -> r v d", r=len(chosen), v=len(values)).clone()
    for r, d in enumerate(chosen):
        z[r, :, d] += torch.as_tensor(values, dtype=z.dtype, device=z.device)
    made = model.decode(z)[name]
    axes = grid(figure, len(chosen), len(values))
    for r, d in enumerate(chosen):
        axes[r, 0].set_ylabel(f"z{d}", fontsize=8)
        for v, value in enumerate(values):
            show(axes[r, v], made[r, v])
            axes[0, v].set_title(f"{value:g}", fontsize=8)
    return axes


def coherence(reports: Report | Mapping[str, Report | Sequence[Report]], *, ax: Any = None) -> Any:
    """Coherence by the number of given modalities, with standard errors; several reports of one name: their mean."""
    named = runs_of({"": reports} if isinstance(reports, Report) else reports, "coherence")
    ax = axes_of(ax)
    for name, each in named.items():
        points: dict[int, list[Any]] = {}
        for score in (score for report in each for score in report.scores):
            if (
                score.metric == "coherence"
                and score.given
                and score.name == f"given {score.given}"
            ):
                points.setdefault(score.given, []).append(score)
        if not points:
            raise RequestError(
                f"coherence: report {name!r} has none; evaluate with metrics=['coherence']"
            )
        values = [np.mean([score.value for score in scores]) for scores in points.values()]
        spread = [
            s[0].error if len(s) == 1 else np.std([x.value for x in s], ddof=1)
            for s in points.values()
        ]
        ax.errorbar(list(points), values, yerr=spread, marker="o", capsize=3, label=name or None)
    ax.set_xticks(sorted(points))
    ax.set_ylim(0, 1)
    ax.set_xlabel("modalities given")
    ax.set_ylabel("coherence")
    if any(named):
        ax.legend(fontsize=8)
    return ax


def imputation(
    model: MultimodalModel,
    data: Any,
    name: str,
    *,
    row: int = 0,
    level: float = 0.8,
    n: int = 199,
    seed: int = 0,
    ax: Any = None,
) -> Any:
    """A row's modality imputed from its others, by element: mean and central interval of n draws, and the truth."""
    if name not in model.names:
        raise RequestError(f"imputation: unknown modality {name!r}; {suggest(name, model.names)}")
    if not 0 < level < 1:
        raise RequestError(f"imputation: level {level!r}; expected a number between 0 and 1")
    rows = _row(model, data, row)
    others = [k for k in model.names if k != name]
    generator = torch.Generator(model.like.device).manual_seed(seed)
    made = model.translate(rows, [name], others, n, sample=True, generator=generator)[name]
    draws = rearrange(made, "n 1 ... -> n (...)").cpu().double().numpy()
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    ax = axes_of(ax)
    where = np.arange(draws.shape[1])
    ax.fill_between(
        where, low, high, step="mid", alpha=0.3, linewidth=0, label=f"{level:.0%} interval"
    )
    ax.plot(where, draws.mean(0), linewidth=1, label="imputed mean")
    if bool(rows.observed[0, model.names.index(name)]):
        real = model.modalities[name].restore(rows.data[name]).reshape(-1).cpu().numpy()
        ax.plot(where, real, ".k", markersize=4, label="real")
    ax.set_xlabel(f"element of {name}")
    ax.legend(fontsize=8)
    return ax


def cluster_sizes(model: MultimodalModel, data: Any, *, ax: Any = None) -> Any:
    """How many rows each cluster of the prior has."""
    found = model.clusters(data).cpu()
    ax = axes_of(ax)
    ax.bar(np.arange(model.n_clusters), torch.bincount(found, minlength=model.n_clusters).numpy())
    ax.set_xlabel("cluster")
    ax.set_ylabel("rows")
    return ax


def cluster_samples(
    model: MultimodalModel,
    *,
    clusters: Sequence[int] | None = None,
    seed: int = 0,
    figure: Any = None,
) -> NDArray[Any]:
    """A sample of each cluster of the prior: a line a cluster, a column a modality; axes (c, m)."""
    chosen = range(model.n_clusters) if clusters is None else clusters
    if not len(chosen):
        raise RequestError(
            "cluster_samples: the prior has no clusters; make the model with one, such as prior='mog'"
        )
    axes = grid(figure, len(chosen), len(model.names))
    generator = torch.Generator(model.like.device).manual_seed(seed)
    for i, cluster in enumerate(chosen):
        made = model.sample(1, cluster=cluster, generator=generator)
        axes[i, 0].set_ylabel(str(cluster), fontsize=8)
        for j, name in enumerate(model.names):
            show(axes[i, j], made[name][0])
            axes[0, j].set_title(name, fontsize=9)
    return axes


def drivers(model: MultimodalModel, data: Any, *, ax: Any = None) -> Any:
    """Which modality drives the posterior: mean shares of its weights and of the precisions of q(z|x_m).

    The weight of a component counts for each modality that it looked at, in equal parts. Precisions are inverse
    variances, averaged over dimensions. Both are shares among what a row observes.
    """
    weight, precision = driver_shares(model, data)
    ax = axes_of(ax)
    where = np.arange(len(model.names))
    ax.bar(where - 0.2, weight.numpy(), 0.4, label="weight")
    ax.bar(where + 0.2, precision.numpy(), 0.4, label="precision")
    ax.set_xticks(where, model.names)
    ax.set_ylabel("share of the posterior")
    ax.legend(fontsize=8)
    return ax


def driver_shares(model: MultimodalModel, data: Any) -> tuple[Tensor, Tensor]:
    """Shares of weights and of precisions by modality, (m,) each, means over the rows that observe it."""
    rows = model.conform(data)
    with torch.no_grad():
        posterior = model.posterior(rows)
        evidence = posterior.evidence
        if evidence is None:
            raise RequestError(
                "drivers: this posterior does not say what its components looked at"
            )
        looked = evidence / evidence.sum(-1, keepdim=True).clamp(min=1)
        weight = einsum(
            posterior.log_weight.exp(), looked.to(model.like.dtype), "k b, k b m -> b m"
        )
        each = [_precision(model, rows, i, name) for i, name in enumerate(model.names)]
    precision = torch.stack(each, 1)
    precision = precision / precision.sum(1, keepdim=True)
    seen = rows.observed.sum(0).clamp(min=1)
    return (torch.where(rows.observed, weight, 0.0).sum(0) / seen).cpu(), (
        precision.sum(0) / seen
    ).cpu()


def _precision(model: MultimodalModel, rows: Batch, i: int, name: str) -> Tensor:
    """Mean inverse variance of q(z|x_m) over dimensions, zero where m is unobserved, (b,)."""
    has = rows.observed[:, i]
    out = rows.observed.new_zeros(len(rows), dtype=model.like.dtype)
    if has.any():
        one = model.posterior(rows.take(has), [name])
        if isinstance(one, Mixture):
            share = rearrange(one.log_weight.exp(), "k b -> k b 1")
            variance = (share * (one.scale.square() + (one.loc - one.mean).square())).sum(0)
        else:
            variance = one.rsample(256, torch.Generator(out.device).manual_seed(0)).var(0)
        out[has] = variance.reciprocal().mean(-1)
    return out
