"""Barycentres of experts.

Axes: m modalities, b rows, d latent.
"""

from __future__ import annotations

import torch
from einops import rearrange

from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.mixture import Mixture, one_component
from mvkit.core.modality import Sizes
from mvkit.parts.aggregators.aggregator import Aggregator
from mvkit.registry.spec import spec


@spec
class Wasserstein(Aggregator):
    """Wasserstein barycentre of the observed experts: μ = mean of μ_m, σ = mean of σ_m.

    σ are standard deviations.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model(
        ...     {"a": (3,), "b": (2,)}, latent_dim=2, aggregator="wasserstein", seed=0
        ... )
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.encode(rows).shape
        torch.Size([4, 2])

    Reference: Qiu, Zhu, Cui, Lin and Ma, Multimodal Variational Autoencoder: A Barycentric View,
    AAAI 2025, https://arxiv.org/abs/2412.20487.
    """

    alone_is_expert = True

    def build(self, sizes: Sizes) -> Wasserstein:
        """The aggregator itself: it has no parameters."""
        return self

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        observed = rearrange(batch.observed, "b m -> m b 1")
        count = observed.sum(0).clamp(min=1)
        loc = torch.where(observed, experts.loc, 0.0).sum(0) / count
        scale = torch.where(observed, experts.scale, 0.0).sum(0) / count
        # a row with nothing observed has scale 0, which no density can take
        scale = torch.where(observed.any(0), scale, 1.0)
        return one_component(experts, loc, scale, batch.observed)
