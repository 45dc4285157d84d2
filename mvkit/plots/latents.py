"""Pictures of latents: rows in a plane, clusters, which modality the posterior rests on.

Axes: b rows, m modalities.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvkit.core.figures import colour_of, legend_of, plain_text, shortened
from mvkit.core.raw_values import full_precision
from mvkit.data.dataset import Rows, as_batch
from mvkit.errors import RequestError, check_option, suggest
from mvkit.evaluation.by_feature import feature_names, feature_values, is_flat
from mvkit.evaluation.drivers import driver_shares
from mvkit.evaluation.latent_planes import principal_plane, umap_plane
from mvkit.evaluation.point_colours import SIZE, draw_points
from mvkit.models.multimodal import MultimodalModel
from mvkit.training.loss_curves import axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mvkit.plots.grids import AxesLike

FEW = 8  # whole numbers of a feature that are shown as classes

Labels = NDArray[Any]


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
        colour: `cluster`, a name in `Batch.extra`, a feature of a modality (`age`, or where
            several have one of this name `clinic.age`), or None. Words and few whole numbers are
            classes; other numbers have a scale of colours; rows without a value are grey.
        method: `pca`, or `umap` where umap-learn is installed.
        seed: of UMAP.
        ax: where to draw.
    """
    check_option("latent_map: method", method, "pca", "umap")
    ax = axes_of(ax)
    codes = model.encode(data, given).cpu().double()
    points = umap_plane(codes, seed) if method == "umap" else principal_plane(codes)
    labels, on_scale = _labels(model, data, colour)
    if labels is None:
        x, y = points.T
        ax.scatter(x, y, SIZE, linewidths=0, color=colour_of(0))
    else:
        draw_points(ax, points, labels, str(colour), on_scale=on_scale)
    ax.set(xlabel=f"{method} 1", ylabel=f"{method} 2")
    return ax


def _labels(
    model: MultimodalModel, data: Rows, colour: str | None
) -> tuple[Labels | None, bool | None]:
    """What the rows are coloured by, (b,), and whether on a scale; None: nothing, or as it is."""
    extra = as_batch(data).extra
    if colour is None or (colour == "label" and colour not in extra):
        return None, None
    if colour == "cluster":
        return model.clusters(data).cpu().numpy(), None
    if colour not in extra:
        return _feature(model, data, colour, extra)
    values = extra[colour]
    labels = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    if labels.ndim != 1:
        raise RequestError(
            f"latent_map: extra[{colour!r}] has shape {labels.shape}; expected a label per row"
        )
    return labels, None


def _feature(
    model: MultimodalModel, data: Rows, colour: str, extra: Iterable[str]
) -> tuple[Labels, bool]:
    """The values of a feature, and whether they are shown on a scale."""
    values = feature_values(model, data, colour)
    if values is None:
        features: list[str] = []
        for name in model.names:
            features += feature_names(model, name) if is_flat(model, name) else []
        known = suggest(colour, ("cluster", *extra, *features))
        raise RequestError(f"latent_map: no {colour!r} in batch.extra; {known}")
    if not all(isinstance(value, float) for value in values):
        return np.array(values, dtype=object), False
    numbers = np.array(values, dtype=float)
    kinds = np.unique(numbers[~np.isnan(numbers)])
    return numbers, len(kinds) > FEW or bool((kinds % 1 != 0).any())


def cluster_sizes(model: MultimodalModel, data: Rows, *, ax: AxesLike = None) -> Axes:
    """How many rows each cluster of the prior has."""
    from matplotlib.ticker import MaxNLocator

    clusters = model.clusters(data).cpu()
    counts = torch.bincount(clusters, minlength=model.n_clusters)
    ax = axes_of(ax)
    ax.bar(np.arange(model.n_clusters), counts.numpy(), color=colour_of(0))
    ax.set(xlabel="cluster", ylabel="rows")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def drivers(model: MultimodalModel, data: Rows, *, ax: AxesLike = None) -> Axes:
    """Which modality drives the posterior, by weights and by the precisions of q(z|x_m).

    See `mvkit.evaluation.drivers.driver_shares`.
    """
    weight, precision = map(full_precision, driver_shares(model, data))
    ax = axes_of(ax)
    where = np.arange(len(model.names))
    handles = {}
    for i, (title, shares) in enumerate({"weight": weight, "precision": precision}.items()):
        places = where + 0.4 * i - 0.2
        handles[title] = ax.barh(places, shares.numpy(), 0.4, color=colour_of(i))
    names = [plain_text(shortened(name, 22)) for name in model.names]
    ax.set_yticks(where, names, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("share of the posterior")
    legend_of(ax, handles)
    return ax
