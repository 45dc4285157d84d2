"""Lengths of data that nobody has looked at yet: of batches, and of what returns batches."""

from __future__ import annotations

from collections.abc import Sized

from mvkit.core.batch import Batch
from mvkit.core.raw_values import values_in
from mvkit.core.validation import Schema
from mvkit.errors import ShapeError


def check_lengths(batch: Batch, schema: Schema | None) -> None:
    """Raises ShapeError unless values, mask, elements and labels have as many rows each.

    Rows cannot be picked from a batch before that is known.

    Args:
        batch: as the user made it.
        schema: the model's; the message says which values lack the axis of the rows.
    """
    lengths = {}
    for name, value in batch.data.items():
        lengths[f"data[{name!r}]"] = len(value) if value.ndim else 0
    for name, value in (batch.elements or {}).items():
        lengths[f"elements[{name!r}]"] = len(value) if value.ndim else 0
    if batch.mask is not None:
        lengths["mask"] = len(batch.mask) if batch.mask.ndim else 0
    for name, value in batch.extra.items():
        lengths[f"extra[{name!r}]"] = values_in(value, f"batch.extra[{name!r}]")
    if len(set(lengths.values())) < 2:
        return
    first, b = next(iter(lengths.items()))
    other = next(name for name, length in lengths.items() if length != b)
    raise ShapeError(
        f"batch.{other}: {lengths[other]} rows, but batch.{first} has {b}; expected as many "
        f"everywhere; {_remedy(batch, schema)}"
    )


def _remedy(batch: Batch, schema: Schema | None) -> str:
    """What to do; a batch whose values are all shaped like one row is an item."""
    shapes = {} if schema is None else schema.shapes
    single = [value.shape in (shapes.get(name), (), (1,)) for name, value in batch.data.items()]
    if all(single):
        return (
            "this is one row, not a batch of rows; give the rows of a list by "
            "mvkit.Pipeline(items, schema=model.schema), or add an axis in front"
        )
    return "give NaN rows or a mask for rows that a modality lacks"


def known_length(batches: Sized) -> int | None:
    """The number of batches of a pipeline; None for a stream, whose end is unknown."""
    try:
        return len(batches)
    except TypeError:
        return None
