"""Mixtures: of experts, and of products of experts over subsets of the modalities.

Axes: k components or subsets, b rows, m modalities, d latent.
"""

from __future__ import annotations

import itertools

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.mixture import Mixture, equal_weights, product_of_observed
from mvkit.core.modality import Sizes
from mvkit.core.product_of_experts import Factors
from mvkit.errors import SpecError
from mvkit.parts.aggregators.aggregator import Aggregator, Defaults
from mvkit.parts.families import check_product
from mvkit.registry.fields import choice, optional_count
from mvkit.registry.spec import field, names, spec

MOST_SUBSETS = 4096  # that are all used in evaluation
MOST_DRAWN = 40  # modalities: subsets are numbered in 64-bit integers, times how many are drawn


@spec
class MoE:
    """Mixture-of-experts posterior q(z|X) = 1/|O| Σ_{m∈O} q(z|x_m).

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, aggregator="moe", seed=0)
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.posterior(rows).log_weight.exp()[:, 0].tolist()
        [0.5, 0.5]

    Reference: Shi et al., Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
    Generative Models, 2019, https://arxiv.org/abs/1911.03393.
    """

    def build(self, sizes: Sizes) -> MoEAggregator:
        """The aggregator, which knows the order of the names."""
        return MoEAggregator(sizes)


class MoEAggregator(nn.Module, Aggregator):
    """Component m is expert m."""

    order: Tensor
    defaults = Defaults(bound="loose", private_from="evidence", mixture=True)
    alone_is_expert = True

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor(sizes.canonical), persistent=False)

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        usable = rearrange(batch.observed, "b m -> m b")
        own = torch.eye(len(usable), dtype=torch.bool, device=usable.device)
        evidence = rearrange(own, "k m -> k 1 m") & batch.observed
        log_pi = equal_weights(usable, experts.loc)
        loc, scale = experts.loc, experts.scale
        return Mixture(experts.family, loc, scale, log_pi, evidence, order=self.order)


def _subsets(value: object) -> str | None:
    subsets = value if isinstance(value, tuple) else ()
    fine = subsets and all(isinstance(s, tuple) and names(s) is None for s in subsets)
    return None if fine or value is None else "None or a list of lists of modalities"


@spec
class MoPoE:
    """Mixture of products: a component for each subset S of the observed, q_S ∝ ∏_{m∈S} q(z|x_m).

    Args:
        subsets: the subsets, as lists of names; None: all non-empty ones. Rows that can use none
            of those listed get the product of what they have.
        prior_expert: N(0, I) joins the product of `none`; of the `full` set only (the official
            code); of `all`.
        max_subsets: in training, so many subsets per row, without replacement, uniformly from
            those of what it observes; evaluation uses all, or above 4,096 the row's single
            modalities and all it observes.
        inference: what `encode` and `translate` use: the `product` of what is given (the paper),
            or the `mixture`.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, aggregator="mopoe", seed=0)
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.posterior(rows).log_weight.shape  # of {a}, {b} and {a, b}
        torch.Size([3, 4])

    Reference: Sutter, Daunhawer and Vogt, Generalized Multimodal ELBO, 2021,
    https://arxiv.org/abs/2105.02470.
    """

    subsets: tuple[tuple[str, ...], ...] | None = field(default=None, check=_subsets)
    prior_expert: str = choice("full", "none", "full", "all")
    max_subsets: int | None = optional_count()
    inference: str = choice("product", "mixture")

    def build(self, sizes: Sizes) -> MoPoEAggregator:
        """The aggregator with its subsets."""
        check_product(sizes, "mopoe", "aggregator='moe'")
        return MoPoEAggregator(self, sizes)


class MoPoEAggregator(nn.Module, Aggregator):
    """Products of all subsets at once, by one matrix product; no loop over subsets."""

    members: Tensor
    order: Tensor
    defaults = Defaults(draw="balanced", weighted_draw="iid", mixture=True)
    alone_is_expert = True

    def __init__(self, spec: MoPoE, sizes: Sizes) -> None:
        super().__init__()
        self.spec = spec
        m = len(sizes.names)
        if spec.subsets is None:
            subsets = _all_subsets(sizes, spec.max_subsets)
        else:
            subsets = _listed_subsets(sizes, spec)
        members = torch.zeros(len(subsets), m, dtype=torch.bool)
        for row, subset in zip(members, subsets, strict=True):
            row[list(subset)] = True
        self.register_buffer("members", members, persistent=False)
        self.register_buffer("order", torch.tensor(sizes.canonical), persistent=False)
        self.too_many = spec.subsets is None and len(subsets) < 2**m - 1
        singles = (members.sum(1) == 1).sum()
        self.needs_fallback = spec.subsets is not None and int(singles) < m

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        mask = batch.observed
        n = self.spec.max_subsets
        if experts.training and n is not None:
            members, usable = random_subsets(experts, mask, self.order, n)
        else:
            members, usable = self._subsets(mask)
        prior = self._prior(members, experts.dtype)
        factors = Factors.of(experts, mask, members, usable, prior)
        within = members if members.ndim == 3 else rearrange(members, "k m -> k 1 m")
        evidence = within & rearrange(usable, "k b -> k b 1")
        log_pi = equal_weights(usable, experts.loc)
        return Mixture(experts.family, None, None, log_pi, evidence, factors=factors)

    def _subsets(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Members (k, m) or (k, b, m) of all subsets, and rows that can use them, (k, b) bool."""
        lacking = (~mask).to(torch.float32)
        usable = einsum(self.members.to(torch.float32), lacking, "k m, b m -> k b") == 0
        if self.too_many:
            rows = mask.sum(1) > 1
        elif self.needs_fallback:
            rows = ~usable.any(0) & mask.any(1)
        else:
            return self.members, usable
        # one more subset for these rows: all that they observe
        members = repeat(self.members, "k m -> k b m", b=len(mask))
        members = torch.cat([members, rearrange(mask, "b m -> 1 b m")])
        return members, torch.cat([usable, rearrange(rows, "b -> 1 b")])

    def _prior(self, members: Tensor, dtype: torch.dtype) -> Tensor | float:
        """Precision of the prior expert in each subset, (k, b or 1, 1)."""
        if self.spec.prior_expert != "full":
            return float(self.spec.prior_expert == "all")
        full = members.all(-1).to(dtype)
        return rearrange(full, "k b -> k b 1" if members.ndim == 3 else "k -> k 1 1")

    def inference(self, experts: Experts, batch: Batch) -> Mixture:
        """The product of what is given, or the mixture."""
        if self.spec.inference == "mixture":
            return self.forward(experts, batch)
        members = rearrange(batch.observed, "b m -> 1 b m")
        return product_of_observed(experts, batch.observed, self._prior(members, experts.dtype))


def random_subsets(experts: Experts, mask: Tensor, order: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """At most n distinct non-empty subsets of what each row observes, all equally likely to be in.

    The subsets of a row are the integers 1 … N = 2^|O| - 1, one bit for each observed modality.
    They are cut into n strata, one integer is drawn from each, and all are shifted round by one
    offset.

    Args:
        experts: whose generator and dtype apply.
        mask: observed modalities, (b, m) bool.
        order: an order of the modalities that does not depend on that of their declaration, (m,).
        n: subsets per row.

    Returns:
        Members (n, b, m) bool, and which subsets there are, (n, b) bool.
    """
    shape = (n + 1, len(mask))
    like = mask.new_zeros((), dtype=torch.float64)
    uniform = noise.draw("choice/subset", shape, like, generator=experts.generator)
    sorted_mask = mask[:, order]
    total = 2 ** sorted_mask.sum(1) - 1
    stratum = rearrange(torch.arange(n, device=mask.device), "k -> k 1")
    low = stratum * total // n
    high = (stratum + 1) * total // n
    drawn = low + (uniform[:n] * (high - low)).long()
    few = total <= n  # then all are used, in order
    offset = torch.where(few, 0, (uniform[n] * total).long())
    code = (torch.where(few, stratum, drawn) + offset) % total.clamp(min=1) + 1
    usable = torch.where(few, stratum < total, True) & (total > 0)
    bit = (sorted_mask.cumsum(1) - 1).clamp(min=0)
    chosen = (rearrange(code, "k b -> k b 1") >> bit) & 1 == 1
    members = chosen & sorted_mask & rearrange(usable, "k b -> k b 1")
    return members[..., order.argsort()], usable


Subset = tuple[int, ...]  # positions of modalities


def _all_subsets(sizes: Sizes, max_subsets: int | None) -> list[Subset]:
    """All non-empty subsets, in an order that does not depend on that of the modalities.

    The single modalities alone where all are too many to use in evaluation.
    """
    m = len(sizes.names)
    count = 2**m - 1
    if max_subsets is None and count > MOST_SUBSETS:
        raise SpecError(
            f"{count} subsets of {m} modalities are too many to use all in training; give "
            "max_subsets, such as 64, or a list of subsets",
            "max_subsets",
        )
    if max_subsets is not None and m > MOST_DRAWN:
        raise SpecError(
            f"subsets of more than {MOST_DRAWN} modalities cannot be drawn; give a list", "subsets"
        )
    largest = m if count <= MOST_SUBSETS else 1
    subsets: list[Subset] = []
    for n in range(1, largest + 1):
        subsets += itertools.combinations(sizes.canonical, n)
    return subsets


def _listed_subsets(sizes: Sizes, spec: MoPoE) -> list[Subset]:
    """The subsets that the user lists, by size and then by name."""
    if spec.max_subsets is not None:
        raise SpecError("give subsets or max_subsets, not both", "subsets")
    subsets = set()
    for listed in spec.subsets or ():
        if not listed or not set(listed) <= set(sizes.names):
            known = ", ".join(sizes.names)
            raise SpecError(f"subset {listed!r}; expected one or more of {known}", "subsets")
        subsets.add(tuple(i for i in sizes.canonical if sizes.names[i] in listed))

    def size_and_names(subset: Subset) -> tuple[int, list[str]]:
        return len(subset), [sizes.names[i] for i in subset]

    return sorted(subsets, key=size_and_names)
