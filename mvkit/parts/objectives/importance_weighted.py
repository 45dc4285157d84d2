"""parts.objectives.importance_weighted."""

from __future__ import annotations

import torch
from torch import Tensor

from mvkit.core import bounds
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss, finish, row_metrics
from mvkit.core.modality import Sizes
from mvkit.core.terms import Terms
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.objectives.objective import Objective, check_names, draw_or_none
from mvkit.registry.spec import factors, field, integer, number, one_of, spec

_bound = one_of(None, "loose", "tight")


@spec
class _Weighted(Objective):
    """What iwae and dreg share."""

    kl_weight: float = field(default=1.0, check=number(0.0))
    samples: int = field(default=5, check=integer(1))
    draw: str | None = field(default=None, check=draw_or_none)
    bound: str | None = field(default=None, check=_bound)
    weights: dict[str, float] = field(default={}, check=factors)
    whole_density = True

    def build(self, sizes: Sizes) -> Objective:
        check_names(self.weights, sizes, "weights")
        return self

    def _loss(self, model: LatentModel, batch: Batch, experts: Experts, *, doubly: bool) -> Loss:
        """The importance-weighted loss, its gradient doubly reparametrised if asked."""
        posterior = model.joint_posterior(batch, experts)
        defaults = model.aggregator.defaults
        terms = model.terms(
            batch,
            self.samples,
            experts=experts,
            posterior=posterior,
            draw=self.draw or defaults.weighted_draw,
            want="mixture",
            stop_density=doubly,
        )
        form = self.bound or defaults.bound
        weights, private = model.likelihood_weights(self.weights), model.private_betas
        log_w = bounds.importance_log_weights(
            terms, weights=weights, beta=self.kl_weight, private=private
        )
        if doubly:
            value = bounds.dreg(log_w, terms.log_pi, bound=form)
            self._rescale(model, terms, bounds.normalised_weights(log_w, terms.log_pi, bound=form))
        else:
            value = bounds.iwae(log_w, terms.log_pi, bound=form)
        with torch.no_grad():
            reported = bounds.iwae(bounds.importance_log_weights(terms), terms.log_pi, bound=form)
            kl = bounds.kl(terms, density="mixture")
        metrics = row_metrics(model.names, terms, kl, batch.observed, posterior.active)
        return finish(model.bound_name, value, reported, posterior.active, metrics)

    def _rescale(self, model: LatentModel, terms: Terms, share: Tensor) -> None:
        """Gradients through draws carry (1-β) ŵ + β ŵ² in all: ŵ is in the surrogate, the rest is put in here."""

        def factor(site: str | None) -> Tensor:
            beta = self.kl_weight * (1.0 if site is None else model.modalities[site].private_beta)
            return (1 - beta) + beta * share

        if terms.scale_gradients is not None:
            terms.scale_gradients(factor)


@spec
class IWAE(_Weighted):
    """Importance-weighted bound: log mean of S importance weights.

    Args:
        kl_weight: β on log p(z) - log q(z|x).
        samples: draws S, of each component or in all.
        draw: `stratified`, `iid` or `balanced`; None: the aggregator's.
        bound: `loose` (one log-mean-exp a component) or `tight` (one over all draws); None: the aggregator's.
        weights: factors of λ by modality.

    Reference: Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016,
    https://arxiv.org/abs/1509.00519.
    """

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        return self._loss(model, batch, experts, doubly=False)


@spec
class DReG(_Weighted):
    """IWAE with the doubly reparametrised gradient, whose signal does not fade as S grows.

    Its expectation is IWAE's gradient when the posterior has one component, or when components are drawn iid
    and normalised together (`tight`), without evidence-rule private latents; not with stratified or balanced
    draws of a mixture, nor in the published `loose` form. Those are usable estimators, here to reproduce results.

    Args:
        kl_weight: β on log p(z) - log q(z|x).
        samples: draws S, of each component or in all.
        draw: `stratified`, `iid` or `balanced`; None: the aggregator's.
        bound: `loose` or `tight`; None: the aggregator's.
        weights: factors of λ by modality.

    Reference: Tucker et al., Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2019,
    https://arxiv.org/abs/1810.04152; Shi et al., 2019, https://arxiv.org/abs/1911.03393.
    """

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        return self._loss(model, batch, experts, doubly=True)
