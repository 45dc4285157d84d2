"""Datasets: rows in memory with their gaps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from mvkit.batch import Batch
from mvkit.errors import DataError
from mvkit.modality import Modality

if TYPE_CHECKING:
    from mvkit.data.shards import Shards


@attrs.frozen(eq=False)
class MultimodalDataset:
    """Rows of several modalities with gaps: map-style, a whole batch at a time.

    Args:
        batch: all rows.
        modalities: what they are, for `Model(dataset.modalities)`.
    """

    batch: Batch
    modalities: dict[str, Modality]

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, index: int) -> Batch:
        return self.batch.take(torch.tensor([range(len(self))[index]]))

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self.batch.take(torch.as_tensor(indices))

    def save(self, folder: str | os.PathLike[str], *, rows_per_shard: int | None = None) -> None:
        """Writes a folder of safetensors shards; see `mvkit.data.shards.save_shards`."""
        from mvkit.data.shards import save_shards

        save_shards(self.batch, folder, self.modalities, rows_per_shard=rows_per_shard)

    @staticmethod
    def open(folder: str | os.PathLike[str], **options: Any) -> Shards:
        """Rows of a folder that `save` wrote, memory-mapped; options as of `mvkit.data.shards.Shards`."""
        from mvkit.data.shards import Shards

        return Shards(folder, **options)

    @property
    def labels(self) -> Tensor | None:
        """`extra["label"]`, if there is one."""
        return self.batch.extra.get("label")


def as_batch(data: Any) -> Batch:
    """A batch, a dataset or a mapping of arrays as a batch."""
    if isinstance(data, Batch):
        return data
    if isinstance(data, MultimodalDataset):
        return data.batch
    if isinstance(data, Mapping):
        return Batch(dict(data))
    raise DataError(
        f"got {type(data).__name__}; expected a Batch, a MultimodalDataset or a mapping from modality to array"
    )
