"""Fusion of experts as MultiVI does it.

Axes: m modalities, b rows, d latent.
"""

from __future__ import annotations

import torch
from einops import rearrange

from mvkit import Aggregator, Batch, Mixture, spec
from mvkit.core import Experts, Sizes
from mvkit.core.mixture import one_component


@spec
class Mean(Aggregator):
    """The mean of the observed experts: μ = Σ_{m∈O} μ_m / |O|, σ² = Σ_{m∈O} σ²_m / |O|.

    `wasserstein` takes the mean of σ instead. A row with one modality has that expert as it is.

    Reference: Ashuach, Gabitto, Koodli, Saldi, Jordan and Yosef, MultiVI: deep generative model
    for the integration of multimodal data, 2023, https://doi.org/10.1038/s41592-023-01909-9.
    """

    alone_is_expert = True

    def build(self, sizes: Sizes) -> Mean:
        """The aggregator itself: it has no parameters."""
        return self

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        observed = rearrange(batch.observed, "b m -> m b 1")
        count = observed.sum(0).clamp(min=1)
        loc = torch.where(observed, experts.loc, 0.0).sum(0) / count
        variance = torch.where(observed, experts.scale.square(), 0.0).sum(0) / count
        # a row with nothing observed has variance 0, which no density can take
        scale = torch.where(observed.any(0), variance, 1.0).sqrt()
        return one_component(experts, loc, scale, batch.observed)
