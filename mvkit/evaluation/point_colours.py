"""Points coloured by labels: classes, numbers, and rows without a label. Needs `mvkit[plots]`.

Axes: b points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mvkit.core.raw_values import is_missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "0.75"  # of points without a label
PALETTE = 20  # classes that have a colour of their own
SIZE = 6

Points = NDArray[np.floating]  # (b, 2)
Labels = NDArray[Any]  # (b,)


def draw_points(ax: Axes, points: Points, labels: Labels, title: str) -> None:
    """Draws points: numbers with a colour bar, classes with a legend, unlabelled ones in grey.

    Whole numbers are classes as long as there are as many colours.
    """
    missing = np.array([is_missing(label) for label in labels.tolist()], dtype=bool)
    known = labels[~missing]
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
            paint = colour_of(i)
            handles[str(kind)] = ax.scatter(x, y, SIZE, linewidths=0, color=paint)
    if handles:
        _explain(ax, handles, title, beside=not on_scale)


def plain_text(text: str) -> str:
    """A text that matplotlib shows as it is, dollars included, and not as a formula."""
    return text.replace("$", r"\$")


def is_continuous(labels: Labels) -> bool:
    """Whether labels are numbers to be shown on a scale."""
    if not len(labels) or not all(isinstance(label, int | float) for label in labels.tolist()):
        return False
    numbers = labels.astype(float)
    return len(np.unique(numbers)) > PALETTE or bool((numbers % 1 != 0).any())


def _order(label: object) -> tuple[bool, float, str]:
    """Numbers by size, then words."""
    number = isinstance(label, int | float)
    return not number, float(label) if isinstance(label, int | float) else 0.0, str(label)


def colour_of(i: int) -> tuple[float, float, float, float]:
    """A colour of the palette tab20: the ten strong ones first, then the ten pale ones."""
    import matplotlib as mpl

    return mpl.colormaps["tab20"]((2 * i + (i // 10) % 2) % PALETTE)


def _draw_numbers(ax: Axes, points: Points, numbers: NDArray[np.floating], title: str) -> None:
    """Points on a scale of colours, and the scale."""
    finite = numbers[np.isfinite(numbers)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    x, y = points.T
    clipped = np.clip(numbers, low, high)
    drawn = ax.scatter(x, y, SIZE, linewidths=0, c=clipped, cmap="viridis", vmin=low, vmax=high)
    ax.figure.colorbar(drawn, ax=ax, label=plain_text(title))


def _explain(ax: Axes, handles: dict[str, Any], title: str, *, beside: bool) -> None:
    """A legend of handles by their text; beside the axes, unless a scale of colours is there."""
    numbers = [str(i) for i in range(len(handles))]  # a text that begins with _ would be left out
    legend = ax.legend(handles.values(), numbers, fontsize=7, title_fontsize=7, markerscale=2)
    legend.set_title(plain_text(title))
    for shown, text in zip(legend.get_texts(), handles, strict=True):
        shown.set_text(plain_text(text))
    if beside:
        legend.set_loc("center left")
        legend.set_bbox_to_anchor((1, 0.5))
