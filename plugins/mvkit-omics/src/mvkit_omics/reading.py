"""AnnData and MuData as datasets, by names of cells and of features; never by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from mvkit import DataError, Modality, MultimodalDataset
from mvkit.core import Columns
from mvkit.errors import suggest
from mvkit_omics.cell_columns import check_known, column_of, names_of
from mvkit_omics.containers import Layers, of_anndata, of_mudata
from mvkit_omics.counts import Empty, checked, modality_of
from mvkit_omics.mapping import Missing, like_model, wanted_columns
from mvkit_omics.measured import Measured

RNA = "rna"  # what the one modality of an AnnData is called

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from pandas import DataFrame

    from mvkit import Model, Stack


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
) -> MultimodalDataset:
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

    Raises:
        DataError: names that stand twice or are not there, values that cannot be; with cell,
            feature, value and remedy.

    Example:
        >>> import anndata, mudata, numpy as np, pandas as pd
        >>> from mvkit_omics import from_mudata
        >>> def cells(*names):
        ...     return pd.DataFrame(index=list(names))
        >>> rna = anndata.AnnData(np.array([[3.0, 0.0], [1.0, 2.0]]), obs=cells("a", "b"))
        >>> adt = anndata.AnnData(np.array([[0.0, 7.0]]), obs=cells("b"))
        >>> data = from_mudata(mudata.MuData({"rna": rna, "adt": adt}))
        >>> data.ids.tolist(), data.batch.mask.tolist()
        (['a', 'b'], [[True, False], [True, True]])
    """
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
    columns = {"covariates": covariates, "label": label, "row_weight": row_weight}
    options: dict[str, Any] = {"empty": empty, "disjoint": disjoint, "like": like}
    cells = mdata.obs_names.tolist()
    return _dataset(measured, cells, _columns(tables, columns, like), modalities, **options)


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
) -> MultimodalDataset:
    """The cells of an AnnData, in its order, as a dataset; `ids` are names of cells.

    `X` is one modality, `rna`; layers, entries of `obsm` and types of features are others. What
    modalities are is said or inferred as in `from_mudata`.

    Args:
        adata: in memory or backed, or a view.
        layers: the layer of the one modality; or a mapping from modality to layer, None or "X"
            for `X`, which names modalities other than `rna`.
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

    Raises:
        DataError: as `from_mudata`.

    Example:
        >>> import anndata, numpy as np, pandas as pd
        >>> from mvkit_omics import from_anndata
        >>> obs = pd.DataFrame({"batch": ["p", "q"]}, index=["a", "b"])
        >>> var = pd.DataFrame(index=["CD3E", "MS4A1"])
        >>> adata = anndata.AnnData(np.array([[3.0, 0.0], [1.0, 2.0]]), obs=obs, var=var)
        >>> data = from_anndata(adata, covariates=["batch"])
        >>> data.modalities["rna"].likelihood, data.modalities["rna"].exposure
        (NegativeBinomial(), 'total')
        >>> data.modalities["rna"].features, data.covariates["batch"].levels
        (('CD3E', 'MS4A1'), ('p', 'q'))
    """
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
    columns = {"covariates": covariates, "label": label, "row_weight": row_weight}
    options: dict[str, Any] = {"empty": empty, "disjoint": True, "like": like}
    rows = _columns({"adata.obs": adata.obs}, columns, like)
    return _dataset(measured, adata.obs_names.tolist(), rows, modalities, **options)


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


def _columns(
    tables: Mapping[str, DataFrame], names: Mapping[str, Any], model: Model | Stack | None
) -> dict[str, Any]:
    """Covariates, labels and weights, by name of the option of `MultimodalDataset.from_arrays`.

    Args:
        tables: all `obs`.
        names: of columns, by option.
        model: what the dataset is for; its covariates are taken, and checked.
    """
    wanted = names_of("covariates", names["covariates"])
    if model is not None:
        wanted = tuple(dict.fromkeys([*wanted_columns(model), *wanted]))
    covariates = {}
    for name in wanted:
        covariates[name] = column_of(tables, name, "covariates")
        if model is not None and name in model.schema.covariates:
            check_known(name, covariates[name], model.schema.covariates[name])
    columns: dict[str, Any] = {"covariates": covariates}
    for option in ("label", "row_weight"):
        if names[option] is not None:
            columns[option] = column_of(tables, names[option], option)
    return columns


def _dataset(
    measured: Sequence[Measured],
    cells: Sequence[str],
    columns: Mapping[str, Any],
    modalities: Mapping[str, Any] | None,
    *,
    empty: Empty,
    disjoint: bool,
    like: Model | Stack | None,
) -> MultimodalDataset:
    """A dataset of measured modalities, in the order of all cells."""
    if like is not None and modalities:
        raise DataError(
            "modalities: the model says what modalities are (like=); expected one of the two; "
            "leave modalities= out"
        )
    given = (modalities or {}) if like is None else like.modalities
    kinds: dict[str, Any] = {}
    arrays = {}
    ids = {}
    names = {}
    for modality in measured:
        kind = modality_of(modality, given.get(modality.name), stacklevel=4)
        rows = checked(modality, _as_modality(modality, kind), empty)
        if not len(rows):
            continue
        kinds[rows.name] = kind
        arrays[rows.name] = rows.dense()
        ids[rows.name] = rows.cells
        names[rows.name] = Columns(rows.features)
    _check_some(measured, arrays, given)
    options = {"modalities": kinds, "disjoint": disjoint, **columns}
    dataset = MultimodalDataset.from_arrays(arrays, ids=ids, **options)
    dataset = attrs.evolve(dataset, batch=attrs.evolve(dataset.batch, columns=names))
    return _in_order(dataset, cells)


def _as_modality(measured: Measured, kind: Any) -> Modality | None:
    """What a modality is as far as it is known before `from_arrays` looks at its values."""
    if isinstance(kind, Modality):
        return kind
    shape = (len(measured.features),)
    return Modality(**{"shape": shape, **kind}) if "likelihood" in kind else None


def _check_some(
    measured: Sequence[Measured], arrays: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Raises DataError where no cell has a modality, or a modality is said that is not there."""
    known = [modality.name for modality in measured]
    if not arrays:
        raise DataError(
            f"no cell was observed in {', '.join(map(repr, known)) or 'any modality'}; expected "
            "one at least; give modalities that have cells"
        )


def _in_order(dataset: MultimodalDataset, cells: Sequence[str]) -> MultimodalDataset:
    """The dataset with its rows in the order of all cells."""
    places = {id: row for row, id in enumerate(dataset.ids.tolist())}
    order = [places[cell] for cell in cells if cell in places]
    return dataset if order == sorted(order) else dataset.take(np.array(order))
