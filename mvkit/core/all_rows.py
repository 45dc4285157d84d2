"""All rows of a batch that several processes share, for objectives that couple rows.

Axes: b own rows, c rows of all processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Protocol

from torch import Tensor


class SharedRows(Protocol):
    """What gathers the rows of all processes; `mvkit.training.gathered` has the one of runs."""

    def gather(self, values: Tensor) -> tuple[Tensor, int]:
        """Values (b, …) of this process's rows to those of all (c, …), and where its own begin."""
        ...

    def connect(self, loss: Tensor) -> Tensor:
        """The same loss, whose gradient reaches everything that was gathered."""
        ...


_shared: ContextVar[SharedRows | None] = ContextVar("mvkit_shared_rows", default=None)


@contextlib.contextmanager
def shared_rows(shared: SharedRows) -> Iterator[None]:
    """Inside, `all_rows` gathers; every process must call it as often, in the same order."""
    token = _shared.set(shared)
    try:
        yield
    finally:
        _shared.reset(token)


def all_rows(values: Tensor) -> tuple[Tensor, int]:
    """The rows of the whole batch, of which this process may have a share.

    The values of other processes carry gradients too. A loss is still the mean over the process's
    own rows. Every process calls this as often as the others, also if its share is empty: call it
    outside conditions that depend on the rows. Where nothing is shared, the rows are its own.

    Args:
        values: of the process's own rows, (b, …); numbers, or flags.

    Returns:
        The values of all rows in the order of processes, (c, …), and the place of the first own
        row among them.

    Example:
        >>> import torch
        >>> from mvkit.core.all_rows import all_rows
        >>> rows, first = all_rows(torch.ones(3, 2))
        >>> rows.shape, first
        (torch.Size([3, 2]), 0)
    """
    shared = _shared.get()
    return (values, 0) if shared is None else shared.gather(values)


def connected(loss: Tensor) -> Tensor:
    """A loss () that depends on all that was gathered for it, if with gradient zero.

    The processes wait for one another in the backward pass too, so that none may leave it out.
    """
    shared = _shared.get()
    return loss if shared is None else shared.connect(loss)
