"""Fitting a mixture of normals to codes: k-means, then expectation maximisation, in float64.

Axes: b rows, c components, d latent.
"""

from __future__ import annotations

import math
from typing import Literal

import attrs
import torch
from einops import einsum, rearrange, repeat
from torch import Tensor

from mvkit.core import noise

CovarianceKind = Literal["diagonal", "tied", "full"]
RESTARTS = 20  # of k-means
LLOYD = 50  # passes of k-means at most
PASSES = 200  # of expectation maximisation at most
TOLERANCE = 1e-4  # nats per row that a pass must gain
FLOOR = 1e-6  # share of the codes' mean variance that is added to all variances


@attrs.frozen(eq=False)
class MixtureFit:
    """A mixture of normals, and whose rows are whose.

    Args:
        weight: π, (c,).
        loc: means, (c, d).
        covariance: (c, d, d), one and the same where it is tied.
        shares: responsibilities of the components for the rows, (b, c).
        log_prob: mean log-density of the rows.
        kind: of the covariances.
        row_weight: how much each row counts, (b,), 1 in all.
        floor: what was added to all variances.
    """

    weight: Tensor
    loc: Tensor
    covariance: Tensor
    shares: Tensor
    log_prob: float
    kind: CovarianceKind
    row_weight: Tensor
    floor: float

    @property
    def information(self) -> float:
        """Half the Bayesian information criterion per row, in nats; the lower, the better.

        Reference: Schwarz, Estimating the Dimension of a Model, Annals of Statistics 6, 1978.
        """
        (b, c), d = self.shares.shape, self.loc.shape[1]
        numbers = {"diagonal": c * d, "tied": d * (d + 1) / 2, "full": c * d * (d + 1) / 2}
        free = c - 1 + c * d + numbers[self.kind]
        return free * math.log(b) / (2 * b) - self.log_prob

    def moments(self, draws: Tensor, kind: CovarianceKind) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (c,), means (c, d) and covariances (c, d, d) of draws of the rows, (s, b, d)."""
        s = len(draws)
        z = rearrange(draws.to(self.shares), "s b d -> (s b) d")
        weight = repeat(self.row_weight / s, "b -> (s b)", s=s)
        shares = repeat(self.shares, "b c -> (s b) c", s=s)
        pi, loc, covariance = moments(z, weight, shares, kind)
        return pi, loc, covariance + self.floor * torch.eye(z.shape[1]).to(z)


def fit_mixture(
    z: Tensor, components: int, kind: CovarianceKind, *, seed: int, weight: Tensor | None = None
) -> MixtureFit:
    """A mixture of normals that begins at the best of several k-means.

    The likeliest mixture is no better guide to classes than the best k-means: where two clusters
    share a component, another is free to gain likelihood elsewhere.

    Args:
        z: codes of rows, (b, d); b is at least c.
        components: how many components, c.
        kind: of the covariances: `diagonal` and `full` ones differ by component.
        seed: of the first centres.
        weight: how much each row counts, (b,); None: all alike.
    """
    z = z.cpu().double()
    weight = torch.ones_like(z[:, 0]) if weight is None else weight.cpu().double()
    weight = weight / weight.sum()
    best, lowest = z[:components], math.inf
    for restart in range(RESTARTS):
        generator = noise.seeded(noise.seed_of(seed, restart))
        centres, distance = k_means(z, components, weight, generator)
        if distance < lowest:
            best, lowest = centres, distance
    return maximised(z, weight, _nearest(z, best), kind)


def k_means(
    z: Tensor, components: int, weight: Tensor, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Centres of k-means, (c, d), and the mean squared distance of rows from theirs.

    Args:
        z: rows, (b, d).
        components: c.
        weight: how much each row counts, (b,), 1 in all.
        generator: source of the first centres.

    Reference: Arthur and Vassilvitskii, k-means++: The Advantages of Careful Seeding, 2007.
    """
    centres = _first_centres(z, components, weight, generator)
    nearest = _nearest(z, centres)
    for _ in range(LLOYD):
        shares = nearest * rearrange(weight, "b -> b 1")
        total = rearrange(shares.sum(0), "c -> c 1")
        centres = torch.where(total > 0, shares.T @ z / total.clamp(min=1e-300), centres)
        before, nearest = nearest, _nearest(z, centres)
        if torch.equal(before, nearest):
            break
    distance = (z - nearest @ centres).square().sum(-1)
    return centres, float((weight * distance).sum())


def _first_centres(
    z: Tensor, components: int, weight: Tensor, generator: torch.Generator
) -> Tensor:
    """Rows as centres, (c, d), each the best of a few that are drawn by their squared distances
    from those before it.
    """
    tries = 2 + int(math.log(components))
    shape = (components, tries)
    uniforms = noise.draw("choice/component", shape, z, generator=generator)
    centres: list[Tensor] = []
    distance = torch.ones_like(weight)
    for uniform in uniforms:
        cdf = (distance * weight).cumsum(0)
        places = torch.searchsorted(cdf, uniform * cdf[-1], right=True).clamp(max=len(z) - 1)
        squares = torch.cdist(z[places], z).square()
        if centres:
            squares = torch.minimum(squares, distance)
        best = (squares @ weight).argmin()
        centres.append(z[places[best]])
        distance = squares[best]
    return torch.stack(centres)


def _nearest(z: Tensor, centres: Tensor) -> Tensor:
    """Ones at each row's nearest centre, (b, c)."""
    nearest = torch.cdist(z, centres).argmin(-1)
    return torch.nn.functional.one_hot(nearest, len(centres)).to(z)


def maximised(z: Tensor, weight: Tensor, shares: Tensor, kind: CovarianceKind) -> MixtureFit:
    """Expectation maximisation from given responsibilities.

    Args:
        z: codes of rows, (b, d), in float64.
        weight: how much each row counts, (b,), 1 in all.
        shares: responsibilities of the components for the rows, (b, c).
        kind: of the covariances.
    """
    variance = moments(z, weight, torch.ones_like(shares[:, :1]), "diagonal")[2]
    floor = max(FLOOR * float(variance.diagonal(dim1=-2, dim2=-1).mean()), 1e-12)
    before = -torch.inf
    for _ in range(PASSES):
        pi, loc, covariance = moments(z, weight, shares, kind)
        covariance = covariance + floor * torch.eye(z.shape[1]).to(z)
        log_joint = normal_log_prob(z, loc, covariance) + pi.log()
        log_prob = float((weight * log_joint.logsumexp(-1)).sum())
        shares = log_joint.softmax(-1)
        if log_prob - before < TOLERANCE:
            break
        before = log_prob
    return MixtureFit(pi, loc, covariance, shares, log_prob, kind, weight, floor)


def moments(
    z: Tensor, weight: Tensor, shares: Tensor, kind: CovarianceKind
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (c,), means (c, d) and covariances (c, d, d) of rows under responsibilities.

    Args:
        z: rows, (b, d).
        weight: how much each row counts, (b,), 1 in all.
        shares: responsibilities, (b, c).
        kind: of the covariances.
    """
    shares = shares * rearrange(weight, "b -> b 1")
    pi = shares.sum(0).clamp(min=1e-12)
    pi = pi / pi.sum()
    of_rows = shares / shares.sum(0).clamp(min=1e-12)
    loc = of_rows.T @ z
    if kind == "tied":
        within = (z * rearrange(shares.sum(1), "b -> b 1")).T @ z
        within = within - (loc * rearrange(pi, "c -> c 1")).T @ loc
        return pi, loc, within.expand(len(pi), -1, -1)
    if kind == "diagonal":
        return pi, loc, torch.diag_embed(of_rows.T @ z.square() - loc.square())
    products = rearrange(of_rows, "b c -> c 1 b") * rearrange(z, "b d -> d b") @ z
    return pi, loc, products - einsum(loc, loc, "c d, c e -> c d e")


def normal_log_prob(z: Tensor, loc: Tensor, covariance: Tensor) -> Tensor:
    """Log-densities of normals, (b, d), (c, d) and (c, d, d) -> (b, c), in nats."""
    roots = precision_roots(covariance)
    flat = rearrange(roots, "c e d -> d (c e)")
    standard = rearrange(z @ flat, "b (c e) -> b c e", c=len(loc)) - einsum(
        roots, loc, "c e d, c d -> c e"
    )
    log_volume = roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = 0.5 * z.shape[-1] * math.log(2 * math.pi)
    return log_volume - constant - 0.5 * standard.square().sum(-1)


def precision_roots(covariance: Tensor) -> Tensor:
    """The lower triangular A with AᵀA = Σ⁻¹ of each covariance, (c, d, d) -> (c, d, d)."""
    factor = torch.linalg.cholesky(covariance)
    eye = torch.eye(covariance.shape[-1]).to(covariance).expand_as(factor)
    roots: Tensor = torch.linalg.solve_triangular(factor, eye, upper=False)
    return roots
