"""parts.aggregators.aggregator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.family import Family
from mvkit.core.mixture import Mixture
from mvkit.core.modality import Sizes
from mvkit.core.posterior import Posterior
from mvkit.core.product_of_experts import product
from mvkit.errors import SpecError


@attrs.frozen
class Defaults:
    """What objectives and private latents do with this aggregator unless told otherwise (maths of each part).

    Args:
        draw: how elbo draws.
        weighted_draw: how iwae and dreg draw.
        bound: which importance-weighted bound, `loose` or `tight`.
        private_from: rule of private latents, `evidence` or `observed`.
        mixture: whether posteriors have several components.
        has_unimodal_experts: whether encoders emit experts of the family, which may be multiplied or used alone.
        has_joint_encoder: whether it encodes the data itself, so that the unimodal encoders can be trained after it.
        unimodal: what is trained then, as globs over parameter names.
    """

    draw: str = "stratified"
    weighted_draw: str = "stratified"
    bound: str = "tight"
    private_from: str = "observed"
    mixture: bool = False
    has_unimodal_experts: bool = True
    has_joint_encoder: bool = False
    unimodal: tuple[str, ...] = ("encoders.*",)


class Aggregator(ABC):
    """Fuses unimodal evidence into one posterior.

    To implement one, write a spec whose `build(sizes)` returns an object with `forward` (the spec itself if it
    has no parameters, else an `nn.Module`). Invariants: unobserved experts (see `batch.observed`) change
    nothing; rows are independent; log-weights of a row sum to one; nothing is NaN, also in rows where nothing
    is observed. `posterior`, `unimodal` and `inference` have defaults in terms of `forward`.
    """

    defaults = Defaults()

    def width(self, latent_dim: int) -> int:
        """Numbers that each encoder emits for the aggregator: locations and raw scales, 2 d."""
        return 2 * latent_dim

    @abstractmethod
    def forward(self, experts: Experts, batch: Batch) -> Posterior:
        """The posterior given what `batch` observes, in the rows that objectives count (`active`)."""

    def posterior(self, experts: Experts, batch: Batch) -> Posterior:
        """The posterior in every row, for `posterior()` and importance sampling: its density integrates to one."""
        return self.forward(experts, batch)

    def unimodal(self, experts: Experts, batch: Batch) -> Mapping[str, Posterior]:
        """q_m(z|x_m): this aggregator's posterior given each modality alone, active where it is observed."""
        found = {}
        for i, name in enumerate(experts.modalities):
            alone: Any = self.forward(experts, batch.hide([name]))
            found[name] = attrs.evolve(alone, active=batch.observed[:, i])
        return found

    def inference(self, experts: Experts, batch: Batch) -> Posterior:
        """What `encode` and `translate` use: the posterior, unless the aggregator's paper says otherwise."""
        return self.posterior(experts, batch)


def product_of_observed(experts: Experts, mask: Tensor, prior: Tensor | float) -> Mixture:
    """The one-component product of everything that each row observes."""
    shown = experts.shown
    some = experts if len(shown) in (0, mask.shape[1]) else experts.only(shown)
    seen = mask if some is experts else mask[:, shown]
    every = torch.ones(
        1, seen.shape[1], dtype=torch.bool, device=mask.device
    )  # unobserved ones have no precision
    loc, scale = product(some, seen, every, reduce(seen, "b m -> 1 b", "max"), prior)
    return Mixture(
        experts.family, loc, scale, loc.new_zeros(loc.shape[:2]), rearrange(mask, "b m -> 1 b m")
    )


def raw_expert(experts: Experts, batch: Batch, i: int) -> Mixture:
    """Expert i as a posterior of its own, active where its modality is observed."""
    observed = batch.observed[:, i]
    loc, scale = experts.loc[i : i + 1], experts.scale[i : i + 1]
    evidence = torch.zeros_like(batch.observed)
    evidence[:, i] = observed
    return Mixture(
        experts.family,
        loc,
        scale,
        loc.new_zeros(loc.shape[:2]),
        rearrange(evidence, "b m -> 1 b m"),
        active=observed,
    )


def raw_experts(experts: Experts, batch: Batch) -> dict[str, Mixture]:
    """All experts as posteriors of their own, by modality."""
    return {name: raw_expert(experts, batch, i) for i, name in enumerate(experts.modalities)}


def check_product(sizes: Sizes, name: str, instead: str) -> None:
    """Raises SpecError if the family's experts have no closed product."""
    family: Family = sizes.family
    if not family.closed_product:
        raise SpecError(
            f"aggregator {name!r} multiplies experts, and family {type(family).__name__!r} has no closed product; "
            f"take a normal family, or {instead}"
        )


def head_of(network: Any, shape: int, width: int) -> nn.Module:
    """A head network from `shape` numbers to `width`: a user's module, or built from its spec."""
    module = isinstance(network, nn.Module)
    return network if module else network.encoder((shape,), width)  # type: ignore[no-any-return]


def observed_by_modality(batch: Batch) -> Tensor:
    return rearrange(batch.observed, "b m -> m b 1")


def one_component(experts: Experts, batch: Batch, loc: Tensor, scale: Tensor) -> Mixture:
    """A one-component posterior from (b, d) parameters."""
    loc, scale = (rearrange(t, "b d -> 1 b d") for t in (loc, scale))
    evidence = rearrange(batch.observed, "b m -> 1 b m")
    return Mixture(experts.family, loc, scale, loc.new_zeros(loc.shape[:2]), evidence)
