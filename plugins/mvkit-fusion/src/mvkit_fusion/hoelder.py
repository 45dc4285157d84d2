"""Hölder pooling of experts with α = 1/2: exact, and as one component with its moments.

Axes: k single experts and pairs, b rows, m modalities, d latent.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit import Aggregator, Batch, Mixture, spec
from mvkit.core import Experts, Sizes, equal_weights
from mvkit.core.mixture import one_component
from mvkit.parts import Defaults, check_product
from mvkit.registry.fields import switch

LOG_2 = math.log(2.0)


@spec
class Hoelder:
    """Hölder pooling with α = 1/2, q(z|x_O) ∝ (Σ_{m∈O} w_m √q_m(z))²: of experts and pairs.

    It is exactly a mixture. Expert m has weight c w_m²; the pair i < j has 2 c w_i w_j S_ij with
    S_ij = ∫ √(q_i q_j), the Bhattacharyya coefficient, and the density √(q_i q_j)/S_ij, which is
    normal. The normaliser c depends on the experts.

    Args:
        trained: whether the w_m are trained (else equal).

    Reference: Vo, Martínez-García and Valera, Hölder++: Improving the Quality-Coherence Trade-off
    in Multimodal VAEs, ICML 2026, https://arxiv.org/abs/2606.13381.
    """

    trained: bool = switch(False)

    def build(self, sizes: Sizes) -> HoelderAggregator:
        """The aggregator with its weights."""
        check_product(sizes, "hoelder", "aggregator='moe'")
        return HoelderAggregator(sizes, trained=self.trained)


@spec
class Hellinger:
    """The normal with the mean and the variances of Hölder's mixture (see `hoelder`).

    Args:
        trained: whether the w_m are trained (else equal).

    Reference: Vo and Valera, Hellinger Multimodal Variational Autoencoders, 2026,
    https://arxiv.org/abs/2601.06572.
    """

    trained: bool = switch(False)

    def build(self, sizes: Sizes) -> HellingerAggregator:
        """The aggregator with its weights."""
        check_product(sizes, "hellinger", "aggregator='wasserstein'")
        return HellingerAggregator(sizes, trained=self.trained)


class HoelderAggregator(nn.Module, Aggregator):
    """Component k is the pair (first, second), an expert where the two are the same."""

    first: Tensor
    second: Tensor
    members: Tensor
    defaults = Defaults(mixture=True)
    alone_is_expert = True

    def __init__(self, sizes: Sizes, *, trained: bool) -> None:
        super().__init__()
        m = len(sizes.names)
        # pairs follow the order of names, so that nothing depends on the order of declaration
        first, second = torch.tensor(sizes.canonical)[torch.triu_indices(m, m)]
        own = torch.eye(m, dtype=torch.bool)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        self.register_buffer("members", own[first] | own[second], persistent=False)
        self.logits = None
        if trained:
            self.logits = nn.ParameterDict({name: torch.zeros(()) for name in sizes.names})

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        members = rearrange(self.members, "k m -> k 1 m")
        usable = (members <= batch.observed).all(-1)
        loc, scale, overlap = self._pairs(experts)
        log_pi = overlap + equal_weights(usable, overlap)
        if self.logits is not None:
            log_w = torch.stack([self.logits[name] for name in experts.modalities])
            log_pi = log_pi + rearrange(log_w[self.first] + log_w[self.second], "k -> k 1")
        evidence = members & rearrange(usable, "k b -> k b 1")
        return Mixture(experts.family, loc, scale, torch.log_softmax(log_pi, dim=0), evidence)

    def _pairs(self, experts: Experts) -> tuple[Tensor, Tensor, Tensor]:
        """Location, scale of √(q_i q_j), (k, b, d), and log S_ij, log 2 S_ij if i ≠ j, (k, b)."""
        loc_i, loc_j = experts.loc[self.first], experts.loc[self.second]
        scale_i, scale_j = experts.scale[self.first], experts.scale[self.second]
        # shares of √(σ_i² + σ_j²), as products of variances and gradients overflow in float32
        whole = torch.hypot(scale_i, scale_j)
        i, j = scale_i / whole, scale_j / whole
        overlap = (scale_i.log() + scale_j.log() + LOG_2) / 2 - whole.log()
        overlap = (overlap - ((loc_i - loc_j) / whole).square() / 4).sum(-1)
        twice = LOG_2 * (self.first != self.second).to(overlap.dtype)
        loc = loc_i * j * j + loc_j * i * i
        scale = math.sqrt(2.0) * scale_i * j
        return loc, scale, overlap + rearrange(twice, "k -> k 1")


class HellingerAggregator(nn.Module, Aggregator):
    """One component with the moments of the mixture."""

    alone_is_expert = True

    def __init__(self, sizes: Sizes, *, trained: bool) -> None:
        super().__init__()
        self.pool = HoelderAggregator(sizes, trained=trained)

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        pooled = self.pool.forward(experts, batch)
        mean = pooled.mean
        weight = rearrange(pooled.log_weight.exp(), "k b -> k b 1")
        second = pooled.scale.square() + (pooled.loc - mean).square()
        # a component without weight may be so wide that its gradient overflows in float32
        variance = (weight * torch.where(weight > 0, second, 0.0)).sum(0)
        return one_component(experts, mean, variance.sqrt(), batch.observed)
