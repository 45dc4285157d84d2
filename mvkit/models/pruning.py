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
from mvkit.errors import RequestError, check_option
from mvkit.models.clusters import Rule, majority
from mvkit.models.model import Model
from mvkit.parts.priors import MoGPrior
from mvkit.registry import plugins
from mvkit.registry.spec import as_part


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


def prune_clusters(
    model: Model, data: Rows, *, beta: float | None = None, rule: Rule = "votes"
) -> Pruning:
    """A new model with the number of clusters whose assignment entropy is lowest.

    From all C clusters down to 2: h_n = mean over rows and observed m of
    β H(p(c|z_m)) / ln n - (1/D) Σ_c p(c|z_m) [log p(z_m|c) + log π_c - log p(c|z_m)], with weights
    π that sum to one over the n clusters; then the cluster that the fewest rows voted for is
    dropped. The old model is left alone.

    The new model trains on by one stage, since its mixture has been placed.

    Args:
        model: a model with a mixture prior, the shared latent D wide.
        data: rows to assign.
        beta: β; None: the objective's `kl_weight`.
        rule: `votes`: as above; `joint`: with the posterior mean z given all that a row has in the
            place of the z_m.

    Raises:
        RequestError: the prior has no clusters, or only one.

    Reference: Palumbo et al., Deep Generative Clustering with Multimodal Diffusion Variational
    Autoencoders, 2024, https://openreview.net/forum?id=k5THrhXDV3.
    """
    if model.n_clusters < 2:
        raise RequestError(
            "prune_clusters: needs a mixture prior of two clusters or more, such as prior='mog'"
        )
    check_option("prune_clusters: rule", rule, "joint", "votes")
    beta = model.spec.objective.kl_weight if beta is None else beta
    of_rows = _log_joint if rule == "votes" else _log_joint_of_all
    log_joint = model.in_blocks(lambda rows: of_rows(model, rows), data)
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


def _log_joint_of_all(model: Model, rows: Batch) -> Tensor:
    """Log π_c + log p(z|c) at the posterior means given all that rows have, (b, 1, c)."""
    posterior = model.posterior_given(rows, model.names, "error", inference=True)
    prior = cast(Mixture, model.prior_at(context=model.prior_context(rows.covariates)))
    return rearrange(prior.joint(posterior.mean), "b c -> b 1 c")


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
    schedule = model.spec.schedule
    if plugins.name_of("schedule", type(schedule)) == "warmup_then_mixture":
        schedule = as_part("schedule", "single")  # which would place the mixture anew
    pruned.spec = attrs.evolve(model.spec, prior=prior, schedule=schedule)  # type: ignore[misc]
    pruned.note_new("prior")
    return pruned
