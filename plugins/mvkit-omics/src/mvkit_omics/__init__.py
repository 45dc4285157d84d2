"""Single cells and bulk omics for mvkit. Imported at discovery, so it stays light."""

import importlib
from typing import TYPE_CHECKING, Any

from mvkit.registry import Component, hookimpl

if TYPE_CHECKING:
    from mvkit_omics.matrix_files import MatrixFile as MatrixFile
    from mvkit_omics.reading import from_anndata as from_anndata
    from mvkit_omics.reading import from_mudata as from_mudata
    from mvkit_omics.sparse_rows import SparseRows as SparseRows
    from mvkit_omics.writing import annotate as annotate

# where what is imported when it is asked for is defined
PLACES = {
    "MatrixFile": "matrix_files",
    "SparseRows": "sparse_rows",
    "annotate": "writing",
    "from_anndata": "reading",
    "from_mudata": "reading",
}


@hookimpl
def mvkit_components() -> list[Component]:
    """The parts of this package."""
    return []


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PLACES])
