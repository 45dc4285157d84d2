"""Datasets from measured modalities and columns of `obs`.

Axes: b cells of the dataset, n cells of a modality, k features.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from mvkit import DataError, Modality, MultimodalDataset
from mvkit.core import Columns
from mvkit.data.id_matches import check_matches
from mvkit.errors import check_option, suggest
from mvkit_omics.cell_columns import check_known, column_of, names_of, warn_of_numbers
from mvkit_omics.counts import Empty, checked, modality_of
from mvkit_omics.mapping import wanted_columns
from mvkit_omics.measured import Measured
from mvkit_omics.sparse_rows import SparseRows

if TYPE_CHECKING:
    from mvkit import Model, Stack
    from mvkit_omics.cell_columns import Tables

MANY = 2**28  # numbers of a dense modality, 1 GiB
CALLER = 5  # whoever called from_anndata or from_mudata, as seen from where warnings are made


def columns_of(
    tables: Tables, names: Mapping[str, Any], model: Model | Stack | None
) -> dict[str, Any]:
    """Covariates, labels and weights, by name of the option of `MultimodalDataset.from_arrays`.

    Args:
        tables: all `obs`, by what messages call them.
        names: of columns, by option.
        model: what the dataset is for; its covariates are taken, and checked.
    """
    wanted = names_of("covariates", names["covariates"])
    if model is not None:
        wanted = tuple(dict.fromkeys([*wanted_columns(model), *wanted]))
    covariates = {}
    for name in wanted:
        covariates[name] = column_of(tables, name, "covariates")
        if model is None:
            warn_of_numbers(name, covariates[name], stacklevel=CALLER - 1)
        elif name in model.schema.covariates:
            check_known(name, covariates[name], model.schema.covariates[name])
    columns: dict[str, Any] = {"covariates": covariates}
    for option in ("label", "row_weight"):
        if names[option] is not None:
            columns[option] = column_of(tables, names[option], option)
    return columns


def dataset_of(
    measured: Sequence[Measured],
    cells: Sequence[str],
    columns: Mapping[str, Any],
    modalities: Mapping[str, Any] | None,
    *,
    empty: Empty,
    disjoint: bool,
    like: Model | Stack | None,
    sparse: bool,
) -> MultimodalDataset | SparseRows:
    """A dataset of measured modalities, in the order of all cells.

    Args:
        measured: the modalities.
        cells: names of all cells.
        columns: from `columns_of`.
        modalities: see `from_mudata`.
        empty: likewise.
        disjoint: likewise.
        like: likewise.
        sparse: likewise.
    """
    check_option("empty", empty, "error", "unobserved", "keep")
    given = _given(measured, modalities, like)
    kinds: dict[str, Any] = {}
    observed = {}
    for modality in measured:
        kind = modality_of(modality, given.get(modality.name), stacklevel=CALLER)
        rows = checked(modality, _as_modality(modality, kind), empty)
        if len(rows):
            kinds[rows.name] = kind
            observed[rows.name] = rows
    if not observed:
        known = ", ".join(repr(modality.name) for modality in measured)
        raise DataError(
            f"no cell was observed in {known or 'any modality'}; expected one at least; give "
            "modalities that have cells"
        )
    if sparse:
        return _sparse(observed, cells, kinds, columns, disjoint)
    return _dense(observed, cells, kinds, columns, disjoint)


def _given(
    measured: Sequence[Measured], modalities: Mapping[str, Any] | None, like: Model | Stack | None
) -> Mapping[str, Any]:
    """What was said of modalities, by a caller or a model.

    Raises:
        DataError: by both, or of a modality that is not there.
    """
    given = modalities or {}
    known = [modality.name for modality in measured]
    for name in given:
        if name not in known:
            raise DataError(f"modalities: no data for {name!r}; {suggest(str(name), known)}")
    if like is None:
        return given
    if given:
        raise DataError(
            "modalities: the model says what modalities are (like=); expected one of the two; "
            "leave modalities= out"
        )
    return like.modalities


def _as_modality(measured: Measured, kind: Any) -> Modality | None:
    """What a modality is, as far as it is known before its values are looked at."""
    if isinstance(kind, Modality):
        return kind
    shape = (len(measured.features),)
    return Modality(**{"shape": shape, **kind}) if "likelihood" in kind else None


def _dense(
    observed: Mapping[str, Measured],
    cells: Sequence[str],
    kinds: Mapping[str, Any],
    columns: Mapping[str, Any],
    disjoint: bool,
) -> MultimodalDataset:
    """A dataset of dense values."""
    arrays = {}
    for name, rows in observed.items():
        if len(rows) * len(rows.features) > MANY and rows.is_sparse:
            warnings.warn(
                f"{rows.where}: {len(rows):,} cells and {len(rows.features):,} features take "
                f"{len(rows) * len(rows.features) / 2**28:.1f} GiB when they are dense; say "
                "sparse=True, or take fewer features",
                stacklevel=CALLER - 1,
            )
        arrays[name] = rows.dense()
    ids = {name: rows.cells for name, rows in observed.items()}
    options = {"modalities": kinds, "disjoint": disjoint, **columns}
    dataset = MultimodalDataset.from_arrays(arrays, ids=ids, **options)
    named = {name: Columns(rows.features) for name, rows in observed.items()}
    dataset = attrs.evolve(dataset, batch=attrs.evolve(dataset.batch, columns=named))
    places = {id: row for row, id in enumerate(dataset.ids.tolist())}
    order = [places[cell] for cell in cells if cell in places]
    return dataset if order == sorted(order) else dataset.take(np.array(order))


def _sparse(
    observed: Mapping[str, Measured],
    cells: Sequence[str],
    kinds: Mapping[str, Any],
    columns: Mapping[str, Any],
    disjoint: bool,
) -> SparseRows:
    """Rows of matrices that stay sparse."""
    ids = {name: rows.cells for name, rows in observed.items()}
    check_matches(ids, {}, disjoint=disjoint, stacklevel=CALLER - 2)
    some = set().union(*ids.values())
    order = [cell for cell in cells if cell in some]
    places = {}
    for name, own in ids.items():
        known = {cell: row for row, cell in enumerate(own)}
        places[name] = np.array([known.get(cell, -1) for cell in order])
    return SparseRows(
        {name: rows.compact() for name, rows in observed.items()},
        kinds,
        rows=places,
        features={name: rows.features for name, rows in observed.items()},
        ids=order,
        **columns,
    )
