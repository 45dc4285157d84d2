"""A normal law for counts, to compare with laws of counts.

Axes: r repeats of a row (samples and drawn components), n rows, then the shape of the modality.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.special import log_ndtr, ndtr

from mvkit import spec
from mvkit.core import Context, Sizes, noise
from mvkit.core.likelihood import ALONE
from mvkit.parts.likelihoods import CountLikelihood

SMALLEST_LOG_SCALE = -5.0
LARGEST_LOG_SCALE = 3.0
LEAST_START = 0.1  # of scales, where counts hardly vary
LEAST_MEAN = 1e-3  # of a feature that nobody has counted
SUMMED = 16  # counts whose tails are summed one by one


class DiscretisedNormalLikelihood(CountLikelihood):
    """Probabilities of counts under a normal law of log1p(x), a scale for each feature."""

    starts = True

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.log_scale = nn.Parameter(torch.zeros(sizes.shape))

    @property
    def scale(self) -> Tensor:
        """σ of each feature, (*shape)."""
        return self.log_scale.clamp(SMALLEST_LOG_SCALE, LARGEST_LOG_SCALE).exp()

    def start(self, x: Tensor, observed: Tensor) -> None:
        """Scales start at those of log1p counts, if nothing has trained them yet."""
        if self.log_scale.any():
            return
        values = torch.where(observed, x, torch.nan).double().log1p()
        variance = (values - values.nanmean(0)).square().nanmean(0)
        with torch.no_grad():
            self.log_scale.copy_(variance.sqrt().clamp(min=LEAST_START).log().nan_to_num())

    def first_outputs(self, mean: Tensor, spread: Tensor) -> Tensor:
        """Decoders start at the logarithms of the means."""
        return mean.clamp(min=LEAST_MEAN).log()

    def log_count(
        self, x: Tensor, log_mean: Tensor, numbers: tuple[Tensor, ...], context: Context
    ) -> Tensor:
        loc = nn.functional.softplus(log_mean)  # log1p of the mean
        upper = (torch.log1p(x + 0.5) - loc) / self.scale
        lower = (torch.log1p((x - 0.5).clamp(min=0)) - loc) / self.scale
        # in the upper tail, Φ(b) - Φ(a) = Φ(-a) - Φ(-b), which does not cancel
        above = lower > 0
        large = log_ndtr(torch.where(above, -lower, upper))
        small = log_ndtr(torch.where(above, -upper, lower))
        between = large + torch.log(-torch.expm1((small - large).clamp(max=-1e-30)))
        first = log_ndtr(torch.where(x == 0, upper, 0.0))
        return torch.where(x == 0, first, between)

    def mean(self, out: Tensor, context: Context = ALONE) -> Tensor:
        loc = nn.functional.softplus(self.log_mean(out, context))
        mean = torch.zeros_like(loc)
        for k in range(1, SUMMED + 1):
            mean = mean + ndtr((loc - math.log1p(k - 0.5)) / self.scale)  # P(x >= k)
        # the rest by the integral of P(x >= t + 1/2) from SUMMED on
        distance = (loc - math.log1p(SUMMED)) / self.scale
        whole = (loc + self.scale.square() / 2).exp() * ndtr(distance + self.scale)
        rest: Tensor = whole - (1 + SUMMED) * ndtr(distance)
        return mean + rest

    def count(self, log_mean: Tensor, numbers: tuple[Tensor, ...], context: Context) -> Tensor:
        loc = nn.functional.softplus(log_mean)
        eps = noise.draw("x", loc.shape, loc, generator=context.generator, sampler=torch.randn)
        # the count whose interval holds the draw
        return torch.expm1(loc + self.scale * eps).round().clamp(min=0)


@spec
class DiscretisedNormal:
    """Normal law of log1p counts, integrated over the interval of each count.

    P(x) = Φ((log1p(x + ½) - μ)/σ) - Φ((log1p(x - ½) - μ)/σ), the interval of 0 beginning at -∞;
    μ = log1p(m), m the expected count as decoders emit it for `poisson`, exposure and all; σ is
    trained for each feature. m is then the median of the counts, not their mean. Training starts
    at the spreads and the means of the data, as `negative_binomial` does by `start="data"`.

    Example:
        >>> import mvkit
        >>> counts = mvkit.Modality((3,), "mvkit-omics/discretised_normal")
        >>> mvkit.Model({"rna": counts}, latent_dim=2, seed=0).decoders["rna"].likelihood.axes
        1

    Reference: the normal law of log1p counts as in Stuart et al., Comprehensive Integration of
    Single-Cell Data, 2019, https://doi.org/10.1016/j.cell.2019.05.031, made one of counts.
    """

    def build(self, sizes: Sizes) -> DiscretisedNormalLikelihood:
        """The likelihood with its scales."""
        return DiscretisedNormalLikelihood(sizes)
