"""Losses: what a step minimises, what it reports, and means over the rows that count.

Axes: j drawn components, b rows, m modalities.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.terms import Terms
from mvkit.errors import RequestError, ShapeError
from mvkit.registry import plugins


@attrs.frozen(eq=False)
class Loss:
    """What a step minimises, and what it reports.

    Args:
        loss: mean over the rows of the batch, (), in nats.
        bound: what is reported of each row with all weights at 1, (b,): a bound on log p(x_O) if
            the metrics call its mean `bound`, and none if they call it `surrogate_bound`. NaN in
            rows that the objective skips, and where it reports nothing.
        metrics: 0-d tensors to watch, means over rows; whoever shows them converts them.
        counts: how many rows a metric is a mean of, 0-d, or the sum of their weights; absent: all
            of the batch.
        weighted: whether rows count as much as `batch.row_weight` says.
        trains: whether the objective has a gradient, apart from penalties, where there are some.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,)}, latent_dim=2, seed=0)
        >>> loss = model.loss({"a": torch.zeros(4, 3)})
        >>> loss.loss.shape, loss.bound.shape, sorted(loss.metrics)
        (torch.Size([]), torch.Size([4]), ['bound', 'kl', 'log_px/a', 'loss'])
    """

    loss: Tensor
    bound: Tensor
    metrics: dict[str, Tensor]
    counts: dict[str, Tensor] = attrs.field(factory=dict)
    weighted: bool = False
    trains: bool = True

    def checked(self, b: int, objective: type, *, weighted: bool = False) -> Loss:
        """Itself, if loss and bound have the right shapes for b rows; looks at no value.

        The loss is among its metrics then, also if the objective left it out.

        Args:
            b: rows of the batch.
            objective: whose loss it is.
            weighted: whether its rows have weights.

        Raises:
            ShapeError: that names the objective, and its package.
            RequestError: rows have weights that the objective does not look at.
        """
        if weighted and not self.weighted:
            name = plugins.find_entry(objective) or objective.__name__
            raise RequestError(
                f"{name}: it does not look at the rows' weights; expected an objective that hands "
                "`batch.row_weight` to mvkit.core.loss.finish; take another, or leave row_weight "
                "out"
            )
        if self.loss.ndim or self.bound.shape != (b,):
            shapes = f"loss {tuple(self.loss.shape)} and bound {tuple(self.bound.shape)}"
            name = plugins.find_entry(objective) or objective.__name__
            raise ShapeError(f"{name}: returned {shapes}; expected () and {(b,)}")
        if "loss" not in self.metrics:  # which every epoch reports
            return attrs.evolve(self, metrics={"loss": self.loss.detach(), **self.metrics})
        return self


@attrs.frozen(eq=False)
class Metrics:
    """Means over rows, each with the number of rows behind it.

    Example:
        >>> import torch
        >>> from mvkit.core import Metrics
        >>> one, two = (
        ...     Metrics({"kl": torch.tensor(mean)}, {"kl": torch.tensor(rows)})
        ...     for mean, rows in ((1.0, 1), (4.0, 2))
        ... )
        >>> Metrics.pooled([one, two]).means["kl"].item()
        3.0
    """

    means: dict[str, Tensor] = attrs.field(factory=dict)
    counts: dict[str, Tensor] = attrs.field(factory=dict)

    @classmethod
    def pooled(cls, several: Sequence[Metrics]) -> Metrics:
        """The means over all rows of several, key by key."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for metrics in several:
            for key, mean in metrics.means.items():
                count = metrics.counts[key]
                total = mean * count
                sums[key] = sums[key] + total if key in sums else total
                counts[key] = counts[key] + count if key in counts else count
        means = {key: total / counts[key].clamp(min=1) for key, total in sums.items()}
        return cls(means, counts)


def sum_of(tensors: list[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return reduce(torch.add, tensors)


def over_rows(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean over rows, (b,) -> (); 0 of none, since a process may have no row of a batch.

    With a weight (b,), the sum of weighted values by the number of rows: weights are 1 in the
    mean. A row of weight 0 counts as 0, whatever its value.

    Example:
        >>> import torch
        >>> from mvkit.core import over_rows
        >>> over_rows(torch.tensor([1.0, 3.0])).item(), over_rows(torch.empty(0)).item()
        (2.0, 0.0)
    """
    if weight is not None:
        values = torch.where(weight > 0, values * weight, 0.0)
    return values.sum() / max(len(values), 1)


def finish(
    name: str,
    bound: Tensor,
    reported: Tensor,
    active: Tensor | None,
    metrics: Metrics,
    weight: Tensor | None = None,
) -> Loss:
    """The loss of an objective: the mean of its value over rows, 0 where not active.

    Args:
        name: what the reported value is called among the metrics: the model's `bound_name`.
        bound: the value to be maximised, (b,).
        reported: the same with all weights at 1, (b,); NaN is reported where rows are not active.
        active: rows that count, (b,) bool; None: all.
        metrics: more to watch.
        weight: how much each row counts, (b,), `batch.row_weight`; None: all alike.

    Example:
        >>> import torch
        >>> from mvkit.core import Metrics, finish
        >>> bound = torch.tensor([-1.0, -3.0])
        >>> finish("bound", bound, bound, None, Metrics()).loss.item()
        2.0
    """
    reported = reported.detach()
    counts = {}
    mean = over_rows(reported)
    if active is not None:
        bound = torch.where(active, bound, 0.0)
        counts[name] = active.sum()
        mean = torch.where(active, reported, 0.0).sum() / counts[name].clamp(min=1)
        reported = torch.where(active, reported, torch.nan)
    if weight is not None:
        mean, counts[name] = weighted_mean(reported, weight, active)
    loss = -over_rows(bound, weight)
    means = {"loss": loss.detach(), name: mean, **metrics.means}
    return Loss(loss, reported, means, counts | metrics.counts, weight is not None)


def weighted_mean(
    values: Tensor, weight: Tensor, active: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mean of values (b,) over active rows by their weights (b,), and the sum of the weights.

    Rows without weight may hold anything.
    """
    if active is not None:
        weight = torch.where(active, weight, 0.0)
    total = weight.sum()
    weighted = torch.where(weight > 0, values * weight, 0.0).sum()
    return weighted / torch.where(total > 0, total, 1.0), total


@torch.no_grad()
def row_metrics(
    names: Sequence[str],
    terms: Terms,
    kl: Tensor,
    mask: Tensor,
    active: Tensor | None,
    weight: Tensor | None = None,
) -> Metrics:
    """Mean log-likelihood of each modality over rows that observe it, and the mean KL.

    In models of what is missing, the mean log-probability of that too, `log_ps`.

    Args:
        names: of the modalities.
        terms: densities.
        kl: KL of each row, (b,).
        mask: observed modalities, (b, m) bool.
        active: rows that count, (b,) bool; None: all.
        weight: how much each row counts, (b,); None: all alike.

    Example:
        >>> import torch
        >>> from mvkit.core import Terms, row_metrics
        >>> zeros = torch.zeros(1, 4)
        >>> terms = Terms(torch.full((2, 1, 4, 1), -3.0), zeros, zeros)
        >>> mask = torch.ones(4, 1, dtype=torch.bool)
        >>> row_metrics(["a"], terms, torch.ones(4), mask, None).means["log_px/a"].item()
        -3.0
    """
    if active is None:
        active = torch.ones_like(mask[:, 0])
    counted = mask & rearrange(active, "b -> b 1")
    log_px = torch.einsum("jbm,jb->bm", terms.log_px.mean(0), terms.log_pi.exp())
    keys = [f"log_px/{name}" for name in names]
    if weight is not None:
        return _weighted_metrics(keys, terms, log_px, kl, counted, active, weight)
    rows = counted.sum(0)
    mean_log_px = torch.where(counted, log_px, 0.0).sum(0) / rows.clamp(min=1)
    means = dict(zip(keys, mean_log_px.unbind(), strict=True))
    counts = dict(zip(keys, rows.unbind(), strict=True))
    counts["kl"] = active.sum()
    divisor = counts["kl"].clamp(min=1)
    means["kl"] = torch.where(active, kl, 0.0).sum() / divisor
    if terms.log_ps is not None:
        counts["log_ps"] = counts["kl"]
        means["log_ps"] = torch.where(active, _of_rows(terms, terms.log_ps), 0.0).sum() / divisor
    return Metrics(means, counts)


def _of_rows(terms: Terms, values: Tensor) -> Tensor:
    """Means over the draws of each row, (s, j, b) -> (b,)."""
    return torch.einsum("jb,jb->b", values.mean(0), terms.log_pi.exp())


def _weighted_metrics(
    keys: Sequence[str],
    terms: Terms,
    log_px: Tensor,
    kl: Tensor,
    counted: Tensor,
    active: Tensor,
    weight: Tensor,
) -> Metrics:
    """As `row_metrics`, by the weights of the rows."""
    metrics = Metrics()
    columns = zip(keys, log_px.unbind(1), counted.unbind(1), strict=True)
    of_rows = [("kl", kl, active)]
    if terms.log_ps is not None:
        of_rows.append(("log_ps", _of_rows(terms, terms.log_ps), active))
    for key, values, rows in (*columns, *of_rows):
        metrics.means[key], metrics.counts[key] = weighted_mean(values, weight, rows)
    return metrics
