"""Likelihoods of counts: what they share, and Poisson's.

Axes: r repeats of a row (samples and drawn components), n rows, then the shape of the modality.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.likelihood import ALONE, Context, Likelihood
from mvkit.core.modality import Sizes
from mvkit.core.noise import Generator
from mvkit.errors import SpecError
from mvkit.parts.likelihoods.numerics import limited, softplus
from mvkit.registry.spec import field, flag, spec

LARGEST_LOG_MEAN = 30.0  # of counts that float32 can tell apart from their neighbours, and more
UNEXPOSED = -1e4  # log-mean of rows that were not exposed: e to it is 0 in any dtype
SUPPORT = "counts: whole numbers of at least 0; undo what took their logarithm or scaled them"


def is_no_count(x: Tensor) -> Tensor:
    """Which values are no whole numbers of at least 0."""
    if _are_counts(x):
        return torch.zeros_like(x, dtype=torch.bool)
    return ~(torch.isfinite(x) & (x >= 0) & (x == x.round()))


def _are_counts(x: Tensor) -> bool:
    """Whether all values are counts, seen by their extremes: flags take ten times as long."""
    if not x.is_floating_point() or not x.numel():
        return False
    low, high = x.frac().aminmax()  # NaN of NaN, and of infinities
    return bool((low == 0) & (high == 0) & (x.amin() >= 0))


def per_row(numbers: Tensor, out: Tensor, axes: int) -> Tensor:
    """Numbers of rows (n,) in the dtype of `out`, with `axes` more axes of 1."""
    return numbers.to(out.dtype).reshape(-1, *[1] * axes)


def log_shares(logits: Tensor, counted: Tensor | None, axes: int) -> Tensor:
    """Logits (..., n, *shape) as logarithms of shares of the sum over the counted elements.

    Args:
        logits: of every element.
        counted: (n, *shape) bool; None, or none in a row: all elements.
        axes: how many axes `shape` has.
    """
    over = tuple(range(-axes, 0))
    if counted is None:
        return logits - logits.logsumexp(over, keepdim=True)
    nothing = ~counted.flatten(1).any(1)
    counted = counted | nothing.reshape(-1, *[1] * axes)
    summed = torch.where(counted, logits, -torch.inf)
    return logits - summed.logsumexp(over, keepdim=True)


def observed_total(x: Tensor, elements: Tensor | None) -> Tensor:
    """Sum of the observed counts of rows (n, *shape), (n,)."""
    if elements is not None:
        x = torch.where(elements, x, 0.0)
    return x.flatten(1).sum(1)


def stated(exposure: Tensor | None, otherwise: Tensor | float) -> Tensor:
    """Exposures (n,), with something else where nobody states them: NaN, or None for all rows."""
    if exposure is None:
        return torch.as_tensor(otherwise)
    return torch.where(exposure.isnan(), otherwise, exposure)


def poisson_draws(site: str, mean: Tensor, generator: Generator) -> Tensor:
    """Counts of these means, by a generator."""

    def counts(size: tuple[int, ...], **options: object) -> Tensor:
        return torch.poisson(mean, generator=generator)

    return noise.draw(site, mean.shape, mean, generator=generator, sampler=counts)


def exposure_of(sizes: Sizes) -> str | None:
    """The exposure that a modality names.

    Raises:
        SpecError: shares of a total of a single number, which are always 1.
    """
    exposure = sizes.modalities[sizes.name].exposure
    if exposure == "total" and math.prod(sizes.shape) == 1:
        raise SpecError(
            f"exposure='total' for rows of shape {sizes.shape}: the share of a single count in "
            "its own total is always 1, so that nothing is left to learn; leave exposure out, or "
            "name a covariate that says how much each row was exposed",
            "exposure",
        )
    return exposure


class CountLikelihood(nn.Module, Likelihood):
    """What likelihoods of counts share: exposure and zero inflation.

    To implement one, write `log_count` and `count`. A decoder emits `own` numbers per element, the
    first the log-mean, and one more with zero inflation: the logit of its probability.
    """

    integers = True
    support = SUPPORT
    takes_exposure = True
    takes_total = True

    def __init__(self, sizes: Sizes, *, own: int = 1, zero_inflated: bool = False) -> None:
        super().__init__()
        self.exposure = exposure_of(sizes)
        self.axes = len(sizes.shape)
        self.zero_inflated = zero_inflated
        self.params = own + zero_inflated

    @abstractmethod
    def log_count(
        self, x: Tensor, log_mean: Tensor, numbers: tuple[Tensor, ...], context: Context
    ) -> Tensor:
        """Log-probabilities of counts x at log-means, before zero inflation, (r, n, *shape)."""

    @abstractmethod
    def count(self, log_mean: Tensor, numbers: tuple[Tensor, ...], context: Context) -> Tensor:
        """Draws of such counts, (..., n, *shape)."""

    def log_prob(self, out: Tensor, x: Tensor, context: Context) -> Tensor:
        numbers = self.numbers(out)
        log_mean = self.log_mean(numbers[0], context, x)
        log_p = self.log_count(x, log_mean, numbers, context)
        if not self.zero_inflated:
            return log_p
        logit = numbers[-1]
        # π + (1 - π) p = σ(logit) (1 + exp(log p - logit))
        zero = softplus(log_p - logit) - softplus(-logit)
        return torch.where(x == 0, zero, log_p - softplus(logit))

    def mean(self, out: Tensor, context: Context = ALONE) -> Tensor:
        numbers = self.numbers(out)
        mean = self.log_mean(numbers[0], context).exp()
        return mean * torch.sigmoid(-numbers[-1]) if self.zero_inflated else mean

    def sample(self, out: Tensor, context: Context = ALONE) -> Tensor:
        numbers = self.numbers(out)
        log_mean = self.log_mean(numbers[0], context)
        x = self.count(log_mean, numbers, context)
        if not self.zero_inflated:
            return x
        uniform = noise.draw("x/zero", x.shape, x, generator=context.generator)
        return torch.where(uniform < torch.sigmoid(numbers[-1]), 0.0, x)

    def numbers(self, out: Tensor) -> tuple[Tensor, ...]:
        """The numbers that a decoder emits for each element, each (..., n, *shape)."""
        return out.unbind(-1) if self.params > 1 else (out,)

    def log_mean(self, out: Tensor, context: Context, x: Tensor | None = None) -> Tensor:
        """Log-means of counts, (..., n, *shape).

        With an exposure s they are out + log s, or log s and the logarithm of a share of the total
        s. Where nobody states s, a total is that of the counts x (n, *shape); else it is 1.
        """
        exposure = context.exposure
        if self.exposure == "total":
            counted = context.counted
            if x is not None:
                exposure = stated(exposure, observed_total(x, context.elements))
                counted = context.elements if context.exposure is None else counted
            out = log_shares(out, counted, self.axes)
        if exposure is None:
            return limited(out, LARGEST_LOG_MEAN)
        s = per_row(stated(exposure, 1.0), out, self.axes)
        log_exposure = s.clamp(min=torch.finfo(s.dtype).tiny).log()
        log_mean = limited(out + log_exposure, LARGEST_LOG_MEAN)
        return torch.where(s > 0, log_mean, UNEXPOSED)

    def out_of_support(self, x: Tensor) -> Tensor:
        return is_no_count(x)


class PoissonLikelihood(CountLikelihood):
    """Poisson's law at log-means."""

    def log_count(
        self, x: Tensor, log_mean: Tensor, numbers: tuple[Tensor, ...], context: Context
    ) -> Tensor:
        return x * log_mean - log_mean.exp() - torch.lgamma(x + 1)

    def count(self, log_mean: Tensor, numbers: tuple[Tensor, ...], context: Context) -> Tensor:
        return poisson_draws("x/poisson", log_mean.exp(), context.generator)


@spec
class Poisson:
    """Poisson likelihood of counts, log p(x) = x log μ - μ - log x!, decoders emitting log μ.

    With `Modality(exposure="name")` they emit log-rates and μ = s exp(out), s being a number of
    the row; with `exposure="total"` logits of shares ρ, and μ = s ρ / Σ ρ over the elements that
    the total s counts. Rows with s = 0 are certain to have counts of 0. Where no exposure is
    stated, s is 1, or in densities the row's own observed total. Log-means above 30 grow as a
    logarithm, so that densities stay finite.

    Args:
        zero_inflated: decoders emit one more logit for each element, that of the probability π of
            a zero that nothing was counted for: p(0) = π + (1 - π) exp(-μ).

    Example:
        >>> import mvkit
        >>> model = mvkit.Model({"rna": mvkit.Modality((3,), "poisson")}, latent_dim=2, seed=0)
        >>> model.log_likelihood({"rna": [[0.0, 4.0, 1.0]]}, n=5).shape
        torch.Size([1])

    Reference: Lambert, Zero-Inflated Poisson Regression, 1992,
    https://doi.org/10.2307/1269547 (`zero_inflated`).
    """

    zero_inflated: bool = field(default=False, check=flag)

    def build(self, sizes: Sizes) -> PoissonLikelihood:
        """The likelihood of a modality's counts."""
        return PoissonLikelihood(sizes, zero_inflated=self.zero_inflated)
