"""Curves of metrics by epoch. Needs the extra `mvkit[plots]`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from mvkit.errors import RequestError, suggest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLAIN = ("loss", "bound", "surrogate_bound")
SHOWN = (*PLAIN, *(f"valid/{metric}" for metric in PLAIN))


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
    history: HasRows | Sequence[Mapping[str, float]],
    *,
    terms: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Metrics by epoch, with a line between stages, and between runs of several seeds.

    Args:
        history: a history, or its rows.
        terms: names of metrics; None: the loss and the bound, in training and validation.
        ax: axes to draw on; None: those of a new figure.

    Raises:
        RequestError: an empty history, a metric that it lacks, or matplotlib is not installed.
    """
    rows = history if isinstance(history, Sequence) else history.rows
    if not rows:
        raise RequestError("losses: the history is empty; train first")
    known = dict.fromkeys(itertools.chain.from_iterable(rows))
    if terms is None:
        terms = [metric for metric in SHOWN if metric in known]
    for metric in terms or [""]:
        if metric not in known:
            raise RequestError(f"losses: no metric {metric!r}; {suggest(metric, known)}")
    ax = axes_of(ax)
    epochs = range(1, len(rows) + 1)
    marker = "." if len(rows) < 3 else None
    for metric in terms:
        values = [row.get(metric, math.nan) for row in rows]
        style = "--" if metric.startswith("valid/") else "-"
        label = metric.replace("$", r"\$")  # shown as it is, and not as a formula
        ax.plot(epochs, values, style, label=label, marker=marker)
    stages = [(row.get("seed"), row.get("stage", 0)) for row in rows]
    for epoch, (before, after) in enumerate(itertools.pairwise(stages), 1):
        if before != after:
            ax.axvline(epoch + 0.5, color="0.6", linewidth=1)
    ax.set_xlabel("epoch")
    ax.legend(fontsize=8)
    return ax
