"""One modality as AnnData hold it: values with names of cells and of features.

Axes: n cells, k features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import numpy as np
from scipy import sparse

from mvkit.errors import DataError

Array = np.ndarray[Any, Any]
Cells = tuple[str, ...]
Features = tuple[str, ...]
SHOWN = 5  # names in a message


@attrs.frozen(eq=False)
class Measured:
    """What was measured of one modality.

    Args:
        name: of the modality.
        values: (n, k), dense or CSR, in which zeros are zeros and NaN is missing.
        cells: names of the cells, (n,).
        features: names of the features, (k,).
        where: what messages call the values, such as `mdata['rna'].X`.
        layers: the layers that could have been taken instead.
        remedy: how to take a layer, such as `layers={'rna': 'counts'}`, with `counts` for its
            name.
    """

    name: str
    values: Any
    cells: Cells
    features: Features
    where: str
    layers: tuple[str, ...] = ()
    remedy: str = ""

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def is_sparse(self) -> bool:
        """Whether zeros are not stored."""
        return bool(sparse.issparse(self.values))

    @property
    def entries(self) -> Array:
        """The values that are stored: of CSR those that are no zeros, (e,), else all, (n k,)."""
        stored: Array = self.values.data if self.is_sparse else self.values
        return stored.reshape(-1)

    def entry(self, bad: Array) -> str:
        """What messages call the first entry where flags (e,) hold: cell, feature and value."""
        i = int(bad.argmax())
        if self.is_sparse:
            row = int(np.searchsorted(self.values.indptr, i, side="right")) - 1
            column = int(self.values.indices[i])
        else:
            row, column = divmod(i, len(self.features))
        value = self.entries[i].item()
        return (
            f"{self.where}: cell {self.cells[row]!r}, feature {self.features[column]!r}: {value:g}"
        )

    def totals(self) -> Array:
        """The sum of the observed values of each cell, (n,)."""
        if self.is_sparse:
            totals: Array = np.asarray(self.values.sum(1)).reshape(-1)
            return totals
        sums: Array = np.nansum(self.values, axis=1)
        return sums

    def unobserved(self) -> Array:
        """Which cells have no value, (n,) bool: all of a cell's are NaN."""
        if not self.is_sparse:
            gaps: Array = np.isnan(self.values).all(1)
            return gaps
        stored = self.values
        nan = sparse.csr_matrix((np.isnan(stored.data), stored.indices, stored.indptr))
        none: Array = np.asarray(nan.sum(1)).reshape(-1) == len(self.features)
        return none

    def keep(self, flags: Array) -> Measured:
        """The cells where flags (n,) hold."""
        if flags.all():
            return self
        cells = tuple(np.asarray(self.cells, dtype=object)[flags].tolist())
        return attrs.evolve(self, values=self.values[flags], cells=cells)

    def arrange(self, features: Features) -> Measured:
        """The features in another order, NaN where they are not there."""
        if features == self.features:
            return self
        places = {feature: place for place, feature in enumerate(self.features)}
        index = np.array([places.get(feature, -1) for feature in features])
        values = self.values[:, index]
        if (index < 0).any():
            values = _floats(values.toarray() if sparse.issparse(values) else values)
            values[:, index < 0] = np.nan
        return attrs.evolve(self, values=values, features=features)

    def dense(self) -> Array:
        """The values as floats, (n, k), in single precision where it holds them."""
        values = self.values.toarray() if self.is_sparse else self.values
        return np.ascontiguousarray(_floats(values))

    def compact(self) -> Any:
        """A copy of the values, (n, k): whole numbers as they are, floats as in `dense`."""
        if not self.is_sparse:
            return self.dense()
        values = self.values.copy()
        if values.data.dtype.kind == "f":
            values.data = _floats(values.data)
        return values


def _floats(values: Array) -> Array:
    """Floats in single precision, in double where whole numbers or sizes would be lost."""
    if values.dtype.kind == "f" and values.dtype.itemsize <= 4:
        return values.astype(np.float32)
    largest = np.nanmax(np.abs(values.astype(np.float64)), initial=0.0)
    exact = values.dtype.kind == "f" or largest <= 2**24
    fits = exact and largest < np.finfo(np.float32).max
    return values.astype(np.float32 if fits else np.float64)


def check_unique(names: Sequence[str], where: str, remedy: str) -> None:
    """Raises DataError, with the remedy, for a name that stands twice."""
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        first = places.setdefault(name, place)
        if first != place:
            raise DataError(
                f"{where}: {name!r} stands twice, at {first} and {place}; expected each name "
                f"once, since nothing is matched by position; {remedy}"
            )


def few(names: Iterable[str]) -> str:
    """The first names of a list that may be long."""
    listed = list(names)
    shown = ", ".join(map(repr, listed[:SHOWN]))
    more = len(listed) - SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown
