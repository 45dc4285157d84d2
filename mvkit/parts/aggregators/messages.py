"""Aggregators of messages: encoders emit messages, not experts, and a network maps them to one.

Axes: m modalities, b rows, d latent, h message.
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.mixture import Mixture, one_component
from mvkit.core.modality import Sizes
from mvkit.parts.aggregators.aggregator import Aggregator, Defaults
from mvkit.parts.networks import encoder_of
from mvkit.registry.fields import count
from mvkit.registry.spec import field, number, part, spec


@spec
class MeanMessage:
    """Mean of messages: h = Σ_{m∈O} h_m / |O|, and a head that maps h to one expert.

    Args:
        message_dim: width of the messages h_m, which the encoders emit.
        head: network from h to 2 d numbers, or an `nn.Module`.
        dropout_rate: in training, the probability that a row with several modalities keeps only
            some of their messages, a uniform number of them, uniformly drawn.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import MeanMessage
        >>> model = mvkit.Model(
        ...     {"a": (3,), "b": (2,)},
        ...     latent_dim=2,
        ...     aggregator=MeanMessage(dropout_rate=0.5),
        ...     seed=0,
        ... )
        >>> model.encode({"a": torch.zeros(4, 3)}).shape
        torch.Size([4, 2])

    Reference: Vasco et al., Leveraging Hierarchy in Multimodal Generative Models for Effective
    Cross-Modality Inference (Nexus), 2022, https://doi.org/10.1016/j.neunet.2021.11.019.
    """

    message_dim: int = count(64)
    head: object = part("network", default={"name": "mlp", "hidden": [256]}, module=True)
    dropout_rate: float = field(default=0.0, check=number(0.0, 1.0))

    def build(self, sizes: Sizes) -> MeanMessageAggregator:
        """The aggregator with its head."""
        return MeanMessageAggregator(self, sizes)


class MeanMessageAggregator(nn.Module, Aggregator):
    """One component, whatever is observed."""

    defaults = Defaults(has_unimodal_experts=False)

    def __init__(self, spec: MeanMessage, sizes: Sizes) -> None:
        super().__init__()
        self.spec = spec
        self.head = encoder_of(spec.head, (spec.message_dim,), 2 * sizes.latent)

    def width(self, latent_dim: int) -> int:
        """Width of a message."""
        return self.spec.message_dim

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        observed = rearrange(batch.observed, "b m -> m b")
        kept = self._kept(experts, observed)
        # the batch may hide what the experts saw
        messages = torch.where(rearrange(kept, "m b -> m b 1"), experts.stats, 0.0)
        count = reduce(kept.to(messages.dtype), "m b -> b 1", "sum").clamp(min=1)
        loc, raw = self.head(messages.sum(0) / count).chunk(2, dim=-1)
        scale = experts.family.scale(raw)
        return one_component(experts, loc, scale, rearrange(kept, "m b -> b m"))

    def _kept(self, experts: Experts, observed: Tensor) -> Tensor:
        """Messages left after dropout, (m, b) bool."""
        rate = self.spec.dropout_rate
        if not (experts.training and self.training and rate):
            return observed
        m, b = observed.shape
        # for each modality its rank, then whether to drop, then how many to keep
        shape = (m + 2, b)
        site = "choice/dropout"
        uniform = noise.draw(site, shape, experts.stats, generator=experts.generator)
        count = observed.sum(0)
        keep = 1 + (uniform[m + 1] * (count - 1)).long()
        rank = torch.where(observed, uniform[:m], 2.0).argsort(0).argsort(0)
        drops = (uniform[m] < rate) & (count > 1)
        return torch.where(drops, observed & (rank < keep), observed)


@spec
class Set:
    """Deep set of messages: one expert from ρ(Σ_{m∈O} χ(h_m)), permutation-invariant.

    Args:
        message_dim: width of the messages h_m, which the encoders emit.
        inner: χ, from messages to features, shared by the modalities: a network or an `nn.Module`.
        features: width of χ's features, where it is a network.
        head: ρ, from features to 2 d numbers: a network or an `nn.Module`.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, aggregator="set", seed=0)
        >>> model.encode({"a": torch.zeros(4, 3)}).shape
        torch.Size([4, 2])

    Reference: Hirt, Campolo, Leong and Ortega, Learning Multi-Modal Generative Models with
    Permutation-Invariant Encoders and Tighter Variational Objectives, TMLR 2024,
    https://arxiv.org/abs/2309.00380.
    """

    message_dim: int = count(64)
    inner: object = part("network", default={"name": "mlp", "hidden": [128]}, module=True)
    features: int = count(128)
    head: object = part("network", default={"name": "mlp", "hidden": [128]}, module=True)

    def build(self, sizes: Sizes) -> SetAggregator:
        """The aggregator with its networks."""
        return SetAggregator(self, sizes)


class SetAggregator(nn.Module, Aggregator):
    """One component, whatever is observed."""

    defaults = Defaults(has_unimodal_experts=False)

    def __init__(self, spec: Set, sizes: Sizes) -> None:
        super().__init__()
        self.spec = spec
        self.inner = encoder_of(spec.inner, (spec.message_dim,), spec.features)
        self.head = encoder_of(spec.head, (spec.features,), 2 * sizes.latent)

    def width(self, latent_dim: int) -> int:
        """Width of a message."""
        return self.spec.message_dim

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        rows = rearrange(experts.stats, "m b h -> (m b) h")
        features = rearrange(self.inner(rows), "(m b) h -> m b h", m=len(experts.stats))
        observed = rearrange(batch.observed, "b m -> m b 1")
        total = torch.where(observed, features, 0.0).sum(0)
        loc, raw = self.head(total).chunk(2, dim=-1)
        return one_component(experts, loc, experts.family.scale(raw), batch.observed)
