"""Levels of latents, each given those above: a prior, and products of experts along it.

The latent z is the levels one after another, the top first. Axes: s samples, b rows, m modalities, d latent,
a latents above a level, f features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import attrs
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts, on_rows
from mvkit.core.family import Family
from mvkit.core.modality import Sizes
from mvkit.core.posterior import Draws, Posterior
from mvkit.core.product_of_experts import product
from mvkit.errors import SpecError
from mvkit.parts.aggregators.aggregator import Aggregator, Defaults, check_product
from mvkit.parts.priors import Prior
from mvkit.registry.spec import field, integer, part, parts, spec

SMALL = {"name": "mlp", "hidden": [256]}


def _widths(value: object) -> str | None:
    several = value if isinstance(value, tuple) else (value,)
    fine = several and all(type(n) is int and n > 0 for n in several)
    return None if fine else "an integer of at least 1, or a list of them"


def _on_last(module: nn.Module, x: Tensor, width: int) -> Tensor:
    """A network of rows on the last axis, (..., a) -> (..., width)."""
    out = on_rows(module, x.reshape(-1, x.shape[-1]))
    return out.reshape(*x.shape[:-1], width)


@spec
class TopDown:
    """Hierarchical prior p(z) = p(z_L) ∏_l p(z_l|z_{l+1}, …, z_L): the top standard, each level of the family below it.

    Args:
        levels: how many, of widths as equal as can be; or their widths, the top first, `latent_dim` in all.
        networks: from all latents above a level to its 2 numbers a dimension: one for all levels below the top, or one
            for each, which may be an `nn.Module`.

    Reference: Sønderby et al., Ladder Variational Autoencoders, 2016, https://arxiv.org/abs/1602.02282; for several
    modalities Dorent et al., 2023, https://arxiv.org/abs/2309.08747.
    """

    levels: Any = field(default=2, check=_widths)
    networks: tuple[Any, ...] = parts("network", default=(SMALL,), module=True)

    def widths(self, latent: int) -> tuple[int, ...]:
        """The widths of the levels, the top first."""
        if isinstance(self.levels, tuple):
            if sum(self.levels) != latent:
                total = sum(self.levels)
                raise SpecError(
                    f"got {self.levels}, which sum to {total}, not latent_dim={latent}", "levels"
                )
            return self.levels
        if self.levels > latent:
            raise SpecError(
                f"got {self.levels}; latent_dim={latent} makes {latent} at most; take fewer",
                "levels",
            )
        return tuple((latent + i) // self.levels for i in range(self.levels))

    def build(self, sizes: Sizes) -> TopDownPrior:
        """The live part."""
        return TopDownPrior(self, sizes)


class TopDownPrior(nn.Module, Prior):
    """The levels of p(z)."""

    top: Tensor

    def __init__(self, spec: TopDown, sizes: Sizes) -> None:
        super().__init__()
        self.family: Family = sizes.family
        self.widths = spec.widths(sizes.latent)
        below, networks = len(self.widths) - 1, spec.networks
        if len(networks) == 1 and not isinstance(networks[0], nn.Module):
            networks = networks * below
        if len(networks) != below:
            reason = f"got {len(networks)}; expected one spec for the levels below the top, or {below}, one for each"
            raise SpecError(reason, "networks")
        self.networks = nn.ModuleList(
            one
            if isinstance(one, nn.Module)
            else one.encoder((self.above(i),), 2 * self.widths[i])
            for i, one in enumerate(networks, 1)
        )
        self.register_buffer("top", torch.zeros(self.widths[0]), persistent=False)

    def above(self, level: int) -> int:
        """How many latents are above a level, a."""
        return sum(self.widths[:level])

    def level(self, i: int, above: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of p(z_i|above), (..., b, a) -> (..., b, width)."""
        if not i:
            loc = self.top.expand(*above.shape[:-1], -1)
            return loc, torch.ones_like(loc)
        loc, raw = _on_last(self.networks[i - 1], above, 2 * self.widths[i]).chunk(2, dim=-1)
        return loc, self.family.scale(raw)

    def forward(self, posterior: Any = None) -> TopDownPosterior:
        """See `Prior.forward`; as a posterior that has looked at nothing."""
        return TopDownPosterior(self, None, None, {})


Module = TypeVar("Module", bound=nn.Module)


def _still(module: Module) -> Module:
    """A copy whose parameters ask for no gradient."""
    return copy.deepcopy(module).requires_grad_(False)


@attrs.frozen(eq=False)
class _Stacked:
    """Experts of a level, (m, n, width) each."""

    loc: Tensor
    scale: Tensor


@attrs.frozen(eq=False)
class Level:
    """q and p of a level at the latents above it, and its own latent, (..., b, width) each."""

    loc: Tensor
    scale: Tensor
    loc0: Tensor
    scale0: Tensor
    z: Tensor

    def log_q(self, family: Family) -> Tensor:
        """Log q(z_i|x, above), (..., b)."""
        return family.log_density((self.z - self.loc) / self.scale).sum(-1) - self.scale.log().sum(
            -1
        )


@attrs.frozen(eq=False)
class TopDownPosterior(Posterior):
    """q(z|x_O) = ∏_l q(z_l|x_O, z_{l+1}, …), q(z_l|…) ∝ p(z_l|z_{l+1}, …) ∏_{m∈O} q(z_l|x_m, z_{l+1}, …).

    Given nothing, it is the prior. `mean` goes down by means: the exact mean of the top, an estimate below.

    Args:
        prior: p.
        observed: (b, m) bool; None: a prior, b = 1.
        heads: networks to the experts of each level, by modality, the top first.
        features: what is known of modalities, {name: (b, f)}; those that no row shows are absent.
        active: rows that objectives count, (b,) bool; None: all.
    """

    prior: TopDownPrior
    observed: Tensor | None
    heads: nn.ModuleDict | None
    features: dict[str, Tensor]
    active: Tensor | None = None

    @property
    def log_weight(self) -> Tensor:
        return self.prior.top.new_zeros(1, 1 if self.observed is None else len(self.observed))

    @property
    def evidence(self) -> Tensor | None:
        return None if self.observed is None else rearrange(self.observed, "b m -> 1 b m")

    @property
    def mean(self) -> Tensor:
        b = self.log_weight.shape[1]
        return torch.cat([level.z for level in self._down((b,), lambda i, loc, scale: loc)], -1)

    def draw(
        self, n: int, how: str, generator: torch.Generator | None = None, site: str = "z"
    ) -> Draws:
        prior, b = self.prior, self.log_weight.shape[1]
        shape = (n, 1, b, sum(prior.widths))
        eps = noise.draw(site, shape, prior.top, generator=generator, sampler=prior.family.noise)
        split = eps.split(prior.widths, dim=-1)
        levels = self._down(shape[:-1], lambda i, loc, scale: torch.addcmul(loc, scale, split[i]))

        def density() -> Tensor:
            scales = torch.cat([level.scale for level in levels], -1)
            return prior.family.log_density(eps).sum(-1) - scales.log().sum(-1)

        def kl(other: object) -> Tensor | None:
            if (
                not isinstance(other, TopDownPosterior)
                or other.prior is not prior
                or other.observed is not None
            ):
                return None
            each = [
                prior.family.kl(level.loc, level.scale, level.loc0, level.scale0)
                for level in levels
            ]
            total = torch.stack([one for one in each if one is not None]).sum(0)
            return total.mean(0) if None not in each else None

        z = torch.cat([level.z for level in levels], -1)
        return Draws(self, z, None, self.log_weight, density, kl)

    def log_prob(self, z: Tensor) -> Tensor:
        split = z.split(self.prior.widths, dim=-1)
        levels = self._down(z.shape[:-1], lambda i, loc, scale: split[i])
        return torch.stack([level.log_q(self.prior.family) for level in levels]).sum(0)

    def detach(self) -> TopDownPosterior:
        still = {name: features.detach() for name, features in self.features.items()}
        heads = None if self.heads is None else _still(self.heads)
        return attrs.evolve(self, prior=_still(self.prior), heads=heads, features=still)

    def expand(self, b: int, m: int) -> TopDownPosterior:
        return TopDownPosterior(
            self.prior, torch.zeros(b, m, dtype=torch.bool, device=self.prior.top.device), None, {}
        )

    def _down(
        self, lead: tuple[int, ...], pick: Callable[[int, Tensor, Tensor], Tensor]
    ) -> list[Level]:
        """The levels from the top, each latent picked given its level's location and scale; `lead` is (..., b)."""
        levels: list[Level] = []
        above = self.prior.top.new_zeros(*lead, 0)
        for i in range(len(self.prior.widths)):
            loc0, scale0 = self.prior.level(i, above)
            loc, scale = self._fused(i, above, loc0, scale0)
            levels.append(Level(loc, scale, loc0, scale0, pick(i, loc, scale)))
            above = torch.cat([above, levels[-1].z], -1)
        return levels

    def _fused(self, i: int, above: Tensor, loc0: Tensor, scale0: Tensor) -> tuple[Tensor, Tensor]:
        """The product of the prior of a level and the experts of what each row has."""
        if self.heads is None or self.observed is None:
            return loc0, scale0
        width, family = loc0.shape[-1], self.prior.family
        locs, scales, seen = [loc0], [scale0], [torch.ones_like(self.observed[:, 0])]
        for m, (name, heads) in enumerate(self.heads.items()):
            if name in self.features:
                known = self.features[name].expand(*above.shape[:-1], -1)
                out = _on_last(heads[i], torch.cat([known, above], -1), 2 * width)  # type: ignore[index]
                loc, raw = out.chunk(2, dim=-1)
                locs.append(loc)
                scales.append(family.scale(raw))
                seen.append(self.observed[:, m])
        experts = _Stacked(
            *(torch.stack(each).reshape(len(each), -1, width) for each in (locs, scales))
        )
        mask = repeat(
            torch.stack(seen, -1), "b m -> (s b) m", s=experts.loc.shape[1] // len(self.observed)
        )
        members = rearrange(mask, "b m -> 1 b m")
        loc, scale = product(experts, mask, members, members.any(-1), 0.0)
        return loc.reshape(loc0.shape), scale.reshape(loc0.shape)


@spec
class TopDownPoE:
    """Product-of-experts posterior at each level of prior `top_down`: that level's prior and an expert a modality.

    Args:
        features: numbers that each encoder emits, which the experts of all levels are made from.
        network: from features and the latents above a level to 2 numbers a dimension, one a level and modality.

    Reference: Dorent et al., Unified Brain MR-Ultrasound Synthesis using Multi-Modal Hierarchical Representations
    (MHVAE), MICCAI 2023, https://arxiv.org/abs/2309.08747.
    """

    features: int = field(default=128, check=integer(1))
    network: Any = part("network", default=SMALL)

    def build(self, sizes: Sizes) -> TopDownPoEAggregator:
        """The live part."""
        check_product(sizes, "top_down_poe", "aggregator='moe'")
        if not isinstance(sizes.live_prior, TopDownPrior):
            named = type(sizes.prior).__name__
            raise SpecError(
                f"goes down the levels of its prior, and {named!r} has none; take prior='top_down'"
            )
        return TopDownPoEAggregator(self, sizes)


class TopDownPoEAggregator(nn.Module, Aggregator):
    """Experts of every level; goes down the prior of the model."""

    defaults = Defaults(has_unimodal_experts=False)

    def __init__(self, spec: TopDownPoE, sizes: Sizes) -> None:
        super().__init__()
        self.spec = spec
        prior: TopDownPrior = sizes.live_prior
        self._prior = (prior,)  # a module of the model's, not of this one
        shapes = [
            (spec.features + prior.above(i), 2 * width) for i, width in enumerate(prior.widths)
        ]
        self.heads = nn.ModuleDict(
            {
                k: nn.ModuleList(spec.network.encoder((into,), out) for into, out in shapes)
                for k in sizes.names
            }
        )

    def width(self, latent_dim: int) -> int:
        """The encoders emit features."""
        return self.spec.features

    def forward(self, experts: Experts, batch: Batch) -> TopDownPosterior:
        known = {
            name: experts.stats[i] for i, name in enumerate(self.heads) if name not in batch.hidden
        }
        return TopDownPosterior(self._prior[0], batch.observed, self.heads, known)
