"""Aggregators published after 2021: barycentres, weighted products, learned sets.

Axes: b rows, m modalities, d latent, h message.
"""

from __future__ import annotations

import torch

from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.mixture import Mixture
from mvkit.core.modality import Sizes
from mvkit.parts.aggregators.aggregator import (
    Aggregator,
    observed_by_modality,
    one_component,
    raw_experts,
)
from mvkit.registry.spec import spec


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
        observed = observed_by_modality(batch)
        count = observed.sum(0).clamp(min=1)
        loc = torch.where(observed, experts.loc, 0.0).sum(0) / count
        scale = torch.where(observed, experts.scale, 0.0).sum(0) / count
        # a row with nothing observed has scale 0, which no density can take
        return one_component(experts, batch, loc, torch.where(observed.any(0), scale, 1.0))

    unimodal = staticmethod(raw_experts)
