"""Aggregators published after 2021: barycentres, weighted products, learned sets.

Axes: b rows, m modalities, d latent, h message.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from mvkit.aggregators import Aggregator, Defaults, raw_experts, refuse_product
from mvkit.batch import Batch
from mvkit.experts import Experts
from mvkit.joint import head_of
from mvkit.mixture import Mixture
from mvkit.modality import Sizes
from mvkit.spec import field, integer, part, spec


def _observed(batch: Batch) -> Tensor:
    return rearrange(batch.observed, "b m -> m b 1")


def _single(experts: Experts, batch: Batch, loc: Tensor, scale: Tensor) -> Mixture:
    """A one-component posterior from (b, d) parameters."""
    loc, scale = (rearrange(t, "b d -> 1 b d") for t in (loc, scale))
    evidence = rearrange(batch.observed, "b m -> 1 b m")
    return Mixture(experts.family, loc, scale, loc.new_zeros(loc.shape[:2]), evidence)


@spec
class Wasserstein(Aggregator):
    """Wasserstein barycentre of the observed experts: μ = mean of μ_m, σ = mean of σ_m (standard deviations).

    Reference: Qiu, Zhu, Cui, Lin and Ma, Multimodal Variational Autoencoder: A Barycentric View, AAAI 2025,
    https://arxiv.org/abs/2412.20487.
    """

    def build(self, sizes: Sizes) -> Wasserstein:
        """The live part: itself."""
        return self

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        observed = _observed(batch)
        count = observed.sum(0).clamp(min=1)
        loc = torch.where(observed, experts.loc, 0.0).sum(0) / count
        scale = torch.where(observed, experts.scale, 0.0).sum(0) / count
        # a row with nothing observed has scale 0, which no density can take
        return _single(experts, batch, loc, torch.where(observed.any(0), scale, 1.0))

    unimodal = staticmethod(raw_experts)


@spec
class GPoE:
    """Generalised product of experts: T = Σ_m α_md T_md with trained weights, Σ_{m∈O} α_md = 1 in each dimension.

    Reference: Lawry Aguila, Chapman and Altmann, Multi-modal Variational Autoencoders for Normative Modelling Across
    Multiple Imaging Modalities, MICCAI 2023, https://arxiv.org/abs/2303.12706.
    """

    def build(self, sizes: Sizes) -> GPoEAggregator:
        """The live part."""
        refuse_product(sizes, "gpoe", "aggregator='moe'")
        return GPoEAggregator(sizes)


class GPoEAggregator(nn.Module, Aggregator):
    """Holds the logits of the weights by modality, so that they follow names and not positions."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.logits = nn.ParameterDict({name: torch.zeros(sizes.latent) for name in sizes.names})

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        observed = _observed(batch)
        logits = rearrange(torch.stack([self.logits[name] for name in experts.modalities]), "m d -> m 1 d")
        nothing = ~observed.any(0)  # an even softmax keeps a row without experts finite
        weight = torch.softmax(torch.where(observed | nothing, logits, -torch.inf), dim=0)
        precision = weight * experts.scale.square().reciprocal()
        total = precision.sum(0)
        return _single(experts, batch, (precision * experts.loc).sum(0) / total, torch.rsqrt(total))

    unimodal = staticmethod(raw_experts)


@spec
class Set:
    """Permutation-invariant learned fusion: ρ(Σ_{m∈O} χ(h_m)), a deep set of messages.

    Args:
        message_dim: width of the messages h_m, which the encoders emit.
        inner: χ, from messages to features: a network or an `nn.Module`.
        features: width of χ's features, where it is a network.
        head: ρ, from features to 2 d numbers: a network or an `nn.Module`.

    Reference: Hirt, Campolo, Leong and Ortega, Learning Multi-Modal Generative Models with Permutation-Invariant
    Encoders and Tighter Variational Objectives, TMLR 2024, https://arxiv.org/abs/2309.00380.
    """

    message_dim: int = field(default=64, check=integer(1))
    inner: Any = part("network", default={"name": "mlp", "hidden": [128]}, module=True)
    features: int = field(default=128, check=integer(1))
    head: Any = part("network", default={"name": "mlp", "hidden": [128]}, module=True)

    def build(self, sizes: Sizes) -> SetAggregator:
        """The live part."""
        return SetAggregator(self, sizes)


class SetAggregator(nn.Module, Aggregator):
    """One component, whatever is observed."""

    defaults = Defaults(raw_experts=False)

    def __init__(self, spec: Set, sizes: Sizes) -> None:
        super().__init__()
        self.spec = spec
        self.inner = head_of(spec.inner, spec.message_dim, spec.features)
        self.head = head_of(spec.head, spec.features, 2 * sizes.latent)

    def width(self, latent_dim: int) -> int:
        """The encoders emit messages."""
        return self.spec.message_dim

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        m = len(experts.modalities)
        each = rearrange(self.inner(rearrange(experts.stats, "m b h -> (m b) h")), "(m b) h -> m b h", m=m)
        loc, raw = self.head(reduce(torch.where(_observed(batch), each, 0.0), "m b h -> b h", "sum")).chunk(2, dim=-1)
        return _single(experts, batch, loc, experts.family.scale(raw))
