"""Contrast of unimodal codes: which of all rows is this one, seen through another modality?

Axes: b own rows, c rows of all processes, m modalities, p ordered pairs of them, d latent.
"""

from __future__ import annotations

import itertools
import math

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional

from mvkit.core.all_rows import all_rows
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.parts.latent_model import LatentModel

HIGHEST = math.log(100)  # of log_scale; beyond, CLIP found training unstable


class Temperature(nn.Module):
    """A trained temperature τ, as log 1/τ between 0 and log 100.

    Args:
        temperature: τ at first.

    Reference: Radford et al., Learning Transferable Visual Models From Natural Language
    Supervision (CLIP), 2021, https://arxiv.org/abs/2103.00020.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self) -> Tensor:
        """The factor 1/τ of similarities, ()."""
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():  # the parameter itself, or it would stay outside for ever
                self.log_scale.clamp_(0.0, HIGHEST)
        return self.log_scale.clamp(0.0, HIGHEST).exp()


def contrast(model: LatentModel, batch: Batch, experts: Experts, scale: Tensor) -> Tensor:
    """InfoNCE of each row, (b,): ½ Σ_{m≠n} -log softmax_j(u_im · u_jn / τ)_{j=i}.

    u_im is the mean of q_m(z|x_m) at length 1. The sum is over ordered pairs of modalities that
    row i observes; j are the rows of the whole batch that observe n and have weight.

    Args:
        model: the model.
        batch: a conformed batch.
        experts: its experts.
        scale: 1/τ, ().
    """
    observed = batch.observed
    unimodal = model.aggregator.unimodal(experts, batch)
    means = torch.stack([posterior.mean for posterior in unimodal.values()], dim=1)
    # anything but zeros, at which the direction has no gradient
    means = torch.where(rearrange(observed, "b m -> b m 1"), means, 1.0)
    codes = functional.normalize(means, dim=-1)
    usable = observed
    if batch.row_weight is not None:
        usable = observed & rearrange(batch.row_weight > 0, "b -> b 1")
    candidates, first = all_rows(codes)
    candidate_usable, _ = all_rows(usable)
    sources, targets = zip(*itertools.permutations(range(codes.shape[1]), 2), strict=True)
    seen = scale * codes[:, sources]
    similarity = einsum(seen, candidates[:, targets], "b p d, c p d -> p b c")
    matching = einsum(seen, codes[:, targets], "b p d, b p d -> p b")
    own = torch.arange(len(codes), device=codes.device) + first
    is_own = rearrange(own, "b -> b 1") == torch.arange(len(candidates), device=codes.device)
    # a row is its own candidate, so that no softmax is empty
    allowed = is_own | rearrange(candidate_usable[:, targets], "c p -> p 1 c")
    value = torch.logsumexp(similarity.masked_fill(~allowed, -torch.inf), dim=-1) - matching
    both = rearrange(observed[:, sources] & observed[:, targets], "b p -> p b")
    return torch.where(both, value, 0.0).sum(0) / 2
