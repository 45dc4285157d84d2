"""Rows held out of training data, to validate on.

Axes: b rows, m modalities.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import attrs
import torch
from torch import Tensor

from mvkit.core.batch import Batch, conform
from mvkit.core.validation import Schema
from mvkit.data.pipeline import Pipeline
from mvkit.data.sources import (
    Conforming,
    Described,
    Item,
    Loaded,
    Ordered,
    Source,
    Stream,
    reading_ahead,
)
from mvkit.data.transforms import Transform
from mvkit.errors import DataError, RequestError


@attrs.frozen(eq=False)
class Picked:
    """Some rows of a source, as a source.

    Args:
        source: where they are.
        index: which, (b,).
    """

    source: Source
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, indices: list[int]) -> Batch | Sequence[Item]:
        return self.source.__getitems__(self.index[indices].tolist())

    @contextlib.contextmanager
    def read_ahead(self, batches: Sequence[Tensor]) -> Iterator[Picked]:
        """See `mvkit.data.sources.ReadsAhead`."""
        with reading_ahead(self.source, [self.index[batch] for batch in batches]) as source:
            yield attrs.evolve(self, source=source)

    def conform(self, batch: Batch, schema: Schema) -> Batch:
        """See `mvkit.data.sources.Conforming`."""
        if isinstance(self.source, Conforming):
            return self.source.conform(batch, schema)
        return conform(batch, schema, compact=True)


@attrs.frozen(eq=False)
class PickedShards(Picked):
    """Some rows of a folder of shards, with their masks and labels, in the order of the shards."""

    @property
    def mask(self) -> Tensor | None:
        """What each row observes, (b, m)."""
        mask = self.source.mask  # type: ignore[attr-defined]
        return None if mask is None else mask[self.index]

    @property
    def extra(self) -> Mapping[str, object]:
        """What else is known of each row."""
        batch = Batch({}, extra=dict(self.source.extra))  # type: ignore[attr-defined]
        return batch.take(self.index).extra

    def epoch_order(self, *, seed: int, epoch: int) -> Tensor:
        """Indices of the rows in an epoch, (b,)."""
        order = self.source.epoch_order(seed=seed, epoch=epoch)  # type: ignore[attr-defined]
        places = torch.full((len(self.source),), -1)
        places[self.index] = torch.arange(len(self.index))
        places = places[order]
        return places[places >= 0]


def hold_out(pipeline: Pipeline, share: float, seed: int) -> tuple[Pipeline, Pipeline]:
    """Pipelines of the rows to train on and, in their own order, of those to validate on.

    Which rows these are is a function of the seed and of each row's id, or of its position where
    rows have no ids; rows with one id stay together.

    Args:
        pipeline: with the schema of its model.
        share: of the rows that are held out, between 0 and 1.
        seed: of the choice.

    Raises:
        RequestError: a share that is none; a stream, whose rows are not known beforehand.
        DataError: too few rows to have some on both sides.
    """
    where = f"fit: validation={share}"
    if not 0 < share < 1:
        raise RequestError(f"{where}; expected a share between 0 and 1, or data")
    rows = pipeline.rows
    if isinstance(rows, Stream | Loaded):
        raise RequestError(
            f"{where}: the rows of a stream, or of batches that a loader returns, are not known "
            "beforehand; give other data to validate on"
        )
    held = _held_out(_ids(rows), share, seed)
    if held.all() or not held.any():
        raise DataError(
            f"{where}: {len(rows)} rows cannot be split by their ids; expected one at least on "
            "each side; give other data to validate on"
        )
    if pipeline.schema is not None:
        _warn_of_transforms(pipeline.schema, where)
    train = _of_rows(pipeline, ~held)
    valid = _of_rows(pipeline, held)
    valid.shuffle = False
    valid.group = None
    return train, valid


def _ids(rows: Batch | Source) -> Sequence[object]:
    """What tells rows apart: their ids, or their positions."""
    ids = rows.extra.get("id") if isinstance(rows, Batch | Described) else None
    if isinstance(ids, Tensor):
        ids = ids.tolist()
    return range(len(rows)) if ids is None else list(ids)


def _held_out(ids: Sequence[object], share: float, seed: int) -> Tensor:
    """Flags (b,) of a share of the rows, in an order that ids and seed decide."""
    keys = []
    for value in ids:
        text = f"{seed} {value!r}".encode()
        keys.append(hashlib.blake2b(text, digest_size=8).digest())
    ordered = sorted(keys)
    count = max(1, round(share * len(ids)))
    last = ordered[count - 1]
    return torch.tensor([key <= last for key in keys])


def _of_rows(pipeline: Pipeline, flags: Tensor) -> Pipeline:
    """A copy of a pipeline over the rows where flags (b,) are set."""
    index = flags.nonzero()[:, 0]
    rows = pipeline.rows
    if isinstance(rows, Batch):
        return pipeline.with_rows(rows.take(index))
    source = cast(Source, rows)
    if isinstance(rows, Described) and isinstance(rows, Ordered):
        return pipeline.with_rows(PickedShards(source, index))
    return pipeline.with_rows(Picked(source, index))


def _warn_of_transforms(schema: Schema, where: str) -> None:
    """Warns if transforms were fitted, and so may have seen the rows that are held out."""
    fitted = []
    for name, steps in schema.transforms.items():
        transforms = cast(Sequence[Transform], steps)
        if any(type(t).fit is not Transform.fit and not t.classes for t in transforms):
            fitted.append(repr(name))
    if fitted:
        warnings.warn(
            f"{where}: the transforms of {', '.join(fitted)} were fitted before, and so may have "
            "seen the rows that are held out; to keep these unseen, split the dataset first, fit "
            "its transforms to the training part, and give the other part as validation",
            stacklevel=6,
        )
