"""Curves of metrics by epoch. Needs the extra `mvkit[plots]`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mvkit.core.figures import colour_of, legend_of, plain_text
from mvkit.errors import RequestError, suggest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VALID = "valid/"
WHOLE = ("bound", "surrogate_bound", "loss")  # the first that there is stands for the whole
NO_TERMS = {*WHOLE, "stage", "epoch", "step", "lr", "seed"}
TERMS = 8  # drawn in a panel
WIDE = 30.0  # how many times the smallest term the largest is, where the scale bends
EARLY = 4.0  # how many times as far as all later epochs the first ones reach, where they are cut

Row = Mapping[str, float]


class HasRows(Protocol):
    """A history: one row of metrics per epoch."""

    @property
    def rows(self) -> list[dict[str, float]]:
        """The rows."""
        ...


def new_figure(width: float, height: float) -> Figure:
    """A new figure, not registered with pyplot; width and height in inches."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        reason = "plots: matplotlib is not installed: pip install 'mvkit[plots]'"
        raise RequestError(reason) from None
    return Figure(figsize=(width, height), layout="constrained")


def axes_of(ax: Axes | None) -> Axes:
    """The axes given, or those of a new figure."""
    return new_figure(5.5, 3.8).add_subplot() if ax is None else ax


def losses(
    history: HasRows | Sequence[Row], *, terms: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Metrics by epoch, with a line between stages, and between runs of several seeds.

    The first epochs are beyond the axes where they would make all others flat.

    Args:
        history: a history, or its rows.
        terms: names of metrics; None: the bound, or the loss where there is no bound, in training
            and validation; without `ax` the terms that it is made of too, in a second panel.
        ax: axes to draw on; None: those of a new figure.

    Returns:
        The axes; of two panels those of the bound.

    Raises:
        RequestError: an empty history, a metric that it lacks, or matplotlib is not installed.
    """
    rows = history if isinstance(history, Sequence) else history.rows
    if not rows:
        raise RequestError("losses: the history is empty; train first")
    known = dict.fromkeys(itertools.chain.from_iterable(rows))
    chosen = whole_of(known) if terms is None else terms
    for metric in chosen or [""]:
        if metric not in known:
            raise RequestError(f"losses: no metric {metric!r}; {suggest(metric, known)}")
    if ax is not None or terms is not None or not terms_of(known):
        return _draw(axes_of(ax), rows, chosen)
    left, right = new_figure(8.6, 3.6).subplots(1, 2)
    draw_terms(right, rows)
    return _draw(left, rows, chosen)


def draw_terms(ax: Axes, rows: Sequence[Row]) -> Axes:
    """The terms of the bound by epoch, in nats; the scale bends where they differ much."""
    known = dict.fromkeys(itertools.chain.from_iterable(rows))
    terms = terms_of(known)
    _draw(ax, rows, terms)
    sizes = []
    for metric in terms:
        values = np.abs(_values(rows, metric))
        if np.isfinite(values).any():
            sizes.append(float(np.nanmedian(values)))
    if sizes and max(sizes) > WIDE * max(min(sizes), 1e-3):
        ax.set_yscale("symlog", linthresh=max(min(sizes), 1e-2))
    return ax


def whole_of(known: Mapping[str, object]) -> list[str]:
    """The bound or the loss among metrics, of training and of validation."""
    name = next((name for name in WHOLE if name in known), "")
    return [metric for metric in (name, VALID + name) if metric in known]


def terms_of(known: Mapping[str, object]) -> list[str]:
    """The terms of the bound among metrics, in order, each with that of validation."""
    plain = []
    for metric in known:
        if not metric.startswith(VALID) and metric not in NO_TERMS:
            plain.append(metric)
    chosen: list[str] = []
    for metric in plain[:TERMS]:
        chosen.append(metric)
        if VALID + metric in known:
            chosen.append(VALID + metric)
    return chosen


def _draw(ax: Axes, rows: Sequence[Row], metrics: Sequence[str]) -> Axes:
    """Metrics by epoch: a colour for each, dashed in validation."""
    epochs = range(1, len(rows) + 1)
    names = list(dict.fromkeys(metric.removeprefix(VALID) for metric in metrics))
    handles: dict[str, Any] = {}
    for metric in metrics:
        plain = metric.removeprefix(VALID)
        options: dict[str, Any] = {"color": colour_of(names.index(plain))}
        options["linestyle"] = "--" if metric.startswith(VALID) else "-"
        options["marker"] = "." if len(rows) < 3 else None
        (line,) = ax.plot(epochs, _values(rows, metric), label=plain_text(metric), **options)
        if len(names) < 3 or plain not in handles:
            handles[metric] = line
    stages = [(row.get("seed"), row.get("stage", 0)) for row in rows]
    for epoch, (before, after) in enumerate(itertools.pairwise(stages), 1):
        if before != after:
            ax.axvline(epoch + 0.5, color="0.6", linewidth=1)
    ax.set_xlabel("epoch" if len(names) < 3 else "epoch (dashed: validation)")
    _show_later_epochs(ax, [_values(rows, metric) for metric in metrics])
    if handles:
        legend_of(ax, handles)
    return ax


def _values(rows: Sequence[Row], metric: str) -> np.ndarray:
    """A metric by epoch, NaN where it is missing or not finite."""
    values = np.array([row.get(metric, math.nan) for row in rows], dtype=float)
    return np.where(np.isfinite(values), values, math.nan)


def _show_later_epochs(ax: Axes, curves: Sequence[np.ndarray]) -> None:
    """Cuts the axis to the last nine tenths of the epochs, where earlier ones reach too far."""
    every = np.concatenate([curve[np.isfinite(curve)] for curve in curves] or [np.zeros(0)])
    later = [curve[max(1, len(curve) // 10) :] for curve in curves]
    kept = np.concatenate([curve[np.isfinite(curve)] for curve in later] or [np.zeros(0)])
    if len(kept) < 2:
        return
    low, high = kept.min(), kept.max()
    if high > low and every.max() - every.min() > EARLY * (high - low):
        margin = 0.08 * (high - low)
        ax.set_ylim(low - margin, high + margin)
        ax.set_xlabel(f"{ax.get_xlabel()}; the first are beyond the axis")
