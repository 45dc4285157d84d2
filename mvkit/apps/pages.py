"""What all pages have in common: templates, one style sheet, pictures in light and dark."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from typing import TYPE_CHECKING

from mvkit.plots.style import DARK, LIGHT, dress

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


def picture_of(figure: Figure, alt: str) -> Markup:
    """A figure as HTML: a picture for light pages, and one for dark pages.

    Args:
        figure: drawn; its colours are set here.
        alt: what stands for it where pictures are not shown.
    """
    from markupsafe import Markup

    dark = _png(figure, dark=True)
    light = _png(figure, dark=False)
    width = round(96 * figure.get_figwidth())
    html = Markup(
        '<picture><source media="(prefers-color-scheme: dark)" '
        'srcset="data:image/png;base64,{}">'
        '<img alt="{}" width="{}" src="data:image/png;base64,{}"></picture>'
    )
    return html.format(dark, alt, width, light)


def _png(figure: Figure, *, dark: bool) -> str:
    """The figure as PNG, in base64."""
    dress(figure, DARK if dark else LIGHT)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return base64.b64encode(file.getvalue()).decode()
