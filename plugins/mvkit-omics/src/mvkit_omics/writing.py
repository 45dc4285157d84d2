"""What a model says of cells, written back into AnnData and MuData by names of cells.

Axes: b cells of the object, n cells of the dataset, d latent, k features.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mvkit import DataError, MultimodalDataset, RequestError
from mvkit.errors import check_whole_number, suggest
from mvkit.models.multimodal import check_model
from mvkit_omics.answers import Answers, answers_of, provenance
from mvkit_omics.measured import Array, Features
from mvkit_omics.reading import from_anndata, from_mudata

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from pandas import Categorical, DataFrame

    from mvkit import Model, Stack
    from mvkit_omics.sparse_rows import SparseRows


def annotate(
    data: AnnData | MuData,
    model: Model | Stack,
    *,
    dataset: MultimodalDataset | SparseRows | None = None,
    imputed: Collection[str] = (),
    n: int = 25,
    key: str = "mvkit",
    seed: int = 0,
    **reading: Any,
) -> None:
    """Writes what a model says of cells into the object that they come from, in its own order.

    * `obsm["X_mvkit"]`: posterior means of the latents, (b, d); NaN for cells that the model was
      shown nothing of.
    * `obs["mvkit_cluster"]`: the cluster of each cell, where the prior has clusters.
    * `layers["mvkit_imputed"]`: of modalities in `imputed`, expected values of all features,
      observed or not, given all that a cell has; NaN for features that the model does not have.
      Of an AnnData with several modalities in `X` or layers: `mvkit_imputed_<modality>`.
    * `obsm["mvkit_imputed_<modality>"]`: the same as a table, where no layer can hold it: of
      modalities in `obsm`, and of all cells where a modality of a MuData lacks some.
    * `uns["mvkit"]`: the specs of the model (JSON), versions, a checksum of its weights.

    The same cells get the same numbers in whatever order they are. What an earlier call wrote by
    the same `key` is replaced. Into a backed object this writes in memory; its `write` saves it.

    Args:
        data: in memory, or backed; a view becomes an object of its own.
        model: trained.
        dataset: the cells as `from_mudata` or `from_anndata` read them, perhaps some of them;
            None: read here with `reading`, features in the order of the model.
        imputed: modalities that are imputed; their values are dense.
        n: draws of the latents of which expected values are means.
        key: what stands in names in place of `mvkit`.
        seed: of these draws.
        reading: options of `from_mudata` or `from_anndata`, such as `layers`; of a `dataset` that
            is given, `obsm` alone.

    Raises:
        DataError: cells of the dataset that the object does not have.
        RequestError: a modality that the model does not have; an object that cannot be written to.

    Example:
        >>> import anndata, mvkit, numpy as np
        >>> from mvkit_omics import annotate, from_anndata
        >>> adata = anndata.AnnData(np.arange(12.0).reshape(4, 3))
        >>> model = mvkit.Model(from_anndata(adata).modalities, latent_dim=2, seed=0)
        >>> annotate(adata, model, imputed=["rna"])
        >>> adata.obsm["X_mvkit"].shape, list(adata.layers), sorted(adata.uns["mvkit"])[:2]
        ((4, 2), ['mvkit_imputed'], ['checksum', 'spec'])
    """
    check_model(model, "annotate")
    n = check_whole_number("annotate: n", n, 1)
    imputed = (imputed,) if isinstance(imputed, str) else tuple(imputed)
    for name in imputed:
        if name not in model.names:
            raise RequestError(
                f"annotate: imputed: the model has no modality {name!r}; "
                f"{suggest(str(name), model.names)}"
            )
    of_mudata = _is_mudata(data)
    if dataset is None:
        dataset = _door(of_mudata)(data, like=model, **reading)
    elif reading.keys() - {"obsm"}:
        raise RequestError(
            f"annotate: {', '.join(sorted(reading))}: how to read cells, and a dataset that was "
            "read; expected one of the two"
        )
    places = _places(data, dataset)
    answers = answers_of(model, dataset, imputed, n=n, seed=seed)
    with _no_notes_on_views():
        _clear(data, key)
        _put(data.obsm, "obsm", f"X_{key}", _spread(answers.latent, places, len(data.obs_names)))
        if answers.clusters is not None:
            clusters = _categories(answers.clusters, places, data, model.n_clusters)
            _put(data.obs, "obs", f"{key}_cluster", clusters)
        in_x = [] if of_mudata else _in_x(data, dataset, reading.get("obsm") or {})
        for name in answers.imputed:
            table = _table(answers, name, places, data)
            _write_imputed(data, name, table, key, in_x)
        _put(data.uns, "uns", key, provenance(model))


def _is_mudata(data: object) -> bool:
    """Whether data are a MuData; raises DataError for anything but that and AnnData."""
    kind = type(data).__name__
    if kind not in ("AnnData", "MuData"):
        raise DataError(
            f"annotate: got {kind}; expected an AnnData or a MuData; give the object that the "
            "cells were read from"
        )
    return kind == "MuData"


def _door(of_mudata: bool) -> Any:
    return from_mudata if of_mudata else from_anndata


def _places(data: AnnData | MuData, dataset: MultimodalDataset | SparseRows) -> Array:
    """Where the cells of a dataset are in an object, (n,).

    Raises:
        DataError: cells that are not there, or a dataset without names.
    """
    if dataset.ids is None:
        raise DataError(
            "annotate: the dataset does not know the names of its cells; expected ids; read it "
            "by from_anndata or from_mudata"
        )
    index = data.obs_names.get_indexer(dataset.ids.tolist())
    if (index < 0).any():
        cell = dataset.ids[int((index < 0).argmax())]
        raise DataError(
            f"annotate: {int((index < 0).sum()):,} of the {len(index):,} cells of the dataset are "
            f"not in obs_names, such as {cell!r}; expected cells of this object; give the object "
            "that they were read from"
        )
    places: Array = index
    return places


def _spread(values: Array, places: Array, b: int) -> Array:
    """Values of some cells (n, k) as those of all, (b, k), NaN for others."""
    spread = np.full((b, values.shape[1]), np.nan, dtype=values.dtype)
    spread[places] = values
    return spread


def _categories(
    clusters: Array, places: Array, data: AnnData | MuData, number: int
) -> Categorical:
    """Clusters (n,) as categories of all cells, (b,), called by their numbers."""
    from pandas import Categorical

    codes = np.full(len(data.obs_names), -1)
    codes[places] = clusters
    return Categorical.from_codes(codes, categories=[str(i) for i in range(number)])


def _table(answers: Answers, name: str, places: Array, data: AnnData | MuData) -> DataFrame:
    """Imputed values of a modality as a table of all cells, (b, k)."""
    from pandas import DataFrame

    values = _spread(answers.imputed[name], places, len(data.obs_names))
    columns: Features | range = answers.features[name] or range(values.shape[1])
    return DataFrame(values, index=data.obs_names, columns=list(map(str, columns)), copy=False)


def _in_x(
    data: AnnData, dataset: MultimodalDataset | SparseRows, obsm: Mapping[str, str]
) -> list[str]:
    """The modalities of an AnnData that have the features of `var`."""
    known = set(data.var_names)
    names = []
    for name, modality in dataset.modalities.items():
        if name not in obsm and modality.features and known.issuperset(modality.features):
            names.append(name)
    return names


def _write_imputed(
    data: AnnData | MuData, name: str, table: DataFrame, key: str, in_x: Sequence[str]
) -> None:
    """Writes imputed values where a layer can hold them, and where not, into `obsm`.

    Args:
        data: the object.
        name: the modality.
        table: its values, (b, k).
        key: what names begin with.
        in_x: the modalities that share the features of an AnnData.
    """
    layer = f"{key}_imputed"
    whole = False
    if _is_mudata(data):
        adata = data.mod.get(name)
        whole = adata is not None and set(adata.obs_names).issuperset(data.obs_names)
    else:
        adata = data if name in in_x else None
        whole = adata is not None
        layer = layer if len(in_x) == 1 else f"{layer}_{name}"
    if adata is not None:
        own = table.reindex(index=adata.obs_names, columns=adata.var_names).to_numpy()
        _put(adata.layers, f"layers of {name!r}", layer, own)
    if not whole:
        _put(data.obsm, "obsm", f"{key}_imputed_{name}", table)


def _clear(data: AnnData | MuData, key: str) -> None:
    """Takes out what an earlier call wrote, which this one may not replace."""
    if key not in data.uns:
        return
    holders: list[Any] = [data.obsm]
    holders += [adata.layers for adata in data.mod.values()] if _is_mudata(data) else [data.layers]
    for holder in holders:
        for name in list(holder):
            if name == f"{key}_imputed" or name.startswith(f"{key}_imputed_"):
                del holder[name]
    if f"{key}_cluster" in data.obs.columns:
        del data.obs[f"{key}_cluster"]


def _put(holder: Any, where: str, name: str, value: Any) -> None:
    """Writes one value.

    Raises:
        RequestError: the object does not take it, as some that are backed by a file.
    """
    try:
        holder[name] = value
    except Exception as error:
        raise RequestError(
            f"annotate: {where}: {name!r} cannot be written: {type(error).__name__}: {error}; "
            "expected an object that can be changed; of one that is backed by a file, layers may "
            "not be: give data.to_memory(), or leave imputed= out"
        ) from error


@contextlib.contextmanager
def _no_notes_on_views() -> Iterator[None]:
    """Inside, anndata does not warn that a view becomes an object of its own."""
    from anndata import ImplicitModificationWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImplicitModificationWarning)
        yield
