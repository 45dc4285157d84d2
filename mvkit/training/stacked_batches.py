"""Batches of several copies of a run: the same places of their epochs, side by side.

Axes: c copies, b rows, m modalities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import attrs
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.data.pipeline import Pipeline
from mvkit.training.run import Run

Fields = dict[str, Any]
TENSORS = ("data", "elements", "covariates", "exposure", "row_weight", "extra")


@attrs.frozen(eq=False)
class StackedBatch:
    """One batch of each copy.

    Args:
        batches: of the copies, one after another; a single one that all copies share.
        lacking: the modalities that some row of the data lacks.
    """

    batches: tuple[Batch, ...]
    lacking: frozenset[str]

    @property
    def shared(self) -> bool:
        """Whether all copies have the same rows."""
        return len(self.batches) == 1

    @property
    def rows(self) -> int:
        """Rows of a batch of one copy."""
        return len(self.batches[0])

    def of(self, copy: int) -> Batch:
        """The batch of a copy."""
        return self.batches[0 if self.shared else copy]

    def fields(self) -> Fields:
        """The tensors of all copies but the mask, (c, b, ...), those that are shared (b, ...)."""
        fields = {}
        for name in TENSORS:
            if getattr(self.batches[0], name) is not None:
                fields[name] = _together(self.batches, name)
        return fields

    def mask(self) -> tuple[Tensor, int | None]:
        """The masks (c, b, m) and the axis of the copies; (b, m) and None where they agree."""
        if self.shared or not self.lacking:
            return self.batches[0].observed, None
        return torch.stack([batch.observed for batch in self.batches]), 0

    def rebuilt(self, fields: Fields, mask: Tensor) -> Batch:
        """The batch of one copy, of what `torch.vmap` shows of all: dense where rows have gaps."""
        first = self.batches[0]
        if self.lacking:
            first = first.dense(self.lacking)
        return attrs.evolve(first, **fields, mask=mask)


def _together(batches: Sequence[Batch], name: str) -> Any:
    """A field of several batches as one, a dict or a tensor."""
    values = [getattr(batch, name) for batch in batches]
    if isinstance(values[0], Tensor):
        return _stacked(values)
    tensors: dict[str, Tensor] = {}
    for key, value in values[0].items():
        if isinstance(value, Tensor):  # words and ids are nothing to compute with
            tensors[key] = _stacked([each[key] for each in values])
    return tensors


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack([*tensors])


def stacked_batches(
    runs: Sequence[Run], loaders: Sequence[Pipeline], epoch: int
) -> Iterator[StackedBatch]:
    """The batches of an epoch, each copy's in the order of its own seed.

    Args:
        runs: of the copies.
        loaders: of the copies, over rows in memory.
        epoch: counted over all stages.
    """
    rows = {id(loader.rows): cast(Batch, loader.rows) for loader in loaders}
    chosen = loaders[:1] if len(rows) == 1 and not loaders[0].shuffle else loaders
    lacking = frozenset().union(*map(_lacking, rows.values()))
    passes = [run.batches(loader, epoch, 0) for run, loader in zip(runs, chosen, strict=False)]
    for batches in zip(*passes, strict=True):
        yield StackedBatch(batches, lacking)


def _lacking(rows: Batch) -> frozenset[str]:
    """The modalities that some of the rows lack."""
    return frozenset(name for name in rows.data if not rows.seen_by_all(name))


def bytes_of(batch: Batch) -> int:
    """Bytes that the values of a batch take."""
    values: Mapping[str, Tensor] = batch.data
    return sum(value.numel() * value.element_size() for value in values.values())
