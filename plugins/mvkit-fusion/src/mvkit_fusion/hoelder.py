"""Hölder pooling of experts with α = 1/2: exact, and as one component with its moments.

Axes: k single experts and pairs, b rows, m modalities, d latent.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit import spec
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.mixture import Mixture, equal_weights
from mvkit.core.modality import Sizes
from mvkit.parts.aggregators.aggregator import Aggregator, Defaults, check_product, raw_experts
from mvkit.registry.spec import field, flag


@spec
class Hoelder:
    """Hölder pooling with α = 1/2, q(z|x_O) ∝ (Σ_{m∈O} w_m √q_m(z))²: exactly a mixture of experts
    and pairs.

    Expert m has weight c w_m²; the pair i < j has 2 c w_i w_j S_ij with S_ij = ∫ √(q_i q_j), the
    Bhattacharyya coefficient, and the density √(q_i q_j)/S_ij, which is normal. The normaliser c
    depends on the experts.

    Args:
        trained: whether the w_m are trained (else equal).

    Reference: Vo, Martínez-García and Valera, Hölder++: Improving the Quality-Coherence Trade-off
    in Multimodal VAEs, ICML 2026, https://arxiv.org/abs/2606.13381.
    """

    trained: bool = field(default=False, check=flag)

    def build(self, sizes: Sizes) -> HoelderAggregator:
        """The live part."""
        check_product(sizes, "hoelder", "aggregator='moe'")
        return HoelderAggregator(trained=self.trained, sizes=sizes)


@spec
class Hellinger:
    """The normal with the mean and the variances of Hölder's mixture (see `hoelder`).

    Args:
        trained: whether the w_m are trained (else equal).

    Reference: Vo and Valera, Hellinger Multimodal Variational Autoencoders, 2026,
    https://arxiv.org/abs/2601.06572.
    """

    trained: bool = field(default=False, check=flag)

    def build(self, sizes: Sizes) -> HellingerAggregator:
        """The live part."""
        check_product(sizes, "hellinger", "aggregator='wasserstein'")
        return HellingerAggregator(trained=self.trained, sizes=sizes)


class HoelderAggregator(nn.Module, Aggregator):
    """Component k is the pair (first, second), an expert where the two are the same."""

    first: Tensor
    second: Tensor
    members: Tensor
    defaults = Defaults(mixture=True)

    def __init__(self, *, trained: bool, sizes: Sizes) -> None:
        super().__init__()
        m = len(sizes.names)
        # pairs follow the order of names, so that nothing depends on the order of declaration
        first, second = torch.tensor(sizes.canonical)[torch.triu_indices(m, m)]
        own = torch.eye(m, dtype=torch.bool)
        members = own[first] | own[second]
        for name, buffer in {"first": first, "second": second, "members": members}.items():
            self.register_buffer(name, buffer, persistent=False)
        self.logits = (
            nn.ParameterDict({name: torch.zeros(()) for name in sizes.names}) if trained else None
        )

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        """See `Aggregator.forward`."""
        members = rearrange(self.members, "k m -> k 1 m")
        usable = (members <= batch.observed).all(-1)
        loc, scale, overlap = self._pairs(experts)
        log_weight = overlap + equal_weights(usable, overlap)
        if self.logits is not None:
            log_w = torch.stack([self.logits[name] for name in experts.modalities])
            log_weight = log_weight + rearrange(log_w[self.first] + log_w[self.second], "k -> k 1")
        evidence = members & rearrange(usable, "k b -> k b 1")
        return Mixture(experts.family, loc, scale, torch.log_softmax(log_weight, dim=0), evidence)

    def _pairs(self, experts: Experts) -> tuple[Tensor, Tensor, Tensor]:
        """Location and scale (k, b, d) of √(q_i q_j), and log S_ij, for i ≠ j log 2 S_ij, (k,
        b).
        """
        loc, scale = ((t[self.first], t[self.second]) for t in (experts.loc, experts.scale))
        # shares of √(σ_i² + σ_j²), since products of variances and their gradients overflow in
        # float32
        whole = torch.hypot(*scale)
        i, j = scale[0] / whole, scale[1] / whole
        overlap = (scale[0].log() + scale[1].log() + math.log(2.0)) / 2 - whole.log()
        overlap = (overlap - ((loc[0] - loc[1]) / whole).square() / 4).sum(-1)
        twice = math.log(2.0) * (self.first != self.second).to(overlap.dtype)
        return (
            loc[0] * j * j + loc[1] * i * i,
            math.sqrt(2.0) * scale[0] * j,
            overlap + rearrange(twice, "k -> k 1"),
        )

    unimodal = staticmethod(raw_experts)


class HellingerAggregator(nn.Module, Aggregator):
    """One component with the moments of the mixture."""

    def __init__(self, *, trained: bool, sizes: Sizes) -> None:
        super().__init__()
        self.pool = HoelderAggregator(trained=trained, sizes=sizes)

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        """See `Aggregator.forward`."""
        pooled = self.pool.forward(experts, batch)
        mean, weight = pooled.mean, rearrange(pooled.log_weight.exp(), "k b -> k b 1")
        second = pooled.scale.square() + (pooled.loc - mean).square()
        # a component without weight may be wide enough for its gradient to overflow in float32
        variance = (weight * torch.where(weight > 0, second, 0.0)).sum(0)
        loc, scale = (rearrange(t, "b d -> 1 b d") for t in (mean, variance.sqrt()))
        evidence = rearrange(batch.observed, "b m -> 1 b m")
        return Mixture(experts.family, loc, scale, loc.new_zeros(loc.shape[:2]), evidence)

    unimodal = staticmethod(raw_experts)
