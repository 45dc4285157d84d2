"""Likelihood of counts with a background: antibodies that stick where their protein is not.

Axes: r repeats of a row (samples and drawn components), n rows, then the shape of the modality.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mvkit.core import noise
from mvkit.core.likelihood import ALONE, Context, Likelihood
from mvkit.core.modality import Sizes
from mvkit.errors import SpecError
from mvkit.parts.likelihoods.by_level import BY_LEVEL, check_names_level, grown, levels_of, of_rows
from mvkit.parts.likelihoods.counts import LARGEST_LOG_MEAN, SUPPORT, is_no_count
from mvkit.parts.likelihoods.negative_binomial import (
    log_negative_binomial,
    negative_binomial_draws,
)
from mvkit.parts.likelihoods.numerics import limited, softplus
from mvkit.registry.spec import field, integer, one_of, spec

NODES = 5  # of the Gauss-Hermite quadrature over a background
FIRST_SCALE = 0.1  # of the posterior of a log-background
LOWEST_START = 0.5  # counts, where the lower quartile is 0


class ForegroundBackgroundLikelihood(nn.Module, Likelihood):
    """Mixture of background and foreground, with a posterior of each feature's background.

    Args:
        shape: of the modality.
        level: the covariate by whose levels backgrounds are; empty: by none.
        levels: how many it has.
    """

    params = 2
    integers = True
    starts = True
    support = SUPPORT

    def __init__(self, shape: tuple[int, ...], level: str = "", levels: int = 0) -> None:
        super().__init__()
        self.level = level
        table = (levels, *shape) if level else shape
        self.background = nn.Parameter(torch.zeros(table))  # mean of the log-background
        self.log_scale = nn.Parameter(torch.full(table, math.log(FIRST_SCALE)))
        self.log_theta = nn.Parameter(torch.zeros(shape))

    def add_level(self, covariate: str, shares: Tensor) -> None:
        """A new level's backgrounds are the weighted means of the old ones', by logarithm."""
        if self.level and covariate == self.level:
            self.background = grown(self.background, shares)
            self.log_scale = grown(self.log_scale, shares)

    def by_level(self, covariate: str) -> tuple[nn.Parameter, ...]:
        """Backgrounds and their uncertainty, if they are by its levels."""
        if not self.level or covariate != self.level:
            return ()
        return self.background, self.log_scale

    def _of_rows(self, table: Tensor, context: Context) -> Tensor:
        """A table of backgrounds as rows have them: (*shape), or (n, *shape) by their levels."""
        if not self.level:
            return table
        return of_rows(table, self.level, context, "foreground_background: its background")

    def log_prob(self, out: Tensor, x: Tensor, context: Context) -> Tensor:
        centre = self._of_rows(self.background, context)
        if not self.training:
            return self._log_mixture(out, x, centre)
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        scale = self._of_rows(self.log_scale, context).exp()
        log_p = torch.zeros_like(out[..., 0])
        for node, weight in zip(nodes, weights / weights.sum(), strict=True):
            background = centre + float(node) * scale
            log_p = log_p + float(weight) * self._log_mixture(out, x, background)
        return log_p

    def _log_mixture(self, out: Tensor, x: Tensor, background: Tensor) -> Tensor:
        """Log-probabilities of counts, (r, n, *shape), at log-backgrounds (*shape)
        or (n, *shape).
        """
        logit = out[..., 0]
        below, above = self._log_means(out, background)
        low = functional.logsigmoid(logit) + log_negative_binomial(x, below, self.log_theta)
        high = functional.logsigmoid(-logit) + log_negative_binomial(x, above, self.log_theta)
        return torch.logaddexp(low, high)

    @staticmethod
    def _log_means(out: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
        """Log-means of the background, shaped like it, and of the foreground (..., n, *shape)."""
        foreground = background + softplus(out[..., 1])  # (1 + exp(a)) μ_b
        return limited(background, LARGEST_LOG_MEAN), limited(foreground, LARGEST_LOG_MEAN)

    def mean(self, out: Tensor, context: Context = ALONE) -> Tensor:
        share = torch.sigmoid(out[..., 0])
        below, above = self._log_means(out, self._of_rows(self.background, context))
        return share * below.exp() + (1 - share) * above.exp()

    def foreground(self, out: Tensor, context: Context = ALONE) -> Tensor:
        """(1 - π) μ_f, what is left of the mean without the counts of the background."""
        _, above = self._log_means(out, self._of_rows(self.background, context))
        return torch.sigmoid(-out[..., 0]) * above.exp()

    def sample(self, out: Tensor, context: Context = ALONE) -> Tensor:
        logit = out[..., 0]
        below, above = self._log_means(out, self._of_rows(self.background, context))
        uniform = noise.draw("x/background", logit.shape, logit, generator=context.generator)
        log_mean = torch.where(uniform < torch.sigmoid(logit), below, above)
        return negative_binomial_draws(log_mean, self.log_theta, context.generator)

    def penalty(self, rows: int = 1) -> Tensor:
        """KL of the backgrounds' posterior to their prior by row, in nats, ().

        The prior is the normal law of log-backgrounds that is closest to all of them together: its
        loc and scale have a closed form, and need no training of their own.

        Args:
            rows: of the training data, among which the KL of all backgrounds is shared out.
        """
        variance = (2 * self.log_scale).exp()
        spread = self.background - self.background.mean()
        log_prior_scale = 0.5 * (variance + spread.square()).mean().log()
        return (log_prior_scale - self.log_scale).sum() / rows

    def out_of_support(self, x: Tensor) -> Tensor:
        return is_no_count(x)

    def start(self, x: Tensor, observed: Tensor) -> None:
        """Backgrounds start at the lower quartile of each feature's counts, in all levels."""
        if self.background.any():
            return
        values = torch.where(observed, x, torch.nan).double()
        quartile = values.nanquantile(0.25, dim=0).nan_to_num(nan=1.0)
        with torch.no_grad():
            self.background.copy_(quartile.clamp(min=LOWEST_START).log())

    def first_outputs(self, mean: Tensor, spread: Tensor) -> Tensor:
        """Half of the rows start in the foreground, so far above that the means are the data's."""
        background = self.background.detach()
        if self.level:
            background = background.mean(0)
        above = 2 * (mean / background.exp() - 1)
        return torch.stack([torch.zeros_like(above), above.clamp(min=0.1).log()], -1)


@spec
class ForegroundBackground:
    """Counts of background and foreground, π NB(μ_b, θ) + (1 - π) NB((1 + exp(a)) μ_b, θ).

    Decoders emit the logit of π, the background's share, and a. The background μ_b of each
    feature is trained, as a normal posterior of log μ_b: in training, densities are its expected
    log-densities (by quadrature); outside training, those at its median. The prior of log μ_b is
    normal, with the loc and scale that are closest to all of them; `penalty(rows)` of the live
    likelihood is the KL to it in nats, shared out among the rows of the training data. Dispersions
    θ are trained, one for each feature. Training starts backgrounds at the lower quartile of the
    counts.

    Args:
        by: one background for each `feature`, or one for each `feature_and_level` of a covariate,
            such as the batch of a cell (rows without a level have the mean of log μ_b).
        level: the covariate, for `feature_and_level`.
        levels: how many levels it has; 0: those of the model's covariate of that name.

    Example:
        >>> import mvkit
        >>> proteins = mvkit.Modality((3,), "foreground_background")
        >>> model = mvkit.Model({"proteins": proteins}, latent_dim=2, seed=0)
        >>> round(model.decoders["proteins"].likelihood.penalty().item(), 3)
        0.0

    Reference: Gayoso et al., Joint Probabilistic Modeling of Single-Cell Multi-Omic Data with
    totalVI, 2021, https://doi.org/10.1038/s41592-020-01050-x (there the background of each cell
    is a latent of its own).
    """

    by: str = field(default="feature", check=one_of("feature", BY_LEVEL), quiet=True)
    level: str = field(
        default="", check=lambda v: None if isinstance(v, str) else "a name", quiet=True
    )
    levels: int = field(default=0, check=integer(), quiet=True)

    def __attrs_post_init__(self) -> None:
        check_names_level(self.by, self.level, self.levels)

    def build(self, sizes: Sizes) -> ForegroundBackgroundLikelihood:
        """The likelihood with its backgrounds and dispersions.

        Raises:
            SpecError: an exposure, or the levels of a covariate that the model does not have.
        """
        exposure = sizes.modalities[sizes.name].exposure
        if exposure is not None:
            raise SpecError(
                f"exposure={exposure!r} with a foreground_background likelihood, whose "
                "backgrounds are trained as they are counted; expected None; leave it out, or "
                "take negative_binomial",
                "exposure",
            )
        levels = levels_of(self.level, self.levels, sizes)
        return ForegroundBackgroundLikelihood(sizes.shape, self.level, levels)
