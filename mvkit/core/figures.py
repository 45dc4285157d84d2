"""What pictures share: colours that colour-blind readers tell apart, plain text, legends.

Needs the extra `mvkit[plots]` where something is drawn.

Reference: Okabe and Ito, Color Universal Design, 2008, https://jfly.uni-koeln.de/color/ (the first
six colours).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# the last four are as far as can be from those of Okabe and Ito, for all kinds of sight
PALETTE = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#8716f4",
    "#854325",
    "#b7b766",
    "#495254",
)
MARKERS = ("o", "^", "s", "D")
GREY = "#a0a0a0"  # of what has no label; in light and in dark
INK = "ink"  # gid of what is drawn in the colour of text, which may be light or dark
LONGEST = 28  # letters of a name
LETTER = 0.58  # width of a letter in sizes of its font


def colour_of(i: int) -> str:
    """The colour of class i; from the eleventh on they are the same again, see `marker_of`."""
    return PALETTE[i % len(PALETTE)]


def marker_of(i: int) -> str:
    """The shape of the points of class i, which differs where colours are the same."""
    return MARKERS[i // len(PALETTE) % len(MARKERS)]


def plain_text(text: str) -> str:
    """A text that matplotlib shows as it is, dollars included, and not as a formula."""
    return text.replace("$", r"\$")


def shortened(text: str, longest: int = LONGEST) -> str:
    """A text without its middle, where it is longer than `longest` letters."""
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[: longest - 1 - half]}…{text[-half:]}"


def in_lines(text: str, letters: int) -> str | None:
    """A text in lines of so many letters at most, broken after spaces, hyphens, dots and `_`; None
    if a piece of it is longer.
    """
    lines = [""]
    for piece in re.findall(r"[^\s_.-]*[\s_.-]?", text):
        if len(piece.rstrip()) > letters:
            return None
        if len(lines[-1] + piece.rstrip()) > letters:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def text_width(text: str, fontsize: float) -> float:
    """About how wide a text is, in inches."""
    return len(text) * LETTER * fontsize / 72


def legend_of(ax: Axes, handles: Mapping[str, Any], *, fontsize: float = 8) -> Any:
    """A legend above the axes, in as many columns as there is room for.

    It ends where they end, since labels of the vertical axis may take half of the width.

    Args:
        ax: where.
        handles: what is explained, by its text, which may begin with an underscore.
        fontsize: of the text.
    """
    texts = [plain_text(shortened(text)) for text in handles]
    figure: Any = ax.figure
    room = ax.get_position(original=True).width * figure.bbox.width / figure.dpi
    widest = max(text_width(text, fontsize) for text in texts) + 0.45
    columns = max(1, min(len(texts), int(room / widest)))
    numbers = [str(i) for i in range(len(texts))]  # a text that begins with _ would be left out
    legend = ax.legend(
        handles.values(),
        numbers,
        fontsize=fontsize,
        ncols=columns,
        loc="lower right",
        bbox_to_anchor=(1, 1.01),
        borderaxespad=0,
        frameon=False,
    )
    for shown, text in zip(legend.get_texts(), texts, strict=True):
        shown.set_text(text)
    return legend
