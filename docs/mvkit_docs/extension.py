"""The Sphinx extension of this site: made pages, docstrings as they are, formulas as MathML."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from mvkit_docs.api_pages import write_api
from mvkit_docs.docstrings import as_rst
from mvkit_docs.drawings import write_drawings
from mvkit_docs.files import write_if_changed
from mvkit_docs.formulas import mathml
from mvkit_docs.parts_page import parts_page
from mvkit_docs.text_index import text_index
from mvkit_docs.tutorial_pages import write_tutorials

LONG = 60  # letters of LaTeX: a formula that may be wider than a telephone


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers everything; called by Sphinx."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("builder-inited", write_pages)
    app.connect("source-read", fill_in_version)
    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    app.connect("autodoc-process-docstring", restore_property, priority=600)
    app.connect("autodoc-skip-member", skip_member)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def write_pages(app: Sphinx) -> None:
    """Writes the pages that are made from the registry, docstrings and tutorials."""
    folder = Path(app.srcdir)
    write_api(folder / "api")
    write_if_changed(folder / "parts.md", parts_page())
    write_drawings(folder / "figures")
    execute = os.environ.get("MVKIT_DOCS_RUN", "1") != "0"
    write_tutorials(folder / "tutorials", folder / "_build" / "tutorials", execute=execute)
    write_if_changed(folder / "llms.txt", text_index(folder))


def fill_in_version(app: Sphinx, name: str, source: list[str]) -> None:
    """Pages name the version that they describe."""
    source[0] = source[0].replace("@VERSION@", app.config.release)


def process_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Docstrings are plain text with backticks; Sphinx takes reStructuredText."""
    lines[:] = as_rst("\n".join(lines)).split("\n")


def restore_property(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """A property's docstring has no type in front, which napoleon takes words with a colon for."""
    text = inspect.getdoc(obj) or ""
    if what == "property" and "Raises:" not in text:
        lines[:] = [*as_rst(text).split("\n"), ""]


def skip_member(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leaves out the old names of methods that were renamed, and what torch brings."""
    module = getattr(obj, "__module__", None)
    if module is not None and not str(module).startswith("mvkit"):
        return True
    return None


def visit_math(self: Any, node: nodes.math) -> None:
    """Writes a formula of a line."""
    latex = node.astext()
    formula = _element(latex, block=False)
    if len(latex) > LONG:
        formula = f'<span class="math-long">{formula}</span>'
    self.body.append(formula)
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    """Writes a formula of its own line, which scrolls by itself where it is too wide."""
    self.body.append(f'<div class="math-block">{_element(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def _element(latex: str, *, block: bool) -> str:
    try:
        return mathml(latex, block=block)
    except MathError as error:
        raise ExtensionError(f"formula {latex!r}: {error}") from error
