"""MicroBatch: one of the batches whose gradients make one step."""

from __future__ import annotations

import attrs
from torch import Tensor

from mvkit.core.batch import Batch


@attrs.frozen(eq=False)
class MicroBatch:
    """A batch whose gradient has been accumulated, with its loss and metrics.

    Args:
        batch: the batch.
        place: its number in the epoch.
        loss: its loss ().
        metrics, counts: its metrics, and the numbers of rows behind them.
        rows: its rows in all processes together.
    """

    batch: Batch
    place: int
    loss: Tensor
    metrics: dict[str, Tensor]
    counts: dict[str, Tensor]
    rows: float
