"""The torchdata pipeline: sampler (seed, epoch) → gather → pin → prefetch. The only importer of torchdata.

In-memory rows are gathered by index a batch at a time, never row by row. The order of an epoch is a pure function of
(seed, epoch), so that runs repeat exactly and can resume anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mvkit.batch import Batch
from mvkit.data.sources import as_batch


def order(rows: int, *, shuffle: bool, seed: int, epoch: int) -> Tensor:
    """Indices of the rows in an epoch, (b,): a pure function of its arguments."""
    if not shuffle:
        return torch.arange(rows)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(rows, generator=generator)


class Pipeline:
    """Batches of rows in memory, an epoch at a time.

    Args:
        rows: all rows, a batch, a dataset or a mapping of arrays; conformed rows (see
            `mvkit.batch.conform`) need no further look.
        batch_size: rows a batch; the last may have fewer.
        shuffle: whether each epoch has an order of its own.
        seed: of the order.
        device: where batches go; pinned and prefetched if it is not the CPU.

    Example:
        >>> import torch
        >>> from mvkit import Batch
        >>> [len(batch) for batch in Pipeline(Batch({"a": torch.rand(5, 2)}), batch_size=2)]
        [2, 2, 1]
    """

    def __init__(
        self,
        rows: Any,
        *,
        batch_size: int = 128,
        shuffle: bool = True,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.rows, self.batch_size, self.shuffle, self.seed = as_batch(rows), batch_size, shuffle, seed
        self.device = torch.device(device)
        self.epoch = 0
        self._loader: Any = None

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next pass."""
        self.epoch = epoch

    def indices(self) -> Iterator[Tensor]:
        """The indices of each batch of this epoch."""
        chosen = order(len(self.rows), shuffle=self.shuffle, seed=self.seed, epoch=self.epoch)
        yield from torch.split(chosen, self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        from torchdata import nodes

        # a fresh graph each epoch: its state is (epoch, number of batches), nothing else
        node: Any = nodes.IterableWrapper(self.indices())
        node = nodes.Mapper(node, self.rows.take)
        if self.device.type != "cpu":
            node = nodes.Prefetcher(nodes.Mapper(node, _pinned), prefetch_factor=2)
            node = nodes.Mapper(node, lambda batch: batch.to(self.device, non_blocking=True))
        yield from nodes.Loader(node)


def _pinned(batch: Batch) -> Batch:
    return batch.map(lambda tensor: tensor.pin_memory())
