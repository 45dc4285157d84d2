"""Single cells and bulk omics for mvkit. Imported at discovery, so it stays light."""

import importlib

from mvkit.registry import Component, hookimpl

# what is imported when somebody first names it: anndata alone takes seconds
ON_DEMAND = {
    "Imputed": "mvkit_omics.expression",
    "denoised": "mvkit_omics.expression",
    "differential_expression": "mvkit_omics.differential",
    "feature_relevance": "mvkit_omics.relevance",
    "imputed": "mvkit_omics.expression",
    "latents": "mvkit_omics.expression",
    "map_new": "mvkit_omics.mapping",
}


@hookimpl
def mvkit_components() -> list[Component]:
    """The parts of this package."""
    return []


def __getattr__(name: str) -> object:
    if name not in ON_DEMAND:
        raise AttributeError(f"module 'mvkit_omics' has no attribute {name!r}")
    return getattr(importlib.import_module(ON_DEMAND[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *ON_DEMAND})
