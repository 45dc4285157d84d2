"""Single cells and bulk omics for mvkit. Imported at discovery, so it stays light."""

import importlib
from typing import TYPE_CHECKING, Any

from mvkit.registry import Component, hookimpl

if TYPE_CHECKING:
    from mvkit_omics.differential import differential_expression as differential_expression
    from mvkit_omics.expression import Imputed as Imputed
    from mvkit_omics.expression import denoised as denoised
    from mvkit_omics.expression import imputed as imputed
    from mvkit_omics.expression import latents as latents
    from mvkit_omics.matrix_files import MatrixFile as MatrixFile
    from mvkit_omics.new_cells import map_new as map_new
    from mvkit_omics.reading import from_anndata as from_anndata
    from mvkit_omics.reading import from_mudata as from_mudata
    from mvkit_omics.relevance import feature_relevance as feature_relevance
    from mvkit_omics.sparse_rows import SparseRows as SparseRows
    from mvkit_omics.writing import annotate as annotate

# where what is imported when it is asked for is defined
PLACES = {
    "Imputed": "expression",
    "MatrixFile": "matrix_files",
    "SparseRows": "sparse_rows",
    "annotate": "writing",
    "denoised": "expression",
    "differential_expression": "differential",
    "feature_relevance": "relevance",
    "from_anndata": "reading",
    "from_mudata": "reading",
    "imputed": "expression",
    "latents": "expression",
    "map_new": "new_cells",
}


@hookimpl
def mvkit_components() -> list[Component]:
    """The parts of this package."""
    return [
        Component(
            "metric",
            "protein_imputation",
            "mvkit_omics.metrics:ProteinImputation",
            "Pearson, Spearman and RMSE of each imputed feature",
        ),
        Component(
            "metric",
            "scib",
            "mvkit_omics.metrics:SCIB",
            "kinds kept and batches mixed in latents, by scib-metrics",
        ),
    ]


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PLACES])
