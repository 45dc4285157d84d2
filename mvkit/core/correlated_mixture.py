"""A finite mixture of normals with any covariances; what a prior may be.

Axes: n draws, s samples, j drawn components, k components, b rows, m modalities, d latent.
"""

from __future__ import annotations

import math
from functools import partial

import attrs
import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mvkit.core.blocks import DENSITIES, block_size
from mvkit.core.family import Family
from mvkit.core.mixture import Mixture
from mvkit.core.noise import Generator
from mvkit.core.posterior import Draws, Posterior, check_latents


@attrs.frozen(eq=False)
class CorrelatedMixture(Posterior):
    """Mixture Σ_k w_k N(z; μ_k, Σ_k), Σ_k = (A_kᵀ A_k)⁻¹, one per row.

    Args:
        family: normal experts.
        loc: locations μ, (k, b, d).
        root: roots A of the precisions, lower triangular with a positive diagonal, (k, d, d).
        log_weight: log-weights, (k, b), normalised over k.
        evidence: modalities that a component looked at, (k, b, m) bool; None for a prior.

    Example:
        >>> import torch
        >>> from mvkit.parts.families import Normal
        >>> loc, root = torch.zeros(2, 1, 3), torch.eye(3).expand(2, 3, 3)
        >>> p = CorrelatedMixture(Normal(), loc, root, torch.full((2, 1), 0.5).log())
        >>> p.log_prob(torch.zeros(5, 4, 3)).shape
        torch.Size([5, 4])
    """

    family: Family
    loc: Tensor
    root: Tensor
    log_weight: Tensor
    evidence: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        return einsum(self.log_weight.exp(), self.loc, "k b, k b d -> b d")

    @property
    def _standard(self) -> Mixture:
        """The mixture of the standardised latents A_k (z - μ_k)."""
        zeros = torch.zeros_like(self.loc)
        weight = self.log_weight
        return Mixture(self.family, zeros, torch.ones_like(zeros), weight, self.evidence)

    @property
    def _log_volume(self) -> Tensor:
        """Log-determinants of the roots, (k,)."""
        return self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def draw(self, n: int, how: str, generator: Generator = None, site: str = "z") -> Draws:
        draws = self._standard.draw(n, how, generator, site)
        component, eps = draws.component, draws.z
        log_volume = rearrange(self._log_volume, "k -> 1 k 1")
        if component is None:
            loc = rearrange(self.loc, "k b d -> 1 k b d")
            z = loc + _coloured(rearrange(self.root, "k d e -> 1 k 1 d e"), eps)
        else:
            rows = torch.arange(component.shape[-1], device=component.device)
            z = self.loc[component, rows] + _coloured(self.root[component], eps)
            log_volume = self._log_volume[component]
        return Draws(self, z, component, draws.log_pi, lambda: draws.log_qk + log_volume, self.kl)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of the whole mixture, (..., b, d) -> (..., b), in nats.

        Memory: K times z in blocks of at most `mvkit.core.blocks.DENSITIES` bytes, which are
        computed again in the backward pass if there are several.

        Raises:
            ShapeError: latents of another width, or for another number of rows.
        """
        check_latents(z, self.loc.shape[1:])
        b, d = z.shape[-2:]
        flat = z.reshape(math.prod(z.shape[:-2]), b, d)
        pieces = torch.split(flat, block_size(len(self.loc) * b * d, DENSITIES))
        mixed = self._mixed
        if len(pieces) > 1 and torch.is_grad_enabled():
            mixed = partial(checkpoint, self._mixed, use_reentrant=False)
        parameters = (self.loc, self.root, self.log_weight)
        densities = torch.cat([mixed(piece, *parameters) for piece in pieces])
        return densities.reshape(*z.shape[:-2], densities.shape[-1])

    def _mixed(self, z: Tensor, loc: Tensor, root: Tensor, log_weight: Tensor) -> Tensor:
        """Log-density of the mixture with these parameters, (n, b, d) -> (n, b)."""
        mixture = attrs.evolve(self, loc=loc, root=root, log_weight=log_weight)
        return torch.logsumexp(mixture.joint(z), dim=-1)

    def joint(self, z: Tensor) -> Tensor:
        """Log w_k + log N_k(z), (..., b, d) -> (..., b, k)."""
        check_latents(z, self.loc.shape[1:])
        eps = einsum(self.root, z, "k e d, ... b d -> ... k b e")
        eps = eps - einsum(self.root, self.loc, "k e d, k b d -> k b e")
        densities = self.family.log_density(eps).sum(-1)
        log_volume = rearrange(self._log_volume, "k -> k 1")
        return rearrange(densities + log_volume + self.log_weight, "... k b -> ... b k")

    def detach(self) -> CorrelatedMixture:
        weight = self.log_weight.detach()
        return attrs.evolve(self.stop_density(), log_weight=weight)

    def stop_density(self) -> CorrelatedMixture:
        return attrs.evolve(self, loc=self.loc.detach(), root=self.root.detach())

    def expand(self, b: int, m: int) -> CorrelatedMixture:
        loc = self.loc.expand(-1, b, -1)
        evidence = torch.zeros(len(loc), b, m, dtype=torch.bool, device=loc.device)
        weight = self.log_weight.expand(-1, b)
        return attrs.evolve(self, loc=loc, log_weight=weight, evidence=evidence)

    def sample(
        self, n: int, component: int | None = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor]:
        """Draws of a prior, b = 1 or one for each of b = n rows whose weights are alike: latents
        (n, d) and their components (n,).
        """
        eps, picked = self._standard.sample(n, component, generator)
        rows = torch.arange(n, device=picked.device) % self.loc.shape[1]
        return self.loc[picked, rows] + _coloured(self.root[picked], eps), picked


def _coloured(root: Tensor, eps: Tensor) -> Tensor:
    """A⁻¹ ε, roots (..., d, d) and noise (..., d) -> (..., d)."""
    columns = rearrange(eps, "... d -> ... d 1")
    z: Tensor = torch.linalg.solve_triangular(root, columns, upper=False)
    return rearrange(z, "... d 1 -> ... d")
