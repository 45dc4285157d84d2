"""Conformed batches as one, and the order of rows that their contents decide.

Axes: b rows, m modalities.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.blocks import block_slices
from mvkit.core.raw_values import full_precision
from mvkit.data.joined_batches import joined_elements
from mvkit.evaluation.metric import ROW

BLOCK = 512  # rows; noise is drawn block by block, so this is part of what a number means


def blocks_of(rows: Batch) -> Iterator[Batch]:
    """Rows on the CPU, a block at a time, as they are scored."""
    for part in block_slices(len(rows), BLOCK):
        yield rows.take(part).to("cpu")


def joined(batches: list[Batch]) -> Batch:
    """Batches as one, its rows in their order."""
    first = batches[0]
    if len(batches) == 1:
        return first
    data = {name: torch.cat([batch.data[name] for batch in batches]) for name in first.data}
    elements = joined_elements(batches)
    extra = {}
    for name in first.extra:
        if all(name in batch.extra for batch in batches):
            values = [np.asarray(batch.extra[name]) for batch in batches]
            extra[name] = np.concatenate(values)
    mask = torch.cat([batch.observed for batch in batches])
    joined = Batch(data, mask, elements or None, extra, schema=first.schema, **_given(batches))
    return joined.take(slice(None))  # notes which rows observe what


def _given(batches: list[Batch]) -> dict[str, Any]:
    """Covariates, exposures and weights of batches, one after another."""
    first = batches[0]
    given: dict[str, Any] = {"covariates": {}, "exposure": {}}
    for field, values in given.items():
        for name in getattr(first, field):
            values[name] = torch.cat([getattr(batch, field)[name] for batch in batches])
    if first.row_weight is not None:
        given["row_weight"] = torch.cat([batch.row_weight for batch in batches])
    return given


def fingerprint(rows: Batch, seed: int) -> NDArray[np.uint64]:
    """A number for each row that its contents and the seed decide, (b,).

    It is a random hash, linear modulo 2^64.
    """
    generator = noise.seeded(seed)
    total = np.zeros(len(rows), dtype=np.uint64)
    extra = [value for name, value in sorted(rows.extra.items()) if name != ROW]
    elements = (rows.elements or {}).values()
    known = (*elements, *extra, *rows.covariates.values())
    for value in (rows.observed, *rows.data.values(), *known):
        flat = np.ascontiguousarray(full_precision(value).reshape(len(rows), -1).numpy())
        words = flat.view(f"u{flat.dtype.itemsize}")
        factors = noise.hash_factors(words.shape[1:], generator)
        # as 64 bits, all rows at once would be several times the data
        for part in block_slices(len(rows), BLOCK):
            total[part] += words[part].astype(np.uint64) @ factors
    return total
