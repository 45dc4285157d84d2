"""Values of modalities in a grid of small pictures.

Axes: k numbers of a flat modality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from mvkit.core.figures import colour_of, in_lines, plain_text, shortened, text_width
from mvkit.training.loss_curves import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

    Draw = Callable[..., Axes | NDArray[Any]]
    AxesLike = Axes | None  # None: those of a new figure
    FigureLike = FigureBase | None  # None: a new one

Grid = NDArray[Any]  # of matplotlib's axes
Line = tuple[str, Iterable[object]]  # a label, and values of modalities
Alike = Literal["columns", "all"]
STEMS = 40  # numbers of a flat modality that are drawn one by one
ROOM = 0.9  # share of the width of a column that its title may have
LINES = 3  # of a title


def grid(figure: FigureLike, rows: int, columns: int) -> Grid:
    """Axes (rows, columns) without ticks in a figure, or in a new one."""
    if figure is None:
        figure = new_figure(1.2 + 1.1 * columns, 0.5 + 1.1 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    return axes


def figure_of(axes: Axes | Grid) -> Figure:
    """The figure that axes belong to."""
    figure: Figure = np.array(axes, dtype=object, ndmin=1).flat[0].figure
    return figure


def gallery(
    figure: FigureLike,
    lines: Sequence[Line],
    titles: Sequence[str],
    *,
    fontsize: int = 9,
    alike: Alike = "columns",
) -> Grid:
    """Values of modalities in a grid.

    Args:
        figure: where to draw; None: a new one.
        lines: a label and the values of each line, one per column; None leaves a place empty.
        titles: of the columns.
        fontsize: of the titles.
        alike: where flat values have one scale: in each of the `columns`, or in `all`.

    Returns:
        Axes (lines, columns).
    """
    axes = grid(figure, len(lines), len(titles))
    beside = max((text_width(shortened(label), 8) for label, _ in lines), default=0.0)
    _write_titles(axes[0], titles, fontsize, beside)
    for row, (label, values) in zip(axes, lines, strict=True):
        text = plain_text(shortened(label))
        row[0].set_ylabel(text, fontsize=8, rotation=0, ha="right", va="center")
        for ax, value in zip(row, values, strict=True):
            if value is not None:
                show(ax, value)
    for group in [axes] if alike == "all" else axes.T:
        _share_scale(group.flat)
    return axes


def _write_titles(
    axes: Iterable[Axes], titles: Sequence[str], fontsize: float, beside: float
) -> None:
    """Titles of columns: in lines where one is wider than its column, upright where that fails.

    Beside the columns there are labels, so many inches wide.
    """
    each = list(axes)
    figure: Any = each[0].figure
    room = ROOM * (figure.bbox.width / figure.dpi - beside) / len(each)
    texts = [shortened(title) for title in titles]
    broken = [in_lines(text, int(room / text_width("x", fontsize))) for text in texts]
    upright = any(text is None or text.count("\n") >= LINES for text in broken)
    for ax, text, lines in zip(each, texts, broken, strict=True):
        shown = text if upright else str(lines)
        ax.set_title(plain_text(shown), fontsize=fontsize, rotation=90 if upright else 0)


def _share_scale(axes: Iterable[Axes]) -> None:
    """Gives axes with flat values the same scale, so that they can be compared."""
    drawn = [ax for ax in axes if ax.lines]
    limits = np.array([ax.get_ylim() for ax in drawn])
    for ax in drawn:
        ax.set_ylim(limits[:, 0].min(), limits[:, 1].max())


def is_picture(shape: Sequence[int]) -> bool:
    """Whether rows of a shape are pictures: (c, h, w), grey or in three colours."""
    return len(shape) == 3 and shape[0] in (1, 3)


def show(ax: Axes, x: object) -> Axes:
    """A row of a modality: (c, h, w) as a picture, channels first; (h, w) in colours.

    Anything else has no order: a few numbers are points on stems, many a strip of colours.
    """
    values = torch.as_tensor(x).detach().cpu().float()
    if is_picture(values.shape):
        picture = rearrange(values, "c h w -> h w c").clamp(0, 1).numpy()
        ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        return ax
    if values.ndim != 2:
        values = values.reshape(1, -1)
        if values.numel() <= STEMS:
            flat = values[0].numpy()
            ax.vlines(np.arange(len(flat)), 0, flat, color=colour_of(0), linewidth=1)
            ax.plot(flat, ".", color=colour_of(0), markersize=4)
            return ax
    ax.imshow(values.numpy(), aspect="auto", interpolation="nearest", cmap="cividis")
    return ax
