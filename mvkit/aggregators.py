"""Aggregators: from unimodal experts to one posterior q(z|x_O), a mixture with weights and evidence.

Axes: k components, b rows, m modalities, d latent, w encoder width.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from einops import einsum, rearrange, reduce, repeat
from torch import Tensor, nn

from mvkit import noise
from mvkit.batch import Batch
from mvkit.errors import SpecError
from mvkit.experts import Experts
from mvkit.families import Family
from mvkit.mixture import Mixture, equal_weights
from mvkit.modality import Sizes
from mvkit.posterior import Posterior
from mvkit.products import Factors, product
from mvkit.spec import field, flag, integer, names, one_of, spec


@attrs.frozen
class Defaults:
    """What objectives and private latents do with this aggregator unless told otherwise (maths of each part).

    Args:
        draw: how elbo draws.
        weighted_draw: how iwae and dreg draw.
        bound: which importance-weighted bound, `loose` or `tight`.
        private_from: rule of private latents, `evidence` or `observed`.
        mixture: whether posteriors have several components.
        raw_experts: whether encoders emit experts of the family, which may be multiplied or used alone.
        own_trunks: whether it encodes the data itself, so that the unimodal encoders can be trained after it.
        unimodal: what is trained then, as globs over parameter names.
    """

    draw: str = "stratified"
    weighted_draw: str = "stratified"
    bound: str = "tight"
    private_from: str = "observed"
    mixture: bool = False
    raw_experts: bool = True
    own_trunks: bool = False
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
    every = torch.ones(1, seen.shape[1], dtype=torch.bool, device=mask.device)  # unobserved ones have no precision
    loc, scale = product(some, seen, every, reduce(seen, "b m -> 1 b", "max"), prior)
    return Mixture(experts.family, loc, scale, loc.new_zeros(loc.shape[:2]), rearrange(mask, "b m -> 1 b m"))


def raw_expert(experts: Experts, batch: Batch, i: int) -> Mixture:
    """Expert i as a posterior of its own, active where its modality is observed."""
    observed = batch.observed[:, i]
    loc, scale = experts.loc[i : i + 1], experts.scale[i : i + 1]
    evidence = torch.zeros_like(batch.observed)
    evidence[:, i] = observed
    return Mixture(
        experts.family, loc, scale, loc.new_zeros(loc.shape[:2]), rearrange(evidence, "b m -> 1 b m"), active=observed
    )


def raw_experts(experts: Experts, batch: Batch) -> dict[str, Mixture]:
    """All experts as posteriors of their own, by modality."""
    return {name: raw_expert(experts, batch, i) for i, name in enumerate(experts.modalities)}


def refuse_product(sizes: Sizes, name: str, instead: str) -> None:
    """Raises SpecError if the family's experts have no closed product."""
    family: Family = sizes.family
    if not family.closed_product:
        raise SpecError(
            f"aggregator {name!r} multiplies experts, and family {type(family).__name__!r} has no closed product; "
            f"take a normal family, or {instead}"
        )


@spec
class PoE(Aggregator):
    """Product-of-experts posterior q(z|X) ∝ p(z) ∏ q(z|x_m): precisions add up.

    Args:
        prior_expert: whether N(0, I) joins the product, once.

    Reference: Wu and Goodman, Multimodal Generative Models for Scalable Weakly-Supervised Learning, 2018,
    https://arxiv.org/abs/1802.05335.
    """

    prior_expert: bool = field(default=True, check=flag)

    def build(self, sizes: Sizes) -> PoE:
        """The live part: itself."""
        refuse_product(sizes, "poe", "aggregator='moe'")
        return self

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        return product_of_observed(experts, batch.observed, float(self.prior_expert))


@spec
class MoE:
    """Mixture-of-experts posterior q(z|X) = 1/|O| Σ_m q(z|x_m).

    Reference: Shi et al., Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models,
    2019, https://arxiv.org/abs/1911.03393.
    """

    def build(self, sizes: Sizes) -> MoEAggregator:
        """The live part."""
        return MoEAggregator(sizes)


class MoEAggregator(nn.Module, Aggregator):
    """Component m is expert m."""

    order: Tensor
    defaults = Defaults(bound="loose", private_from="evidence", mixture=True)

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor(sizes.canonical), persistent=False)

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        usable = rearrange(batch.observed, "b m -> m b")
        own = torch.eye(len(usable), dtype=torch.bool, device=usable.device)
        evidence = rearrange(own, "k m -> k 1 m") & batch.observed
        log_weight = equal_weights(usable, experts.loc)
        return Mixture(experts.family, experts.loc, experts.scale, log_weight, evidence, order=self.order)

    unimodal = staticmethod(raw_experts)


def _lists_of_names(value: object) -> str | None:
    fine = isinstance(value, tuple) and value and all(isinstance(one, tuple) and names(one) is None for one in value)
    return None if fine else "a list of lists of modalities"


@spec
class MoPoE:
    """Mixture of products: a component for each subset S of the observed, q_S ∝ ∏_{m∈S} q(z|x_m).

    Args:
        subsets: the subsets, as lists of names; None: all non-empty ones. Rows that can use none of those listed
            get the product of what they have.
        prior_expert: N(0, I) joins the product of `none`; of the `full` set only (the official code); of `all`.
        max_subsets: in training, so many subsets a row, without replacement, uniformly from those of what it
            observes; evaluation uses all, or above 4,096 the row's single modalities and all it observes.
        inference: what `encode` and `translate` use: the `product` of what is given (the paper), or the `mixture`.

    Reference: Sutter, Daunhawer and Vogt, Generalized Multimodal ELBO, 2021, https://arxiv.org/abs/2105.02470.
    """

    subsets: tuple[tuple[str, ...], ...] | None = field(default=None, check=one_of(None, other=_lists_of_names))
    prior_expert: str = field(default="full", check=one_of("none", "full", "all"))
    max_subsets: int | None = field(default=None, check=one_of(None, other=integer(1)))
    inference: str = field(default="product", check=one_of("product", "mixture"))

    def build(self, sizes: Sizes) -> MoPoEAggregator:
        """The live part."""
        refuse_product(sizes, "mopoe", "aggregator='moe'")
        return MoPoEAggregator(self, sizes)


MOST_SUBSETS = 4096
MOST_DRAWN = 40  # subsets are numbered in 64-bit integers, times how many are drawn


class MoPoEAggregator(nn.Module, Aggregator):
    """Products of all subsets at once, by one matrix product; no loop over subsets."""

    members: Tensor
    order: Tensor
    defaults = Defaults(draw="balanced", weighted_draw="iid", mixture=True)

    def __init__(self, spec: MoPoE, sizes: Sizes) -> None:
        super().__init__()
        self.spec = spec
        subsets = _subsets(spec, sizes)
        rows = [[i in subset for i in range(len(sizes.names))] for subset in subsets]
        self.register_buffer("members", torch.tensor(rows, dtype=torch.bool), persistent=False)
        self.register_buffer("order", torch.tensor(sizes.canonical), persistent=False)
        single = {subset for subset in subsets if len(subset) == 1}
        self.fallback = spec.subsets is not None and len(single) < len(sizes.names)
        self.few = spec.subsets is None and not subsets

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        mask = batch.observed
        if experts.training and self.spec.max_subsets is not None:
            members, usable = random_subsets(experts, mask, self.order, self.spec.max_subsets)
        elif self.few:
            members, usable = self._singles_and_all(mask)
        else:
            members, usable = self.members, self._usable(mask)
        if self.fallback:
            members, usable = self._with_fallback(members, usable, mask)
        factors = Factors.of(experts, mask, members, usable, self._prior(members, experts.loc))
        within = members if members.ndim == 3 else rearrange(members, "k m -> k 1 m")
        evidence = within & rearrange(usable, "k b -> k b 1")
        log_weight = equal_weights(usable, experts.loc)
        return Mixture(experts.family, None, None, log_weight, evidence, factors=factors)

    def _usable(self, mask: Tensor) -> Tensor:
        lacking = (~mask).to(torch.float32)
        return einsum(self.members.to(torch.float32), lacking, "k m, b m -> k b") == 0

    def _prior(self, members: Tensor, like: Tensor) -> Tensor | float:
        if self.spec.prior_expert != "full":
            return float(self.spec.prior_expert == "all")
        full = members.all(-1).to(like.dtype)
        return rearrange(full, "k b -> k b 1" if members.ndim == 3 else "k -> k 1 1")

    def _singles_and_all(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        own = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)[self.order]
        members = torch.cat([rearrange(own, "k m -> k 1 m") & mask, rearrange(mask, "b m -> 1 b m")])
        several = mask.sum(1) > 1
        usable = torch.cat([rearrange(mask[:, self.order], "b k -> k b"), rearrange(several, "b -> 1 b")])
        return members, usable

    def _with_fallback(self, members: Tensor, usable: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        each = repeat(members, "k m -> k b m", b=len(mask))
        lost = reduce(~usable, "k b -> 1 b", "min") & mask.any(1)
        return torch.cat([each, rearrange(mask, "b m -> 1 b m")]), torch.cat([usable, lost])

    unimodal = staticmethod(raw_experts)

    def inference(self, experts: Experts, batch: Batch) -> Mixture:
        """The product of what is given, or the mixture."""
        if self.spec.inference == "mixture":
            return self.forward(experts, batch)
        members = rearrange(batch.observed, "b m -> 1 b m")
        return product_of_observed(experts, batch.observed, self._prior(members, experts.loc))


def random_subsets(experts: Experts, mask: Tensor, order: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """At most n distinct non-empty subsets of what each row observes, every one equally likely to be in.

    The subsets of a row are the integers 1 … N = 2^|O| - 1, a bit for each observed modality. They are cut into n
    strata, one integer is drawn from each, and all are shifted round by one offset.

    Args:
        experts: whose generator and dtype apply.
        mask: observed modalities, (b, m) bool.
        order: an order of the modalities that declaring them otherwise does not change, (m,).
        n: subsets a row.

    Returns:
        Members (n, b, m) bool, and which subsets there are, (n, b) bool.
    """
    uniform = noise.draw("choice/subset", (n + 1, len(mask)), experts.loc.double(), generator=experts.generator)
    sorted_mask = mask[:, order]
    total = 2 ** sorted_mask.sum(1) - 1
    stratum = rearrange(torch.arange(n, device=mask.device), "k -> k 1")
    low, high = stratum * total // n, (stratum + 1) * total // n
    drawn = low + (uniform[:n] * (high - low)).long()
    few = total <= n
    offset = torch.where(few, 0, (uniform[n] * total).long())
    code = (torch.where(few, stratum, drawn) + offset) % total.clamp(min=1) + 1
    usable = torch.where(few, stratum < total, True) & (total > 0)
    bit = sorted_mask.cumsum(1) - 1
    chosen = (rearrange(code, "k b -> k b 1") >> bit.clamp(min=0)) & 1
    members = (chosen == 1) & sorted_mask & rearrange(usable, "k b -> k b 1")
    return members[..., order.argsort()], usable


def _subsets(spec: MoPoE, sizes: Sizes) -> list[tuple[int, ...]]:
    """Subsets as positions, in an order that does not depend on that of the modalities; [] if too many."""
    m = len(sizes.names)
    if spec.max_subsets is not None and m > MOST_DRAWN:
        raise SpecError(f"subsets of more than {MOST_DRAWN} modalities cannot be drawn; give a list", "subsets")
    if spec.subsets is None:
        if 2**m - 1 > MOST_SUBSETS and spec.max_subsets is None:
            raise SpecError(
                f"{2**m - 1} subsets of {m} modalities are too many to use all in training; give max_subsets, "
                "such as 64, or a list of subsets",
                "max_subsets",
            )
        if 2**m - 1 > MOST_SUBSETS:
            return []
        sets = itertools.chain.from_iterable(itertools.combinations(sizes.canonical, n) for n in range(1, m + 1))
        return list(sets)
    if spec.max_subsets is not None:
        raise SpecError("give subsets or max_subsets, not both", "subsets")
    found = []
    for subset in spec.subsets:
        unknown = [name for name in subset if name not in sizes.names]
        if unknown or not subset:
            raise SpecError(f"subset {subset!r}; expected one or more of {', '.join(sizes.names)}", "subsets")
        found.append(tuple(i for i in sizes.canonical if sizes.names[i] in subset))
    return sorted(set(found), key=lambda s: (len(s), [sizes.names[i] for i in s]))
