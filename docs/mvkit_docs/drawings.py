"""The drawn figures of the concepts, as SVG whose lines and words take the colour of the page."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mvkit_docs.files import write_if_changed

ACCENT = "#d9822b"  # stands out from white and from black
OTHERS = ("#3d8fd1", "#4fa36c")
Curve = NDArray[np.float64]


class Drawing:
    """Shapes in a frame of a width and a height, and what they show in words."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width = width
        self.height = height
        self.title = title
        self.shapes: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, words: str, *, missing: bool = False
    ) -> None:
        """A rectangle with words in its middle; dashed and pale where something is missing."""
        style = ' stroke-dasharray="4 3" opacity="0.5"' if missing else ""
        self.shapes.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="none" '
            f'stroke="currentColor"{style}/>'
        )
        lines = words.split("\n")
        for number, line in enumerate(lines):
            offset = (number - (len(lines) - 1) / 2) * 16 + 4.5
            self.text(x + width / 2, y + height / 2 + offset, line, pale=missing)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        anchor: str = "middle",
        size: float = 13,
        pale: bool = False,
        colour: str = "currentColor",
        bold: bool = False,
    ) -> None:
        """Words at a place."""
        style = ' opacity="0.55"' if pale else ""
        style += ' font-weight="bold"' if bold else ""
        self.shapes.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
            f'fill="{colour}"{style}>{html.escape(words)}</text>'
        )

    def arrow(
        self, x: float, y: float, to_x: float, to_y: float, *, missing: bool = False
    ) -> None:
        """A line with a head."""
        style = ' stroke-dasharray="4 3" opacity="0.5"' if missing else ""
        self.shapes.append(
            f'<line x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y}" stroke="currentColor"{style}/>'
        )
        angle = math.atan2(to_y - y, to_x - x)
        ends = [
            (to_x - 8 * math.cos(angle + turn), to_y - 8 * math.sin(angle + turn))
            for turn in (-0.4, 0.4)
        ]
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in [(to_x, to_y), *ends])
        opacity = ' opacity="0.5"' if missing else ""
        self.shapes.append(f'<polygon points="{points}" fill="currentColor"{opacity}/>')

    def curve(
        self, x: Curve, y: Curve, colour: str, *, width: float = 1.6, dashed: bool = False
    ) -> None:
        """A line through points."""
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in zip(x, y, strict=True))
        style = ' stroke-dasharray="5 4"' if dashed else ""
        self.shapes.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" '
            f'stroke-width="{width}"{style}/>'
        )

    def circle(self, x: float, y: float, words: str, *, observed: bool = False) -> None:
        """A variable of a graph; filled where it is observed."""
        fill = ' fill="currentColor" fill-opacity="0.18"' if observed else ' fill="none"'
        self.shapes.append(f'<circle cx="{x}" cy="{y}" r="21" stroke="currentColor"{fill}/>')
        self.text(x, y + 4.5, words, size=14)

    def cell(self, x: float, y: float, size: float, colour: str | None) -> None:
        """A square of a table; without a colour, a gap."""
        style = f'fill="{colour}" fill-opacity="0.75"' if colour else 'fill="none" opacity="0.6"'
        dashes = "" if colour else ' stroke-dasharray="2 2"'
        self.shapes.append(
            f'<rect x="{x}" y="{y}" width="{size}" height="{size}" {style} '
            f'stroke="currentColor" stroke-width="0.6"{dashes}/>'
        )

    def svg(self) -> str:
        """The whole as an element of a page."""
        shapes = "\n".join(self.shapes)
        title = html.escape(self.title)
        return (
            f'<div class="drawing-frame">\n<svg class="drawing" role="img" '
            f'viewBox="0 0 {self.width} {self.height}" aria-label="{title}" '
            f'font-family="inherit" xmlns="http://www.w3.org/2000/svg">\n'
            f"<title>{title}</title>\n{shapes}\n</svg>\n</div>\n"
        )


def way_of_a_batch() -> Drawing:
    """From the rows of a batch to a loss, and to answers."""
    drawing = Drawing(760, 300, "From data with gaps to a posterior, and from it to each modality")
    names = (("image", False), ("sound", True), ("text", False))
    for number, (name, missing) in enumerate(names):
        y = 50 + 75 * number
        drawing.box(10, y, 84, 42, name, missing=missing)
        drawing.arrow(94, y + 21, 118, y + 21, missing=missing)
        drawing.box(118, y, 92, 42, "encoder", missing=missing)
        drawing.arrow(210, y + 21, 290, 146 + 12 * (number - 1), missing=missing)
        drawing.arrow(500, 146 + 12 * (number - 1), 562, y + 21)
        drawing.box(562, y, 92, 42, "decoder")
        drawing.arrow(654, y + 21, 676, y + 21)
        drawing.box(676, y, 78, 42, "likelihood")
    drawing.text(268, 62, "experts", size=12)
    drawing.text(268, 78, "q(z|xₘ)", size=12)
    drawing.box(290, 112, 96, 68, "aggregator")
    drawing.arrow(386, 146, 414, 146)
    drawing.box(414, 112, 86, 68, "posterior\nq(z|X)")
    drawing.box(414, 222, 86, 34, "prior p(z)")
    drawing.arrow(457, 222, 457, 184)
    drawing.text(52, 30, "what a row has", size=12, bold=True)
    drawing.text(457, 30, "what it means", size=12, bold=True)
    drawing.text(658, 30, "what it would look like", size=12, bold=True)
    drawing.text(380, 288, "terms: log p(xₘ|z), log p(z), log q(z|X)  →  objective  →  loss")
    return drawing


def _density(x: Curve, loc: float, scale: float) -> Curve:
    return np.exp(-0.5 * ((x - loc) / scale) ** 2) / (scale * math.sqrt(2 * math.pi))


def _product(experts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean and deviation of the product of normal experts and a standard normal one."""
    precision = 1 + sum(scale**-2 for _, scale in experts)
    return sum(loc * scale**-2 for loc, scale in experts) / precision, precision**-0.5


def fusion() -> Drawing:
    """What a product, a mixture and a mixture of products make of two experts."""
    drawing = Drawing(760, 230, "Two experts, and what three aggregators make of them")
    experts = ((-1.4, 0.7), (1.1, 0.5))
    loc, scale = _product(experts)
    x = np.linspace(-4, 4, 160)
    alone = [_density(x, *each) for each in experts]
    joint = _density(x, loc, scale)
    answers: dict[str, tuple[str, Curve]] = {
        "poe": ("product: all must agree", joint),
        "moe": ("mixture: any may be right", sum(alone) / 2),
        "mopoe": ("products of all subsets", _subsets(x, experts)),
    }
    for number, (name, (words, density)) in enumerate(answers.items()):
        left = 15 + 250 * number
        across = left + (x + 4) / 8 * 230
        base, height = 190, 140
        drawing.curve(across, np.full_like(x, base), "currentColor", width=1)
        for colour, expert in zip(OTHERS, alone, strict=True):
            drawing.curve(across, base - height * expert, colour, dashed=True)
        drawing.curve(across, base - height * density, ACCENT, width=2.6)
        drawing.text(left + 115, 20, name, bold=True)
        drawing.text(left + 115, 216, words, size=12)
    return drawing


def _subsets(x: Curve, experts: Sequence[tuple[float, float]]) -> Curve:
    """Mixture of the two experts alone and of their product with the prior."""
    parts = [_density(x, *each) for each in experts]
    parts.append(_density(x, *_product(experts)))
    return np.mean(parts, axis=0)


def gaps() -> Drawing:
    """Rows that lack modalities, rows that lack values, and zeros."""
    drawing = Drawing(620, 230, "Rows of three modalities; dashed cells are missing")
    widths = (("rna", 6, OTHERS[0]), ("protein", 3, OTHERS[1]), ("site", 1, ACCENT))
    absent = {("protein", 1), ("rna", 3), ("protein", 4)}
    single = {("rna", 0, 2), ("protein", 2, 1), ("rna", 4, 5)}
    names = ("ann", "bob", "cem", "dan", "eve")
    left = 60
    for name, columns, colour in widths:
        drawing.text(left + columns * 13, 26, name, bold=True)
        for row in range(len(names)):
            for column in range(columns):
                gap = (name, row) in absent or (name, row, column) in single
                place = (left + 26 * column, 40 + 30 * row)
                drawing.cell(*place, 22, None if gap else colour)
        left += 26 * columns + 34
    for row, name in enumerate(names):
        drawing.text(48, 56 + 30 * row, name, anchor="end")
    notes = (
        "one value is missing: elements",
        "no protein: mask",
        "one value is missing",
        "no rna: mask",
        "both",
    )
    for row, note in enumerate(notes):
        drawing.text(left - 10, 56 + 30 * row, note, anchor="start", size=12)
    drawing.text(310, 215, "NaN is missing. Zero never is.", size=12)
    return drawing


def latents() -> Drawing:
    """Shared and private latents, covariates, and two levels."""
    drawing = Drawing(720, 240, "Latents of a model, of one with private ones, and of two levels")
    _graph(drawing, 120, private=False)
    _graph(drawing, 365, private=True)
    drawing.text(120, 24, "shared", bold=True)
    drawing.text(365, 24, "shared and private", bold=True)
    drawing.text(610, 24, "two levels (Stack)", bold=True)
    drawing.circle(610, 62, "z")
    for x, name in ((560, "h₁"), (660, "h₂")):
        drawing.arrow(610 + (x - 610) * 0.35, 80, x - (x - 610) * 0.12, 108)
        drawing.circle(x, 128, name)
        drawing.arrow(x, 149, x, 172)
    drawing.circle(560, 194, "x₁", observed=True)
    drawing.circle(660, 194, "x₂", observed=True)
    return drawing


def _graph(drawing: Drawing, middle: float, *, private: bool) -> None:
    """Z and two modalities, with a latent of its own for each where they are private."""
    drawing.circle(middle, 72, "z")
    for side, name in ((-1, "₁"), (1, "₂")):
        x = middle + side * 50
        drawing.arrow(middle + side * 12, 90, x - side * 8, 155)
        drawing.circle(x, 176, f"x{name}", observed=True)
        if private:
            drawing.arrow(middle + side * 92, 122, x + side * 14, 158)
            drawing.circle(middle + side * 100, 102, f"w{name}")


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "way": way_of_a_batch,
    "fusion": fusion,
    "gaps": gaps,
    "latents": latents,
}


def write_drawings(folder: Path) -> None:
    """Writes every drawing into a folder, as an element that pages take in."""
    folder.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        write_if_changed(folder / f"{name}.html", draw().svg())
