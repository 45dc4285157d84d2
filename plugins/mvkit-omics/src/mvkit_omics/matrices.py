"""Values of AnnData in whatever holds them: dense or sparse, in memory or backed by a file.

Axes: n cells, k features.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from mvkit.errors import DataError
from mvkit_omics.measured import Array


def matrix_of(raw: Any, where: str, cells: Sequence[str], features: Sequence[str]) -> Any:
    """Values as an array or as CSR, (n, k); nothing that is sparse becomes dense.

    Args:
        raw: `X`, a layer or an entry of `obsm`, in memory or backed.
        where: what messages call it.
        cells: names of the cells, (n,).
        features: names of the features, (k,).

    Raises:
        DataError: text, with cell, feature and value; or another shape.
    """
    values = _in_memory(raw)
    values = values.tocsr() if sparse.issparse(values) else np.asarray(values)
    if values.ndim != 2 or values.shape != (len(cells), len(features)):
        raise DataError(
            f"{where}: values of shape {tuple(values.shape)}; expected "
            f"{(len(cells), len(features))}, a number for each cell and feature"
        )
    if values.dtype.kind == "O":
        values = _numbers(values, where, cells, features)
    if values.dtype.kind not in "biuf":
        first = values.data[0] if sparse.issparse(values) else values[0, 0].item()
        raise _no_number(f"{where}: cell {cells[0]!r}, feature {features[0]!r}", first)
    return values.astype(np.uint8) if values.dtype.kind == "b" else values


def _in_memory(raw: Any) -> Any:
    """Values of a file, or that are computed when they are needed, in memory."""
    from anndata.abc import CSCDataset, CSRDataset

    if isinstance(raw, CSRDataset | CSCDataset):
        return raw.to_memory()
    if type(raw).__module__.partition(".")[0] == "dask":
        return raw.compute()
    return raw


def _numbers(values: Array, where: str, cells: Sequence[str], features: Sequence[str]) -> Array:
    """Objects as floats, if all of them are numbers or None.

    Raises:
        DataError: anything else among them, also text that spells a number.
    """
    for (row, column), value in np.ndenumerate(values):
        if not (value is None or isinstance(value, numbers.Real | np.bool_)):
            raise _no_number(f"{where}: cell {cells[row]!r}, feature {features[column]!r}", value)
    return values.astype(np.float64)


def _no_number(place: str, value: object) -> DataError:
    return DataError(
        f"{place}: {value!r} is no number; expected numbers; take a layer of numbers (layers=), "
        "or convert this one"
    )
