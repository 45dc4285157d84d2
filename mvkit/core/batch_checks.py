"""What is asked of batches that others hand over: that they are conformed, and rows not empty."""

from __future__ import annotations

from mvkit.core.batch import Batch
from mvkit.core.raw_values import nothing_observed
from mvkit.errors import DataError


def check_conformed(batch: object, where: str) -> None:
    """Raises DataError, beginning with `where`, unless it is a batch that `conform` returned."""
    if isinstance(batch, Batch) and batch.schema is not None:
        return
    kind = "a Batch that was not conformed" if isinstance(batch, Batch) else type(batch).__name__
    raise DataError(f"{where}: got {kind}; expected a conformed batch; give model.conform(rows)")


def check_not_empty(batch: Batch) -> None:
    """Raises DataError if a row of a conformed batch observes nothing."""
    if batch.first_empty_row is None and not batch.hidden:
        return
    empty = ~batch.observed.any(1)
    if empty.any():
        raise nothing_observed(empty, batch.extra.get("id"))
