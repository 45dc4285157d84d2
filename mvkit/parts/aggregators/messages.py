"""parts.aggregators.messages."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.mixture import Mixture
from mvkit.core.modality import Sizes
from mvkit.parts.aggregators.aggregator import (
    Aggregator,
    Defaults,
    head_of,
    observed_by_modality,
    one_component,
)
from mvkit.registry.spec import field, integer, number, part, spec


@spec
class MeanMessage:
    """Mean of messages: h = Σ_{m∈O} h_m / |O|, and a head that maps h to one expert.

    Args:
        message_dim: width of the messages h_m, which the encoders emit.
        head: network from h to 2 d numbers, or an `nn.Module`.
        dropout_rate: in training, the probability that a row with several modalities keeps only some of their
            messages, a uniform number of them, uniformly drawn.

    Reference: Vasco et al., Leveraging Hierarchy in Multimodal MultimodalModel Models for Effective Cross-Modality
    Inference (Nexus), 2022, https://doi.org/10.1016/j.neunet.2021.11.019.
    """

    message_dim: int = field(default=64, check=integer(1))
    head: Any = part("network", default={"name": "mlp", "hidden": [256]}, module=True)
    dropout_rate: float = field(default=0.0, check=number(0.0, 1.0))

    def build(self, sizes: Sizes) -> MeanMessageAggregator:
        """The live part."""
        return MeanMessageAggregator(self, sizes)


class MeanMessageAggregator(nn.Module, Aggregator):
    """One component, whatever is observed."""

    defaults = Defaults(has_unimodal_experts=False)

    def __init__(self, spec: MeanMessage, sizes: Sizes) -> None:
        super().__init__()
        self.spec = spec
        self.head = head_of(spec.head, spec.message_dim, 2 * sizes.latent)

    def width(self, latent_dim: int) -> int:
        """The encoders emit messages."""
        return self.spec.message_dim

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        observed = rearrange(batch.observed, "b m -> m b")
        kept = self._kept(experts, observed)
        messages = experts.stats  # zeros where unobserved
        if kept is not observed:
            messages = torch.where(rearrange(kept, "m b -> m b 1"), messages, 0.0)
        count = reduce(kept.to(messages.dtype), "m b -> b 1", "sum").clamp(min=1)
        loc, raw = self.head(messages.sum(0) / count).chunk(2, dim=-1)
        loc, scale = (rearrange(t, "b d -> 1 b d") for t in (loc, experts.family.scale(raw)))
        return Mixture(
            experts.family,
            loc,
            scale,
            loc.new_zeros(loc.shape[:2]),
            rearrange(kept, "m b -> 1 b m"),
        )

    def _kept(self, experts: Experts, observed: Tensor) -> Tensor:
        """Messages left after dropout, (m, b) bool."""
        if not (experts.training and self.training and self.spec.dropout_rate):
            return observed
        m = len(observed)
        # one row a modality, then whether to drop, then how many to keep
        uniform = noise.draw(
            "choice/dropout",
            (m + 2, observed.shape[1]),
            experts.stats,
            generator=experts.generator,
        )
        count = observed.sum(0)
        keep = 1 + (uniform[m + 1] * (count - 1)).long()
        rank = torch.where(observed, uniform[:m], 2.0).argsort(0).argsort(0)
        return torch.where(
            (uniform[m] < self.spec.dropout_rate) & (count > 1), observed & (rank < keep), observed
        )


@spec
class Set:
    """Permutation-invariant learned fusion: ρ(Σ_{m∈O} χ(h_m)), a deep set of messages.

    Args:
        message_dim: width of the messages h_m, which the encoders emit.
        inner: χ, from messages to features: a network or an `nn.Module`.
        features: width of χ's features, where it is a network.
        head: ρ, from features to 2 d numbers: a network or an `nn.Module`.

    Reference: Hirt, Campolo, Leong and Ortega, Learning Multi-Modal MultimodalModel Models with Permutation-Invariant
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

    defaults = Defaults(has_unimodal_experts=False)

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
        each = rearrange(
            self.inner(rearrange(experts.stats, "m b h -> (m b) h")), "(m b) h -> m b h", m=m
        )
        loc, raw = self.head(
            reduce(torch.where(observed_by_modality(batch), each, 0.0), "m b h -> b h", "sum")
        ).chunk(2, dim=-1)
        return one_component(experts, batch, loc, experts.family.scale(raw))
