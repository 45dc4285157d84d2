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
    from mvkit_omics.facade import MVKIT as MVKIT
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
    "MVKIT": "facade",
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


# kind, name, class or function, a few words for listings
PARTS = """
aggregator mean               fusion:Mean                  mean of the experts, by moments
likelihood discretised_normal likelihoods:DiscretisedNormal normal law of log1p counts
metric     protein_imputation metrics:ProteinImputation  imputed features one by one
metric     scib               metrics:SCIB                kinds kept and batches mixed
network    last_latents       networks:LastLatents         decoders that see the last latents
objective  consistency        objectives:Consistency       draws of single modalities together
objective  jeffreys           objectives:Jeffreys          experts together, by KL both ways
objective  latent_kl          objectives:LatentKL          a further KL of the last latents
recipe     cite_mopoe         recipes:cite_mopoe           counts by a mixture of products
recipe     midas              recipes:midas                mosaics, the batch as a modality
recipe     multivi            recipes:multivi              genes and peaks, unpaired cells too
recipe     scvi               recipes:scvi                 counts of genes
recipe     totalvi            recipes:totalvi              genes, proteins on background
schedule   warmup             schedules:Warmup             AdamW, KL from 0 to 1
"""


@hookimpl
def mvkit_components() -> list[Component]:
    """Every part of `PARTS`."""
    components = []
    for line in PARTS.strip().splitlines():
        kind, name, target, summary = line.split(maxsplit=3)
        components.append(Component(kind, name, f"mvkit_omics.{target}", summary))
    return components


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PLACES])
