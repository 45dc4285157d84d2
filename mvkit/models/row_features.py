"""Numbers that say what a row holds and what it lacks, of which the odds of gaps are learnt.

Axes: b rows, v values of a modality, k columns of it (as many; of classes, one of all of them), f
features, q quantiles.
"""

from __future__ import annotations

import math

import attrs
import torch
from einops import rearrange, repeat
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.cells import cells_of, flat_cells
from mvkit.parts.likelihoods.discrete import has_classes

FARTHEST = 3.0  # deviations: a rare class must not decide alone
QUANTILES = 33
UNIFORM = math.sqrt(12)  # a rank from 0 to 1 times this has variance 1, and
SQUARE = math.sqrt(0.8)  # is the deviation of its square
Tensors = dict[str, Tensor]


@attrs.frozen(eq=False)
class RowFeatures:
    """What a row holds: ranks of numbers and the squares of these, and classes, all in deviations
    and 0 in gaps; and which of its cells are missing.

    Ranks, since a few large numbers would otherwise be taken to be more certain to be missing
    than any other rows are.

    Args:
        mean, sd: of classes that are observed, {name: (v,)}.
        quantiles: of numbers, {name: (v, q)}.
        columns: which column a feature is of, (f,), columns of all modalities being numbered.
        gaps: which features say that a cell is missing, (f,) bool.
    """

    mean: Tensors
    sd: Tensors
    quantiles: Tensors
    columns: Tensor
    gaps: Tensor

    @classmethod
    def of_rows(cls, batch: Batch) -> RowFeatures:
        """Means, deviations and quantiles of conformed rows with one-hot classes."""
        mean, sd, quantiles = {}, {}, {}
        columns, gaps = [], []
        first = 0
        for name in batch.data:
            x, observed = _values(batch, name)
            own = first + torch.arange(flat_cells(cells_of(batch, name)).shape[1])
            if _numeric(batch, name):
                quantiles[name] = _quantiles(x, observed)
                pieces = [own, own]
            else:
                mean[name], sd[name] = _moments(x, observed)
                pieces = [repeat(own, "k -> (k c)", c=x.shape[1] // len(own))]
            columns += [*pieces, own]
            gaps += [torch.zeros(len(piece), dtype=torch.bool) for piece in pieces]
            gaps.append(torch.ones(len(own), dtype=torch.bool))
            first += len(own)
        return cls(mean, sd, quantiles, torch.cat(columns), torch.cat(gaps))

    def of(self, batch: Batch) -> Tensor:
        """The features of conformed rows with one-hot classes, (b, f) in float64."""
        features = []
        for name in batch.data:
            x, observed = _values(batch, name)
            if name in self.quantiles:
                ranks = UNIFORM * (_ranks(x, self.quantiles[name]) - 0.5)
                values = [ranks, (ranks.square() - 1) / SQUARE]
            else:
                deviations = (x - self.mean[name]) / self.sd[name]
                values = [deviations.clamp(-FARTHEST, FARTHEST)]
            features += [torch.where(observed, value, 0.0) for value in values]
            features.append(flat_cells(~cells_of(batch, name)).double())
        return torch.cat(features, 1)


def _values(batch: Batch, name: str) -> tuple[Tensor, Tensor]:
    """Values (b, v) in float64 and which of them are observed, (b, v) bool."""
    return flat_cells(batch.data[name]).double(), flat_cells(batch.present(name))


def _numeric(batch: Batch, name: str) -> bool:
    return batch.schema is not None and not has_classes(batch.schema.likelihoods[name])


def _moments(x: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Means and deviations of the observed values of each column, (v,)."""
    count = observed.sum(0).clamp(min=1)
    mean = torch.where(observed, x, 0.0).sum(0) / count
    variance = torch.where(observed, x - mean, 0.0).square().sum(0) / count
    return mean, variance.sqrt().clamp(min=1e-12)


def _quantiles(x: Tensor, observed: Tensor) -> Tensor:
    """Quantiles of the observed values of each column, (v, q), in equal steps."""
    ordered = torch.where(observed, x, torch.inf).sort(0).values
    last = (observed.sum(0) - 1).clamp(min=0).double()
    steps = torch.linspace(0, 1, QUANTILES, dtype=torch.float64)
    places = (rearrange(steps, "q -> q 1") * last).round().long()
    quantiles = rearrange(ordered.gather(0, places), "q v -> v q")
    return quantiles.nan_to_num(posinf=0.0).contiguous()  # of columns that nobody observes


def _ranks(x: Tensor, quantiles: Tensor) -> Tensor:
    """Shares of the quantiles below values (b, v), of those that are tied the middle one."""
    values = rearrange(x, "b v -> v b").contiguous()
    below = torch.searchsorted(quantiles, values)
    up_to = torch.searchsorted(quantiles, values, right=True)
    return rearrange((below + up_to).double() / (2 * QUANTILES), "v b -> b v")
