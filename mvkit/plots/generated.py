"""Pictures of what a model generates: from other modalities, from latents, from clusters.

Axes: n draws, b rows, m modalities, d latent, c clusters, k numbers of a modality.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from einops import repeat
from numpy.typing import NDArray
from torch import Tensor

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.raw_values import full_precision
from mvkit.data.dataset import Rows
from mvkit.errors import RequestError, suggest
from mvkit.models.multimodal import MultimodalModel
from mvkit.plots.grids import Grid, Line, gallery

if TYPE_CHECKING:
    from mvkit.plots.grids import FigureLike


def translations(
    model: MultimodalModel,
    data: Rows,
    *,
    row: int = 0,
    latent: Literal["draw", "mean"] = "mean",
    seed: int = 0,
    to: Iterable[str] | None = None,
    sampler: str | None = None,
    refine: bool | list[str] = False,
    figure: FigureLike = None,
) -> Grid:
    """Each modality of a row, generated from each of its modalities alone; axes (m + 1, m).

    The first line shows the row itself, where it is observed; below, one line per given modality,
    one column per generated one.

    Args:
        model: a model.
        data: rows.
        row: the number of the row.
        latent: whether latents are drawn, or are their means.
        seed: of draws.
        to: modalities that are shown; None: all.
        sampler: latents from a fitted conditional sampler; see `Model.translate`.
        refine: modalities that are drawn by their refiners; likewise.
        figure: where to draw.
    """
    rows = row_of(model, data, row)
    shown = _shown(model, to, "translations")
    options: dict[str, Any] = {"latent": latent, "sampler": sampler, "refine": refine}
    options["generator"] = noise.seeded(seed, model.like.device)
    real = dict(zip(model.names, real_values(model, rows), strict=True))
    lines: list[Line] = [("real", [real[name] for name in shown])]
    for given, value in real.items():
        generated: list[Tensor | None] = [None for _ in shown]
        if value is not None:
            samples = model.translate(rows, given=given, **options)
            generated = [samples[name][0, 0] for name in shown]
        lines.append((f"from {given}", generated))
    return gallery(figure, lines, shown)


def real_values(model: MultimodalModel, rows: Batch) -> list[Tensor | None]:
    """The modalities of the first of conformed rows in the user's units; None where unobserved."""
    values = []
    for name, observed in zip(model.names, rows.observed[0], strict=True):
        restored = model.modalities[name].restore(rows.data[name])
        values.append(restored[0] if observed else None)
    return values


def row_of(model: MultimodalModel, data: Rows, row: int) -> Batch:
    """One row, conformed.

    Raises:
        RequestError: there is no such row.
    """
    batch = model.conform(data)
    if not -len(batch) <= row < len(batch):
        raise RequestError(f"plots: no row {row}; expected one of {len(batch)}")
    return batch.take([row % len(batch)])


def check_modality(model: MultimodalModel, name: str, where: str) -> None:
    """Raises RequestError, which names the function, for a modality that there is not."""
    if name not in model.names:
        raise RequestError(f"{where}: unknown modality {name!r}; {suggest(name, model.names)}")


def _shown(model: MultimodalModel, names: Iterable[str] | None, where: str) -> tuple[str, ...]:
    """The modalities that are shown; None: all."""
    shown = model.names if names is None else tuple(names)
    for name in shown:
        check_modality(model, name, where)
    return shown


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
    check_modality(model, name, "traversal")
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
    return gallery(figure, lines, [f"{value:g}" for value in values], fontsize=8, alike="all")


def central_interval(draws: Tensor, level: float) -> NDArray[np.floating]:
    """Ends (2, …) of the central interval that holds a share `level` of draws (n, …)."""
    ends = [(1 - level) / 2, (1 + level) / 2]
    return np.asarray(np.quantile(full_precision(draws).cpu().numpy(), ends, axis=0))


def cluster_samples(
    model: MultimodalModel,
    *,
    clusters: Sequence[int] | None = None,
    covariates: Mapping[str, object] | None = None,
    seed: int = 0,
    to: Iterable[str] | None = None,
    refine: bool | list[str] = False,
    figure: FigureLike = None,
) -> Grid:
    """A sample of each cluster of the prior; axes (c, m).

    Covariates that are not stated are those of random training rows; see `Model.sample`, of
    `refine` too. `to` are the modalities that are shown; None: all.
    """
    chosen = range(model.n_clusters) if clusters is None else clusters
    if not len(chosen):
        raise RequestError(
            "cluster_samples: the prior has no clusters; make the model with one, such as "
            "prior='mog'"
        )
    shown = _shown(model, to, "cluster_samples")
    options: dict[str, Any] = {"covariates": covariates, "refine": refine}
    options["generator"] = noise.seeded(seed, model.like.device)
    lines = []
    for cluster in chosen:
        samples = model.sample(1, cluster=cluster, **options)
        values = [samples[name][0] for name in shown]
        lines.append((str(cluster), values))
    return gallery(figure, lines, shown)
