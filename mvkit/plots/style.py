"""Pictures on light and on dark paper; colours are those of pages (`apps/templates`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from mvkit.core.figures import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@attrs.frozen
class Scheme:
    """Colours of a picture's surroundings.

    Args:
        paper: behind everything.
        ink: of text, and of what has the gid `INK`.
        line: of frames.
    """

    paper: str
    ink: str
    line: str


LIGHT = Scheme("#ffffff", "#1d2330", "#b4bbc7")
DARK = Scheme("#14171d", "#e4e8ef", "#4d5664")


def dress(figure: Figure, scheme: Scheme) -> None:
    """Sets the colours of a figure's surroundings; those of its data stay."""
    from matplotlib.text import Text

    figure.set_facecolor(scheme.paper)
    for artist in figure.findobj():
        drawn: Any = artist
        if isinstance(drawn, Text) or drawn.get_gid() == INK:
            drawn.set_color(scheme.ink)
    for ax in figure.axes:
        _dress_axes(ax, scheme)


def _dress_axes(ax: Axes, scheme: Scheme) -> None:
    """Sets the colours of axes, their frame, ticks and legend."""
    ax.set_facecolor(scheme.paper)
    ax.tick_params(which="both", color=scheme.line, labelcolor=scheme.ink)
    for spine in ax.spines.values():
        spine.set_edgecolor(scheme.line)
    legend = ax.get_legend()
    if legend is not None:
        legend.get_frame().set(facecolor=scheme.paper, edgecolor=scheme.line)
