"""Pruning: how many clusters of a mixture prior the data support.

Axes: b rows, m modalities, c clusters, d latent.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import cast

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.mixture import Mixture
from mvkit.data.dataset import Rows
from mvkit.errors import RequestError
from mvkit.models.clusters import majority
from mvkit.models.model import Model
from mvkit.parts.priors import MoGPrior


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

    def __iter__(self) -> Iterator[Model | dict[int, float]]:
        return iter((self.model, self.entropy))


def prune_clusters(model: Model, data: Rows, *, beta: float | None = None) -> Pruning:
    """A new model with the number of clusters whose assignment entropy is lowest.

    From all C clusters down to 2: h_n = mean over rows and observed m of
    β H(p(c|z_m)) / ln n - (1/D) Σ_c p(c|z_m) [log p(z_m|c) + log π_c - log p(c|z_m)], with weights
    π that sum to one over the n clusters; then the cluster that the fewest rows voted for is
    dropped. The old model is left alone.

    Args:
        model: a model with a mixture prior, the shared latent D wide.
        data: rows to assign.
        beta: β; None: the objective's `kl_weight`.

    Raises:
        RequestError: the prior has no clusters, or only one.

    Reference: Palumbo et al., Deep Generative Clustering with Multimodal Diffusion Variational
    Autoencoders, 2024, https://openreview.net/forum?id=k5THrhXDV3.
    """
    if model.n_clusters < 2:
        raise RequestError(
            "prune_clusters: needs a mixture prior of two clusters or more, such as prior='mog'"
        )
    beta = model.spec.objective.kl_weight if beta is None else beta
    log_joint = model.in_blocks(lambda rows: _log_joint(model, rows), data)
    log_pi = cast(Mixture, model.prior_at()).log_weight[:, 0].detach()
    active = list(range(model.n_clusters))
    entropy: dict[int, float] = {}
    kept: dict[int, tuple[int, ...]] = {}
    while len(active) > 1:
        n = len(active)
        # the weights of a model with these clusters alone
        among_active = log_joint[:, :, active] - torch.logsumexp(log_pi[active], 0)
        entropy[n] = _entropy(among_active, beta, model.latent_dim)
        kept[n] = tuple(active)
        votes = torch.bincount(_majority(among_active), minlength=n)
        del active[int(votes.argmin())]
    best = min(entropy, key=lambda n: (entropy[n], n))
    return Pruning(_with_clusters(model, kept[best]), entropy, kept[best])


def _log_joint(model: Model, rows: Batch) -> Tensor:
    """Log π_c + log p(z_m|c) at the posterior means of the observed modalities, (b, m, c).

    NaN where unobserved.
    """
    context = model.prior_context(rows.covariates)
    prior = cast(Mixture, model.prior_at(context=context))
    unimodal = model.aggregator.unimodal(model.experts(rows), rows)
    each = torch.stack([prior.joint(posterior.mean) for posterior in unimodal.values()], dim=1)
    return torch.where(rearrange(rows.observed, "b m -> b m 1"), each, torch.nan)


def _entropy(log_joint: Tensor, beta: float, d: int) -> float:
    """h_n, the mean over rows and observed modalities."""
    log_p = torch.log_softmax(log_joint, dim=-1)
    p = log_p.exp()
    spread = -(p * log_p).sum(-1) / math.log(log_joint.shape[-1])
    fit = (p * (log_joint - log_p)).sum(-1) / d
    return float((beta * spread - fit).nanmean())


def _majority(log_joint: Tensor) -> Tensor:
    """The cluster that most observed modalities of a row vote for, (b,).

    Ties go to the largest mean responsibility.
    """
    log_joint = rearrange(log_joint, "b m c -> m b c")
    observed = ~torch.isnan(log_joint[..., :1])
    return majority(torch.softmax(log_joint, dim=-1), observed)


def _with_clusters(model: Model, kept: tuple[int, ...]) -> Model:
    """A copy of the model with some clusters left."""
    pruned = copy.deepcopy(model)
    cast(MoGPrior, pruned.prior).keep(kept)
    pruned.n_clusters = len(kept)
    prior = attrs.evolve(model.spec.prior, components=len(kept))
    pruned.spec = attrs.evolve(model.spec, prior=prior)  # type: ignore[misc]
    pruned.note_new("prior")
    return pruned
