"""The torchdata pipeline: sampler (seed, epoch) → gather → transform → conform → pin → prefetch.

The only importer of torchdata. The order of an epoch is a pure function of (seed, epoch), and a
batch of its place in it, so that runs repeat exactly and resume anywhere, on any number of workers
or ranks.
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mvkit.core import noise
from mvkit.core.batch import Batch, conform
from mvkit.core.batch_checks import check_not_empty
from mvkit.core.validation import Schema
from mvkit.data.align import library
from mvkit.data.batch_order import balanced, by_pattern, order
from mvkit.data.dataset import as_batch
from mvkit.data.device_batches import StoredRows, pinned
from mvkit.data.lengths import check_length, check_lengths, known_length
from mvkit.data.row_sources import as_rows
from mvkit.data.sources import (
    Conforming,
    Described,
    Loaded,
    Ordered,
    ReadsAhead,
    Source,
    Stream,
    collate,
    gather,
    observed,
    split,
)
from mvkit.errors import RequestError, check_option, check_whole_number, suggest

# batches in memory whose masks are looked at together, which is cheaper than one by one
BLOCK = 64
Device = torch.device | str


class Pipeline:
    """Batches of rows, one epoch at a time.

    Args:
        rows: a batch, a dataset or a mapping of arrays, all in memory; a `Source`; a torch
            `Dataset` or a list of items, which are mappings (see `mvkit.data.sources`); any
            iterable of items, a stream; `Loaded(batches)`.
        batch_size: rows per batch, over all ranks together; the last may have fewer.
        shuffle: whether each epoch has an order of its own; streams come as they are.
        seed: of the order.
        device: where batches go; pinned and prefetched if it is not the CPU.
        schema: a model's, to which batches are conformed in the worker (rows in memory once, now);
            rows that observe nothing are then refused.
        transform: applied to each batch before it is conformed; a function of the batch alone.
        group: `"pattern"`: the rows of a batch observe the same modalities; `"balanced"`: every
            batch holds every label equally often, rows of rare labels more than once per epoch.
            For rows in memory and shards.
        label: the key in `extra` that holds the labels to balance.
        workers: threads that gather, transform and conform; rows in memory need none.
        rank: which share of every batch this process takes; a share may have no row.
        ranks: number of shares.
        layout: the old name of `schema`.

    Example:
        >>> import torch
        >>> from mvkit import Batch
        >>> [len(batch) for batch in Pipeline(Batch({"a": torch.rand(5, 2)}), batch_size=2)]
        [2, 2, 1]
    """

    def __init__(
        self,
        rows: object,
        *,
        batch_size: int = 128,
        shuffle: bool = True,
        seed: int = 0,
        device: Device = "cpu",
        schema: Schema | None = None,
        transform: Callable[[Batch], Batch] | None = None,
        group: Literal["pattern", "balanced"] | None = None,
        label: str = "label",
        workers: int = 0,
        rank: int = 0,
        ranks: int = 1,
        layout: Schema | None = None,
    ) -> None:
        if layout is not None:
            warnings.warn("Pipeline: layout= is now schema=", DeprecationWarning, stacklevel=2)
            schema = layout
        self.batch_size = check_whole_number("Pipeline: batch_size", batch_size, 1)
        self.workers = check_whole_number("Pipeline: workers", workers, 0)
        self.ranks = check_whole_number("Pipeline: ranks", ranks, 1)
        self.rank = check_whole_number("Pipeline: rank", rank, 0)
        if rank >= ranks:
            raise RequestError(
                f"Pipeline: rank={rank}; expected one of 0 to {ranks - 1}, since ranks={ranks}"
            )
        check_option("Pipeline: group", group, None, "pattern", "balanced")
        self.group = group
        self.label = label
        self.shuffle = shuffle
        self.seed = int(seed)
        self.device = torch.device(device)
        self.schema = schema
        self.transform = transform
        self.epoch = 0
        self._start = 0  # first batch of the next pass
        self._handed = 0  # batches of this epoch that were handed out
        self._stored: StoredRows | None = None
        self._use(rows)
        if isinstance(self.rows, Sized):
            check_length(self.rows, "Pipeline")

    def _use(self, rows: object) -> None:
        """Takes rows; those in memory are conformed now, and gathered in blocks of batches."""
        self.rows = as_rows(rows, self.schema)
        self._in_blocks = isinstance(self.rows, Batch) and self.transform is None
        if isinstance(self.rows, Batch) and (self.transform is not None or self.schema is None):
            check_lengths(self.rows, self.schema)
        if self._in_blocks:
            self.rows = self._conformed(cast(Batch, self.rows))

    def _conformed(self, batch: Batch) -> Batch:
        if any(value.requires_grad for value in batch.data.values()):
            batch = batch.map(Tensor.detach)  # they are data, whatever network computed them
        if self.schema is not None:
            if isinstance(self.rows, Conforming) and self.transform is None:
                batch = self.rows.conform(batch, self.schema)
            else:
                batch = conform(batch, self.schema, compact=True)
            check_not_empty(batch)
        return batch

    def __len__(self) -> int:
        rows = self.rows
        batches = known_length(rows.batches) if isinstance(rows, Loaded) else None
        if batches is not None:
            return batches
        if not isinstance(rows, Batch | Source):
            raise TypeError(
                "Pipeline: the number of batches of a stream is unknown before its end"
            )
        if self.group == "pattern":
            return len(self.indices())
        return math.ceil(len(rows) / self.batch_size)

    def placed(self, schema: Schema, device: Device, *, rank: int = 0, ranks: int = 1) -> Pipeline:
        """A copy for a model: with its schema and device, and a share unless it has one."""
        pipeline = copy.copy(self)
        pipeline.schema = schema
        pipeline.device = torch.device(device)
        if self.ranks == 1:
            pipeline.rank = rank
            pipeline.ranks = ranks
        pipeline._use(self.rows)
        return pipeline

    def with_rows(self, rows: object) -> Pipeline:
        """A copy over other rows."""
        pipeline = copy.copy(self)
        pipeline._use(rows)
        return pipeline

    def stored_on_device(self) -> Pipeline:
        """A copy whose rows are on the device and picked there; its batches are dense if rows lack
        modalities.

        Raises:
            RequestError: rows that are not in memory.
        """
        pipeline = copy.copy(self)
        pipeline._stored = StoredRows.of(self.rows, self.device)
        return pipeline

    def first_rows(self, n: int) -> Batch | None:
        """The first n rows, conformed; None of streams and batches, which may not come again."""
        if isinstance(self.rows, Stream | Loaded):
            return None
        index = torch.arange(min(n, len(self.rows)))
        prepared = self._gathered if self._in_blocks else self._prepared
        return prepared(index, index).expanded()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next pass.

        A pass that `load_state_dict` set in the same epoch stays.
        """
        if epoch != self.epoch:
            self.epoch = epoch
            self._start = 0
            self._handed = 0

    def state_dict(self) -> dict[str, int]:
        """Which epoch this is, and how many of its batches were handed out."""
        return {"epoch": self.epoch, "batch": self._handed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Makes the next pass begin where another pipeline over the same rows stood.

        Whatever its ranks and workers. The state at the end of an epoch leads to a pass without
        batches; `set_epoch` to the next one begins that.
        """
        if set(state) != {"epoch", "batch"}:
            raise RequestError(
                f"Pipeline: state {dict(state)!r}; expected the keys epoch and batch; see "
                "state_dict"
            )
        batch = state["batch"]
        if isinstance(self.rows, Batch | Source) and not 0 <= batch <= len(self):
            raise RequestError(
                f"Pipeline: state at batch {batch} of {len(self)}; expected the data, batch size "
                "and grouping that it was taken with"
            )
        self.epoch = state["epoch"]
        self._start = batch
        self._handed = batch

    def indices(self) -> list[Tensor]:
        """The rows of each batch of this epoch, over all ranks."""
        rows = cast(Source, self.rows)
        if self.shuffle and isinstance(rows, Ordered):
            chosen = rows.epoch_order(seed=self.seed, epoch=self.epoch)
        else:
            chosen = order(len(rows), shuffle=self.shuffle, seed=self.seed, epoch=self.epoch)
        if self.group is None:
            return list(chosen.split(self.batch_size))
        if not isinstance(rows, Described):
            raise RequestError(
                f"Pipeline: group={self.group!r} needs masks and labels beforehand; a "
                f"{type(rows).__name__} has none; expected rows in memory or shards"
            )
        if self.group == "balanced":
            if self.label not in rows.extra:
                raise RequestError(
                    f"Pipeline: no labels extra[{self.label!r}]; {suggest(self.label, rows.extra)}"
                )
            return balanced(chosen, rows.extra[self.label], self.batch_size)
        mask = rows.mask
        if mask is None:
            batch = cast(Batch, self.rows)
            mask = observed(batch, tuple(batch.data))
        generator = None
        if self.shuffle:
            generator = noise.seeded(noise.seed_of_epoch(self.seed, self.epoch))
        return by_pattern(chosen, mask, self.batch_size, generator)

    def __iter__(self) -> Iterator[Batch]:
        start = self._start
        self._start = 0
        self._handed = start
        return self._hand_out(start)

    def _hand_out(self, start: int) -> Iterator[Batch]:
        """Batches from `start` on, of rows that are read ahead where they can be."""
        if self._stored is not None:
            for batch in self._stored.batches([self._share(i) for i in self.indices()[start:]]):
                self._handed += 1
                yield batch
            return
        if self._in_blocks or not isinstance(self.rows, ReadsAhead):
            yield from self._graph(self._jobs(start), self._attempt)
            return
        batches = self.indices()[start:]
        with self.rows.read_ahead([self._share_or_row(index) for index in batches]) as rows:
            reader = copy.copy(self)
            reader.rows = rows
            yield from self._graph(iter(batches), reader._attempt)

    def _graph(self, jobs: Iterator[object], attempt: Callable[[Any], object]) -> Iterator[Batch]:
        """Batches of a fresh graph: its state is (epoch, number of batches), nothing else."""
        from torchdata import nodes

        node = nodes.IterableWrapper(jobs)
        if self.workers and not self._in_blocks:
            node = nodes.ParallelMapper(node, attempt, num_workers=self.workers)
        else:
            node = nodes.Mapper(node, attempt)
        on_cpu = self.device.type == "cpu"
        if not on_cpu:
            node = nodes.Prefetcher(nodes.Mapper(node, pinned), prefetch_factor=2)
        node.reset()
        for batches in node:
            if isinstance(batches, Exception):
                raise batches
            for batch in batches:
                self._handed += 1
                yield (batch if on_cpu else batch.to(self.device, non_blocking=True)).expanded()

    def _jobs(self, start: int) -> Iterator[object]:
        """What batches are made of: row indices of several or of one, items, or a batch.

        Or an error, where reading fails: torchdata would not keep it as it is.
        """
        try:
            if isinstance(self.rows, Stream):
                yield from self.rows.batches(self.batch_size, start)
            elif isinstance(self.rows, Loaded):
                yield from itertools.islice(self.rows.batches, start, None)
            elif self._in_blocks:
                size = BLOCK if self.device.type == "cpu" else 1  # pinned memory is scarce
                indices = self.indices()
                for first in range(start, len(indices), size):
                    yield indices[first : first + size]
            else:
                yield from self.indices()[start:]
        except Exception as error:
            yield error

    def _attempt(self, job: Any) -> Iterable[Batch] | Exception:
        """The batches of a job, or its error."""
        if isinstance(job, Exception):
            return job
        try:
            if not self._in_blocks:
                return [self._batch(job)]
            return split(cast(Batch, self.rows), [self._share(index) for index in job])
        except Exception as error:
            return error

    def _share(self, index: Tensor) -> Tensor:
        """What this rank takes of the rows of a batch."""
        return index if self.ranks == 1 else index.tensor_split(self.ranks)[self.rank]

    def _share_or_row(self, index: Tensor) -> Tensor:
        """The same; of an empty share, one row to conform, which is dropped in the end."""
        share = self._share(index)
        return share if len(share) else index[:1]

    def _batch(self, job: Any) -> Batch:
        """This rank's share of a batch."""
        if isinstance(self.rows, Loaded):
            job = as_batch(job)
            check_lengths(job, self.schema)
        every = job if isinstance(job, Tensor) else torch.arange(len(job))
        share = self._share(every)
        index = self._share_or_row(every)
        try:
            batch = self._prepared(job, index)
        except Exception as error:
            if isinstance(job, Tensor):
                error.add_note(f"the batch has these rows of the data, in order: {index.tolist()}")
            raise
        return batch if len(share) else batch.take(slice(0, 0))

    def _prepared(self, job: Any, index: Tensor) -> Batch:
        """The rows of a job at `index` (n,), transformed and conformed."""
        batch = self._gathered(job, index)
        if self.transform is not None:
            batch = self.transform(batch)
        return self._conformed(batch)

    def _gathered(self, job: Any, index: Tensor) -> Batch:
        """The rows of a job at `index`, (n,)."""
        if isinstance(self.rows, Stream):
            return collate([job[i] for i in index.tolist()], self.rows.names)
        if isinstance(self.rows, Source):
            names = None if self.schema is None else self.schema.names
            return gather(self.rows, index.tolist(), names)
        batch = job if isinstance(self.rows, Loaded) else self.rows
        return batch.take(index)


def as_pipeline(
    data: object,
    schema: Schema,
    *,
    device: Device = "cpu",
    rank: int = 0,
    ranks: int = 1,
    **options: Any,
) -> Pipeline:
    """Whatever a model can be trained on, as a pipeline of batches conformed to its schema.

    Args:
        data: what `Pipeline` takes; a `Pipeline`, of which schema, device and ranks are set in a
            copy; or any other iterable, which yields batches, not rows.
        schema: the model's.
        device: where batches go.
        rank: which share of every batch this process takes.
        ranks: number of shares.
        options: other options of a `Pipeline`, for data that is none yet.
    """
    if isinstance(data, Pipeline):
        return data.placed(schema, device, rank=rank, ranks=ranks)
    rows = isinstance(data, Mapping | Source | Dataset | Tensor | str)
    table = library(data) in ("numpy", "pandas", "polars")
    if isinstance(data, Iterable) and not rows and not table:
        data = Loaded(data)
    return Pipeline(data, schema=schema, device=device, rank=rank, ranks=ranks, **options)
