"""Rows of all processes in each of them, with gradients, for objectives that couple rows.

Axes: b own rows, c rows of all processes, r processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

Lengths = list[int]  # rows of each process


class GatheredRows:
    """Gathers over a group of its own, so that it does not get in the way of other gradients.

    Values travel through the CPU. Gradients are asked for by all processes or by none: of
    everything in the model that requires them.

    Args:
        rank: the number of this process.
        group: a group of all processes, by gloo.
        model: whose parameters are trained.
    """

    def __init__(
        self, rank: int, group: distributed.ProcessGroup | None, model: nn.Module
    ) -> None:
        self.rank = rank
        self.group = group
        self.model = model
        self.waiting: list[Tensor] = []

    def gather(self, values: Tensor) -> tuple[Tensor, int]:
        """See `mvkit.core.all_rows.all_rows`."""
        trained = torch.is_grad_enabled() and values.requires_grad
        own = torch.tensor([len(values), trained])
        facts = [torch.empty_like(own) for _ in range(distributed.get_world_size(self.group))]
        distributed.all_gather(facts, own, group=self.group)
        lengths = [int(fact[0]) for fact in facts]
        if any(bool(fact[1]) for fact in facts) and not trained:
            values = values + self._nothing().to(values)
        rows: Tensor = _Gather.apply(values, self, lengths)  # type: ignore[no-untyped-call]
        if rows.requires_grad:
            self.waiting.append(rows)
        return rows, sum(lengths[: self.rank])

    def _nothing(self) -> Tensor:
        """Zero, with a gradient for every trained parameter, as rows have in other processes."""
        total = torch.zeros((), device=next(self.model.parameters()).device)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                total = total + (parameter * 0.0).sum()
        return total

    def connect(self, loss: Tensor) -> Tensor:
        """See `mvkit.core.all_rows.connected`."""
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return loss
        connected: Tensor = _Connect.apply(loss, *waiting)  # type: ignore[no-untyped-call]
        return connected

    def all_of(self, values: Tensor, lengths: Lengths) -> Tensor:
        """Values of all processes, (b, …) -> (c, …), without gradients."""
        longest = max(lengths)
        padded = values.new_zeros(longest, *values.shape[1:], device="cpu")
        padded[: len(values)] = values
        shares = [torch.empty_like(padded) for _ in lengths]
        distributed.all_gather(shares, padded, group=self.group)
        rows = [share[:length] for share, length in zip(shares, lengths, strict=True)]
        return torch.cat(rows).to(values.device)

    def sum_of(self, values: Tensor) -> Tensor:
        """The sum over processes of values of one shape."""
        total = values.to("cpu", copy=True).contiguous()
        distributed.all_reduce(total, group=self.group)
        return total.to(values.device)


class _Gather(torch.autograd.Function):
    """Rows of all processes; backwards, what all of them ask of this one's rows."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, gathered: GatheredRows, lengths: Lengths) -> Tensor:
        ctx.gathered = gathered
        start = sum(lengths[: gathered.rank])
        ctx.own = slice(start, start + len(values))
        rows = gathered.all_of(values, lengths)
        if not values.is_floating_point():
            ctx.mark_non_differentiable(rows)
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = ctx.gathered.sum_of(gradients[0])
        return total[ctx.own], None, None


class _Connect(torch.autograd.Function):
    """A loss that also depends on other tensors, with gradient zero whatever they hold."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *others: Tensor) -> Tensor:
        ctx.shapes = [other.shape for other in others]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        zeros: Sequence[Tensor] = [gradients[0].new_zeros(shape) for shape in ctx.shapes]
        return gradients[0], *zeros
