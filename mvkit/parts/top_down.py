"""Levels of latents, each given those above: a prior, and products of experts along it.

The latent z is the levels one after another, the top first. Axes: s samples, b rows, m modalities,
d latent, a latents above a level, f features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Generic, TypeVar

import attrs
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts, on_rows
from mvkit.core.family import Family
from mvkit.core.modality import Sizes
from mvkit.core.noise import Generator
from mvkit.core.posterior import Draws, Posterior
from mvkit.core.product_of_experts import SomeExperts, product
from mvkit.errors import SpecError
from mvkit.parts.aggregators.aggregator import Aggregator, Defaults
from mvkit.parts.families import check_product
from mvkit.parts.networks import encoder_of
from mvkit.parts.priors import Prior
from mvkit.registry import plugins
from mvkit.registry.fields import count
from mvkit.registry.spec import field, part, parts, spec

SMALL = {"name": "mlp", "hidden": [256]}
M = TypeVar("M", bound=nn.Module)


def _levels(value: object) -> str | None:
    widths = value if isinstance(value, tuple) else (value,)
    fine = widths and all(type(n) is int and n > 0 for n in widths)
    return None if fine else "an integer of at least 1, or a list of them"


@spec
class TopDown:
    """Hierarchical prior p(z) = p(z_L) ∏_l p(z_l|z_{l+1}, …, z_L), the top standard.

    Each level below is of the family, its parameters from all latents above it.

    Args:
        levels: how many, of widths as equal as can be; or their widths, the top first,
            `latent_dim` in all.
        networks: from all latents above a level to its 2 numbers per dimension: one for all levels
            below the top, or one for each, which may be an `nn.Module`.

    Example:
        >>> import mvkit
        >>> from mvkit.parts import TopDown
        >>> model = mvkit.Model(
        ...     {"a": (3,), "b": (2,)},
        ...     latent_dim=2,
        ...     aggregator="top_down_poe",
        ...     prior=TopDown(levels=[1, 1]),
        ...     seed=0,
        ... )
        >>> model.sample(5)["a"].shape
        torch.Size([5, 3])

    Reference: Sønderby et al., Ladder Variational Autoencoders, 2016,
    https://arxiv.org/abs/1602.02282; for several modalities Dorent et al., 2023,
    https://arxiv.org/abs/2309.08747.
    """

    levels: int | tuple[int, ...] = field(default=2, check=_levels)
    networks: tuple[object, ...] = parts("network", default=(SMALL,), module=True)

    def widths(self, latent: int) -> tuple[int, ...]:
        """The widths of the levels, the top first."""
        levels = self.levels
        if isinstance(levels, tuple):
            if sum(levels) != latent:
                reason = f"got {levels}, which sum to {sum(levels)}, not latent_dim={latent}"
                raise SpecError(reason, "levels")
            return levels
        if levels > latent:
            reason = f"got {levels}; latent_dim={latent} makes {latent} at most; take fewer"
            raise SpecError(reason, "levels")
        return tuple((latent + i) // levels for i in range(levels))

    def build(self, sizes: Sizes) -> TopDownPrior:
        """The prior with its networks."""
        return TopDownPrior(self, sizes)


class TopDownPrior(nn.Module, Prior):
    """The levels of p(z)."""

    top: Tensor

    def __init__(self, spec: TopDown, sizes: Sizes) -> None:
        super().__init__()
        self.family: Family = sizes.family
        self.widths = spec.widths(sizes.latent)
        below = self.widths[1:]
        networks = spec.networks
        if len(networks) == 1 and not isinstance(networks[0], nn.Module):
            networks = networks * len(below)
        if len(networks) != len(below):
            raise SpecError(
                f"got {len(networks)}; expected one spec for the levels below the top, or "
                f"{len(below)}, one for each",
                "networks",
            )
        self.networks = nn.ModuleList()
        for i, (network, width) in enumerate(zip(networks, below, strict=True), 1):
            self.networks.append(encoder_of(network, (self.above(i),), 2 * width))
        self.register_buffer("top", torch.zeros(self.widths[0]), persistent=False)

    def above(self, level: int) -> int:
        """How many latents are above a level, a."""
        return sum(self.widths[:level])

    def level(self, i: int, above: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of p(z_i|above), (..., b, a) -> (..., b, width)."""
        if i == 0:
            loc = self.top.expand(*above.shape[:-1], -1)
            return loc, torch.ones_like(loc)
        return _normal(self.networks[i - 1], above, self.widths[i], self.family)

    def forward(self, posterior: Posterior | None = None) -> TopDownPosterior:
        """The prior, as a posterior that has looked at nothing."""
        return TopDownPosterior(self, None, nn.ModuleDict(), {})


def _normal(
    network: nn.Module, inputs: Tensor, width: int, family: Family
) -> tuple[Tensor, Tensor]:
    """Location and scale that a network emits, (..., a) -> (..., width)."""
    numbers = on_rows(network, inputs.reshape(-1, inputs.shape[-1]))
    loc, raw = numbers.reshape(*inputs.shape[:-1], 2 * width).chunk(2, dim=-1)
    return loc, family.scale(raw)


def _stopped(module: M) -> M:
    """A copy whose parameters ask for no gradient."""
    return copy.deepcopy(module).requires_grad_(False)


@attrs.frozen(eq=False)
class Level:
    """Parameters of q and p of a level given those above, and its latent, (..., b, width) each."""

    loc: Tensor
    scale: Tensor
    loc0: Tensor
    scale0: Tensor
    z: Tensor


@attrs.frozen(eq=False)
class TopDownPosterior(Posterior):
    """q(z|x_O) = ∏_l q(z_l|x_O, z_{>l}), each factor ∝ p(z_l|z_{>l}) ∏_{m∈O} q(z_l|x_m, z_{>l}).

    Given nothing, it is the prior. `mean` goes down by means: the exact mean of the top, an
    estimate below.

    Args:
        prior: p.
        observed: (b, m) bool; None: a prior, b = 1.
        heads: networks to the experts of each level, by modality, the top first.
        features: what is known of modalities, {name: (b, f)}; those that no row shows are absent.
        active: rows that objectives count, (b,) bool; None: all.
    """

    prior: TopDownPrior
    observed: Tensor | None
    heads: nn.ModuleDict
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
        levels = self._down((self.log_weight.shape[1],), lambda i, loc, scale: loc)
        return torch.cat([level.z for level in levels], -1)

    def draw(self, n: int, how: str, generator: Generator = None, site: str = "z") -> Draws:
        family = self.prior.family
        shape = (n, 1, self.log_weight.shape[1], sum(self.prior.widths))
        like = self.prior.top
        eps = noise.draw(site, shape, like, generator=generator, sampler=family.noise)
        split = eps.split(self.prior.widths, dim=-1)
        levels = self._down(shape[:-1], lambda i, loc, scale: torch.addcmul(loc, scale, split[i]))

        def density() -> Tensor:
            scale = torch.cat([level.scale for level in levels], -1)
            return family.log_prob_of_noise(eps, scale)

        def kl(other: object) -> Tensor | None:
            if not isinstance(other, TopDownPosterior):
                return None
            if other.prior is not self.prior or other.observed is not None:
                return None
            kls = []
            for level in levels:
                kl = family.kl(level.loc, level.scale, level.loc0, level.scale0)
                if kl is None:
                    return None
                kls.append(kl)
            return torch.stack(kls).sum(0).mean(0)

        z = torch.cat([level.z for level in levels], -1)
        return Draws(self, z, None, self.log_weight, density, kl)

    def log_prob(self, z: Tensor) -> Tensor:
        split = z.split(self.prior.widths, dim=-1)
        levels = self._down(z.shape[:-1], lambda i, loc, scale: split[i])
        log_q = [self.prior.family.log_prob(level.z, level.loc, level.scale) for level in levels]
        return torch.stack(log_q).sum(0)

    def detach(self) -> TopDownPosterior:
        features = {name: values.detach() for name, values in self.features.items()}
        prior = _stopped(self.prior)
        return attrs.evolve(self, prior=prior, heads=_stopped(self.heads), features=features)

    def expand(self, b: int, m: int) -> TopDownPosterior:
        nothing = torch.zeros(b, m, dtype=torch.bool, device=self.prior.top.device)
        return TopDownPosterior(self.prior, nothing, nn.ModuleDict(), {})

    def _down(
        self, lead: tuple[int, ...], pick: Callable[[int, Tensor, Tensor], Tensor]
    ) -> list[Level]:
        """The levels from the top, their latents picked given location and scale.

        Args:
            lead: (..., b), the shape of a latent without its last axis.
            pick: from a level's number, location and scale to its latent.
        """
        levels = []
        above = self.prior.top.new_zeros(*lead, 0)
        for i in range(len(self.prior.widths)):
            loc0, scale0 = self.prior.level(i, above)
            loc, scale = self._product(i, above, loc0, scale0)
            z = pick(i, loc, scale)
            levels.append(Level(loc, scale, loc0, scale0, z))
            above = torch.cat([above, z], -1)
        return levels

    def _product(
        self, i: int, above: Tensor, loc0: Tensor, scale0: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The product of the prior of level i and the experts of what each row has."""
        if self.observed is None or not self.heads:
            return loc0, scale0
        locs = [loc0]
        scales = [scale0]
        members = [torch.ones_like(self.observed[:, 0])]
        for m, (name, heads) in enumerate(self.heads.items()):
            if name not in self.features:
                continue
            features = self.features[name].expand(*above.shape[:-1], -1)
            inputs = torch.cat([features, above], -1)
            head = heads[i]  # type: ignore[index]
            loc, scale = _normal(head, inputs, loc0.shape[-1], self.prior.family)
            locs.append(loc)
            scales.append(scale)
            members.append(self.observed[:, m])
        experts = SomeExperts(_rows(locs), _rows(scales))
        samples = experts.loc.shape[1] // len(self.observed)
        mask = repeat(torch.stack(members, -1), "b m -> (s b) m", s=samples)
        subset = rearrange(mask, "b m -> 1 b m")
        loc, scale = product(experts, mask, subset, subset.any(-1), 0.0)
        return loc.reshape(loc0.shape), scale.reshape(loc0.shape)


def _rows(parameters: list[Tensor]) -> Tensor:
    """Parameters of m experts, (..., b, width) each, as (m, n, width)."""
    stacked = torch.stack(parameters)
    return stacked.reshape(len(stacked), -1, stacked.shape[-1])


@attrs.frozen(eq=False)
class Borrowed(Generic[M]):
    """A module of the model in the hands of another part.

    Held in this record, and not as a submodule, its parameters keep the one name that the model
    gives them.
    """

    module: M


@spec
class TopDownPoE:
    """Product of experts at each level of prior `top_down`: of the level's prior and one expert
    per modality.

    Args:
        features: numbers that each encoder emits, from which the experts of all levels are made.
        network: from features and the latents above a level to 2 numbers per dimension, one per
            level and modality.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model(
        ...     {"a": (3,), "b": (2,)},
        ...     latent_dim=2,
        ...     aggregator="top_down_poe",
        ...     prior="top_down",
        ...     seed=0,
        ... )
        >>> model.encode({"a": torch.zeros(4, 3)}).shape
        torch.Size([4, 2])

    Reference: Dorent et al., Unified Brain MR-Ultrasound Synthesis using Multi-Modal Hierarchical
    Representations (MHVAE), MICCAI 2023, https://arxiv.org/abs/2309.08747.
    """

    features: int = count(128)
    network: object = part("network", default=SMALL)

    def build(self, sizes: Sizes) -> TopDownPoEAggregator:
        """The aggregator with its networks."""
        check_product(sizes, "top_down_poe", "aggregator='moe'")
        prior = sizes.live_prior
        if not isinstance(prior, TopDownPrior):
            cls = type(sizes.prior)
            name = plugins.name_of("prior", cls) or cls.__name__
            raise SpecError(
                f"goes down the levels of its prior, and {name!r} has none; take prior='top_down'"
            )
        return TopDownPoEAggregator(self, sizes.names, prior)


class TopDownPoEAggregator(nn.Module, Aggregator):
    """Experts of every level; goes down the prior of the model."""

    defaults = Defaults(has_unimodal_experts=False)

    def __init__(self, spec: TopDownPoE, names: tuple[str, ...], prior: TopDownPrior) -> None:
        super().__init__()
        self.spec = spec
        self.prior = Borrowed(prior)
        self.heads = nn.ModuleDict()
        for name in names:
            heads = nn.ModuleList()
            for i, width in enumerate(prior.widths):
                inputs = spec.features + prior.above(i)
                heads.append(encoder_of(spec.network, (inputs,), 2 * width))
            self.heads[name] = heads

    def width(self, latent_dim: int) -> int:
        """Width of the features."""
        return self.spec.features

    def forward(self, experts: Experts, batch: Batch) -> TopDownPosterior:
        features = {}
        for i, name in enumerate(self.heads):
            if name not in batch.hidden:
                features[name] = experts.stats[i]
        return TopDownPosterior(self.prior.module, batch.observed, self.heads, features)
