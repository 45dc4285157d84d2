"""Curves of metrics over epochs. Needs the extra `mvkit[plots]`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mvkit.errors import RequestError, suggest


class HasRows(Protocol):
    """A history: one row of metrics per epoch."""

    @property
    def rows(self) -> list[dict[str, float]]:
        """The rows."""
        ...


def new_figure(width: float, height: float) -> Any:
    """A new figure that pyplot does not know of."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise RequestError(
            "plots: matplotlib is not installed: pip install 'mvkit[plots]'"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def axes_of(ax: Any) -> Any:
    """The axes given, or those of a new figure."""
    return new_figure(5.5, 3.8).add_subplot() if ax is None else ax


def losses(
    history: HasRows | Sequence[Mapping[str, float]],
    *,
    terms: Sequence[str] | None = None,
    ax: Any = None,
) -> Any:
    """Metrics over epochs, stages set apart by lines; None: the loss, the bound, and theirs in validation."""
    rows = list(history) if isinstance(history, Sequence) else history.rows
    if not rows:
        raise RequestError("losses: the history is empty; train first")
    keys = {key: None for row in rows for key in row}
    plain = [k for k in ("loss", "bound", "surrogate_bound") if k in keys]
    chosen = (
        [*plain, *(f"valid/{k}" for k in plain if f"valid/{k}" in keys)]
        if terms is None
        else list(terms)
    )
    unknown = [key for key in chosen if key not in keys]
    if unknown or not chosen:
        raise RequestError(
            f"losses: no metric {(unknown or [''])[0]!r}; {suggest((unknown or [''])[0], keys)}"
        )
    ax = axes_of(ax)
    epochs = np.arange(1, len(rows) + 1)
    for key in chosen:
        style = "--" if key.startswith("valid/") else "-"
        ax.plot(
            epochs,
            [row.get(key, np.nan) for row in rows],
            style,
            label=key,
            marker="." if len(rows) < 3 else None,
        )
    stages = [row.get("stage", 0) for row in rows]
    for epoch, (before, after) in enumerate(itertools.pairwise(stages), 1):
        if before != after:
            ax.axvline(epoch + 0.5, color="0.6", linewidth=1)
    ax.set_xlabel("epoch")
    ax.legend(fontsize=8)
    return ax
