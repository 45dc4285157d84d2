"""AnnData and MuData as datasets, by names of cells and of features; never by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mvkit import DataError, MultimodalDataset
from mvkit.errors import suggest
from mvkit_omics.assembling import columns_of, dataset_of
from mvkit_omics.containers import Layers, of_anndata, of_mudata
from mvkit_omics.counts import Empty
from mvkit_omics.mapping import Missing, like_model
from mvkit_omics.reading_options import check_options

RNA = "rna"  # what the one modality of an AnnData is called

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from mvkit import Model, Stack
    from mvkit_omics.sparse_rows import SparseRows


def from_mudata(
    mdata: MuData,
    *,
    mods: Sequence[str] | None = None,
    layers: Layers = None,
    observed: Mapping[str, str] | None = None,
    covariates: Sequence[str] | None = None,
    label: str | None = None,
    row_weight: str | None = None,
    modalities: Mapping[str, Any] | None = None,
    empty: Empty = "error",
    disjoint: bool = False,
    like: Model | Stack | None = None,
    missing_genes: Missing = "error",
    sparse: bool = False,
) -> MultimodalDataset | SparseRows:
    """The cells of a MuData, in its order, as a dataset; `ids` are names of cells.

    Cells that a modality lacks are unobserved there; zeros are zeros. What modalities are is said
    in `modalities`, or follows from the values: whole numbers of at least 0 are counts, which get
    the likelihood `negative_binomial`, the exposure `total`, and log1p as what encoders see; zeros
    and ones alone are bits; anything else is normal, which a warning says.

    Args:
        mdata: in memory or backed, or a view.
        mods: the modalities to take; None: all.
        layers: the layer that values are in: of all, or by modality; None: `X`.
        observed: by modality, a column of flags in `obs`: which cells it was measured in, where
            cells that it was not measured in have rows nevertheless.
        covariates: columns of the `obs` of the whole or of modalities, see
            `MultimodalDataset.from_tables`; exposures are among them.
        label: likewise a column of labels, which are kept and never modelled.
        row_weight: likewise a column: how much each cell counts in objectives.
        modalities: what modalities are, where it is not as inferred: a `Modality`, a dict of its
            options, or the name of a likelihood.
        empty: cells without a count, where the likelihood counts: an `error`; taken to be
            `unobserved`; or `keep` them.
        disjoint: whether a modality may share no cell with any other.
        like: a trained model that the dataset is for: features are put in its order by name, those
            that it does not know are left out, and its covariates are taken.
        missing_genes: features of the model that are not there: an `error` that names them, or
            `unobserved`.
        sparse: return `SparseRows`, which stay sparse until a batch is gathered, instead of a
            dataset, whose values are dense.

    Raises:
        DataError: names that stand twice or are not there, values that cannot be; with cell,
            feature, value and remedy.

    Example:
        >>> import anndata, mudata, numpy as np, pandas as pd
        >>> from mvkit_omics import from_mudata
        >>> options = mudata.set_options(pull_on_update=False)  # as it will be in mudata 0.4
        >>> def named(*names):
        ...     return pd.DataFrame(index=list(names))
        >>> rna = np.array([[3.0, 0.0], [1.0, 2.0]])
        >>> rna = anndata.AnnData(rna, obs=named("a", "b"), var=named("CD3E", "MS4A1"))
        >>> adt = anndata.AnnData(np.array([[0.0, 7.0]]), obs=named("b"), var=named("CD3", "CD19"))
        >>> data = from_mudata(mudata.MuData({"rna": rna, "adt": adt}))
        >>> data.ids.tolist(), data.batch.mask.tolist()
        (['a', 'b'], [[True, False], [True, True]])
    """
    check_options(
        "from_mudata",
        layers=layers,
        observed=observed,
        covariates=covariates,
        label=label,
        row_weight=row_weight,
        modalities=modalities,
        like=like,
    )
    if like is not None and mods is None and type(mdata).__name__ == "MuData":
        mods = _mods(mdata, like)
    measured = of_mudata(mdata, mods, layers, observed)
    tables = {"mdata.obs": mdata.obs}
    annotations = {}
    for name, adata in mdata.mod.items():
        tables[f"mdata[{name!r}].obs"] = adata.obs
        annotations[name] = adata.var
    if like is not None:
        measured = like_model(measured, like, missing_genes, annotations)
    names = {"covariates": covariates, "label": label, "row_weight": row_weight}
    columns = columns_of(tables, names, like)
    options: dict[str, Any] = {"empty": empty, "disjoint": disjoint, "like": like}
    options["sparse"] = sparse
    return dataset_of(measured, mdata.obs_names.tolist(), columns, modalities, **options)


def from_anndata(
    adata: AnnData,
    *,
    layers: Layers = None,
    obsm: Mapping[str, str] | None = None,
    features: Mapping[str, str | Sequence[str]] | None = None,
    feature_types: Mapping[str, str] | None = None,
    observed: Mapping[str, str] | None = None,
    covariates: Sequence[str] | None = None,
    label: str | None = None,
    row_weight: str | None = None,
    modalities: Mapping[str, Any] | None = None,
    empty: Empty = "error",
    like: Model | Stack | None = None,
    missing_genes: Missing = "error",
    sparse: bool = False,
) -> MultimodalDataset | SparseRows:
    """The cells of an AnnData, in its order, as a dataset; `ids` are names of cells.

    `X` is one modality, `rna`; layers, entries of `obsm` and types of features are others. What
    modalities are is said or inferred as in `from_mudata`.

    Args:
        adata: in memory or backed, or a view.
        layers: the layer of the one modality; or a mapping from modality to layer, None or "X"
            for `X`, which names modalities other than `rna`; an empty one takes `obsm` alone.
        obsm: likewise a mapping from modality to a key of `obsm`, such as
            `{"protein": "protein_expression"}`.
        features: names of the features of modalities in `obsm` that are no tables: a key of `uns`
            or a list; not given, they are called by position.
        feature_types: a mapping from modality to its type in `var["feature_types"]`, such as
            `{"rna": "Gene Expression", "protein": "Antibody Capture"}`.
        observed: see `from_mudata`.
        covariates: columns of `obs`; see `from_mudata`.
        label: likewise.
        row_weight: likewise.
        modalities: see `from_mudata`.
        empty: likewise.
        like: likewise. `X` is then called as the model's only modality that is not in `obsm`.
        missing_genes: likewise.
        sparse: likewise.

    Raises:
        DataError: as `from_mudata`.

    Example:
        >>> import anndata, numpy as np, pandas as pd
        >>> from mvkit_omics import from_anndata
        >>> obs = pd.DataFrame({"batch": ["p", "q"]}, index=["a", "b"])
        >>> var = pd.DataFrame(index=["CD3E", "MS4A1"])
        >>> adata = anndata.AnnData(np.array([[3.0, 0.0], [1.0, 2.0]]), obs=obs, var=var)
        >>> data = from_anndata(adata, covariates=["batch"])
        >>> rna = data.modalities["rna"]
        >>> type(rna.likelihood).__name__, rna.exposure, rna.input, rna.features
        ('NegativeBinomial', 'total', 'log1p', ('CD3E', 'MS4A1'))
        >>> data.covariates["batch"].levels
        ('p', 'q')
    """
    check_options(
        "from_anndata",
        layers=layers,
        obsm=obsm,
        features=features,
        feature_types=feature_types,
        observed=observed,
        covariates=covariates,
        label=label,
        row_weight=row_weight,
        modalities=modalities,
        like=like,
    )
    measured = of_anndata(
        adata,
        name=_only_name(like, obsm or {}),
        layers=layers,
        obsm=obsm or {},
        features=features or {},
        feature_types=feature_types or {},
        observed=observed or {},
    )
    if like is not None:
        annotations = {modality.name: adata.var for modality in measured}
        measured = like_model(measured, like, missing_genes, annotations)
    names = {"covariates": covariates, "label": label, "row_weight": row_weight}
    columns = columns_of({"adata.obs": adata.obs}, names, like)
    options: dict[str, Any] = {"empty": empty, "disjoint": True, "like": like, "sparse": sparse}
    return dataset_of(measured, adata.obs_names.tolist(), columns, modalities, **options)


def _mods(mdata: MuData, model: Model | Stack) -> list[str]:
    """The modalities of a MuData, if a model knows them.

    Raises:
        DataError: one that it does not know.
    """
    for name in mdata.mod:
        if name not in model.modalities:
            known = [name for name in mdata.mod if name in model.modalities]
            raise DataError(
                f"mdata: the model has no modality {name!r}; {suggest(name, model.modalities)}; "
                f"rename it, or take others alone: mods={known}"
            )
    return list(mdata.mod)


def _only_name(model: Model | Stack | None, obsm: Mapping[str, str]) -> str:
    """What `X` is called: as the modality of a model that is not in `obsm`, else `rna`."""
    others = [] if model is None else [name for name in model.names if name not in obsm]
    return others[0] if len(others) == 1 else RNA
