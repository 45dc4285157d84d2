"""Raw batches as one, rows after rows.

Axes: b rows, m modalities.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.data.align import as_list, objects
from mvkit.errors import ShapeError


def joined_batches(batches: Sequence[Batch]) -> Batch:
    """The rows of batches, one after another; elements are all observed where a batch has none.

    Args:
        batches: one at least, with the same modalities and the same `extra`, none conformed.

    Raises:
        ShapeError: batches that differ in what they hold.

    Example:
        >>> import torch, mvkit
        >>> from mvkit.data.joined_batches import joined_batches
        >>> len(joined_batches([mvkit.Batch({"a": torch.zeros(2, 1)})] * 3))
        6
    """
    first = batches[0]
    if len(batches) == 1:
        return first
    for batch in batches:
        _check_alike(batch, first)
    data = {name: torch.cat([batch.data[name] for batch in batches]) for name in first.data}
    masks = [batch.mask for batch in batches if batch.mask is not None]
    extra = {name: _column([batch.extra[name] for batch in batches]) for name in first.extra}
    changes: dict[str, Any] = {
        "data": data,
        "elements": joined_elements(batches) or None,
        "extra": extra,
    }
    return attrs.evolve(first, mask=torch.cat(masks) if masks else None, **changes)


def _check_alike(batch: Batch, first: Batch) -> None:
    kinds = []
    for other in (batch, first):
        kinds.append((set(other.data), set(other.extra), other.mask is None))
    if kinds[0] != kinds[1]:
        raise ShapeError(
            f"batches: one has data of {sorted(batch.data)} and extra {sorted(batch.extra)}, "
            f"another {sorted(first.data)} and {sorted(first.extra)}; expected the same in all, "
            "and a mask in all or none; give NaN rows for what some lack"
        )


def joined_elements(batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Which elements batches observe, one batch after another, {name: (b, *shape)}.

    All of them, where one batch does not say and another does.
    """
    known: dict[str, Tensor] = {}
    for batch in batches:
        known |= batch.elements or {}
    elements = {}
    for name in batches[0].data:
        if name in known:
            flags = [elements_of(batch, name, known[name]) for batch in batches]
            elements[name] = torch.cat(flags)
    return elements


def elements_of(batch: Batch, name: str, like: Tensor) -> Tensor:
    """Which elements of a modality a batch observes; all of them where it does not say.

    `like` (b', *shape) tells their shape and device.
    """
    whole = like.new_ones(len(batch), *like.shape[1:])
    return (batch.elements or {}).get(name, whole)


def _column(parts: Sequence[Any]) -> Any:
    """Tensors, arrays or lists as one."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, np.ndarray) and first.dtype != object:
        return np.concatenate(parts)
    values = list(itertools.chain.from_iterable(map(as_list, parts)))
    return objects(values) if isinstance(first, np.ndarray) else values
