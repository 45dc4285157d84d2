"""Lengths of data that nobody has looked at yet: of batches, and of what returns batches."""

from __future__ import annotations

from collections.abc import Sized

from mvkit.core.batch import Batch
from mvkit.core.raw_values import values_in
from mvkit.core.validation import Schema
from mvkit.errors import DataError, MvkitError, ShapeError

MOST = 2**32  # rows whose order (34 GB then) is held in memory


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


def check_length(rows: Sized, where: str) -> None:
    """Raises DataError, beginning with `where`, for no rows, and as `stated_length`."""
    if not stated_length(rows, where):
        raise DataError(f"{where}: the data have no rows; expected one at least")


def stated_length(rows: Sized, where: str) -> int:
    """How many rows there are, as they say; there may be none.

    Raises:
        DataError: a number that cannot be, beginning with `where`.
    """
    try:
        length = len(rows)
    except MvkitError:
        raise
    except Exception as error:
        raise DataError(
            f"{where}: the length of the data cannot be taken: {type(error).__name__}: {error}; "
            "expected __len__ to return how many rows there are; for rows whose number is "
            "unknown, give an IterableDataset or a generator"
        ) from error
    if length > MOST:
        raise DataError(
            f"{where}: the data say that they have {length:,} rows; expected at most {MOST:,}, "
            "since each epoch holds their order in memory; correct __len__, or give a stream"
        )
    return length


def known_length(batches: object) -> int | None:
    """The number of batches of a pipeline or a loader; None if it is unknown, as of a stream."""
    try:
        return len(batches)  # type: ignore[arg-type]  # what has no length is unknown
    except MvkitError:
        raise
    except Exception:  # whatever somebody's loader raises, or says that is no length
        return None
