"""The torchdata pipeline: sampler (seed, epoch) → gather → transform → conform → pin → prefetch.

The only importer of torchdata. The order of an epoch is a pure function of (seed, epoch), and a batch of its place in
it, so that runs repeat exactly and resume anywhere, on any number of workers or ranks.
"""

from __future__ import annotations

import copy
import itertools
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Literal, cast

import attrs
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from mvkit.core.batch import Batch, check_not_empty, conform
from mvkit.core.validation import Schema
from mvkit.data.batch_order import balanced, by_pattern, generator, order
from mvkit.data.dataset import MultimodalDataset, as_batch
from mvkit.data.sources import (
    Described,
    Items,
    Loaded,
    Ordered,
    Source,
    Stream,
    collate,
    gather,
    observed,
    split,
)
from mvkit.errors import DataError, RequestError, ShapeError, suggest

_BLOCK = (
    64  # batches in memory whose masks are looked at together, which is cheaper than one by one
)


class Pipeline:
    """Batches of rows, an epoch at a time.

    Args:
        rows: a batch, a dataset or a mapping of arrays, all in memory; a `Source`; a torch `Dataset` or a list of
            items, which are mappings (see `mvkit.data.sources`); any iterable of items, a stream; `Loaded(batches)`.
        batch_size: rows a batch, over all ranks together; the last may have fewer.
        shuffle: whether each epoch has an order of its own; streams come as they are.
        seed: of the order.
        device: where batches go; pinned and prefetched if it is not the CPU.
        schema: a model's, to which batches are conformed in the worker (rows in memory once, now); rows that observe
            nothing are then refused.
        transform: applied to each batch before it is conformed; a function of the batch alone.
        group: `"pattern"`: the rows of a batch observe the same modalities; `"balanced"`: every batch holds every label
            equally often, rows of rare labels more than once an epoch. For rows in memory and shards.
        label: the key in `extra` that holds the labels to balance.
        workers: threads that gather, transform and conform; rows in memory need none.
        rank: which share of every batch this process takes; a share may have no row.
        ranks: of so many.

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
        schema: Schema | None = None,
        transform: Callable[[Batch], Batch] | None = None,
        group: Literal["pattern", "balanced"] | None = None,
        label: str = "label",
        workers: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        _check(batch_size=(batch_size, 1), workers=(workers, 0), ranks=(ranks, 1), rank=(rank, 0))
        if rank >= ranks:
            raise RequestError(
                f"Pipeline: rank={rank}; expected one of 0 to {ranks - 1}, since ranks={ranks}"
            )
        if group not in (None, "pattern", "balanced"):
            raise RequestError(
                f"Pipeline: group={group!r}; expected None, 'pattern' or 'balanced'"
            )
        self.rows = _as_rows(rows, schema)
        self.batch_size, self.shuffle, self.seed = int(batch_size), shuffle, int(seed)
        self.device, self.schema, self.transform = torch.device(device), schema, transform
        self.group, self.label = group, label
        self.workers, self.rank, self.ranks = int(workers), int(rank), int(ranks)
        self.epoch = self._start = self._handed = 0
        self._conform_all()
        if isinstance(self.rows, Sized) and not len(self.rows):
            raise DataError("Pipeline: the data have no rows; expected one at least")

    def __len__(self) -> int:
        if isinstance(self.rows, Loaded) and isinstance(self.rows.batches, Sized):
            return len(self.rows.batches)
        if not isinstance(self.rows, Batch | Source):
            raise TypeError(
                "Pipeline: nobody knows the number of batches of a stream before its end"
            )
        return (
            len(self.indices())
            if self.group == "pattern"
            else math.ceil(len(self.rows) / self.batch_size)
        )

    def placed(
        self, schema: Schema, device: torch.device | str, *, rank: int = 0, ranks: int = 1
    ) -> Pipeline:
        """A copy for a model: its schema, its device, and a share of the batches unless it has one."""
        made = copy.copy(self)
        made.schema, made.device = schema, torch.device(device)
        if self.ranks == 1:
            made.rank, made.ranks = rank, ranks
        made.rows = _as_rows(self.rows, schema)
        made._conform_all()
        return made

    def _conform_all(self) -> None:
        """Rows in memory are conformed once; they are then gathered in blocks of batches."""
        self._in_blocks = isinstance(self.rows, Batch) and self.transform is None
        if self._in_blocks and self.schema is not None:
            self.rows = _conformed(cast(Batch, self.rows), self.schema)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next pass; a pass that `load_state_dict` set in the same epoch stays."""
        if epoch != self.epoch:
            self.epoch, self._start, self._handed = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Which epoch this is, and how many of its batches were handed out."""
        return {"epoch": self.epoch, "batch": self._handed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Makes the next pass begin where another pipeline over the same rows stood, whatever its ranks and workers.

        The state at the end of an epoch gives a pass without batches; `set_epoch` to the next one begins that.
        """
        if set(state) != {"epoch", "batch"}:
            raise RequestError(
                f"Pipeline: state {dict(state)!r}; expected the keys epoch and batch; see state_dict"
            )
        known = isinstance(self.rows, Batch | Source)
        if known and not 0 <= state["batch"] <= len(self):
            raise RequestError(
                f"Pipeline: state at batch {state['batch']} of {len(self)}; expected the data, batch size and grouping "
                "that it was taken with"
            )
        self.epoch, self._start = state["epoch"], state["batch"]
        self._handed = self._start

    def indices(self) -> list[Tensor]:
        """The rows of each batch of this epoch, over all ranks."""
        rows = cast(Source, self.rows)
        if self.shuffle and isinstance(rows, Ordered):
            chosen = rows.epoch_order(seed=self.seed, epoch=self.epoch)
        else:
            chosen = order(len(rows), shuffle=self.shuffle, seed=self.seed, epoch=self.epoch)
        if self.group is None:
            return list(torch.split(chosen, self.batch_size))
        if not isinstance(rows, Described):
            raise RequestError(
                f"Pipeline: group={self.group!r} needs masks and labels beforehand; a {type(rows).__name__} has none; "
                "expected rows in memory or shards"
            )
        if self.group == "balanced":
            if self.label not in rows.extra:
                raise RequestError(
                    f"Pipeline: no labels extra[{self.label!r}]; {suggest(self.label, rows.extra)}"
                )
            return balanced(chosen, rows.extra[self.label], self.batch_size)
        mask = (
            rows.mask
            if rows.mask is not None
            else observed(cast(Batch, rows), tuple(cast(Batch, rows).data))
        )
        random = generator(self.seed, self.epoch) if self.shuffle else None
        return by_pattern(chosen, mask, self.batch_size, random)

    def __iter__(self) -> Iterator[Batch]:
        start, self._start = self._start, 0
        self._handed = start
        return self._hand_out(start)

    def _hand_out(self, start: int) -> Iterator[Batch]:
        for made in self._nodes(start):
            if isinstance(made, Exception):
                raise made
            for batch in made:
                self._handed += 1
                yield (
                    batch
                    if self.device.type == "cpu"
                    else batch.to(self.device, non_blocking=True)
                )

    def _nodes(self, start: int) -> Any:
        """A fresh graph each pass: its state is (epoch, number of batches), nothing else."""
        from torchdata import nodes

        node: Any = nodes.IterableWrapper(self._jobs(start))
        if self.workers and not self._in_blocks:
            node = nodes.ParallelMapper(node, self._attempt, num_workers=self.workers)
        else:
            node = nodes.Mapper(node, self._attempt)
        if self.device.type != "cpu":
            node = nodes.Prefetcher(nodes.Mapper(node, _pinned), prefetch_factor=2)
        node.reset()
        return node

    def _jobs(self, start: int) -> Iterator[Any]:
        """What is to be made: rows of some batches, rows or items of one, or a batch; an error, where reading fails."""
        try:
            if isinstance(self.rows, Stream):
                yield from self.rows.batches(self.batch_size, start)
            elif isinstance(self.rows, Loaded):
                yield from itertools.islice(self.rows.batches, start, None)
            else:
                todo = self.indices()[start:]
                step = _BLOCK if self.device.type == "cpu" else 1  # pinned memory is scarce
                yield from (
                    (todo[i : i + step] for i in range(0, len(todo), step))
                    if self._in_blocks
                    else todo
                )
        except Exception as error:
            yield error

    def _attempt(self, job: Any) -> Iterable[Batch] | Exception:
        """What a job makes, or its error: torchdata would not keep the error as it is."""
        try:
            if isinstance(job, Exception):
                return job
            return self._block_of(job) if self._in_blocks else [self._one(job)]
        except Exception as error:
            return error

    def _block_of(self, job: Sequence[Tensor]) -> Iterator[Batch]:
        shares = [_share(index, self.rank, self.ranks) for index in job]
        return split(cast(Batch, self.rows), shares)

    def _one(self, job: Any) -> Batch:
        """This rank's share of a batch."""
        batch = as_batch(job) if isinstance(self.rows, Loaded) else None
        every = (
            job if isinstance(job, Tensor) else torch.arange(len(job if batch is None else batch))
        )
        share = _share(every, self.rank, self.ranks)
        index = (
            share if len(share) else every[:1]
        )  # one row, dropped in the end: there must be something to conform
        try:
            if isinstance(self.rows, Stream):
                batch = collate([job[i] for i in index.tolist()], self.rows.names)
            elif isinstance(self.rows, Source):
                batch = gather(
                    self.rows, index.tolist(), None if self.schema is None else self.schema.names
                )
            else:
                batch = (cast(Batch, self.rows) if batch is None else batch).take(index)
            batch = batch if self.transform is None else self.transform(batch)
            batch = batch if self.schema is None else _conformed(batch, self.schema)
        except Exception as error:
            if isinstance(job, Tensor):
                error.add_note(f"the batch has these rows of the data, in order: {index.tolist()}")
            raise
        return batch if len(share) else batch.take(slice(0, 0))


def as_pipeline(
    data: Any,
    schema: Schema,
    *,
    batch_size: int = 128,
    shuffle: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
) -> Pipeline:
    """Whatever a model can be trained on, as a pipeline of batches conformed to its schema.

    Args:
        data: what `Pipeline` takes; a `Pipeline`, of which schema, device and ranks are set in a copy; or any other
            iterable, which gives batches, not rows.
        schema: the model's.
        batch_size: rows a batch, over all ranks together.
        shuffle: whether each epoch has an order of its own.
        seed: of the order.
        device: where batches go.
        workers: threads that gather and conform.
        rank: which share of every batch this process takes.
        ranks: of so many.
    """
    if isinstance(data, Pipeline):
        return data.placed(schema, device, rank=rank, ranks=ranks)
    rows = isinstance(
        data,
        Batch | MultimodalDataset | Mapping | Source | Dataset | Stream | Loaded | Tensor | str,
    )
    table = type(data).__module__.partition(".")[0] in ("numpy", "pandas", "polars")
    if isinstance(data, Iterable) and not rows and not table:
        data = Loaded(data)
    return Pipeline(
        data,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        device=device,
        schema=schema,
        workers=workers,
        rank=rank,
        ranks=ranks,
    )


def _as_rows(rows: Any, schema: Schema | None) -> Batch | Source | Stream | Loaded:
    """Rows in memory, by index, in a stream, or batches."""
    names = None if schema is None else schema.names
    if isinstance(rows, Items | Stream) and names is not None:
        strange = next((name for name in rows.names if name not in names), None)
        if strange is not None:
            raise ShapeError(f"Pipeline: unknown modality {strange!r}; {suggest(strange, names)}")
        return attrs.evolve(rows, names=names)
    if isinstance(rows, Stream | Loaded):
        return rows
    if isinstance(rows, Batch | MultimodalDataset | Mapping):
        return as_batch(rows).to("cpu")
    if isinstance(rows, Source):
        return rows
    kind: Any = (
        Stream if isinstance(rows, IterableDataset) or not isinstance(rows, Sized) else Items
    )
    if not isinstance(rows, Dataset | list | tuple) and (
        kind is Items or not isinstance(rows, Iterable)
    ):
        return as_batch(rows)
    if names is None:
        raise DataError(
            f"Pipeline: a {type(rows).__name__} gives items, but which keys are modalities? Give "
            f"schema=model.schema, or {kind.__name__}(rows, names) of mvkit.data.feeds"
        )
    made: Items | Stream = kind(rows, names)
    return made


def _share(index: Tensor, rank: int, ranks: int) -> Tensor:
    return index if ranks == 1 else torch.tensor_split(index, ranks)[rank]


def _conformed(batch: Batch, schema: Schema) -> Batch:
    batch = conform(batch, schema)
    check_not_empty(batch)
    return batch


def _pinned(made: Iterable[Batch] | Exception) -> list[Batch] | Exception:
    return (
        made
        if isinstance(made, Exception)
        else [batch.map(lambda tensor: tensor.pin_memory()) for batch in made]
    )


def _check(**options: tuple[Any, int]) -> None:
    for name, (value, low) in options.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < low:
            raise RequestError(
                f"Pipeline: {name}={value!r}; expected a whole number of at least {low}"
            )
