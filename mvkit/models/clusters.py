"""Clusters of rows under a mixture prior.

Axes: b rows, m modalities, c clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol, TypeVar, overload

import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.batch_checks import check_not_empty
from mvkit.core.posterior import Posterior
from mvkit.data.dataset import Rows
from mvkit.errors import RequestError, check_option
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.priors import as_prior

Answer = TypeVar("Answer")
Rule = Literal["joint", "votes"]


class HasClusters(Protocol):
    """A model whose prior may have clusters."""

    n_clusters: int
    prior_name: str


class Clusters(HasClusters, Protocol):
    """A model that can tell the responsibilities of its clusters: `Model` or `Stack`."""

    names: tuple[str, ...]
    prior: nn.Module

    def in_blocks(self, function: Callable[[Batch], Answer], data: Rows) -> Answer:
        """Evaluates a function of batches block by block."""
        ...

    def responsibilities(self, rows: Batch) -> Tensor:
        """p(c|z_m) of each modality, (m, b, c)."""
        ...

    def posterior_given(
        self, rows: Batch, given: tuple[str, ...], empty: str, *, inference: bool = False
    ) -> Posterior:
        """The posterior of a conformed batch given one set of modalities."""
        ...

    def prior_context(self, covariates: Mapping[str, Tensor]) -> Tensor | None:
        """What the prior sees of rows with these covariates, (b, c); None: nothing."""
        ...


def check_clusters(model: HasClusters, what: str) -> None:
    """Raises RequestError, which names the question, if the prior has no clusters."""
    if not model.n_clusters:
        raise RequestError(
            f"{what}: prior {model.prior_name!r} has no components to assign rows to; "
            "make the model with a mixture prior, such as prior='mog'"
        )


@overload
def clusters(
    self: Clusters,
    batch: Rows,
    *,
    rule: Rule = "joint",
    soft: bool = False,
    by_modality: Literal[False] = False,
) -> Tensor: ...


@overload
def clusters(
    self: Clusters,
    batch: Rows,
    *,
    rule: Rule = "joint",
    soft: bool = False,
    by_modality: Literal[True],
) -> dict[str, Tensor]: ...


def clusters(
    self: Clusters,
    batch: Rows,
    *,
    rule: Rule = "joint",
    soft: bool = False,
    by_modality: bool = False,
) -> Tensor | dict[str, Tensor]:
    """Clusters of rows under a mixture prior, deterministic.

    Args:
        self: the model.
        batch: rows.
        rule: `joint`: the likeliest component at the posterior mean given all that a row has;
            `votes`: each observed modality votes with p(c|z_m) at its own posterior mean, and ties
            go to the largest mean.
        soft: responsibilities (b, c) instead of the cluster (b,); of votes, their mean.
        by_modality: {name: (b, c)} of each modality's own, NaN where unobserved.
    """
    check_clusters(self, "clusters")
    check_option("clusters: rule", rule, "joint", "votes")

    def assign(rows: Batch) -> Tensor | dict[str, Tensor]:
        check_not_empty(rows)
        if rule == "joint" and not by_modality:
            shares = joint_responsibilities(self, rows)
            return shares if soft else shares.argmax(-1)
        each = self.responsibilities(rows)
        observed = rearrange(rows.observed, "b m -> m b 1")
        if by_modality:
            own = torch.where(observed, each, torch.nan)
            return dict(zip(self.names, own, strict=True))
        if soft:
            return mean_over(each, observed)
        return majority(each, observed)

    return self.in_blocks(assign, batch)


def joint_responsibilities(model: Clusters, rows: Batch) -> Tensor:
    """p(c|z) at the posterior mean given all that each row has, (b, c)."""
    posterior = model.posterior_given(rows, model.names, "error", inference=True)
    context = model.prior_context(rows.covariates)
    return as_prior(model.prior).assign(posterior.mean, context)


def responsibilities(model: LatentModel, rows: Batch) -> Tensor:
    """p(c|z_m) at the mean of each modality's own posterior, (m, b, c); what is unobserved means
    nothing.
    """
    prior = as_prior(model.prior)
    unimodal = model.aggregator.unimodal(model.experts(rows), rows)
    context = model.prior_context(rows.covariates)
    each = [prior.assign(posterior.mean, context) for posterior in unimodal.values()]
    return torch.stack(each)


def mean_over(each: Tensor, observed: Tensor) -> Tensor:
    """Mean responsibilities of the observed modalities, (m, b, c) and (m, b, 1) -> (b, c)."""
    return torch.where(observed, each, 0.0).sum(0) / observed.sum(0)


def majority(each: Tensor, observed: Tensor) -> Tensor:
    """The cluster with most votes, responsibilities (m, b, c) and observed (m, b, 1) -> (b,); ties
    by the mean.
    """
    votes = nn.functional.one_hot(each.argmax(-1), each.shape[-1])
    counts = torch.where(observed, votes, 0).sum(0)
    ties = mean_over(each, observed) / 2  # below 1: settles ties and nothing else
    return (counts + ties).argmax(-1)
