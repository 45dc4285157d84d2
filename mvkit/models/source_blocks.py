"""Questions about the rows of a source, which are gathered block by block.

Axes: b rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol, TypeGuard

import torch

from mvkit.core.batch import Batch
from mvkit.data.dataset import MultimodalDataset
from mvkit.data.lengths import stated_length
from mvkit.data.sources import Source, gather, reading_ahead
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
        DataError: as `raw_blocks`; what is wrong with rows, with a note that says where they are.
    """
    size = ROWS if rows is None else rows
    pieces = []
    with raw_blocks(source, size) as blocks:
        for start, raw in blocks:
            try:
                block = conformed(raw, looked_at=start > 0)
                pieces.append(by_rows(function, block, device, dim, size))
            except NothingObserved as error:
                raise NothingObserved(error.row + start, error.given, error.called) from None
            except MvkitError as error:
                last = min(start + size, len(source)) - 1
                error.add_note(f"in rows {start} to {last} of the data")
                raise
    return joined(pieces, dim)


@contextlib.contextmanager
def raw_blocks(source: Source, size: int) -> Iterator[Iterator[tuple[int, Batch]]]:
    """The rows of a source in order, `size` at a time, with the number of the first of them.

    They are read ahead where they can be.

    Raises:
        DataError: no rows, or a number of them that cannot be.
    """
    where = type(source).__name__
    length = stated_length(source, where)
    if not length:
        raise DataError(f"{where}: it has no rows; expected one at least")
    parts = list(torch.arange(length).split(size))
    with reading_ahead(source, parts) as rows:
        yield ((int(index[0]), gather(rows, index.tolist(), None)) for index in parts)
