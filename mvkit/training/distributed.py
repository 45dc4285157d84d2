"""ProcessGroup: what the processes of one run must agree on, on torch.distributed.

`torchrun --nproc-per-node=2 train.py` starts them; user code stays as it is. Each takes its share of every batch, and
DistributedDataParallel averages gradients.
"""

from __future__ import annotations

import atexit
import os
from typing import Any, TypeVar

import attrs
import torch
from torch import Tensor, distributed, nn

from mvkit.core.batch import Batch
from mvkit.core.loss import Loss

T = TypeVar("T")


@attrs.frozen(eq=False)
class ProcessGroup:
    """This process among those of the run.

    Args:
        rank: its number; the first one, 0, writes files and tells events.
        count: how many there are.
        group: for numbers and objects on the CPU, whatever moves gradients.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    @classmethod
    def current(cls) -> ProcessGroup:
        """The processes that torchrun, or the user, started; alone without either."""
        if not distributed.is_available():
            return cls()
        if not distributed.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) < 2:
                return cls()
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            atexit.register(_leave)
        mixed = distributed.get_backend() != "gloo"
        group = distributed.new_group(backend="gloo") if mixed else distributed.group.WORLD
        return cls(distributed.get_rank(), distributed.get_world_size(), group)

    @property
    def first(self) -> bool:
        """Whether this process writes and tells."""
        return self.rank == 0

    def device(self, wanted: str | torch.device) -> torch.device:
        """The device of this process; `auto`: an accelerator of its own, if there is one."""
        if wanted != "auto":
            return torch.device(wanted)
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def sums(self, *values: float) -> list[float]:
        """Sums over all processes, added in their order, so that every one has the same bits."""
        if self.count == 1:
            return list(values)
        mine = torch.tensor(values, dtype=torch.float64)
        every = [torch.empty_like(mine) for _ in range(self.count)]
        distributed.all_gather(every, mine, group=self.group)
        total: list[float] = torch.stack(every).sum(0).tolist()
        return total

    def pooled(self, pairs: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        """Sums of pairs over all processes, key by key."""
        if self.count == 1:
            return pairs
        every: list[Any] = [None] * self.count
        distributed.all_gather_object(every, pairs, group=self.group)
        keys = dict.fromkeys(key for one in every for key in one)
        return {
            k: tuple(map(sum, zip(*(one[k] for one in every if k in one), strict=True)))
            for k in keys
        }  # type: ignore[misc]

    def agreed(self, value: T) -> T:
        """What the first process says."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def synchronise(self, model: nn.Module) -> None:
        """Gives every process the first one's weights and buffers."""
        if self.count > 1:
            for value in (*model.parameters(), *model.buffers()):
                distributed.broadcast(value.detach(), src=0)

    def parallel(self, model: nn.Module) -> nn.Module:
        """A module whose loss has the gradients of all processes, averaged."""
        step = Step(model, connected=self.count > 1)
        if self.count == 1:
            return step
        device = next(model.parameters()).device
        ids = None if device.type == "cpu" else [device]
        # an objective need not look at every network in every step
        return nn.parallel.DistributedDataParallel(
            step, device_ids=ids, find_unused_parameters=True
        )


class Step(nn.Module):
    """The loss of a model as a tuple, which wrappers can look into.

    Args:
        model: what is trained.
        connected: whether a loss without gradient, of rows that do not count, still has every trained parameter in its
            graph, by zero: other processes wait for it.
    """

    def __init__(self, model: nn.Module, *, connected: bool) -> None:
        super().__init__()
        self.model, self.connected = model, connected

    def forward(self, batch: Batch, objective: Any, generator: torch.Generator) -> tuple[Any, ...]:
        """Loss (), metrics and counts."""
        found: Loss = self.model(batch, objective=objective, generator=generator)
        loss = found.loss
        if self.connected and torch.is_grad_enabled() and not loss.requires_grad:
            loss = loss + zero_of(self.model, loss)
        return loss, found.metrics, found.counts


def zero_of(model: nn.Module, like: Tensor) -> Tensor:
    """A zero that has every trained parameter in its graph, ()."""
    firsts = [p.flatten()[:1].sum() for p in model.parameters() if p.requires_grad]
    return torch.stack([one.to(like.dtype) for one in firsts]).sum() * 0.0


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
