"""The bound with a Jensen-Shannon divergence in the place of the KL.

Axes: s samples, k unimodal posteriors, v of them and the prior, b rows, m modalities, d latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core import bounds
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss, Metrics, finish, row_metrics, weighted_mean
from mvkit.core.mixture import Mixture
from mvkit.core.modality import Sizes
from mvkit.core.posterior import Posterior
from mvkit.core.terms import Draw, Terms
from mvkit.errors import SpecError
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.objectives.objective import DRAWS, Objective, check_names
from mvkit.registry.fields import choice, count, factor
from mvkit.registry.spec import factors, field, spec


@spec
class JSD(Objective):
    """Multimodal Jensen-Shannon bound E_q Σ_{m∈O} λ_m log p(x_m|z) - β JS_π({q_m}_{m∈O}, p(z)).

    JS_π = Σ_ν π_ν KL(q_ν ‖ f), over the unimodal posteriors and the prior, from their weighted
    geometric mean f ∝ ∏_ν q_ν^π_ν, the dynamic prior. q = Σ_m π_m q_m / Σ_m π_m is the mixture of
    the unimodal posteriors, whatever the aggregator; what else that holds is not trained. The π
    of a row are shares over what it observes and the prior. Needs normal experts and a prior of
    one normal. What is reported is the ELBO of q under the prior.

    Args:
        shares: relative π of the modalities; those not named have 1.
        prior_share: relative π of the prior.
        kl_weight: β.
        samples, draw: draws S, and how components are drawn.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import JSD
        >>> model = mvkit.Model(
        ...     {"a": (3,), "b": (2,)}, latent_dim=2, aggregator="moe", objective=JSD(), seed=0
        ... )
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.loss(rows).bound.shape
        torch.Size([4])

    Reference: Sutter, Daunhawer and Vogt, Multimodal Generative Learning Utilizing
    Jensen-Shannon-Divergence, NeurIPS 2020, https://arxiv.org/abs/2006.08242.
    """

    shares: Mapping[str, float] = field(default={}, check=factors)
    prior_share: float = factor()
    kl_weight: float = factor()
    samples: int = count(1)
    draw: Draw = choice("stratified", *DRAWS)
    trains_unimodal = True

    def build(self, sizes: Sizes) -> JSD:
        check_names(self.shares, sizes.names, "shares")
        for name, share in self.shares.items():
            if not share > 0:
                raise SpecError(f"got {share} for {name!r}; expected a number above 0", "shares")
        if sizes.family.density != "normal":
            raise SpecError(
                "objective 'jsd' takes geometric means of experts, which this family has not in "
                "closed form; take family='normal'"
            )
        if sizes.live_prior is not None:
            _check_prior(sizes.live_prior)
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        unimodal = _located(model, batch, experts)
        shares = self._of_rows(model, batch, unimodal.loc)
        posterior = attrs.evolve(unimodal, log_weight=_among_observed(shares[:-1]))
        terms = model.terms(
            batch, self.samples, experts=experts, posterior=posterior, draw=self.draw
        )
        prior = _normal(model.prior_at(experts, posterior), "prior")
        divergence = jensen_shannon(unimodal, prior, shares)
        # with this divergence where the KL stands
        dynamic = attrs.evolve(terms, kl=rearrange(divergence, "b -> 1 b"))
        value = bounds.elbo(
            dynamic,
            weights=model.likelihood_weights(),
            beta=self.kl_weight,
            private=model.private_betas,
        )
        report, metrics = _reported(model, batch, terms, divergence)
        return finish(model.bound_name, value, report, None, metrics, batch.row_weight)

    def _of_rows(self, model: LatentModel, batch: Batch, like: Tensor) -> Tensor:
        """π of the modalities and, last, of the prior; 0 where unobserved, (v, b)."""
        relative = []
        for i, name in enumerate(model.names):
            observed = batch.observed[:, i].to(like.dtype)
            relative.append(observed * self.shares.get(name, 1.0))
        relative.append(torch.full_like(relative[0], self.prior_share))
        shares = torch.stack(relative)
        total = shares.sum(0)
        return shares / torch.where(total > 0, total, 1.0)


def jensen_shannon(unimodal: Mixture, prior: Mixture, shares: Tensor) -> Tensor:
    """Σ_ν π_ν KL(q_ν ‖ f) from the weighted geometric mean f ∝ ∏_ν q_ν^π_ν, (b,).

    Args:
        unimodal: normals q_ν as components of one mixture.
        prior: one normal more, the last ν.
        shares: π, (v, b), which sum to one in each row.
    """
    loc = torch.cat([unimodal.loc, prior.loc.expand_as(unimodal.loc[:1])])
    scale = torch.cat([unimodal.scale, prior.scale.expand_as(unimodal.scale[:1])])
    counted = rearrange(shares, "v b -> v b 1")
    precision = torch.where(counted > 0, counted * scale**-2, 0.0)
    total = precision.sum(0)
    total = torch.where(total > 0, total, 1.0)  # of a row that observes nothing, without a prior
    mean = (precision * loc).sum(0) / total
    divergence = unimodal.family.kl(loc, scale, mean, total.rsqrt())
    if divergence is None:
        raise SpecError("objective 'jsd' needs KLs in closed form; take family='normal'")
    return torch.where(shares > 0, shares * divergence, 0.0).sum(0)


def _among_observed(shares: Tensor) -> Tensor:
    """Log-weights of a mixture by shares (k, b); of a row without any, its first component."""
    nothing = shares.sum(0) == 0
    first = torch.arange(len(shares), device=shares.device) == 0
    shares = torch.where(nothing & rearrange(first, "k -> k 1"), 1.0, shares)
    return (shares / shares.sum(0)).log()


def _located(model: LatentModel, batch: Batch, experts: Experts) -> Mixture:
    """The unimodal posteriors, one normal each, as components of one mixture."""
    parts = []
    for name, posterior in model.aggregator.unimodal(experts, batch).items():
        parts.append(_normal(posterior, f"posterior given {name!r} alone"))
    loc = torch.cat([part.loc for part in parts])
    scale = torch.cat([part.scale for part in parts])
    log_weight = torch.cat([part.log_weight for part in parts])
    evidence = torch.cat([cast(Tensor, part.evidence) for part in parts])
    return Mixture(
        parts[0].family, loc, scale, log_weight, evidence & batch.observed, order=model.order
    )


def _normal(posterior: Posterior, what: str) -> Mixture:
    """A posterior that is one normal; SpecError for any other."""
    if not isinstance(posterior, Mixture) or posterior.components > 1:
        raise _no_normal(what)
    return posterior


def _check_prior(prior: Any) -> None:
    """Raises SpecError for a prior that is known to be no normal; a bare module may be one."""
    several = getattr(prior, "clusters", 0) > 1
    density = getattr(prior, "density", None)
    if several or getattr(prior, "conditional", False) or getattr(prior, "pseudo_inputs", None):
        raise _no_normal("prior")
    if density is not None:
        _normal(density(), "prior")


def _no_normal(what: str) -> SpecError:
    return SpecError(
        f"objective 'jsd' takes the geometric mean of normals, and the {what} is none; take "
        "prior='standard' or 'learnable', and an aggregator such as 'moe'"
    )


@torch.no_grad()
def _reported(
    model: LatentModel, batch: Batch, terms: Terms, divergence: Tensor
) -> tuple[Tensor, Metrics]:
    """The ELBO of the mixture under the prior, (b,), and metrics."""
    kl = bounds.kl(terms)
    metrics = row_metrics(model.names, terms, kl, batch.observed, None, batch.row_weight)
    mean, rows = (
        divergence.sum() / max(len(divergence), 1),
        torch.full((), len(divergence), device=divergence.device),
    )
    if batch.row_weight is not None:
        mean, rows = weighted_mean(divergence, batch.row_weight)
    metrics.means["jsd"], metrics.counts["jsd"] = mean, rows
    return bounds.elbo(terms), metrics
