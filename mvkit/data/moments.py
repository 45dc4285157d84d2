"""Means and squared deviations of columns, of one block of rows after another.

Axes: b rows, f columns.
"""

from __future__ import annotations

import math
from typing import Self

import attrs
import torch
from torch import Tensor


@attrs.frozen(eq=False)
class Moments:
    """What is known of the observed values of f columns, in float64.

    Reference: Chan, Golub and LeVeque, 1983, Algorithms for computing the sample variance,
    https://doi.org/10.2307/2683386.

    Args:
        count: how many there are, (f,).
        mean: (f,); 0 where there are none.
        squares: sums of squared deviations from the mean, (f,).
        low: the smallest, (f,); infinity where there are none.
        high: the largest, (f,).

    Example:
        >>> import torch
        >>> from mvkit.data.moments import Moments
        >>> moments = Moments.of(torch.tensor([[0.0]])).merged(Moments.of(torch.tensor([[2.0]])))
        >>> moments.mean.item(), moments.squares.item()
        (1.0, 2.0)
    """

    count: Tensor
    mean: Tensor
    squares: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """The moments of rows x (b, f), NaN where missing."""
        missing = torch.isnan(x)
        bare = missing.all(1)
        if bare.any() and not bare.all():  # of rows that lack all, nothing is to be known
            x = x[~bare]
            missing = missing[~bare]
        flat = x.double()
        if not missing.any() and len(flat):
            count = torch.full((x.shape[1],), len(flat))
            mean = flat.mean(0)
            squares = (flat - mean).square().sum(0)
            return cls(count, mean, squares, *map(Tensor.double, torch.aminmax(x, dim=0)))
        count = len(flat) - missing.sum(0)
        mean = flat.nansum(0) / count.clamp(min=1)
        squares = (flat - mean).square().nansum(0)
        low = flat.masked_fill(missing, math.inf).amin(0)
        high = flat.masked_fill(missing, -math.inf).amax(0)
        return cls(count, mean, squares, low, high)

    def merged(self, other: Self) -> Self:
        """The moments of the rows of both."""
        count = self.count + other.count
        some = count.clamp(min=1)
        difference = other.mean - self.mean
        mean = self.mean + difference * other.count / some
        between = difference.square() * self.count * other.count / some
        squares = self.squares + other.squares + between
        low = torch.minimum(self.low, other.low)
        high = torch.maximum(self.high, other.high)
        return attrs.evolve(self, count=count, mean=mean, squares=squares, low=low, high=high)
