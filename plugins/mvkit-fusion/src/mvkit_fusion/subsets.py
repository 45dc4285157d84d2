"""Mixtures with one component for each non-empty subset of what a row observes.

Axes: k subsets, b rows, m modalities, p pairs of modalities, d latent.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from mvkit import Aggregator, Batch, Mixture, SpecError, spec
from mvkit.core import Experts, Sizes, equal_weights
from mvkit.parts import Defaults, check_product
from mvkit.parts.aggregators.mixtures import random_subsets
from mvkit.registry import field, integer, name_of, number, one_of
from mvkit.registry.fields import choice

MOST = 12  # modalities; their 4,095 subsets are all used in evaluation
MOST_RHO = 0.999  # at 1, experts that differ in scale would leave no variance
_rho = one_of(None, other=number(0.0, MOST_RHO))
_max_subsets = one_of(None, other=integer(1))


@spec
class CoDE:
    """Consensus of dependent experts: a component for each subset S, its experts correlated.

    With σ the standard deviations in S and R(ρ) one on the diagonal and ρ elsewhere,
    Σ = (σσᵀ) ∘ R(ρ) in every dimension; the component has variance 1/(uᵀ Σ⁻¹ u) and mean
    (uᵀ Σ⁻¹ μ)/(uᵀ Σ⁻¹ u), u = 1. At ρ = 0 that is the product of experts. With ρ > 0 experts may
    get negative weights, and the mean may lie outside their hull.

    The paper's bound is Σ_S π_S (E log p - β KL) + H(π): objective
    `{"name": "sum", "terms": ["elbo", "entropy"]}`.

    Args:
        rho: ρ, from 0 to 0.999; None: trained, from a half.
        max_subsets: in training, so many subsets per row, drawn uniformly from those of what it
            observes, with π normalised over them; evaluation uses all.
        inference: what `encode` and `translate` use: the consensus of the `whole` of what is given
            (the paper), or the `mixture`.

    Reference: Mancisidor, Jenssen, Yu and Kampffmeyer, Aggregation of Dependent Expert
    Distributions in Multimodal Variational Autoencoders, ICML 2025,
    https://arxiv.org/abs/2505.01134.
    """

    rho: float | None = field(default=None, check=_rho)
    max_subsets: int | None = field(default=None, check=_max_subsets)
    inference: str = choice("whole", "mixture")

    def build(self, sizes: Sizes) -> CoDEAggregator:
        """The aggregator with ρ and the weights."""
        check_product(sizes, "code", "aggregator='mwb'")
        return CoDEAggregator(self, sizes)


@spec
class MWB:
    """Mixture of Wasserstein barycentres: for each subset S, the means of μ_m and σ_m over S.

    Weights are equal.

    Args:
        max_subsets: in training, so many subsets per row, drawn uniformly from those of what it
            observes; evaluation uses all.
        inference: what `encode` and `translate` use: the barycentre of the `whole` of what is
            given, or the `mixture`.

    Reference: Qiu, Zhu, Cui, Lin and Ma, Multimodal Variational Autoencoder: A Barycentric View,
    AAAI 2025, https://arxiv.org/abs/2412.20487.
    """

    max_subsets: int | None = field(default=None, check=_max_subsets)
    inference: str = choice("whole", "mixture")

    def build(self, sizes: Sizes) -> MWBAggregator:
        """The aggregator, without parameters."""
        return MWBAggregator(self, sizes)


def over(weights: Tensor, values: Tensor) -> Tensor:
    """Sums over subsets, of weights (k, m) or (k, b, m) times values (m, b, d) -> (k, b, d)."""
    pattern = "k m, m b d -> k b d" if weights.ndim == 2 else "k b m, m b d -> k b d"
    return einsum(weights, values, pattern)


def per_row(values: Tensor) -> Tensor:
    """Numbers of subsets, (k,) or (k, b), as they stand beside (k, b, d)."""
    return rearrange(values, "k -> k 1 1" if values.ndim == 1 else "k b -> k b 1")


class SubsetAggregator(nn.Module, Aggregator):
    """A component for each subset, all at once by matrix products.

    Subset 1 … 2^M - 1 has a bit for each modality in the order of their names, so that nothing
    depends on the order in which they are declared. To implement one, write `fuse` and `weigh`.
    """

    members: Tensor
    bit: Tensor
    order: Tensor
    alone_is_expert = True

    def __init__(self, spec: CoDE | MWB, sizes: Sizes) -> None:
        super().__init__()
        m = len(sizes.names)
        if m > MOST:
            name = name_of("aggregator", type(spec))
            raise SpecError(
                f"aggregator {name!r} uses all subsets of {m} modalities in "
                f"evaluation; expected at most {MOST} modalities; take aggregator='mopoe' with "
                "max_subsets"
            )
        self.spec = spec
        order = torch.tensor(sizes.canonical)
        bit = order.argsort()
        members = (rearrange(torch.arange(1, 2**m), "k -> k 1") >> bit) & 1 == 1
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("bit", bit, persistent=False)
        self.register_buffer("members", members, persistent=False)

    @abstractmethod
    def fuse(self, experts: Experts, members: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of each subset, (k, b, d); finite also where not `usable` (k, b).

        Members are (k, m) for all rows alike, or (k, b, m).
        """

    @abstractmethod
    def weigh(self, number: Tensor, usable: Tensor, like: Tensor) -> Tensor:
        """Log-weights (k, b), of the dtype of `like`, of the subsets with these numbers.

        They count from 0, (k, 1) or (k, b).
        """

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        n = self.spec.max_subsets
        if experts.training and n is not None:
            members, usable = random_subsets(experts, batch.observed, self.order, n)
            number = (members.long() << self.bit).sum(-1).clamp(min=1) - 1
        else:
            members = self.members
            usable = (rearrange(members, "k m -> k 1 m") <= batch.observed).all(-1)
            number = rearrange(torch.arange(len(members), device=members.device), "k -> k 1")
        log_pi = self.weigh(number, usable, experts.loc)
        return self._mixture(experts, members, usable, log_pi)

    def _mixture(
        self, experts: Experts, members: Tensor, usable: Tensor, log_pi: Tensor
    ) -> Mixture:
        loc, scale = self.fuse(experts, members, usable)
        within = members if members.ndim == 3 else rearrange(members, "k m -> k 1 m")
        evidence = within & rearrange(usable, "k b -> k b 1")
        return Mixture(experts.family, loc, scale, log_pi, evidence)

    def inference(self, experts: Experts, batch: Batch) -> Mixture:
        """What is given as one subset, or the mixture."""
        if self.spec.inference == "mixture":
            return self.forward(experts, batch)
        members = rearrange(batch.observed, "b m -> 1 b m")
        usable = members.any(-1)
        return self._mixture(experts, members, usable, experts.loc.new_zeros(usable.shape))


class CoDEAggregator(SubsetAggregator):
    """Holds ρ and the logits of π; a row's π is normalised over the subsets that it can use."""

    pairs: Tensor
    defaults = Defaults(mixture=True)

    def __init__(self, spec: CoDE, sizes: Sizes) -> None:
        super().__init__(spec, sizes)
        m = len(sizes.names)
        self.register_buffer("pairs", torch.triu_indices(m, m, 1), persistent=False)
        self.logits = nn.Parameter(torch.zeros(2**m - 1))
        self.raw = nn.Parameter(torch.zeros(())) if spec.rho is None else None
        self.fixed = spec.rho or 0.0

    @property
    def rho(self) -> Tensor | float:
        """ρ, ()."""
        return self.fixed if self.raw is None else MOST_RHO * torch.sigmoid(self.raw)

    def fuse(self, experts: Experts, members: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
        """Sherman and Morrison's inverse of R(ρ), its differences of sums as sums over pairs.

        With a = 1/σ and n = |S|: (1-ρ)(1+(n-1)ρ) uᵀΣ⁻¹u = (1-ρ) Σ a² + ρ Σ_{i<j} (a_i-a_j)², since
        n Σ a² - (Σ a)² = Σ_{i<j} (a_i-a_j)²; uᵀΣ⁻¹μ likewise. In the variance no terms cancel, so
        that it stays positive in float32 near ρ = 1.
        """
        rho = self.rho
        i, j = self.pairs
        a = experts.scale.reciprocal()
        b = a * experts.loc
        apart = a[i] - a[j]
        inside = members.to(a.dtype)
        both = inside[..., i] * inside[..., j]
        weights = torch.cat([(1 - rho) * inside, rho * both], dim=-1)
        # 1 in what a row cannot use: 0/0 would make NaN gradients
        guard = per_row(~usable).to(a.dtype)
        total = over(weights, torch.cat([a * a, apart * apart])) + guard
        loc = over(weights, torch.cat([a * b, apart * (b[i] - b[j])])) / total
        spread = (1 - rho) * (1 + (inside.sum(-1) - 1) * rho)
        return loc, torch.sqrt(per_row(spread)) * torch.rsqrt(total)

    def weigh(self, number: Tensor, usable: Tensor, like: Tensor) -> Tensor:
        """π over what is usable."""
        return torch.log_softmax(self.logits[number] + equal_weights(usable, like), dim=0)


class MWBAggregator(SubsetAggregator):
    """Means over each subset."""

    defaults = Defaults(draw="balanced", weighted_draw="iid", mixture=True)

    def fuse(self, experts: Experts, members: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
        """Means of locations and of standard deviations."""
        inside = members.to(experts.loc.dtype)
        count = inside.sum(-1)
        share = inside / rearrange(count, "... -> ... 1").clamp(min=1)
        # an empty subset, which no row uses, has scale 0, which no density can take
        scale = over(share, experts.scale) + (per_row(count) == 0)
        return over(share, experts.loc), scale

    def weigh(self, number: Tensor, usable: Tensor, like: Tensor) -> Tensor:
        """Equal over what is usable."""
        return equal_weights(usable, like)
