"""Multinomial likelihood of counts, given their total.

Axes: r repeats of a row (samples and drawn components), n rows, then the shape of the modality,
or its f elements in a row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mvkit.core import noise
from mvkit.core.likelihood import ALONE, Context, Likelihood
from mvkit.core.modality import Sizes
from mvkit.core.noise import Generator
from mvkit.errors import SpecError
from mvkit.parts.likelihoods.counts import (
    SUPPORT,
    exposure_of,
    is_no_count,
    log_shares,
    observed_total,
    per_row,
    poisson_draws,
    stated,
)
from mvkit.registry.spec import spec


def multinomial_draws(total: Tensor, shares: Tensor, generator: Generator) -> Tensor:
    """Counts (..., f) of these totals (..., 1) and shares (..., f).

    Totals are split in halves by binomial draws, and the halves again: log2 f draws in all.
    """
    f = shares.shape[-1]
    depth = math.ceil(math.log2(f)) if f > 1 else 0
    masses = [functional.pad(shares, (0, 2**depth - f))]
    for _ in range(depth):
        masses.append(masses[-1].unflatten(-1, (-1, 2)).sum(-1))
    counts = total.round().expand(*shares.shape[:-1], 1)
    for level in reversed(range(depth)):
        mass = masses[level].unflatten(-1, (-1, 2))
        left = mass[..., 0] / mass.sum(-1).clamp(min=torch.finfo(mass.dtype).tiny)
        first = _binomial_draws(counts, left.clamp(max=1), generator)
        counts = torch.stack([first, counts - first], -1).flatten(-2)
    return counts[..., :f]


def _binomial_draws(counts: Tensor, share: Tensor, generator: Generator) -> Tensor:
    def binomial(size: tuple[int, ...], **options: object) -> Tensor:
        return torch.binomial(counts, share, generator=generator)

    return noise.draw("x/binomial", counts.shape, share, generator=generator, sampler=binomial)


class MultinomialLikelihood(nn.Module, Likelihood):
    """The multinomial law of a row's counts, in elementwise terms."""

    integers = True
    support = SUPPORT
    takes_exposure = True
    takes_total = True

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        exposure = exposure_of(sizes)
        if exposure not in (None, "total"):
            raise SpecError(
                f"exposure={exposure!r} with a multinomial likelihood, whose counts are given "
                "their total; expected 'total' or None; choose poisson or negative_binomial for "
                "counts that are given something else",
                "exposure",
            )
        self.axes = len(sizes.shape)

    def log_prob(self, out: Tensor, x: Tensor, context: Context) -> Tensor:
        counted = context.elements if context.exposure is None else context.counted
        total = stated(context.exposure, observed_total(x, context.elements))
        if counted is None:
            counted = torch.ones_like(x, dtype=torch.bool)
        number = counted.flatten(1).sum(1).clamp(min=1)
        spread = per_row(torch.lgamma(total + 1) / number, out, self.axes)
        spread = torch.where(counted, spread, 0.0)
        return x * log_shares(out, counted, self.axes) - torch.lgamma(x + 1) + spread

    def mean(self, out: Tensor, context: Context = ALONE) -> Tensor:
        shares = log_shares(out, context.counted, self.axes).exp()
        if context.exposure is None:
            return shares
        return shares * per_row(stated(context.exposure, 1.0), out, self.axes)

    def sample(self, out: Tensor, context: Context = ALONE) -> Tensor:
        """Counts of the stated total, or of 1; those that it does not count are Poisson's."""
        mean = self.mean(out, context)
        counted = context.counted
        if counted is None:
            counted = mean.new_ones(mean.shape[-self.axes - 1 :], dtype=torch.bool)
        total = torch.ones_like(mean[..., :1].flatten(-self.axes)[..., :1])
        if context.exposure is not None:
            total = per_row(stated(context.exposure, 1.0), out, 1)
        shares = torch.where(counted, mean, 0.0).flatten(-self.axes)
        draws = multinomial_draws(total, shares, context.generator).reshape(mean.shape)
        if bool(counted.all()):
            return draws
        others = poisson_draws("x/poisson", mean, context.generator)
        return torch.where(counted, draws, others)

    def out_of_support(self, x: Tensor) -> Tensor:
        return is_no_count(x)

    def outcomes(self, shape: tuple[int, ...]) -> Tensor:
        """All counts of the total 2, with which the others are given."""
        kinds = torch.eye(math.prod(shape))
        first, second = torch.combinations(torch.arange(len(kinds)), with_replacement=True).T
        return (kinds[first] + kinds[second]).reshape(-1, *shape)


@spec
class Multinomial:
    """Multinomial likelihood of counts given their total N, decoders emitting logits of shares ρ.

    log p(x | N) = log N! + Σ_f (x_f log ρ_f - log x_f!), ρ a softmax over all the elements of a
    row that are observed. Densities being elementwise, log N! is spread evenly over the observed
    elements, so that it is their sum that is exact. The exposure of the modality is always its
    total: `Modality(exposure="total")`, or None, which means the same. Where nobody states a
    total, densities take the row's observed one, means are shares, and draws are of one count.
    Elements that a stated total does not count have the mean N ρ_f too, and Poisson draws.

    Example:
        >>> import mvkit
        >>> words = mvkit.Modality((3,), "multinomial", exposure="total")
        >>> model = mvkit.Model({"words": words}, latent_dim=2, seed=0)
        >>> model.log_likelihood({"words": [[0.0, 4.0, 1.0]]}, n=5).shape
        torch.Size([1])

    Reference: Liang et al., Variational Autoencoders for Collaborative Filtering, 2018,
    https://doi.org/10.1145/3178876.3186150.
    """

    def build(self, sizes: Sizes) -> MultinomialLikelihood:
        """The likelihood of a modality's counts."""
        return MultinomialLikelihood(sizes)
