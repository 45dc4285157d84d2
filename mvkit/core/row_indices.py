"""Rows of a batch by index, and which of them observe what.

Axes: b rows, m modalities.
"""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mvkit.core.raw_values import SIGNED, signed


class RowIndices(TypedDict, total=False):
    """The fields of a batch that depend on its mask alone."""

    observed_rows: tuple[Tensor | None, ...]
    complete_rows: Tensor | None
    first_empty_row: int | None


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
