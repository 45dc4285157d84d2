"""Fusion of experts as MultiVI does it.

Axes: m modalities, b rows, d latent.
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce

from mvkit import Aggregator, Batch, Mixture, spec
from mvkit.core import Experts, Sizes


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
        log_weight = reduce(torch.zeros_like(loc), "b d -> 1 b", "sum")
        evidence = rearrange(batch.observed, "b m -> 1 b m")
        loc, scale = (rearrange(values, "b d -> 1 b d") for values in (loc, scale))
        return Mixture(experts.family, loc, scale, log_weight, evidence)
