"""Rows picked as numpy picks them: positions, flags, slices; by id; or by what they observe."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mvkit.core.raw_values import SIGNED, signed
from mvkit.errors import RequestError, ShapeError

RowPick = Tensor | slice | Sequence[Hashable] | np.ndarray
EXPECTED = "expected positions, flags, a slice or ids"


class RowIndices(TypedDict, total=False):
    """The fields of a batch that depend on its mask alone."""

    observed_rows: tuple[Tensor | None, ...]
    complete_rows: Tensor | None
    first_empty_row: int | None


def row_index(pick: RowPick, b: int, ids: Iterable[Hashable] | None = None) -> Tensor | slice:
    """What picks the rows of tensors: a slice, or positions (n,) from 0 to b - 1.

    Args:
        pick: positions, negative ones from the end; flags (b,); a slice; or ids.
        b: rows there are.
        ids: of the rows, (b,); None: they have none.

    Raises:
        RequestError: positions that are no whole numbers or lie beyond the rows; ids that no row
            has.
        ShapeError: flags for another number of rows.
    """
    if isinstance(pick, slice):
        backwards = pick.step is not None and pick.step < 0
        return torch.tensor(range(b)[pick], dtype=torch.long) if backwards else pick
    if isinstance(pick, Tensor):
        positions = pick
    else:
        array = np.asarray(pick)
        if array.ndim == 1 and len(array) and array.dtype.kind in "OUS":
            return _positions_of_ids(list(pick), ids)
        positions = torch.as_tensor(_whole_numbers(array))
    if positions.ndim != 1:
        raise ShapeError(f"rows: got an index of shape {tuple(positions.shape)}; expected (n,)")
    if positions.dtype == torch.bool:
        if len(positions) != b:
            raise ShapeError(f"rows: got {len(positions)} flags for {b} rows; expected {b}")
        return positions.nonzero()[:, 0]
    if positions.is_floating_point() or positions.is_complex():
        raise RequestError(f"rows: got numbers of {positions.dtype}; {EXPECTED}")
    return _within(positions.long(), b)


def _whole_numbers(array: np.ndarray) -> np.ndarray:
    """Positions or flags in a dtype that torch indexes with; of an empty list, too."""
    if array.size == 0 and array.ndim == 1:
        return array.astype(np.int64)
    if array.dtype.kind == "u":
        return array.astype(np.int64)
    if array.dtype.kind not in "bif":
        raise RequestError(f"rows: got {array.dtype} values; {EXPECTED}")
    return np.array(array)  # torch reads none that runs backwards or cannot be written


def _within(positions: Tensor, b: int) -> Tensor:
    beyond = (positions < -b) | (positions >= b)
    if beyond.any():
        first = int(positions[beyond][0])
        raise RequestError(f"rows: got position {first}; expected {-b} to {b - 1}, of {b} rows")
    return torch.where(positions < 0, positions + b, positions)


def _positions_of_ids(picked: list[Hashable], ids: Iterable[Hashable] | None) -> Tensor:
    """Positions of the rows that have these ids, in the order of the ids."""
    if ids is None:
        raise RequestError(f"rows: got {picked[0]!r}, and these rows have no ids; {EXPECTED}")
    places: dict[Hashable, list[int]] = {}
    for place, own in enumerate(ids.tolist() if hasattr(ids, "tolist") else ids):
        places.setdefault(own, []).append(place)
    positions: list[int] = []
    for own in picked:
        if own not in places:
            close = difflib.get_close_matches(str(own), map(str, places), 1)
            hint = f"did you mean {close[0]!r}?" if close else "see `dataset.ids`"
            raise RequestError(f"rows: no row has the id {own!r}; {hint}")
        positions += places[own]
    return torch.tensor(positions, dtype=torch.long)


def indices_of(mask: Tensor) -> RowIndices:
    """Which rows observe each modality and which all, and the first that observes nothing."""
    array = mask.cpu().numpy()  # a handful of tiny steps, which numpy takes faster

    def where(flags: ArrayLike) -> Tensor | None:
        return None if np.all(flags) else torch.from_numpy(np.flatnonzero(flags)).to(mask.device)

    some = array.any(1)
    return {
        "observed_rows": tuple(where(column) for column in array.T),
        "complete_rows": where(array.all(1)),
        "first_empty_row": None if some.all() else int(some.argmin()),
    }


def pick(value: Any, index: Tensor | slice) -> Any:
    """The rows of a tensor, an array or a list."""
    if isinstance(index, slice):
        return value[index]
    if isinstance(value, Tensor):
        value = signed(value) if value.dtype in SIGNED else value
        return value.index_select(0, index)
    if isinstance(value, np.ndarray):
        return value[index.numpy()]
    return [value[i] for i in index.tolist()]
