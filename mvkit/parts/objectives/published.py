"""Objectives composed of bounds and alignments, by the names of their papers.

Axes: b rows, m modalities.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mvkit.core import bounds
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss, Metrics, finish, row_metrics, weighted_mean
from mvkit.core.modality import Sizes
from mvkit.core.posterior import Posterior
from mvkit.core.terms import Draw, Terms
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.objectives.composite import Align, Sum, kl_to_unimodal
from mvkit.parts.objectives.elbo import ELBO
from mvkit.parts.objectives.objective import DRAWS, Objective, check_names
from mvkit.registry.fields import choice, count, factor
from mvkit.registry.spec import factors, field, number, spec


@spec
class JMVAE(Objective):
    """Joint ELBO and alignment: `sum` of `elbo` and `align`, with warm-up on both KLs.

    Args:
        alpha: factor of the alignment.
        beta: factor of the joint KL.
        kl_weight: factor of both, for ramps.
        samples, draw: as of `elbo`.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import JMVAE
        >>> model = mvkit.Model(
        ...     {"a": (3,), "b": (2,)},
        ...     latent_dim=2,
        ...     aggregator="joint",
        ...     objective=JMVAE(alpha=0.5),
        ...     seed=0,
        ... )
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.loss(rows).bound.shape
        torch.Size([4])

    Reference: Suzuki, Nakayama and Matsuo, Joint Multimodal Learning with Deep Generative Models,
    2016, https://arxiv.org/abs/1611.01891, eq. 5.
    """

    alpha: float = factor(0.1)
    beta: float = factor()
    kl_weight: float = factor()
    samples: int = count(1)
    draw: Draw | None = choice(None, *DRAWS)
    trains_unimodal = True

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        joint = ELBO(kl_weight=self.beta, samples=self.samples, draw=self.draw)
        align = Align(alpha=self.alpha, samples=self.samples)
        both = Sum(terms=(joint, align), kl_weight=self.kl_weight)
        return both.forward(model, batch, experts)


@spec
class TELBO(Objective):
    """Joint and unimodal bounds at once: ELBO(X; λ) + Σ_m ELBO(x_m; γ_m), each with its own KL.

    Args:
        lambdas: factors λ of the joint bound's likelihoods, by modality.
        gammas: factors γ of the unimodal bounds' likelihoods, by modality.
        kl_weight: factor of every KL.
        samples, draw: as of `elbo`.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import TELBO
        >>> model = mvkit.Model(
        ...     {"a": (3,), "b": (2,)}, latent_dim=2, aggregator="joint", objective=TELBO(), seed=0
        ... )
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.loss(rows).bound.shape
        torch.Size([4])

    Reference: Vedantam et al., Generative Models of Visually Grounded Imagination, 2018,
    https://arxiv.org/abs/1705.10762, eq. 4.
    """

    lambdas: Mapping[str, float] = field(default={}, check=factors)
    gammas: Mapping[str, float] = field(default={}, check=factors)
    kl_weight: float = factor()
    samples: int = count(1)
    draw: Draw | None = choice(None, *DRAWS)
    trains_unimodal = True

    def build(self, sizes: Sizes) -> TELBO:
        check_names(self.lambdas, sizes.names, "lambdas")
        check_names(self.gammas, sizes.names, "gammas")
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        joint = ELBO(weights=self.lambdas, samples=self.samples, draw=self.draw)
        unimodal = ELBO(
            condition="unimodal",
            reduce="sum",
            reconstruct="own",
            weights=self.gammas,
            samples=self.samples,
            draw=self.draw,
        )
        both = Sum(terms=(joint, unimodal), kl_weight=self.kl_weight)
        return both.forward(model, batch, experts)


@spec
class MVTCAE(Objective):
    """Total correlation bound (n-α)/n E log p(X|z) - β [(1-α) KL(q ‖ p) + α/n Σ_m KL(q ‖ q_m)].

    The sums are over the n = |O| observed modalities.

    Args:
        alpha: α, the share of the conditional terms.
        beta: β.
        kl_weight: a further factor of β, for ramps.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import MVTCAE
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, objective=MVTCAE(), seed=0)
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.loss(rows).bound.shape
        torch.Size([4])

    Reference: Hwang, Kim, Hong and Kim, Multi-View Representation Learning via Total Correlation
    Objective, 2021, https://openreview.net/forum?id=SmQxNpUNhtT.
    """

    alpha: float = field(default=5 / 6, check=number(0.0, 1.0))
    beta: float = factor()
    kl_weight: float = factor()
    trains_unimodal = True

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        posterior, terms = _joint_terms(model, batch, experts)
        align = kl_to_unimodal(model, batch, experts, posterior)
        n = batch.observed.sum(1).clamp(min=1).to(align.dtype)
        likelihood = _likelihood(model, terms)
        kl = bounds.kl(terms, weights=model.private_betas)
        value = (n - self.alpha) / n * likelihood
        divergence = (1 - self.alpha) * kl + self.alpha / n * align
        value = value - self.beta * self.kl_weight * divergence
        return _loss(model, batch, posterior, terms, value, align)


@spec
class CRMVAE(Objective):
    """Joint and unimodal reconstructions, KLs to the prior and to every expert, over n + 1.

    {½ Σ_m [E_q log p(x_m|z) + E_{q_m} log p(x_m|z)] - β [KL(q ‖ p) + Σ_m KL(q ‖ q_m)]} / (n + 1),
    with sums over the n = |O| observed modalities.

    Args:
        kl_weight: β.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import CRMVAE
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, objective=CRMVAE(), seed=0)
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.loss(rows).bound.shape
        torch.Size([4])

    Reference: Suzuki and Matsuo, Mitigating the Limitations of Multimodal VAEs with
    Coordination-Based Approach, 2023, https://openreview.net/forum?id=Rn8u4MYgeNJ.
    """

    kl_weight: float = factor()
    trains_unimodal = True

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        posterior, terms = _joint_terms(model, batch, experts)
        align = kl_to_unimodal(model, batch, experts, posterior)
        likelihood = _likelihood(model, terms)
        for name, alone in model.aggregator.unimodal(experts, batch).items():
            seen = batch.hide([name])
            own = model.terms(seen, experts=experts, posterior=alone, draw="stratified")
            likelihood = likelihood + _likelihood(model, own)
        kl = bounds.kl(terms, weights=model.private_betas) + align
        value = (likelihood / 2 - self.kl_weight * kl) / (batch.observed.sum(1) + 1)
        return _loss(model, batch, posterior, terms, value, align)


def _joint_terms(model: LatentModel, batch: Batch, experts: Experts) -> tuple[Posterior, Terms]:
    """The posterior, and its terms at one draw as the aggregator draws."""
    posterior = model.joint_posterior(batch, experts)
    draw = model.aggregator.defaults.draw
    return posterior, model.terms(batch, experts=experts, posterior=posterior, draw=draw)


def _likelihood(model: LatentModel, terms: Terms) -> Tensor:
    """E_q Σ_m λ_m log p(x_m|z), (b,)."""
    return bounds.likelihood(terms, weights=model.likelihood_weights())


def _loss(
    model: LatentModel,
    batch: Batch,
    posterior: Posterior,
    terms: Terms,
    value: Tensor,
    align: Tensor,
) -> Loss:
    """The loss of values (b,) to be maximised, which reports the joint ELBO as its bound."""
    with torch.no_grad():
        bound, kl = bounds.elbo(terms), bounds.kl(terms)
        metrics = row_metrics(
            model.names, terms, kl, batch.observed, posterior.active, batch.row_weight
        )
        count = torch.full((), len(align), device=align.device)
        mean = align.mean()
        if batch.row_weight is not None:
            mean, count = weighted_mean(align, batch.row_weight)
        pooled = Metrics.pooled([metrics, Metrics({"align": mean}, {"align": count})])
    return finish(model.bound_name, value, bound, posterior.active, pooled, batch.row_weight)
