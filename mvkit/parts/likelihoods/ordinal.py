"""Likelihood of ordered categories: grades, stages, answers from never to always.

Axes: r repeats of a row (samples and drawn components), n rows, then the shape of the modality;
k levels.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from mvkit.core import noise
from mvkit.core.likelihood import ALONE, Context, Likelihood
from mvkit.core.modality import Sizes
from mvkit.parts.likelihoods.numerics import softplus
from mvkit.registry.spec import field, integer, one_of, spec

SMALLEST_GAP = 1e-6  # between thresholds, so that each level keeps a probability


class OrdinalLikelihood(nn.Module, Likelihood):
    """Ordered categories around trained thresholds.

    Thresholds are `first`, (*shape) or (), and what the `gaps` (..., k - 2) add to it.
    """

    integers = True
    starts = True

    def __init__(self, shape: tuple[int, ...], levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.support = (
            f"whole numbers from 0 to {levels - 1}, one for each of {levels} ordered levels; "
            "number the levels, or set `levels`"
        )
        first, gaps = self._parameters_of(self._even(shape))
        self.first = nn.Parameter(first)
        self.gaps = nn.Parameter(gaps) if levels > 2 else None

    def extra_repr(self) -> str:
        """What the values may be, which decides whether two models take the same rows."""
        return f"levels={self.levels}"

    def thresholds(self) -> Tensor:
        """Thresholds τ in their order, (..., k - 1)."""
        first = rearrange(self.first, "... -> ... 1")
        if self.gaps is None:
            return first
        return torch.cat([first, first + self._steps(self.gaps).cumsum(-1)], -1)

    @staticmethod
    def _steps(gaps: Tensor) -> Tensor:
        """Distances between neighbouring thresholds, (..., k - 2)."""
        return softplus(gaps) + SMALLEST_GAP

    def log_prob(self, out: Tensor, x: Tensor, context: Context) -> Tensor:
        thresholds = self.thresholds()
        level = x.long().clamp(0, self.levels - 1)
        above = _at(thresholds, level)  # of the levels below the last
        below = _at(thresholds, level - 1)  # of those above the first
        log_below_above = torch.where(
            level < self.levels - 1, functional.logsigmoid(above - out), 0.0
        )
        log_above_below = torch.where(level > 0, functional.logsigmoid(out - below), 0.0)
        log_p = log_below_above + log_above_below
        if self.gaps is None:
            return log_p
        # σ(a) - σ(b) = σ(a) σ(-b) (1 - exp(b - a)), with nothing that cancels
        inner = (level > 0) & (level < self.levels - 1)
        step = _at(self._steps(self.gaps), level - 1)
        return log_p + torch.where(inner, torch.log(-torch.expm1(-step)), 0.0)

    def probabilities(self, out: Tensor) -> Tensor:
        """Probability of each level, (..., n, *shape) -> (..., n, *shape, k)."""
        score = rearrange(out, "... -> ... 1")
        cumulative = torch.sigmoid(self.thresholds() - score)
        ends = functional.pad(functional.pad(cumulative, (0, 1), value=1.0), (1, 0))
        return ends.diff(dim=-1)

    def mean(self, out: Tensor, context: Context = ALONE) -> Tensor:
        """Σ k P(k), the sum of the probabilities to be above each threshold."""
        score = rearrange(out, "... -> ... 1")
        return torch.sigmoid(score - self.thresholds()).sum(-1)

    def median(self, out: Tensor) -> Tensor:
        """The lowest level that half of the probability does not lie above, (..., n, *shape)."""
        score = rearrange(out, "... -> ... 1")
        return (self.thresholds() < score).sum(-1).to(out.dtype)

    def sample(self, out: Tensor, context: Context = ALONE) -> Tensor:
        uniform = noise.draw("x", out.shape, out, generator=context.generator)
        uniform = uniform.clamp(min=torch.finfo(out.dtype).tiny)
        # a score with logistic noise, and how many thresholds lie below it
        score = rearrange(out + torch.logit(uniform), "... -> ... 1")
        return (self.thresholds() < score).sum(-1).to(out.dtype)

    def out_of_support(self, x: Tensor) -> Tensor:
        return ~((x >= 0) & (x < self.levels) & (x == x.round()))

    def start(self, x: Tensor, observed: Tensor) -> None:
        """Thresholds start where scores of 0 give the data's shares of the levels."""
        even = self._parameters_of(self._even(tuple(self.first.shape)))
        if self._has_moved(even):
            return
        level = torch.where(observed, x.long(), -1)
        if not self.first.ndim:
            level = level.flatten()
        counts = functional.one_hot(level + 1, self.levels + 1)[..., 1:].sum(0).double()
        # half a row in each level: none is impossible
        shares = (counts + 0.5).cumsum(-1) / (counts + 0.5).sum(-1, keepdim=True)
        first, gaps = self._parameters_of(torch.logit(shares[..., :-1]))
        with torch.no_grad():
            self.first.copy_(first)
            if self.gaps is not None:
                self.gaps.copy_(gaps)

    def first_outputs(self, mean: Tensor, spread: Tensor) -> None:
        """Scores are no means: they start around 0, where the thresholds are placed."""

    def _has_moved(self, start: tuple[Tensor, Tensor]) -> bool:
        moved = not torch.equal(self.first, start[0].to(self.first))
        if self.gaps is None:
            return moved
        return moved or not torch.equal(self.gaps, start[1].to(self.gaps))

    def _even(self, shape: tuple[int, ...]) -> Tensor:
        """Thresholds (*shape, k - 1) at which a score of 0 gives all levels the same share."""
        shares = torch.arange(1, self.levels) / self.levels
        return torch.logit(shares).expand(*shape, self.levels - 1)

    @staticmethod
    def _parameters_of(thresholds: Tensor) -> tuple[Tensor, Tensor]:
        """First threshold and gaps, before their softplus, of thresholds (..., k - 1)."""
        steps = (thresholds.diff(dim=-1) - SMALLEST_GAP).clamp(min=SMALLEST_GAP)
        # files take the strides of single numbers, too
        first = thresholds[..., 0].clone(memory_format=torch.contiguous_format)
        return first, steps.expm1().log()


def _at(values: Tensor, number: Tensor) -> Tensor:
    """Of values (*shape, k) or (k,), those numbered (n, *shape), numbers cut off at the ends."""
    k = values.shape[-1]
    place = rearrange(number.clamp(0, k - 1), "... -> ... 1")
    return rearrange(values.expand(*number.shape, k).gather(-1, place), "... 1 -> ...")


@spec
class Ordinal:
    """Ordinal likelihood of levels 0 … K - 1, P(x ≤ k) = σ(τ_k - η), decoders emitting scores η.

    Thresholds τ are trained and stay in their order. Training starts them where η = 0 gives each
    level its share of the data. The mean is Σ k P(k); `median(out)` of the live likelihood is the
    level to report.

    Args:
        levels: K, at least 2.
        by: one set of thresholds for the `modality`, or for each `feature`.

    Example:
        >>> import mvkit
        >>> grades = mvkit.Modality((3,), {"name": "ordinal", "levels": 5})
        >>> model = mvkit.Model({"grades": grades}, latent_dim=2, seed=0)
        >>> model.log_likelihood({"grades": [[0.0, 4.0, 1.0]]}, n=5).shape
        torch.Size([1])

    Reference: McCullagh, Regression Models for Ordinal Data, 1980,
    https://doi.org/10.1111/j.2517-6161.1980.tb01109.x.
    """

    levels: int = field(check=integer(2))
    by: str = field(default="feature", check=one_of("modality", "feature"))

    def build(self, sizes: Sizes) -> OrdinalLikelihood:
        """The likelihood with its thresholds."""
        shape = sizes.shape if self.by == "feature" else ()
        return OrdinalLikelihood(shape, self.levels)
