"""Negative binomial likelihood of counts that vary more than Poisson's.

Axes: r repeats of a row (samples and drawn components), n rows, then the shape of the modality.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.likelihood import Context
from mvkit.core.modality import Sizes
from mvkit.core.noise import Generator
from mvkit.errors import SpecError
from mvkit.parts.likelihoods.by_level import BY_LEVEL, check_names_level, grown, levels_of, of_rows
from mvkit.parts.likelihoods.counts import CountLikelihood, poisson_draws
from mvkit.parts.likelihoods.numerics import gamma_remainder, limited, softplus
from mvkit.registry.spec import field, flag, integer, one_of, spec

LARGEST_LOG_DISPERSION = 30.0
SMALLEST_LOG_DISPERSION = -15.0
LEAST_EXCESS = 0.01  # variance above Poisson's that counts are taken to have, as a share of it
LEAST_MEAN = 1e-3  # of a feature that nobody has counted
FIRST_THETA = (0.01, 100.0)  # dispersions that training starts at
FIRST_ZERO_LOGIT = -2.0  # of zero inflation


def limited_log_theta(log_theta: Tensor) -> Tensor:
    """Log-dispersions between -30 and 60; as they are from -15 to 30."""
    return -limited(-limited(log_theta, LARGEST_LOG_DISPERSION), -SMALLEST_LOG_DISPERSION)


def log_negative_binomial(x: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    """Log NB(x; μ, θ) of counts at log μ and log θ; shapes broadcast.

    log Γ(x + θ) - log Γ(θ) - log x! - (x + θ) log(1 + μ/θ) + x (log μ - log θ), with the terms
    that cancel at large θ taken out, so that Poisson's law is its limit.
    """
    log_theta = limited_log_theta(log_theta)
    theta = log_theta.exp()
    growth = torch.log1p(x / theta)
    remainder = gamma_remainder(x + theta, log_theta + growth) - gamma_remainder(theta, log_theta)
    spread = growth - softplus(log_mean - log_theta)
    return (x + theta) * spread + x * (log_mean - 1) + remainder - torch.lgamma(x + 1)


def negative_binomial_draws(log_mean: Tensor, log_theta: Tensor, generator: Generator) -> Tensor:
    """Draws of NB(μ, θ): Poisson's, at means that follow a gamma law; log θ broadcasts."""
    log_theta = limited_log_theta(log_theta).expand(log_mean.shape)

    def gammas(size: tuple[int, ...], **options: object) -> Tensor:
        return torch._standard_gamma(log_theta.exp(), generator=generator)

    gamma = noise.draw("x/gamma", log_mean.shape, log_mean, generator=generator, sampler=gammas)
    mean = gamma.clamp(min=0) * (log_mean - log_theta).exp()
    return poisson_draws("x/poisson", mean, generator)


class NegativeBinomialLikelihood(CountLikelihood):
    """The negative binomial law, its dispersion trained or decoded."""

    def __init__(self, sizes: Sizes, spec: NegativeBinomial) -> None:
        decoded = spec.by == "decoded"
        super().__init__(sizes, own=2 if decoded else 1, zero_inflated=spec.zero_inflated)
        shapes = {
            "modality": (),
            "feature": sizes.shape,
            BY_LEVEL: (levels_of(spec.level, spec.levels, sizes), *sizes.shape),
        }
        self.starts = spec.start == "data"
        self.level = spec.level if spec.by == BY_LEVEL else None
        self.log_theta = None if decoded else nn.Parameter(torch.zeros(shapes[spec.by]))

    def add_level(self, covariate: str, shares: Tensor) -> None:
        """A new level's dispersions are the weighted means of the old ones', by log θ."""
        if covariate == self.level and self.log_theta is not None:
            self.log_theta = grown(self.log_theta, shares)

    def by_level(self, covariate: str) -> tuple[nn.Parameter, ...]:
        """The dispersions, if they are by its levels."""
        if covariate != self.level or self.log_theta is None:
            return ()
        return (self.log_theta,)

    def start(self, x: Tensor, observed: Tensor) -> None:
        """Dispersions start at μ² / (σ² - μ) of the counts, if nothing has trained them yet."""
        if self.log_theta is None or self.log_theta.any():
            return
        values = torch.where(observed, x, torch.nan).double()
        mean = values.nanmean(0)
        variance = (values - mean).square().nanmean(0)
        theta = mean.square() / (variance - mean).clamp(min=LEAST_EXCESS * mean)
        log_theta = theta.clamp(*FIRST_THETA).log().nan_to_num()
        with torch.no_grad():
            whole = log_theta.mean() if self.log_theta.ndim == 0 else log_theta
            self.log_theta.copy_(whole)

    def first_outputs(self, mean: Tensor, spread: Tensor) -> Tensor | None:
        """Decoders start at the logarithms of the means."""
        log_mean = mean.clamp(min=LEAST_MEAN).log()
        if not self.zero_inflated:
            return log_mean
        return torch.stack([log_mean, torch.full_like(log_mean, FIRST_ZERO_LOGIT)], -1)

    def log_count(
        self, x: Tensor, log_mean: Tensor, numbers: tuple[Tensor, ...], context: Context
    ) -> Tensor:
        return log_negative_binomial(x, log_mean, self._log_theta(numbers, context))

    def count(self, log_mean: Tensor, numbers: tuple[Tensor, ...], context: Context) -> Tensor:
        log_theta = self._log_theta(numbers, context)
        return negative_binomial_draws(log_mean, log_theta, context.generator)

    def _log_theta(self, numbers: tuple[Tensor, ...], context: Context) -> Tensor:
        """Log-dispersions that broadcast with (..., n, *shape).

        Raises:
            RequestError: they are of a level of the row, and nobody says which.
        """
        if self.log_theta is None:
            return numbers[1]
        if self.level is None:
            return self.log_theta
        where = "negative_binomial: its dispersion"
        return of_rows(self.log_theta, self.level, context, where)


@spec
class NegativeBinomial:
    """Negative binomial likelihood of counts of mean μ and variance μ + μ²/θ.

    Decoders emit log μ, and the density is computed from logarithms throughout, so that x = 0,
    μ → 0 and θ → ∞ (Poisson's law) are finite. A named exposure multiplies μ, and `total` is
    shared out; for them and large log-means see `Poisson`.

    Args:
        by: one dispersion θ for the `modality`, or for each `feature`, trained; one for each
            `feature_and_level` of a covariate (rows without a level have the mean of log θ); or
            `decoded`, a second number for each element: log θ.
        level: the covariate, for `feature_and_level`.
        levels: how many levels it has; 0: those of the model's covariate of that name.
        zero_inflated: decoders emit one more logit for each element, that of the probability π of
            a zero that nothing was counted for: p(0) = π + (1 - π) NB(0).
        start: where training starts: at `ones`, θ = 1 and what decoders happen to emit; or at the
            `data`: θ at the moments of each feature's counts, decoders at their means, encoders
            as if their inputs were standardised.

    Example:
        >>> import mvkit
        >>> counts = mvkit.Modality((3,), {"name": "negative_binomial", "by": "feature"})
        >>> model = mvkit.Model({"rna": counts}, latent_dim=2, seed=0)
        >>> model.decoders["rna"].likelihood.log_theta.shape
        torch.Size([3])

    Reference: Lopez et al., Deep Generative Modeling for Single-Cell Transcriptomics, 2018,
    https://doi.org/10.1038/s41592-018-0229-2.
    """

    by: str = field(
        default="feature", check=one_of("modality", "feature", "feature_and_level", "decoded")
    )
    level: str = field(default="", check=lambda v: None if isinstance(v, str) else "a name")
    levels: int = field(default=0, check=integer())
    zero_inflated: bool = field(default=False, check=flag)
    start: str = field(default="ones", check=one_of("ones", "data"), quiet=True)

    def __attrs_post_init__(self) -> None:
        check_names_level(self.by, self.level, self.levels)
        if self.start == "data" and self.by == "decoded":
            raise SpecError(
                "got 'data' with by='decoded', which leaves no dispersions to place; expected "
                "'ones', or another by=",
                "start",
            )

    def build(self, sizes: Sizes) -> NegativeBinomialLikelihood:
        """The likelihood with its dispersions.

        Raises:
            SpecError: by the levels of a covariate that the model does not have.
        """
        return NegativeBinomialLikelihood(sizes, self)
