"""Settings of the documentation: `make docs` builds it, without a network."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ["MVKIT_PLUGINS"] = ""  # the pages describe mvkit alone, whatever is installed

import mvkit  # noqa: E402

project = "mvkit"
author = "the authors of mvkit"
project_copyright = f"2026, {author}"
version = release = mvkit.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "mvkit_docs.extension",
]
exclude_patterns = ["_build", "examples", "figures", "mvkit_docs"]
default_role = "code"
nitpicky = False

# Markdown: formulas between dollars, drawn as MathML, and links to headings
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # mvkit_docs.tutorial_pages runs the tutorials
nb_merge_streams = True
html_math_renderer = "mathml"

# docstrings in Google's style
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_param = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_inherit_docstrings = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries = False

html_theme = "sphinx_book_theme"
html_title = f"mvkit {release}"
html_static_path = ["static"]
html_css_files = ["mvkit.css"]
html_extra_path = ["llms.txt"]
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
html_context = {"default_mode": "auto"}  # light or dark, as the reader's machine is
html_theme_options = {
    "navbar_persistent": [],  # the search is in the side bar already
    "show_navbar_depth": 1,
    "max_navbar_depth": 3,
    "collapse_navbar": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navigation_with_keys": False,
}
suppress_warnings = ["mystnb.unknown_mime_type"]
