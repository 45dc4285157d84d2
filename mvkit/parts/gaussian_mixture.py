"""Mixtures of normals with full covariances: conditionals, and EM on rows with gaps.

Axes: r rows, c components, f features; k known and t wanted ones of them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import attrs
import torch
from einops import einsum, rearrange, reduce
from torch import Tensor

from mvkit.core.blocks import block_size, block_slices
from mvkit.errors import DataError

ROUNDS = 300  # of EM at most
TOLERANCE = 1e-5  # nats per row by which the last round changes the likelihood
UNSETTLED = 1e-2  # nats per row that the last round may gain without a warning
MEMORY = 2**26  # bytes of rows that are filled in at a time
FLOAT64 = 8  # bytes of a number
LEAST = 1e-10  # rows of a component: keeps means of empty ones finite
SINGULAR = (
    "sampler 'gmm': the rows of a component do not vary in every direction, so that it has no "
    "density; expected more rows for each component; take fewer components, or a larger floor"
)


@attrs.frozen(eq=False)
class GapPattern:
    """Rows that have the same features.

    Args:
        rows: which rows, (r,).
        known: the features that they have, (k,).
        missing: the others, (t,).
    """

    rows: Tensor
    known: Tensor
    missing: Tensor


@attrs.frozen(eq=False)
class GaussianMixture:
    """Σ_c π_c N(μ_c, L_c L_cᵀ).

    Args:
        weight: π, (c,).
        loc: μ, (c, f).
        factor: lower triangular L, (c, f, f).
    """

    weight: Tensor
    loc: Tensor
    factor: Tensor

    def given(self, known: Tensor, wanted: Tensor) -> Conditional:
        """The normals of the features `wanted` (t,) given those `known` (k,); others are
        integrated out.

        The factor of the features in the order known, wanted comes from a QR decomposition of
        rows of L. Unlike Σ_tt - Σ_tk Σ_kk⁻¹ Σ_kt, it subtracts nothing, so that conditional
        covariances stay positive definite.
        """
        k = len(known)
        order = torch.cat([known, wanted])
        chosen = rearrange(self.factor[:, order], "c i f -> c f i")
        lower = rearrange(torch.linalg.qr(chosen, mode="r")[1], "c i j -> c j i")
        loc = self.loc[:, order]
        return Conditional(
            self.weight,
            loc[:, :k],
            loc[:, k:],
            lower[:, :k, :k],
            lower[:, k:, :k],
            lower[:, k:, k:],
        )


@attrs.frozen(eq=False)
class Conditional:
    """The normals of some features given others.

    Args:
        weight: of the components, (c,).
        known_loc: means of the known features, (c, k).
        loc: means of the wanted features, (c, t).
        known_factor: factor of the known features' covariances, (c, k, k).
        gain: what one standardised known feature adds to the wanted ones, (c, t, k).
        factor: factor of the conditional covariances, (c, t, t).
    """

    weight: Tensor
    known_loc: Tensor
    loc: Tensor
    known_factor: Tensor
    gain: Tensor
    factor: Tensor

    def at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log π_c N(x; component c), (r, c), and conditional means, (c, r, t), at known features x
        (r, k).
        """
        k = x.shape[1]
        off = x - rearrange(self.known_loc, "c k -> c 1 k")
        scaled = rearrange(off, "c r k -> c k r")
        if k:
            scaled = torch.linalg.solve_triangular(self.known_factor, scaled, upper=False)
        diagonal = torch.diagonal(self.known_factor, dim1=1, dim2=2)
        log_scale = diagonal.abs().log().sum(-1)
        squares = reduce(scaled.square(), "c k r -> r c", "sum")
        log_prob = -0.5 * squares - log_scale - 0.5 * k * math.log(2 * math.pi)
        loc = rearrange(self.loc, "c t -> c 1 t")
        return log_prob + self.weight.log(), loc + einsum(
            self.gain, scaled, "c t k, c k r -> c r t"
        )

    @property
    def covariance(self) -> Tensor:
        """Conditional covariances, (c, t, t)."""
        return einsum(self.factor, self.factor, "c i e, c j e -> c i j")


@attrs.frozen(eq=False)
class Sums:
    """What a round of EM adds up.

    Args:
        rows: responsibilities, (c,).
        first: times filled rows, (c, f).
        second: times their products, (c, f, f).
        log_prob: log-density of all rows, ().
    """

    rows: Tensor
    first: Tensor
    second: Tensor
    log_prob: Tensor

    def mixture(self, floor: float) -> GaussianMixture:
        """The mixture that maximises the expected log-density, `floor` added to its variances.

        Raises:
            DataError: a covariance without inverse.
        """
        rows = self.rows + LEAST
        loc = self.first / rearrange(rows, "c -> c 1")
        products = einsum(loc, loc, "c i, c j -> c i j")
        covariance = self.second / rearrange(rows, "c -> c 1 1") - products
        covariance = covariance + floor * torch.eye(loc.shape[1]).to(loc)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if bool(failed.any()):
            raise DataError(SINGULAR)
        return GaussianMixture(rows / rows.sum(), loc, factor)


def fit_with_gaps(
    values: Tensor,
    patterns: Sequence[GapPattern],
    responsibilities: Tensor,
    floor: float,
    weight: Tensor | None = None,
) -> GaussianMixture:
    """The mixture of greatest likelihood of what rows have, missing features integrated out.

    Args:
        values: rows, (r, f) in float64; missing features may hold anything.
        patterns: which features rows have; together all rows.
        responsibilities: of the first components for the rows, (r, c).
        floor: added to the variances.
        weight: how often each row counts, (r,), of which only the proportions matter; None: all
            alike.

    Reference: Ghahramani and Jordan, Supervised Learning from Incomplete Data via an EM Approach,
    NeurIPS 1993.
    """
    total = float(len(values))
    centre, variance = _moments(values, patterns, weight)
    values = values - centre
    if weight is not None:
        total = float(weight.sum())
        responsibilities = responsibilities * rearrange(weight, "r -> r 1")
    sums = _first_sums(values, patterns, responsibilities, variance)
    mixture = sums.mixture(floor)
    before = -math.inf
    gain = math.inf
    for _ in range(ROUNDS):
        sums = _expected(values, patterns, mixture, weight)
        mixture = sums.mixture(floor)
        reached = float(sums.log_prob) / total
        gain = reached - before
        before = reached
        if abs(gain) < TOLERANCE:  # the floor may cost likelihood at first
            break
    if gain > UNSETTLED:
        warnings.warn(
            f"sampler 'gmm': EM still gained {gain:.1e} nats per row after {ROUNDS} rounds; "
            "expected it to settle; fit to more rows, or take fewer components",
            stacklevel=2,
        )
    return attrs.evolve(mixture, loc=mixture.loc + centre)


def _moments(
    values: Tensor, patterns: Sequence[GapPattern], weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Means and variances of the features over the rows that have them, (f,); 0 and 1 without."""
    present = _present(values, patterns)
    share: Tensor | float = 1.0 if weight is None else rearrange(weight, "r -> r 1")
    count = (present.to(values) * share).sum(0)
    count = torch.where(present.any(0), count, 1.0)
    centre = (torch.where(present, values, 0.0) * share).sum(0) / count
    squares = torch.where(present, (values - centre).square(), 0.0) * share
    return centre, torch.where(present.any(0), squares.sum(0) / count, 1.0)


def _present(values: Tensor, patterns: Sequence[GapPattern]) -> Tensor:
    """Which features rows have, (r, f) bool."""
    present = torch.zeros_like(values, dtype=torch.bool)
    for pattern in patterns:
        flags = torch.zeros(values.shape[1], dtype=torch.bool, device=values.device)
        flags[pattern.known] = True
        present[pattern.rows] = flags
    return present


def _first_sums(
    values: Tensor, patterns: Sequence[GapPattern], responsibilities: Tensor, variance: Tensor
) -> Sums:
    """The sums of rows whose missing features are as if independent, at their means of 0."""
    present = _present(values, patterns)
    filled = torch.where(present, values, 0.0)
    spread = responsibilities.T @ torch.where(present, 0.0, variance)
    c, f = spread.shape
    first = filled.new_zeros(c, f)
    second = torch.diag_embed(spread)
    for rows in block_slices(len(values), block_size(c * f, MEMORY, FLOAT64)):
        block = filled[rows].expand(c, -1, -1)
        _add_products(first, second, block, responsibilities[rows])
    return Sums(responsibilities.sum(0), first, second, values.new_zeros(()))


def _add_products(first: Tensor, second: Tensor, filled: Tensor, weight: Tensor) -> None:
    """Adds filled rows (c, r, f), and their products, times the components' shares (r, c)."""
    weighted = filled * rearrange(weight, "r c -> c r 1")
    first += weighted.sum(1)
    second += einsum(weighted, filled, "c r i, c r j -> c i j")


def _expected(
    values: Tensor,
    patterns: Sequence[GapPattern],
    mixture: GaussianMixture,
    row_weight: Tensor | None = None,
) -> Sums:
    """The expected sums under a mixture: missing features at their conditional means, with their
    conditional covariances.
    """
    c, f = mixture.loc.shape
    rows_of = values.new_zeros(c)
    first = values.new_zeros(c, f)
    second = values.new_zeros(c, f, f)
    total = values.new_zeros(())
    for pattern in patterns:
        conditional = mixture.given(pattern.known, pattern.missing)
        counted = values.new_zeros(c)
        for block in block_slices(len(pattern.rows), block_size(c * f, MEMORY, FLOAT64)):
            x = values[pattern.rows[block]][:, pattern.known]
            log_joint, missing = conditional.at(x)
            log_prob = torch.logsumexp(log_joint, 1)
            weight = (log_joint - rearrange(log_prob, "r -> r 1")).exp()
            if row_weight is not None:
                counts = row_weight[pattern.rows[block]]
                weight = weight * rearrange(counts, "r -> r 1")
                log_prob = log_prob * counts
            filled = values.new_zeros(c, len(x), f)
            filled[:, :, pattern.known] = x
            filled[:, :, pattern.missing] = missing
            _add_products(first, second, filled, weight)
            counted += weight.sum(0)
            total += log_prob.sum()
        rows_of += counted
        index = (slice(None), rearrange(pattern.missing, "t -> t 1"), pattern.missing)
        second[index] += conditional.covariance * rearrange(counted, "c -> c 1 1")
    return Sums(rows_of, first, second, total)
