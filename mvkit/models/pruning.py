"""Pruning: how many clusters of a mixture prior the data support.

Axes: s samples, b rows, m modalities, c clusters, d latent.
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

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.mixture import Mixture
from mvkit.data.dataset import Rows, as_batch
from mvkit.errors import RequestError, check_option
from mvkit.models.clusters import Rule, majority
from mvkit.models.model import Model
from mvkit.parts.mixture_fit import MixtureFit, maximised
from mvkit.parts.priors import MoGPrior
from mvkit.registry.spec import as_part

DRAWS = 8  # of each posterior
# rows that mixtures are fitted to; with very many, the criterion pays for every bend of a cluster
FITTED = 2000


@attrs.frozen(eq=False)
class Pruning:
    """A model with as many clusters as the data support, and how that was decided.

    Args:
        model: a new model.
        entropy: the score by number of active clusters n.
        kept: which clusters of the old model are left, in order.
    """

    model: Model
    entropy: dict[int, float]
    kept: tuple[int, ...]

    def __iter__(self) -> Iterator[Model | dict[int, float]]:
        return iter((self.model, self.entropy))


def prune_clusters(
    model: Model, data: Rows, *, beta: float | None = None, rule: Rule | None = None
) -> Pruning:
    """A new model with as many clusters as the data support.

    From all C clusters down to 2, the one with the fewest rows is dropped; then the number of the
    lowest score is taken. The old model is left alone. The new one trains on in one stage, for its
    mixture has been placed.

    By `votes`, the score is the assignment entropy of the paper: h_n = mean over rows and observed
    m of β H(p(c|z_m)) / ln n - (1/D) Σ_c p(c|z_m) [log p(z_m|c) + log π_c - log p(c|z_m)], with
    weights π that sum to one over the n clusters. By `joint`, a mixture of n normals with full
    covariances is fitted to the posterior means of at most 2,000 rows, given all that these have,
    from where the clusters that are left stand; the score is half its Bayesian information
    criterion per row, and the new model's mixture is placed at it. Entropies of clusters with one
    covariance, which lie close together, fall with every cluster.

    Args:
        model: a model with a mixture prior, the shared latent D wide.
        data: rows to assign.
        beta: β; None: the objective's `kl_weight`. Of `votes` only.
        rule: `votes` or `joint`; None: `votes` of diagonal covariances, `joint` of others.

    Raises:
        RequestError: a `Stack`; the prior has no clusters, or only one; `joint` of clusters that
            are not normal, or with a β.

    Example:
        >>> import mvkit, torch
        >>> prior = {"name": "mog", "components": 4}
        >>> model = mvkit.Model({"a": (3,)}, latent_dim=2, prior=prior, seed=0)
        >>> pruned = mvkit.prune_clusters(model, {"a": torch.randn(80, 3)})
        >>> 2 <= pruned.model.n_clusters <= 4
        True

    Reference: Palumbo et al., Deep Generative Clustering with Multimodal Diffusion Variational
    Autoencoders, 2024, https://openreview.net/forum?id=k5THrhXDV3.
    """
    if not isinstance(model, Model):
        raise RequestError(
            f"prune_clusters: got {type(model).__name__} as its model; expected a Model with a "
            "mixture prior"
        )
    if model.n_clusters < 2 or not isinstance(model.prior, MoGPrior):
        raise RequestError(
            "prune_clusters: needs a mixture prior of two clusters or more, such as prior='mog'"
        )
    check_option("prune_clusters: rule", rule, None, "joint", "votes")
    if rule is None:
        prior = model.prior
        correlated = isinstance(prior, MoGPrior) and prior.covariance != "diagonal"
        rule = "joint" if correlated else "votes"
    _check_beta(beta, rule)
    return _by_fits(model, data) if rule == "joint" else _by_votes(model, data, beta)


def _check_beta(beta: object, rule: Rule) -> None:
    """Raises RequestError unless β is None, or a finite number that the rule has a use for."""
    if beta is None:
        return
    is_number = isinstance(beta, int | float) and not isinstance(beta, bool)
    if not is_number or not 0 <= cast(float, beta) < math.inf:
        raise RequestError(
            f"prune_clusters: beta={beta!r}; expected a finite number of at least 0, or None: the "
            "objective's kl_weight"
        )
    if rule == "joint":
        raise RequestError(
            f"prune_clusters: beta={beta!r} weighs the entropy of votes, and rule='joint' has "
            "none; leave beta out, or take rule='votes'"
        )


def _by_votes(model: Model, data: Rows, beta: float | None) -> Pruning:
    """The clusters of lowest assignment entropy."""
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


def _by_fits(model: Model, data: Rows) -> Pruning:
    """The clusters of the mixture of normals with the lowest information criterion."""
    if model.family.density != "normal":
        raise RequestError(
            "prune_clusters: rule='joint' fits normals to codes, and the clusters of this model "
            "are none; take rule='votes'"
        )
    prior = cast(MoGPrior, model.prior)
    batch = as_batch(data)
    batch = batch.take(slice(None, None, max(1, math.ceil(len(batch) / FITTED))))

    def unshifted(rows: Batch) -> Tensor:
        posterior = model.posterior_given(rows, model.names, "error", inference=True)
        return prior.unshifted(posterior.mean, model.prior_context(rows.covariates))

    z = model.in_blocks(unshifted, batch)
    log_joint = cast(Mixture, prior.density()).joint(z).detach().cpu().double()
    weight = torch.full((len(z),), 1 / len(z), dtype=torch.float64)
    active = list(range(model.n_clusters))
    score: dict[int, float] = {}
    kept: dict[int, tuple[int, ...]] = {}
    fits: dict[int, MixtureFit] = {}
    while len(active) > 1:
        n = len(active)
        fit = maximised(z.cpu().double(), weight, log_joint.softmax(-1), "full")
        score[n], kept[n], fits[n] = fit.information, tuple(active), fit
        smallest = int(fit.weight.argmin())
        rest = [i for i in range(n) if i != smallest]
        log_joint = fit.shares.clamp(min=1e-300).log()[:, rest]
        del active[smallest]
    best = min(score, key=lambda n: (score[n], n))
    pruned = _with_clusters(model, kept[best])
    cast(MoGPrior, pruned.prior).place_at(fits[best], _draws(model, batch))
    return Pruning(pruned, score, kept[best])


def _draws(model: Model, data: Rows) -> Tensor:
    """Draws of the posteriors of rows, without what covariates add to clusters, (s, b, d)."""
    prior = cast(MoGPrior, model.prior)
    generator = noise.seeded(0, model.like.device)

    def draws(rows: Batch) -> Tensor:
        posterior = model.posterior_given(rows, model.names, "error")
        context = model.prior_context(rows.covariates)
        return prior.unshifted(posterior.rsample(DRAWS, generator), context)

    return model.in_blocks(draws, data, dim=1)


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
    schedule = model.spec.schedule
    if schedule.places_prior:
        schedule = as_part("schedule", "single")  # which would place the mixture anew
    pruned.spec = attrs.evolve(model.spec, prior=prior, schedule=schedule)  # type: ignore[misc]
    pruned.note_new("prior")
    return pruned
