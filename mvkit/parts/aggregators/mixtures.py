"""Aggregators: from unimodal experts to one posterior q(z|x_O), a mixture with weights and evidence.

Axes: k components, b rows, m modalities, d latent, w encoder width.
"""

from __future__ import annotations

import itertools

import torch
from einops import einsum, rearrange, reduce, repeat
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.mixture import Mixture, equal_weights
from mvkit.core.modality import Sizes
from mvkit.core.product_of_experts import Factors
from mvkit.errors import SpecError
from mvkit.parts.aggregators.aggregator import (
    Aggregator,
    Defaults,
    check_product,
    product_of_observed,
    raw_experts,
)
from mvkit.registry.spec import field, integer, names, one_of, spec


@spec
class MoE:
    """Mixture-of-experts posterior q(z|X) = 1/|O| Σ_m q(z|x_m).

    Reference: Shi et al., Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep MultimodalModel Models,
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
        return Mixture(
            experts.family, experts.loc, experts.scale, log_weight, evidence, order=self.order
        )

    unimodal = staticmethod(raw_experts)


def _lists_of_names(value: object) -> str | None:
    fine = (
        isinstance(value, tuple)
        and value
        and all(isinstance(one, tuple) and names(one) is None for one in value)
    )
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

    subsets: tuple[tuple[str, ...], ...] | None = field(
        default=None, check=one_of(None, other=_lists_of_names)
    )
    prior_expert: str = field(default="full", check=one_of("none", "full", "all"))
    max_subsets: int | None = field(default=None, check=one_of(None, other=integer(1)))
    inference: str = field(default="product", check=one_of("product", "mixture"))

    def build(self, sizes: Sizes) -> MoPoEAggregator:
        """The live part."""
        check_product(sizes, "mopoe", "aggregator='moe'")
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
        members = torch.cat(
            [rearrange(own, "k m -> k 1 m") & mask, rearrange(mask, "b m -> 1 b m")]
        )
        several = mask.sum(1) > 1
        usable = torch.cat(
            [rearrange(mask[:, self.order], "b k -> k b"), rearrange(several, "b -> 1 b")]
        )
        return members, usable

    def _with_fallback(
        self, members: Tensor, usable: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
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
    uniform = noise.draw(
        "choice/subset", (n + 1, len(mask)), experts.loc.double(), generator=experts.generator
    )
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
        raise SpecError(
            f"subsets of more than {MOST_DRAWN} modalities cannot be drawn; give a list", "subsets"
        )
    if spec.subsets is None:
        if 2**m - 1 > MOST_SUBSETS and spec.max_subsets is None:
            raise SpecError(
                f"{2**m - 1} subsets of {m} modalities are too many to use all in training; give max_subsets, "
                "such as 64, or a list of subsets",
                "max_subsets",
            )
        if 2**m - 1 > MOST_SUBSETS:
            return []
        sets = itertools.chain.from_iterable(
            itertools.combinations(sizes.canonical, n) for n in range(1, m + 1)
        )
        return list(sets)
    if spec.max_subsets is not None:
        raise SpecError("give subsets or max_subsets, not both", "subsets")
    found = []
    for subset in spec.subsets:
        unknown = [name for name in subset if name not in sizes.names]
        if unknown or not subset:
            raise SpecError(
                f"subset {subset!r}; expected one or more of {', '.join(sizes.names)}", "subsets"
            )
        found.append(tuple(i for i in sizes.canonical if sizes.names[i] in subset))
    return sorted(set(found), key=lambda s: (len(s), [sizes.names[i] for i in s]))
