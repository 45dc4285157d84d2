"""Questions about the rows of a source, which are gathered block by block.

Axes: b rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeGuard

import torch

from mvkit.core.batch import Batch
from mvkit.data.dataset import MultimodalDataset
from mvkit.data.sources import Source, gather
from mvkit.errors import DataError, MvkitError, NothingObserved
from mvkit.models.inference import ROWS, Answer, by_rows, joined


class Conform(Protocol):
    """What makes a batch one that a model takes."""

    def __call__(self, batch: Batch, *, looked_at: bool) -> Batch: ...


def is_source(data: object) -> TypeGuard[Source]:
    """Whether data are rows that are gathered by index, and no dataset in memory."""
    return isinstance(data, Source) and not isinstance(data, MultimodalDataset)


def by_rows_of_source(
    function: Callable[[Batch], Answer],
    source: Source,
    conformed: Conform,
    device: torch.device,
    dim: int = 0,
    rows: int | None = None,
) -> Answer:
    """As `by_rows`, of a source: one block of its rows is in memory at a time.

    Args:
        function: from a conformed batch to what is put together along `dim`.
        source: where rows are gathered, as batches.
        conformed: a batch as the model takes it; `looked_at` of all but the first.
        device: of the model.
        dim: the axis along which the blocks are put together.
        rows: rows of a block; None: 1,024.

    Raises:
        DataError: no rows; what is wrong with rows, with a note that says where they are.
    """
    b = len(source)
    if not b:
        raise DataError(f"{type(source).__name__}: it has no rows; expected one at least")
    size = ROWS if rows is None else rows
    pieces = []
    for start in range(0, b, size):
        index = list(range(start, min(start + size, b)))
        try:
            block = conformed(gather(source, index, None), looked_at=start > 0)
            pieces.append(by_rows(function, block, device, dim, size))
        except NothingObserved as error:
            raise NothingObserved(error.row + start, error.given, error.called) from None
        except MvkitError as error:
            error.add_note(f"in rows {start} to {index[-1]} of the data")
            raise
    return joined(pieces, dim)
