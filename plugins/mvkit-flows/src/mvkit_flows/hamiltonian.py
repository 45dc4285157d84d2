"""Hamiltonian Monte Carlo.

Axes: n chains, b rows, d latent, t transitions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange, reduce
from torch import Tensor

ACCEPTANCE = 0.8  # what chains adapt their steps to
NoiseAt = Callable[[str], Tensor]  # noise for a site


def hamiltonian(
    log_density: Callable[[Tensor], Tensor],
    z: Tensor,
    scale: Tensor,
    normals: NoiseAt,
    uniforms: NoiseAt,
    *,
    steps: int,
    leapfrog: int,
) -> Tensor:
    """All chains and rows at once; the step of each row is adapted in the first half.

    Args:
        log_density: (n, b, d) -> (n, b), up to a constant per row.
        z: where chains start, (n, b, d).
        scale: rough scales of the target, (b, d).
        normals: noise (n, b, d) for a site.
        uniforms: noise (n, b) for a site.
        steps: transitions.
        leapfrog: leapfrog steps of each.

    Returns:
        States after the transitions of the second half, (t, n, b, d).

    Reference: Neal, MCMC using Hamiltonian Dynamics, 2011, https://arxiv.org/abs/1206.1901.
    """

    def slope(z: Tensor) -> tuple[Tensor, Tensor]:
        """The log-density, and its gradient in units of the scale."""
        z = z.detach().requires_grad_()
        value = log_density(z)
        return value.detach(), torch.autograd.grad(value.sum(), z)[0] * scale

    step = torch.full_like(scale[:, :1], z.shape[-1] ** -0.25)
    value, gradient = slope(z)
    states = []
    for t in range(steps):
        momentum = normals(f"hmc/momentum/{t}")
        energy = value - momentum.square().sum(-1) / 2
        proposal, proposed, uphill = z, value, gradient
        for _ in range(leapfrog):
            momentum = momentum + step / 2 * uphill
            proposal = proposal + step * scale * momentum
            proposed, uphill = slope(proposal)
            momentum = momentum + step / 2 * uphill
        gain = proposed - momentum.square().sum(-1) / 2 - energy
        gain = gain.nan_to_num(nan=-torch.inf)
        accepted = uniforms(f"choice/accept/{t}").log() < gain
        moved = rearrange(accepted, "n b -> n b 1")
        z = torch.where(moved, proposal, z)
        value = torch.where(accepted, proposed, value)
        gradient = torch.where(moved, uphill, gradient)
        if 2 * t < steps:
            chance = reduce(gain.clamp(max=0.0).exp(), "n b -> b 1", "mean")
            step = step * torch.exp((chance - ACCEPTANCE) / 2)
        if 2 * t >= steps - 1:
            states.append(z)
    return torch.stack(states)
