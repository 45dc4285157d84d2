"""What AnnData and MuData hold, as measured modalities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mvkit.errors import DataError, suggest
from mvkit_omics.matrices import matrix_of
from mvkit_omics.measured import Array, Features, Measured, check_unique, few

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from pandas import DataFrame

Layers = str | Mapping[str, str | None] | None
X = "X"  # what values are called that are in no layer


def of_mudata(
    mdata: MuData, mods: Sequence[str] | None, layers: Layers, observed: Mapping[str, str] | None
) -> list[Measured]:
    """Modalities of a MuData; see `from_mudata`.

    Raises:
        DataError: something else; names that stand twice or are not there.
    """
    if type(mdata).__name__ != "MuData":
        raise DataError(
            f"from_mudata: got {type(mdata).__name__}; expected a MuData; use from_anndata for "
            "AnnData"
        )
    if getattr(mdata, "axis", 0) != 0:
        raise DataError(
            f"mdata: its axis is {mdata.axis}, so that modalities share features; expected cells "
            "in common; make it with MuData(…, axis=0)"
        )
    mods = [mods] if isinstance(mods, str) else mods
    names = list(mdata.mod) if mods is None else list(mods)
    _check_known("mods", names, mdata.mod, "mdata has no modality")
    if not isinstance(layers, str):
        _check_known("layers", layers or {}, names, "no modality is taken that is called")
    _check_known("observed", observed or {}, names, "no modality is taken that is called")
    check_unique(mdata.obs_names.tolist(), "mdata.obs_names", _rename_cells("mdata"))
    measured = []
    for name in names:
        adata = mdata.mod[name]
        where = f"mdata[{name!r}]"
        if type(adata).__name__ == "MuData":
            raise DataError(
                f"{where}: a MuData in a MuData; expected an AnnData; give its modalities one by "
                "one"
            )
        layer = layers if isinstance(layers, str | None) else layers.get(name)
        modality = _of_layer(adata, where, name, layer)
        flags = {where + ".obs": adata.obs, "mdata.obs": mdata.obs}
        measured.append(_observed(modality, flags, (observed or {}).get(name)))
    return measured


def of_anndata(
    adata: AnnData,
    *,
    name: str,
    layers: Layers,
    obsm: Mapping[str, str],
    features: Mapping[str, str | Sequence[str]],
    feature_types: Mapping[str, str],
    observed: Mapping[str, str],
) -> list[Measured]:
    """Modalities of an AnnData; see `from_anndata`.

    Args:
        adata: in memory or backed.
        name: what `X` is called where nothing else names it.
        layers: see `from_anndata`; so are the others.
        obsm: likewise.
        features: likewise.
        feature_types: likewise.
        observed: likewise.

    Raises:
        DataError: something else; names that stand twice or are not there.
    """
    if type(adata).__name__ != "AnnData":
        raise DataError(
            f"from_anndata: got {type(adata).__name__}; expected an AnnData; use from_mudata for "
            "MuData"
        )
    check_unique(adata.obs_names.tolist(), "adata.obs_names", _rename_cells("adata"))
    if adata.X is None and obsm and layers is None and not feature_types:
        layers = {}
    measured = []
    for modality, layer in _layers_by_modality(name, layers, feature_types).items():
        measured.append(_of_layer(adata, "adata", modality, layer))
    measured = _by_feature_type(adata, measured, feature_types)
    for modality, key in obsm.items():
        measured.append(_of_obsm(adata, modality, key, features.get(modality)))
    known = [modality.name for modality in measured]
    check_unique(known, "from_anndata: modalities", "give each its own name")
    _check_known("observed", observed, known, "no modality is taken that is called")
    _check_known("features", features, obsm, "obsm= names no modality")
    flags = {"adata.obs": adata.obs}
    return [_observed(each, flags, observed.get(each.name)) for each in measured]


def _layers_by_modality(
    name: str, layers: Layers, feature_types: Mapping[str, str]
) -> dict[str, str | None]:
    """The layer of each modality that is in `X` or in layers; None: `X`."""
    if feature_types:
        if not isinstance(layers, Mapping):
            return dict.fromkeys(feature_types, layers)
        _check_known("layers", layers, feature_types, "feature_types= names no modality")
        return {kind: layers.get(kind) for kind in feature_types}
    if isinstance(layers, Mapping):
        return dict(layers)
    return {name: layers}


def _of_layer(adata: AnnData, where: str, name: str, layer: str | None) -> Measured:
    """Values of `X` or of a layer, with the names of `obs` and `var`."""
    cells = adata.obs_names.tolist()
    features = adata.var_names.tolist()
    check_unique(cells, f"{where}.obs_names", _rename_cells(where))
    remedy = f"rename them by {where}.var_names_make_unique()"
    check_unique(features, f"{where}.var_names", remedy)
    if layer is None or layer == X:
        place = f"{where}.X"
        raw = adata.X
    else:
        _check_known("layers", [layer], [*adata.layers, X], f"{where} has no layer")
        place = f"{where}.layers[{layer!r}]"
        raw = adata.layers[layer]
    if raw is None:
        raise DataError(
            f"{place}: there are no values; expected some; give a layer, such as "
            f"layers={{{name!r}: {next(iter(adata.layers), 'counts')!r}}}"
        )
    values = matrix_of(raw, place, cells, features)
    others = tuple(other for other in adata.layers if other != layer)
    remedy = f"layers={{{name!r}: 'counts'}}"
    return Measured(name, values, tuple(cells), tuple(features), place, others, remedy)


def _of_obsm(
    adata: AnnData, name: str, key: str, features: str | Sequence[str] | None
) -> Measured:
    """Values of an entry of `obsm`; those without names of features are called by position."""
    _check_known("obsm", [key], adata.obsm, "adata.obsm has no")
    raw: Any = adata.obsm[key]
    where = f"adata.obsm[{key!r}]"
    if isinstance(features, str):
        _check_known("features", [features], adata.uns, "adata.uns has no")
        features = np.asarray(adata.uns[features]).tolist()
    names = getattr(raw, "columns", None) if features is None else features
    if names is None:
        names = [f"{key}_{column}" for column in range(raw.shape[1])]
    names = [str(feature) for feature in names]
    check_unique(names, f"{where}: names of features", "rename one")
    if len(names) != raw.shape[1]:
        raise DataError(
            f"{where}: {len(names)} names for {raw.shape[1]} features; expected one for each; "
            f"correct features={{{name!r}: …}}"
        )
    cells = adata.obs_names.tolist()
    return Measured(name, matrix_of(raw, where, cells, names), tuple(cells), tuple(names), where)


def _by_feature_type(
    adata: AnnData, measured: list[Measured], feature_types: Mapping[str, str]
) -> list[Measured]:
    """Each modality with the features of its type alone.

    Raises:
        DataError: several types, and nobody said which modality has which; or no such type.
    """
    column = "feature_types"
    types = adata.var[column].astype(str).tolist() if column in adata.var.columns else []
    different = sorted(set(types))
    if not feature_types:
        if len(different) > 1 and measured:
            listed = ", ".join(f"'…': {kind!r}" for kind in different)
            raise DataError(
                f"adata.var[{column!r}]: features of {len(different)} types, {few(different)}; "
                f"expected those of one modality; name them: feature_types={{{listed}}}"
            )
        return measured
    selected = []
    for modality in measured:
        kind = feature_types[modality.name]
        if kind not in different:
            raise DataError(
                f"feature_types: adata.var[{column!r}] has no {kind!r}; {suggest(kind, different)}"
            )
        features = zip(modality.features, types, strict=True)
        own: Features = tuple(feature for feature, its in features if its == kind)
        selected.append(modality.arrange(own))
    return selected


def _observed(measured: Measured, tables: Mapping[str, DataFrame], column: str | None) -> Measured:
    """The cells in which a modality was measured, by a column of flags.

    Raises:
        DataError: no such column, or values that are no flags.
    """
    if column is None:
        return measured
    for where, table in tables.items():
        if column in table.columns:
            flags: Array = table[column].reindex(list(measured.cells)).to_numpy()
            if not all(isinstance(flag, bool | np.bool_) for flag in flags.tolist()):
                raise DataError(
                    f"{where}[{column!r}]: {table[column].dtype}; expected flags, True for cells "
                    f"in which {measured.name!r} was measured; convert it"
                )
            return measured.keep(flags.astype(bool))
    known = {str(name) for table in tables.values() for name in table.columns}
    raise DataError(f"observed: no obs has a column {column!r}; {suggest(column, known)}")


def _rename_cells(where: str) -> str:
    return (
        f"rename them by {where}.obs_names_make_unique(), or when samples are joined: "
        "anndata.concat(…, index_unique='-')"
    )


def _check_known(option: str, names: Iterable[str], known: Iterable[str], fault: str) -> None:
    """Raises DataError for a name that is not known."""
    known = list(known)
    for name in names:
        if name not in known:
            raise DataError(f"{option}: {fault} {name!r}; {suggest(str(name), known)}")
