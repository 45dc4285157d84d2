"""ProcessGroup: what the processes of one run must agree on, by torch.distributed.

`torchrun --nproc-per-node=2 train.py` starts them; user code stays as it is. Each process takes
its share of every batch, and DistributedDataParallel averages the gradients.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import attrs
import torch
from torch import Tensor, distributed, nn

from mvkit.core.all_rows import connected
from mvkit.core.batch import Batch
from mvkit.core.devices import device_of
from mvkit.core.loss import Loss
from mvkit.errors import RankError, RequestError
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.objective_modules import every_objective
from mvkit.parts.objectives.objective import Objective, ObjectiveLike
from mvkit.training.gathered import GatheredRows
from mvkit.training.meeting import outlives_workers, store_of_attempt

T = TypeVar("T")
Sums = dict[str, tuple[float, float]]  # by metric: its sum over rows, and the number of rows
TIMEOUT = "MVKIT_RANKS_TIMEOUT"  # seconds that a process waits for the others
SECONDS = 60.0
# how gloo and nccl say that another process is gone or silent, beside torch's own DistError
LOST = re.compile(
    r"gloo|pair closure|timed out|connection (closed|reset|refused)|broken pipe|nccl",
    re.IGNORECASE,
)


@attrs.frozen(eq=False)
class ProcessGroup:
    """The processes of a run, as seen from one of them.

    Args:
        rank: the number of this process; the first one, 0, writes files and sends events.
        count: how many processes there are.
        group: torch's group for numbers and objects on the CPU, whatever moves gradients.
    """

    rank: int = 0
    count: int = 1
    group: distributed.ProcessGroup | None = None

    @classmethod
    def current(cls) -> ProcessGroup:
        """The processes that torchrun or the user started; this one alone if nobody did.

        They wait for each other for `patience()`, unless the user began the group, with a limit
        of their own.
        """
        if not distributed.is_available():
            return cls()
        if not distributed.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) < 2:
                return cls()
            _join()
        group = distributed.group.WORLD
        if distributed.get_backend() != "gloo":
            group = _of_gloo()
        return cls(distributed.get_rank(), distributed.get_world_size(), group)

    @property
    def first(self) -> bool:
        """Whether this process writes files and sends events."""
        return self.rank == 0

    def device(self, wanted: str | torch.device) -> torch.device:
        """The device of this process; `auto`: an accelerator of its own if there is one."""
        if wanted != "auto":
            return device_of(wanted)
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def sums(self, *values: float) -> list[float]:
        """Sums of whole numbers over all processes, which are exact."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(sums, group=self.group)
        total: list[float] = sums.tolist()
        return total

    def added(self, values: Tensor) -> Tensor:
        """Sums of numbers (n,) over all processes, in place, on the device that trains."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def first_has(self, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        """Sums over all processes by metric, which the first one takes over; zeros in others."""
        return {key: pair if self.first else (0.0, 0.0) for key, pair in pairs}

    def pooled(self, sums: Sums) -> Sums:
        """Sums of metrics over all processes, metric by metric."""
        if self.count == 1:
            return sums
        pooled: Sums = {}
        for sums_of_process in self.gathered(sums):
            for key, (total, rows) in sums_of_process.items():
                total_before, rows_before = pooled.get(key, (0.0, 0.0))
                pooled[key] = total_before + total, rows_before + rows
        return pooled

    def agreed(self, value: T) -> T:
        """The first process's value."""
        if self.count == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        values = [value] * self.count
        if self.count > 1:
            distributed.all_gather_object(values, value, group=self.group)
        return values

    def synchronise(self, model: nn.Module) -> None:
        """Gives every process the first one's weights and buffers."""
        if self.count > 1:
            for value in (*model.parameters(), *model.buffers()):
                distributed.broadcast(value.detach(), src=0)

    def synchronise_buffers(self, model: nn.Module) -> None:
        """Gives every process the first one's buffers: what layers and scales measure in training
        is measured on the share of each.
        """
        if self.count > 1:
            for value in model.buffers():
                distributed.broadcast(value, src=0)

    def gathered_rows(
        self, model: MultimodalModel, objective: ObjectiveLike
    ) -> GatheredRows | None:
        """What gathers the rows of all processes, to be called in each of them; None if this is
        the only one, or the objective does not couple rows.
        """
        if self.count == 1:
            return None
        parts = every_objective(model.build_objective(objective))
        if not any(part.couples_rows for part in parts):
            return None
        return GatheredRows(self.rank, _of_gloo(), model)

    def parallel(self, model: nn.Module) -> nn.Module:
        """A module whose loss has the gradients of all processes, averaged."""
        module = LossModule(model, connected=self.count > 1)
        if self.count == 1:
            return module
        device = next(model.parameters()).device
        devices = None if device.type == "cpu" else [device]
        # an objective need not use every network in every step
        return nn.parallel.DistributedDataParallel(
            module, device_ids=devices, find_unused_parameters=True
        )


class LossModule(nn.Module):
    """The loss of a model as a tuple, in which DistributedDataParallel finds the tensors.

    Args:
        model: the model to train.
        connected: whether a loss without a gradient (no row counts) still depends on every trained
            parameter, with gradient zero, because the other processes wait for it.
    """

    def __init__(self, model: nn.Module, *, connected: bool) -> None:
        super().__init__()
        self.model = model
        self.connected = connected

    def forward(
        self, batch: Batch, objective: Objective, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], bool]:
        """Loss (), metrics, counts, and whether the objective trains something."""
        result: Loss = self.model(batch, objective=objective, generator=generator)
        loss = connected(result.loss)
        if self.connected and torch.is_grad_enabled() and not loss.requires_grad:
            for parameter in self.model.parameters():
                loss = loss + (parameter * 0.0).sum()
        trains = loss.requires_grad and (result.trains or self.connected)
        return loss, result.metrics, result.counts, trains


def _join() -> None:
    """Joins the group of all processes, by what torchrun says in the environment."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    limit = patience()
    if outlives_workers():
        store, rank, count = store_of_attempt(limit)
        distributed.init_process_group(
            backend, timeout=limit, store=store, rank=rank, world_size=count
        )
    else:
        distributed.init_process_group(backend, timeout=limit)
    atexit.register(_leave)


def patience() -> timedelta:
    """How long a process waits for the others: a minute, or MVKIT_RANKS_TIMEOUT in seconds.

    Raises:
        RequestError: the variable holds no number above 0.
    """
    wanted = os.environ.get(TIMEOUT, str(SECONDS))
    try:
        limit = timedelta(seconds=float(wanted))
    except (ValueError, OverflowError):
        limit = timedelta()
    if limit <= timedelta():
        raise RequestError(
            f"fit: {TIMEOUT}={wanted!r}; expected a number of seconds above 0, for which a "
            f"process waits for the others; leave it out for {SECONDS:.0f}"
        )
    return limit


@contextlib.contextmanager
def lost_processes_named() -> Iterator[None]:
    """Inside, what gloo or nccl say of a process that failed or did not answer is explained.

    Raises:
        RankError: in place of their error, which stays its cause.
    """
    try:
        yield
    except RuntimeError as error:
        if not _lost(error):
            raise
        rank = os.environ.get("RANK", "?")
        raise RankError(
            f"fit: process {rank} lost the others: {str(error).splitlines()[0]}; expected an "
            "answer of each of them in time; the process that failed first says why, in its "
            f"own log; if all were merely slow, set {TIMEOUT} to more seconds than "
            f"{patience().total_seconds():g}; what was saved is resumed by the same call"
        ) from error


def _lost(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone or silent."""
    if isinstance(error, distributed.DistError):
        return True
    known = type(error) is RuntimeError and distributed.is_initialized()
    return known and LOST.search(str(error)) is not None


def _of_gloo() -> distributed.ProcessGroup:
    """A group of all processes for numbers on the CPU."""
    group: distributed.ProcessGroup = distributed.new_group(backend="gloo", timeout=patience())
    return group


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
