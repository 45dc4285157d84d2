"""Objectives composed of bounds and alignments, by the names of their papers.

Axes: b rows, m modalities.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from mvkit.core import bounds
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss, Metrics, finish, row_metrics
from mvkit.core.modality import Sizes
from mvkit.core.posterior import Posterior
from mvkit.core.terms import Terms
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.objectives.composite import Align, Sum
from mvkit.parts.objectives.elbo import ELBO
from mvkit.parts.objectives.objective import Objective, check_names, draw_or_none
from mvkit.registry.spec import factors, field, integer, number, spec


@spec
class JMVAE(Objective):
    """Joint ELBO and alignment: `sum` of `elbo` and `align`, with warm-up on both KLs.

    Args:
        alpha: factor of the alignment.
        beta: factor of the joint KL.
        kl_weight: factor of both, for ramps.
        samples, draw: as of `elbo`.

    Reference: Suzuki, Nakayama and Matsuo, Joint Multimodal Learning with Deep MultimodalModel Models, 2016,
    https://arxiv.org/abs/1611.01891, eq. 5.
    """

    alpha: float = field(default=0.1, check=number(0.0))
    beta: float = field(default=1.0, check=number(0.0))
    kl_weight: float = field(default=1.0, check=number(0.0))
    samples: int = field(default=1, check=integer(1))
    draw: str | None = field(default=None, check=draw_or_none)
    trains_unimodal = True

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        joint = ELBO(kl_weight=self.beta, samples=self.samples, draw=self.draw)
        terms = (joint, Align(alpha=self.alpha, samples=self.samples))
        return Sum(terms=terms, kl_weight=self.kl_weight).forward(model, batch, experts)


@spec
class TELBO(Objective):
    """Joint and unimodal bounds at once: ELBO(X; λ) + Σ_m ELBO(x_m; γ_m), each with its own posterior's KL.

    Args:
        lambdas: factors λ of the joint bound's likelihoods, by modality.
        gammas: factors γ of the unimodal bounds' likelihoods, by modality.
        kl_weight: factor of every KL.
        samples, draw: as of `elbo`.

    Reference: Vedantam et al., MultimodalModel Models of Visually Grounded Imagination, 2018,
    https://arxiv.org/abs/1705.10762, eq. 4.
    """

    lambdas: dict[str, float] = field(default={}, check=factors)
    gammas: dict[str, float] = field(default={}, check=factors)
    kl_weight: float = field(default=1.0, check=number(0.0))
    samples: int = field(default=1, check=integer(1))
    draw: str | None = field(default=None, check=draw_or_none)
    trains_unimodal = True

    def build(self, sizes: Sizes) -> TELBO:
        check_names(self.lambdas, sizes, "lambdas")
        check_names(self.gammas, sizes, "gammas")
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        joint = ELBO(weights=self.lambdas, samples=self.samples, draw=self.draw)
        unimodal = attrs.evolve(  # type: ignore[misc]
            joint, condition="unimodal", reduce="sum", reconstruct="own", weights=self.gammas
        )
        terms = (joint, unimodal)
        return Sum(terms=terms, kl_weight=self.kl_weight).forward(model, batch, experts)


def _joint_terms(
    model: LatentModel, batch: Batch, experts: Experts
) -> tuple[Posterior, Terms, Tensor]:
    """The posterior, its terms, and the sum of KL(q ‖ q_m) over the observed modalities, (b,)."""
    posterior = model.joint_posterior(batch, experts)
    draw = model.aggregator.defaults.draw
    terms = model.terms(batch, experts=experts, posterior=posterior, draw=draw)
    total = posterior.log_weight.new_zeros(len(batch))
    for i, other in enumerate(model.aggregator.unimodal(experts, batch).values()):
        kl = bounds.kl_to(posterior, other, experts.generator)
        total = total + torch.where(batch.observed[:, i], kl, 0.0)
    return posterior, terms, total


@spec
class MVTCAE(Objective):
    """Total correlation bound (n-α)/n E log p(X|z) - β [(1-α) KL(q ‖ p) + α/n Σ_m KL(q ‖ q_m)], n = |O|.

    Args:
        alpha: α, the share of the conditional terms.
        beta: β.
        kl_weight: a further factor of β, for ramps.

    Reference: Hwang, Kim, Hong and Kim, Multi-View Representation Learning via Total Correlation Objective, 2021,
    https://openreview.net/forum?id=SmQxNpUNhtT.
    """

    alpha: float = field(default=5 / 6, check=number(0.0, 1.0))
    beta: float = field(default=1.0, check=number(0.0))
    kl_weight: float = field(default=1.0, check=number(0.0))
    trains_unimodal = True

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        posterior, terms, apart = _joint_terms(model, batch, experts)
        n = batch.observed.sum(1).clamp(min=1).to(apart.dtype)
        likelihood = bounds.average(
            bounds.weighted_sum(terms.log_px, model.likelihood_weights()), terms.log_pi
        )
        kl = bounds.kl(terms, weights=model.private_betas)
        value = (n - self.alpha) / n * likelihood
        value = value - self.beta * self.kl_weight * (
            (1 - self.alpha) * kl + self.alpha / n * apart
        )
        return _reported(model, batch, posterior, terms, value, apart)


@spec
class CRMVAE(Objective):
    """Joint and unimodal reconstructions, KLs to the prior and to every expert, over n + 1, n = |O|.

    {½ Σ_m [E_q log p(x_m|z) + E_{q_m} log p(x_m|z)] - β [KL(q ‖ p) + Σ_m KL(q ‖ q_m)]} / (n + 1).

    Args:
        kl_weight: β.

    Reference: Suzuki and Matsuo, Mitigating the Limitations of Multimodal VAEs with Coordination-Based Approach,
    2023, https://openreview.net/forum?id=Rn8u4MYgeNJ.
    """

    kl_weight: float = field(default=1.0, check=number(0.0))
    trains_unimodal = True

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        posterior, terms, apart = _joint_terms(model, batch, experts)
        weights = model.likelihood_weights()
        likelihood = bounds.average(bounds.weighted_sum(terms.log_px, weights), terms.log_pi)
        for name, alone in model.aggregator.unimodal(experts, batch).items():
            own = model.terms(
                batch.hide([name]), experts=experts, posterior=alone, draw="stratified"
            )
            likelihood = likelihood + bounds.average(
                bounds.weighted_sum(own.log_px, weights), own.log_pi
            )
        kl = bounds.kl(terms, weights=model.private_betas) + apart
        value = (likelihood / 2 - self.kl_weight * kl) / (batch.observed.sum(1) + 1)
        return _reported(model, batch, posterior, terms, value, apart)


def _reported(
    model: LatentModel,
    batch: Batch,
    posterior: Posterior,
    terms: Terms,
    value: Tensor,
    apart: Tensor,
) -> Loss:
    """The loss of a row-wise objective, with the joint ELBO as its bound."""
    with torch.no_grad():
        bound, kl = bounds.elbo(terms), bounds.kl(terms)
        metrics = row_metrics(model.names, terms, kl, batch.observed, posterior.active)
        mean = Metrics({"align": apart.detach().mean()}, {"align": torch.tensor(len(apart))})
    return finish(
        model.bound_name, value, bound, posterior.active, Metrics.pooled([metrics, mean])
    )
