"""Likelihoods of positive numbers, and of numbers between 0 and 1.

Axes: r repeats of a row (samples and drawn components), n rows, then the shape of the modality.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from mvkit.core import noise
from mvkit.core.likelihood import ALONE, Context, Likelihood
from mvkit.core.modality import Sizes
from mvkit.core.noise import Generator
from mvkit.parts.likelihoods.location_scale import LocationScale, shape_of
from mvkit.parts.likelihoods.numerics import gamma_remainder, limited_both
from mvkit.registry.spec import field, number, one_of, spec

LARGEST_LOG = 30.0  # of means and logits
LARGEST_LOG_PRECISION = 15.0  # of shapes and precisions
POSITIVE = (
    "numbers greater than 0; mark zeros that mean 'not measured' as missing, or take a "
    "likelihood of counts or real numbers where 0 is a value"
)
BETWEEN = (
    "numbers greater than 0 and less than 1; move values on the border inside, or take a "
    "bernoulli likelihood, which allows them"
)


def _gamma_draws(site: str, log_shape: Tensor, generator: Generator) -> Tensor:
    """Logarithms of draws of a gamma law with scale 1, (..., n, *shape)."""
    shape = log_shape.exp()

    def gammas(size: tuple[int, ...], **options: object) -> Tensor:
        return torch._standard_gamma(shape, generator=generator)

    gamma = noise.draw(site, shape.shape, shape, generator=generator, sampler=gammas)
    return gamma.clamp(min=torch.finfo(shape.dtype).tiny).log()


def _largest(like: Tensor) -> float:
    """The largest logarithm whose exponential is finite."""
    return math.log(torch.finfo(like.dtype).max) - 1


class LogNormalLikelihood(LocationScale):
    """The normal law of logarithms.

    Args:
        scale, shape: as of `LocationScale`, of the logarithms.
    """

    support = POSITIVE

    def __init__(self, scale: float | str, shape: tuple[int, ...] = ()) -> None:
        super().__init__("normal", scale, shape)

    def log_prob(self, out: Tensor, x: Tensor, context: Context) -> Tensor:
        log_x = torch.where(x > 0, x, 1.0).log()  # unobserved places hold 0
        return super().log_prob(out, log_x, context) - log_x

    def mean(self, out: Tensor, context: Context = ALONE) -> Tensor:
        loc, scale = self.centre_and_scale(out)
        return (loc + 0.5 * scale * scale).clamp(max=_largest(out)).exp()

    def sample(self, out: Tensor, context: Context = ALONE) -> Tensor:
        log_x = super().sample(out, context)
        smallest = math.log(torch.finfo(out.dtype).tiny)
        return log_x.clamp(smallest, _largest(out)).exp()

    def sanity_warning(self, x: Tensor) -> str | None:
        """Nothing is odd about positive numbers."""
        return None

    def out_of_support(self, x: Tensor) -> Tensor:
        return ~(torch.isfinite(x) & (x > 0))

    def start(self, x: Tensor, observed: Tensor) -> None:
        """A trained scale starts at that of the logarithms around each feature's mean."""
        super().start(torch.where(observed, x, 1.0).log(), observed)

    def first_outputs(self, mean: Tensor, spread: Tensor) -> Tensor:
        """Decoders start where the law has the data's mean and spread."""
        mean = mean.clamp(min=torch.finfo(mean.dtype).tiny)
        variance = torch.log1p((spread / mean).square())
        return super().first_outputs(mean.log() - 0.5 * variance, variance.sqrt())


@spec
class LogNormal:
    """Log-normal likelihood of positive numbers: log x ~ N(out, σ²).

    Its mean is exp(out + σ²/2). Zeros are refused: they have no logarithm.

    Args:
        scale: σ of the logarithms; `trained`; or `decoded`: decoders emit a second number a for
            each element, σ = exp(a) and a floor (see `Normal`).
        by: one σ for the `modality`, or for each `feature`, where it is trained.

    Example:
        >>> import mvkit
        >>> model = mvkit.Model({"dose": mvkit.Modality((3,), "lognormal")}, latent_dim=2, seed=0)
        >>> model.log_likelihood({"dose": [[0.1, 4.0, 1.0]]}, n=5).shape
        torch.Size([1])

    Reference: Crow and Shimizu, Lognormal Distributions: Theory and Applications, 1988,
    https://doi.org/10.1201/9780203748664.
    """

    scale: float | str = field(
        default="trained", check=one_of("trained", "decoded", other=number(above=0.0))
    )
    by: str = field(default="feature", check=one_of("modality", "feature"))

    def build(self, sizes: Sizes) -> LogNormalLikelihood:
        """The likelihood with its scale."""
        return LogNormalLikelihood(self.scale, shape_of(self.by, sizes))


@spec
class Gamma(Likelihood):
    """Gamma likelihood of positive numbers, decoders emitting log-mean log μ and log-shape log α.

    log p(x) = α log(α/μ) - log Γ(α) + (α - 1) log x - α x/μ; the variance is μ²/α. Zeros are
    refused. Log-means beyond ±30 and log-shapes beyond ±15 grow as a logarithm.

    Example:
        >>> import mvkit
        >>> model = mvkit.Model({"dose": mvkit.Modality((3,), "gamma")}, latent_dim=2, seed=0)
        >>> model.log_likelihood({"dose": [[0.1, 4.0, 1.0]]}, n=5).shape
        torch.Size([1])

    Reference: McCullagh and Nelder, Generalized Linear Models, 1989, chapter 8,
    https://doi.org/10.1201/9780203753736.
    """

    params = 2
    support = POSITIVE

    def build(self, sizes: Sizes) -> Gamma:
        """The likelihood itself: it has no parameters."""
        return self

    @staticmethod
    def logarithms(out: Tensor) -> tuple[Tensor, Tensor]:
        """Log-means and log-shapes, each (..., n, *shape)."""
        log_mean, log_shape = out.unbind(-1)
        return limited_both(log_mean, LARGEST_LOG), limited_both(log_shape, LARGEST_LOG_PRECISION)

    def log_prob(self, out: Tensor, x: Tensor, context: Context) -> Tensor:
        log_mean, log_shape = self.logarithms(out)
        shape = log_shape.exp()
        log_x = torch.where(x > 0, x, 1.0).log()  # unobserved places hold 0
        ratio = log_x - log_mean
        # α (log r - r + 1), small near the mean, and what Stirling leaves of Γ(α)
        return shape * (ratio - torch.expm1(ratio)) - gamma_remainder(shape, log_shape) - log_x

    def mean(self, out: Tensor, context: Context = ALONE) -> Tensor:
        return self.logarithms(out)[0].exp()

    def sample(self, out: Tensor, context: Context = ALONE) -> Tensor:
        log_mean, log_shape = self.logarithms(out)
        log_gamma = _gamma_draws("x/gamma", log_shape, context.generator)
        x = (log_gamma + log_mean - log_shape).clamp(max=_largest(out)).exp()
        return x.clamp(min=torch.finfo(out.dtype).tiny)

    def out_of_support(self, x: Tensor) -> Tensor:
        return ~(torch.isfinite(x) & (x > 0))


@spec
class Beta(Likelihood):
    """Beta likelihood of numbers between 0 and 1, decoders emitting logit-mean and log-precision.

    With mean m and precision φ it is Beta(m φ, (1 - m) φ), of variance m (1 - m) / (1 + φ). 0 and
    1 are refused. Logits beyond ±30 and log-precisions beyond ±15 grow as a logarithm.

    Example:
        >>> import mvkit
        >>> model = mvkit.Model({"share": mvkit.Modality((3,), "beta")}, latent_dim=2, seed=0)
        >>> model.log_likelihood({"share": [[0.1, 0.4, 0.9]]}, n=5).shape
        torch.Size([1])

    Reference: Ferrari and Cribari-Neto, Beta Regression for Modelling Rates and Proportions, 2004,
    https://doi.org/10.1080/0266476042000214501.
    """

    params = 2
    support = BETWEEN

    def build(self, sizes: Sizes) -> Beta:
        """The likelihood itself: it has no parameters."""
        return self

    @staticmethod
    def logarithms(out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log m, log(1 - m) and log φ, each (..., n, *shape)."""
        logit, log_precision = out.unbind(-1)
        logit = limited_both(logit, LARGEST_LOG)
        log_precision = limited_both(log_precision, LARGEST_LOG_PRECISION)
        return functional.logsigmoid(logit), functional.logsigmoid(-logit), log_precision

    def log_prob(self, out: Tensor, x: Tensor, context: Context) -> Tensor:
        log_mean, log_rest, log_precision = self.logarithms(out)
        x = torch.where((x > 0) & (x < 1), x, 0.5)  # unobserved places hold 0
        log_x = x.log()
        log_other = torch.log1p(-x)
        log_a = log_precision + log_mean
        log_b = log_precision + log_rest
        a = log_a.exp()
        b = log_b.exp()
        remainder = gamma_remainder(log_precision.exp(), log_precision)
        remainder = remainder - gamma_remainder(a, log_a) - gamma_remainder(b, log_b)
        log_p = a * (log_x - log_mean) + b * (log_other - log_rest)
        return log_p + remainder - log_x - log_other

    def mean(self, out: Tensor, context: Context = ALONE) -> Tensor:
        return torch.sigmoid(limited_both(out[..., 0], LARGEST_LOG))

    def sample(self, out: Tensor, context: Context = ALONE) -> Tensor:
        log_mean, log_rest, log_precision = self.logarithms(out)
        first = _gamma_draws("x/gamma/0", log_precision + log_mean, context.generator)
        second = _gamma_draws("x/gamma/1", log_precision + log_rest, context.generator)
        # of the type, the numbers next to 0 and to 1
        finfo = torch.finfo(out.dtype)
        return torch.sigmoid(first - second).clamp(finfo.tiny, 1 - finfo.eps)

    def out_of_support(self, x: Tensor) -> Tensor:
        return ~((x > 0) & (x < 1))
