"""Points coloured by labels: classes, numbers, and rows without a label. Needs `mvkit[plots]`.

Axes: b points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mvkit.core.figures import (
    GREY,
    PALETTE,
    colour_of,
    legend_of,
    marker_of,
    plain_text,
    shortened,
)
from mvkit.core.raw_values import is_missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLASSES = 2 * len(PALETTE)  # whole numbers are classes as long as there are no more
SIZE = 8

Points = NDArray[np.floating]  # (b, 2)
Labels = NDArray[Any]  # (b,)


def draw_points(
    ax: Axes, points: Points, labels: Labels, title: str, *, on_scale: bool | None = None
) -> None:
    """Draws points: numbers with a colour bar, classes with a legend, unlabelled ones in grey.

    Args:
        ax: where to draw.
        points: (b, 2).
        labels: of each point, (b,).
        title: of the legend or the colour bar.
        on_scale: whether labels are numbers on a scale; None: words are classes, and whole numbers
            as long as there are colours for them.
    """
    missing = np.array([is_missing(label) for label in labels.tolist()], dtype=bool)
    known = labels[~missing]
    if on_scale is None:
        on_scale = is_continuous(known)
    handles = {}
    if missing.any():
        x, y = points[missing].T
        handles["none"] = ax.scatter(x, y, SIZE, linewidths=0, color=GREY)
    if on_scale:
        _draw_numbers(ax, points[~missing], known.astype(float), title)
    else:
        for i, kind in enumerate(sorted(set(known.tolist()), key=_order)):
            x, y = points[~missing][known == kind].T
            options: dict[str, Any] = {"color": colour_of(i), "marker": marker_of(i)}
            handles[str(kind)] = ax.scatter(x, y, SIZE, linewidths=0, **options)
    if handles:
        _explain(ax, handles, title, beside=not on_scale)


def is_continuous(labels: Labels) -> bool:
    """Whether labels are numbers to be shown on a scale."""
    if not len(labels) or not all(isinstance(label, int | float) for label in labels.tolist()):
        return False
    numbers = labels.astype(float)
    return len(np.unique(numbers)) > CLASSES or bool((numbers % 1 != 0).any())


def _order(label: object) -> tuple[bool, float, str]:
    """Numbers by size, then words."""
    number = isinstance(label, int | float)
    return not number, float(label) if isinstance(label, int | float) else 0.0, str(label)


def _draw_numbers(ax: Axes, points: Points, numbers: NDArray[np.floating], title: str) -> None:
    """Points on a scale of colours, and the scale."""
    finite = numbers[np.isfinite(numbers)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    x, y = points.T
    clipped = np.clip(numbers, low, high)
    # cividis looks the same to colour-blind readers
    drawn = ax.scatter(x, y, SIZE, linewidths=0, c=clipped, cmap="cividis", vmin=low, vmax=high)
    ax.figure.colorbar(drawn, ax=ax, label=plain_text(shortened(title)))


def _explain(ax: Axes, handles: dict[str, Any], title: str, *, beside: bool) -> None:
    """A legend of handles by their text, beside the axes, or above where a scale is beside."""
    if not beside:
        legend_of(ax, {f"{title}: {text}": handle for text, handle in handles.items()})
        return
    numbers = [str(i) for i in range(len(handles))]  # a text that begins with _ would be left out
    legend = ax.legend(handles.values(), numbers, fontsize=8, title_fontsize=8, markerscale=2)
    legend.set_title(plain_text(shortened(title, 18)))
    for shown, text in zip(legend.get_texts(), handles, strict=True):
        shown.set_text(plain_text(shortened(text, 18)))
    legend.set_frame_on(False)
    legend.set_loc("center left")
    legend.set_bbox_to_anchor((1, 0.5))
