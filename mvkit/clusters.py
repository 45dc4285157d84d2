"""Clusters of a mixture prior: choosing how many there are.

Axes: b rows, m modalities, c clusters, d latent.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit import estimates
from mvkit.batch import Batch
from mvkit.errors import RequestError
from mvkit.model import Model


@attrs.frozen(eq=False)
class Pruning:
    """A model with as many clusters as the data support, and how that was decided.

    Args:
        model: a new model.
        entropy: h_n by number of active clusters n.
        kept: which clusters of the old model are left, in order.
    """

    model: Model
    entropy: dict[int, float]
    kept: tuple[int, ...]

    def __iter__(self) -> Any:
        return iter((self.model, self.entropy))


def prune_clusters(model: Model, data: Any, *, beta: float | None = None) -> Pruning:
    """A new model with the number of clusters whose assignment entropy is lowest; the old one is left alone.

    From all C clusters down to 2: h_n = mean over rows and observed m of
    β H(p(c|z_m)) / ln n - (1/D) Σ_c p(c|z_m) [log p(z_m|c) + log π_c - log p(c|z_m)]; then the cluster that the fewest
    rows voted for is dropped.

    Args:
        model: a model with a mixture prior, the shared latent D wide.
        data: rows to assign.
        beta: β; None: the objective's `kl_weight`.

    Raises:
        RequestError: the prior has no clusters, or only one.

    Reference: Palumbo et al., Deep Generative Clustering with Multimodal Diffusion Variational Autoencoders, 2024,
    https://openreview.net/forum?id=k5THrhXDV3.
    """
    if model.n_clusters < 2:
        raise RequestError("prune_clusters: needs a mixture prior of two clusters or more, such as prior='mog'")
    beta = model.spec.objective.kl_weight if beta is None else beta
    each = estimates.answer(model, lambda rows: _joint(model, rows), data)
    active = list(range(model.n_clusters))
    entropy: dict[int, float] = {}
    kept: dict[int, tuple[int, ...]] = {}
    while len(active) > 1:
        logs = each[:, :, active]
        entropy[len(active)] = _entropy(logs, beta, model.latent_dim)
        kept[len(active)] = tuple(active)
        votes = torch.bincount(_majority(logs), minlength=len(active))
        del active[int(votes.argmin())]
    best = min(entropy, key=lambda n: (entropy[n], n))
    return Pruning(_with_clusters(model, kept[best]), entropy, kept[best])


def _joint(model: Model, rows: Batch) -> Tensor:
    """Log π_c + log p(z_m|c) at the posterior means of the observed modalities, (b, m, c); NaN where unobserved."""
    prior = model.prior_at()
    found = []
    for posterior in model.aggregator.unimodal(model.experts(rows), rows).values():
        found.append(prior.joint(posterior.mean))
    each = torch.stack(found, dim=1)
    return torch.where(rearrange(rows.observed, "b m -> b m 1"), each, torch.nan)


def _entropy(logs: Tensor, beta: float, d: int) -> float:
    log_p = torch.log_softmax(logs, dim=-1)
    p = log_p.exp()
    spread = -(p * log_p).sum(-1) / math.log(logs.shape[-1])
    fit = (p * (logs - log_p)).sum(-1) / d
    return float((beta * spread - fit).nanmean())


def _majority(logs: Tensor) -> Tensor:
    """The cluster that most observed modalities of a row vote for, (b,); ties to the largest mean responsibility."""
    p = torch.softmax(logs, dim=-1)
    return estimates.majority(rearrange(p, "b m c -> m b c"), ~torch.isnan(rearrange(logs[..., :1], "b m c -> m b c")))


def _with_clusters(model: Model, kept: tuple[int, ...]) -> Model:
    """A copy of the model with some clusters left."""
    made = copy.deepcopy(model)
    made.prior.keep(kept)
    made.n_clusters = len(kept)
    made.spec = attrs.evolve(made.spec, prior=attrs.evolve(made.spec.prior, components=len(kept)))
    return made
