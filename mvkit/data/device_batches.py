"""Batches on their way to a device."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from mvkit.core.batch import Batch


def pinned(batches: Iterable[Batch] | Exception) -> list[Batch] | Exception:
    """Batches in pinned memory, from which copies to a device wait for nobody; or an error."""
    if isinstance(batches, Exception):
        return batches
    return [batch.map(Tensor.pin_memory) for batch in batches]
