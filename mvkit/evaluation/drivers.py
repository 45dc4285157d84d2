"""Drivers: which modality the posterior rests on.

Axes: k posterior components, b rows, m modalities, d latent.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import Tensor

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.mixture import Mixture
from mvkit.data.dataset import Rows
from mvkit.errors import RequestError
from mvkit.models.multimodal import MultimodalModel

DRAWS = 256  # for the variance of posteriors without a closed form


def driver_shares(model: MultimodalModel, data: Rows) -> tuple[Tensor, Tensor]:
    """Shares of weights and of precisions by modality, (m,) each.

    The weight of a component counts for each modality that it looked at, in equal parts.
    Precisions are inverse variances of q(z|x_m), averaged over dimensions. Both are shares among
    what a row observes, and means over the rows that observe the modality.

    Raises:
        RequestError: a posterior that does not record what its components looked at.
    """
    rows = model.conform(data)
    with torch.no_grad():
        posterior = model.posterior(rows)
        evidence = posterior.evidence
        if evidence is None:
            raise RequestError(
                "drivers: this posterior does not say what its components looked at"
            )
        looked = evidence / evidence.sum(-1, keepdim=True).clamp(min=1)
        pi = posterior.log_weight.exp()
        weights = einsum(pi, looked.to(pi.dtype), "k b, k b m -> b m")
        precisions = [_precision(model, rows, name) for name in model.names]
    precision = torch.stack(precisions, 1)
    shares = precision / precision.sum(1, keepdim=True)
    weights = torch.where(rows.observed, weights, 0.0)
    count = rows.observed.sum(0).clamp(min=1)
    return (weights.sum(0) / count).cpu(), (shares.sum(0) / count).cpu()


def _precision(model: MultimodalModel, rows: Batch, name: str) -> Tensor:
    """Mean inverse variance of q(z|x_m) over dimensions, zero where m is unobserved, (b,)."""
    known = rows.observed[:, model.names.index(name)]
    precision = model.like.new_zeros(len(rows))
    if known.any():
        posterior = model.posterior(rows.take(known), [name])
        if isinstance(posterior, Mixture):
            pi = rearrange(posterior.log_weight.exp(), "k b -> k b 1")
            off = posterior.loc - posterior.mean
            squares = posterior.scale.square() + off.square()
            variance = (pi * squares).sum(0)
        else:
            draws = posterior.rsample(DRAWS, noise.seeded(0, precision.device))
            variance = draws.var(0)
        precision[known] = variance.reciprocal().mean(-1)
    return precision
