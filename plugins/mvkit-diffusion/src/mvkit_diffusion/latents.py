"""Latents as one vector: where z and the private latents stand in it, and in which units.

Axes: n draws, b rows, m modalities, v numbers of all latents, s blocks of them (z, then one per
private latent), f numbers of a condition.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from mvkit.parts.conditional_samplers import Condition, FittingRows, LatentDraws, SamplerSizes

LEAST = 1e-6  # spread of latents
LEAST_FEATURE = 1e-3  # spread of what a condition tells; rounding of constant scales is none


class Latents(nn.Module):
    """The vector of z and private latents, standardised by the rows of a fit.

    Args:
        sizes: the model's.
    """

    loc: Tensor
    scale: Tensor
    block: Tensor
    owner: Tensor

    def __init__(self, sizes: SamplerSizes) -> None:
        super().__init__()
        self.sizes = sizes
        widths = [sizes.latent, *sizes.private.values()]
        owners = [sizes.names.index(name) for name in sizes.private]
        number = sum(widths)
        blocks = torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))
        self.register_buffer("loc", torch.zeros(number))
        self.register_buffer("scale", torch.ones(number))
        self.register_buffer("block", blocks, persistent=False)
        owner = torch.tensor(owners, dtype=torch.long)
        self.register_buffer("owner", owner, persistent=False)
        self.number = number
        self.blocks = len(widths)

    def fit(self, rows: FittingRows, weight: Tensor) -> Tensor:
        """Learns means and spreads; returns the latents of the rows in these units, (b, v), zeros
        where a row lacks the modality.

        Args:
            rows: the rows.
            weight: how much each counts, (b,).
        """
        values = torch.cat([rows.z, *(rows.private[name] for name in self.sizes.private)], 1)
        present = self.of_blocks(self.had(rows.condition.observed))
        loc, scale = moments(values, present, weight)
        self.loc.copy_(loc)
        self.scale.copy_(scale.clamp(min=LEAST))
        return torch.where(present, (values - self.loc) / self.scale, 0.0)

    def had(self, observed: Tensor) -> Tensor:
        """Which blocks rows have themselves, (b, s) bool: z, and those of modalities (b, m)."""
        return torch.cat([torch.ones_like(observed[:, :1]), observed[:, self.owner]], 1)

    def of_blocks(self, values: Tensor) -> Tensor:
        """What holds for blocks (..., s), for each of their numbers, (..., v)."""
        return values[..., self.block]

    def private(self, draws: Mapping[str, Tensor], leading: tuple[int, int]) -> Tensor:
        """Private latents {name: (n, b, p)} in these units, with zeros for z, (n, b, v)."""
        zeros = self.loc.new_zeros(*leading, self.sizes.latent)
        values = torch.cat([zeros, *(draws[name] for name in self.sizes.private)], -1)
        return (values - self.loc) / self.scale

    def parts(self, values: Tensor) -> LatentDraws:
        """Z (..., d) and private latents {name: (..., p)} of numbers in these units (..., v)."""
        widths = [self.sizes.latent, *self.sizes.private.values()]
        z, *private = (self.loc + self.scale * values).split(widths, -1)
        return z, dict(zip(self.sizes.private, private, strict=True))


class Features(nn.Module):
    """The numbers of a condition, standardised by the rows of a fit that have them.

    Args:
        sizes: the model's.
    """

    centre: Tensor
    spread: Tensor
    owner: Tensor

    def __init__(self, sizes: SamplerSizes) -> None:
        super().__init__()
        m = len(sizes.names)
        self.flags = m  # whether each modality is there: they come first, and stay as they are
        owners = list(range(m))
        for i in range(m):
            owners += 2 * sizes.latent * [i]
        for name, p in sizes.private.items():
            owners += 2 * p * [sizes.names.index(name)]
        owners += sizes.context * [m]  # of no modality
        owner = torch.tensor(owners, dtype=torch.long)
        self.register_buffer("owner", owner, persistent=False)
        self.register_buffer("centre", torch.zeros(sizes.features))
        self.register_buffer("spread", torch.ones(sizes.features))

    def fit(self, condition: Condition, weight: Tensor) -> None:
        """Learns means and spreads of rows with weights (b,)."""
        loc, scale = moments(condition.features(), condition.present(), weight)
        loc[: self.flags] = 0.0
        scale[: self.flags] = 1.0
        self.centre.copy_(loc)
        self.spread.copy_(torch.where(scale > LEAST_FEATURE, scale, 1.0))

    def forward(self, condition: Condition) -> Tensor:
        """Numbers (b, f), zeros for what is not there."""
        features = (condition.features() - self.centre) / self.spread
        return torch.where(condition.present(), features, 0.0)

    def keep(self, features: Tensor, kept: Tensor) -> Tensor:
        """What is left of the numbers (b, f) of rows, given only some modalities, (b, m) bool."""
        always = torch.ones_like(kept[:, :1])
        return torch.where(torch.cat([kept, always], 1)[:, self.owner], features, 0.0)


def moments(values: Tensor, present: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the present values; 0 and 1 where there are none.

    Args:
        values: (b, f), without meaning where not present.
        present: (b, f) bool.
        weight: of the rows, (b,).
    """
    share = torch.where(present, rearrange(weight, "b -> b 1"), 0.0)
    total = reduce(share, "b f -> f", "sum")
    known = torch.where(present, values, 0.0)
    divisor = torch.where(total > 0, total, 1.0)
    mean = reduce(share * known, "b f -> f", "sum") / divisor
    squares = torch.where(present, values - mean, 0.0).square()
    variance = reduce(share * squares, "b f -> f", "sum") / divisor
    return mean, torch.where(total > 0, variance.sqrt(), 1.0)
