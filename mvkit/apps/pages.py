"""What all pages have in common: templates, one style sheet, pictures in light and dark."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from typing import TYPE_CHECKING

import attrs

from mvkit.plots.style import DARK, LIGHT, Scheme, dress

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup
    from matplotlib.figure import Figure

DPI = 192  # twice that of a page, for sharp screens
STYLE = "style.css.jinja"  # of every page


def page_template(name: str) -> Template:
    """A template of a page, in which whatever is not given is an error."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    loader = FunctionLoader(_text_of)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template(
        name
    )


def _text_of(name: str) -> str:
    """A file of the folder of templates."""
    return files("mvkit.apps").joinpath("templates", name).read_text("utf-8")


def style_sheet() -> str:
    """The style sheet of every page, for what is no template."""
    return _text_of(STYLE)


@attrs.frozen
class Picture:
    """A figure as PNG, for light pages and for dark ones.

    Args:
        light, dark: the files.
        width: in pixels of a page.
    """

    light: bytes
    dark: bytes
    width: int = 360

    def html(self, alt: str) -> Markup:
        """The picture as HTML; `alt` stands for it where pictures are not shown."""
        from markupsafe import Markup

        html = Markup(
            '<picture><source media="(prefers-color-scheme: dark)" '
            'srcset="data:image/png;base64,{}">'
            '<img alt="{}" width="{}" src="data:image/png;base64,{}"></picture>'
        )
        light, dark = (base64.b64encode(file).decode() for file in (self.light, self.dark))
        return html.format(dark, alt, self.width, light)


def picture_of(figure: Figure) -> Picture:
    """A figure as a picture for light pages, and one for dark pages; its colours are set here."""
    dark = _png(figure, DARK)
    light = _png(figure, LIGHT)
    return Picture(light, dark, round(96 * figure.get_figwidth()))


def _png(figure: Figure, scheme: Scheme) -> bytes:
    """The figure as PNG."""
    dress(figure, scheme)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()
