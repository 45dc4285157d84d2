"""`mdata.mvkit` and `adata.mvkit`, once this module has been imported.

    import mvkit_omics.namespace

    data = mdata.mvkit.dataset(layers={"rna": "counts"}, covariates=["batch"])
    mdata.mvkit.annotate(model, imputed=["adt"])

Not imported by `mvkit_omics` itself, since anndata and mudata take seconds.
"""

from __future__ import annotations

from typing import Any

import anndata
import mudata

from mvkit import Model, MultimodalDataset, Stack
from mvkit_omics.reading import from_anndata, from_mudata
from mvkit_omics.sparse_rows import SparseRows
from mvkit_omics.writing import annotate


@anndata.register_anndata_namespace("mvkit")
class AnnDataNamespace:
    """What mvkit does with an AnnData.

    Args:
        adata: the object.
    """

    def __init__(self, adata: anndata.AnnData) -> None:
        self._adata = adata

    def dataset(self, **options: Any) -> MultimodalDataset | SparseRows:
        """The cells as a dataset; options as of `from_anndata`."""
        return from_anndata(self._adata, **options)

    def annotate(self, model: Model | Stack, **options: Any) -> None:
        """Writes what a model says of the cells; options as of `mvkit_omics.annotate`."""
        annotate(self._adata, model, **options)


@mudata.register_mudata_namespace("mvkit")
class MuDataNamespace:
    """What mvkit does with a MuData.

    Args:
        mdata: the object.
    """

    def __init__(self, mdata: mudata.MuData) -> None:
        self._mdata = mdata

    def dataset(self, **options: Any) -> MultimodalDataset | SparseRows:
        """The cells as a dataset; options as of `from_mudata`."""
        return from_mudata(self._mdata, **options)

    def annotate(self, model: Model | Stack, **options: Any) -> None:
        """Writes what a model says of the cells; options as of `mvkit_omics.annotate`."""
        annotate(self._mdata, model, **options)
