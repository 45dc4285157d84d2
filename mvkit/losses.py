"""Losses: what a step minimises, what it reports, and means over the rows that count.

Axes: b rows, m modalities.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit import plugins
from mvkit.errors import ShapeError
from mvkit.terms import Terms

if TYPE_CHECKING:
    from mvkit.model import Model


@attrs.frozen(eq=False)
class Loss:
    """What a step minimises, and what it reports.

    Args:
        loss: mean over the rows of the batch, (), in nats.
        bound: the bound on log p(x) of each row with all weights at 1, (b,); NaN in rows that the objective skips.
        metrics: 0-d tensors to watch, means over rows; whoever shows them converts them.
        counts: how many rows a metric is a mean of, 0-d; absent: all of the batch.
    """

    loss: Tensor
    bound: Tensor
    metrics: dict[str, Tensor]
    counts: dict[str, Tensor] = attrs.field(factory=dict)

    def checked(self, b: int, objective: type) -> Loss:
        """Itself, if loss and bound have the right shapes for b rows; looks at no value.

        Raises:
            ShapeError: that names the objective, and its package.
        """
        if self.loss.ndim or self.bound.shape != (b,):
            given = f"loss {tuple(self.loss.shape)} and bound {tuple(self.bound.shape)}"
            who = plugins.entry_of(objective) or objective.__name__
            raise ShapeError(f"{who}: gave {given}; expected () and {(b,)}")
        return self


@attrs.frozen(eq=False)
class Metrics:
    """Means over rows, each with the number of rows behind it."""

    means: dict[str, Tensor] = attrs.field(factory=dict)
    counts: dict[str, Tensor] = attrs.field(factory=dict)

    @classmethod
    def pooled(cls, several: list[Metrics]) -> Metrics:
        """The means over all rows of several, key by key."""
        keys = dict.fromkeys(key for one in several for key in one.means)
        counts = {key: sum_of([one.counts[key] for one in several if key in one.means]) for key in keys}
        sums = {key: sum_of([one.means[key] * one.counts[key] for one in several if key in one.means]) for key in keys}
        return cls({key: sums[key] / counts[key].clamp(min=1) for key in keys}, counts)


def sum_of(tensors: list[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return reduce(torch.add, tensors)


def over_rows(values: Tensor) -> Tensor:
    """The mean over rows, (b,) -> (); 0 of none, since a process may have no row of a batch."""
    return values.sum() / max(len(values), 1)


def finish(model: Model, bound: Tensor, reported: Tensor, active: Tensor | None, metrics: Metrics) -> Loss:
    """The loss of a row-wise bound: its mean, rows that are not active counting as 0 and reported as NaN."""
    reported = reported.detach()
    counts = {}
    mean = over_rows(reported)
    # with auxiliary priors r_m other than p(w), what is reported is a bound on nothing
    name = "surrogate_bound" if len(model.cross) else "bound"
    if active is not None:
        bound = torch.where(active, bound, 0.0)
        counts[name] = active.sum()
        mean = torch.where(active, reported, 0.0).sum() / counts[name].clamp(min=1)
        reported = torch.where(active, reported, torch.nan)
    loss = -over_rows(bound)
    return Loss(loss, reported, {"loss": loss.detach(), name: mean, **metrics.means}, counts | metrics.counts)


@torch.no_grad()
def row_metrics(model: Model, terms: Terms, kl: Tensor, mask: Tensor, active: Tensor | None) -> Metrics:
    """Mean log-likelihood of each modality over the active rows that observe it, and the mean KL over active rows."""
    active = torch.ones_like(mask[:, 0]) if active is None else active
    counted = mask & rearrange(active, "b -> b 1")
    log_px = torch.einsum("jbm,jb->bm", terms.log_px.mean(0), terms.log_weight.exp())
    rows, every = counted.sum(0), active.sum()
    means = torch.where(counted, log_px, 0.0).sum(0) / rows.clamp(min=1)
    keys = [f"log_px/{name}" for name in model.names]
    mean = torch.where(active, kl, 0.0).sum() / every.clamp(min=1)
    return Metrics(
        {**dict(zip(keys, means.unbind(), strict=True)), "kl": mean},
        {**dict(zip(keys, rows.unbind(), strict=True)), "kl": every},
    )
