"""Bounds from importance weights.

Axes: s samples, j drawn components, b rows, m modalities.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from mvkit.core import bounds
from mvkit.core.batch import Batch
from mvkit.core.bounds import Form
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss, finish, row_metrics
from mvkit.core.modality import Sizes
from mvkit.core.terms import Draw, Terms
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.objectives.objective import DRAWS, Objective, check_names
from mvkit.registry.fields import choice, count, factor
from mvkit.registry.spec import factors, field, spec


@spec
class ImportanceWeighted(Objective):
    """An objective made of importance weights.

    To implement one, decorate a subclass with `@spec` and write `bound_of`; set `stop_density` if
    log q's own parameters get no gradient.
    """

    kl_weight: float = factor()
    samples: int = count(5)
    draw: Draw | None = choice(None, *DRAWS)
    bound: Form | None = choice(None, "loose", "tight")
    weights: Mapping[str, float] = field(default={}, check=factors)
    stop_density = False
    whole_density = True

    @abstractmethod
    def bound_of(self, model: LatentModel, terms: Terms, log_w: Tensor, form: Form) -> Tensor:
        """The value to be maximised, (b,), of log importance weights (s, j, b)."""

    def build(self, sizes: Sizes) -> Objective:
        check_names(self.weights, sizes.names, "weights")
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        posterior = model.joint_posterior(batch, experts)
        defaults = model.aggregator.defaults
        terms = model.terms(
            batch,
            self.samples,
            experts=experts,
            posterior=posterior,
            draw=self.draw or defaults.weighted_draw,
            want="mixture",
            stop_density=self.stop_density,
        )
        form = self.bound or defaults.bound
        log_w = bounds.importance_log_weights(
            terms,
            weights=model.likelihood_weights(self.weights),
            beta=self.kl_weight,
            private=model.private_betas,
        )
        value = self.bound_of(model, terms, log_w, form)
        with torch.no_grad():
            report = bounds.iwae(bounds.importance_log_weights(terms), terms.log_pi, bound=form)
            kl = bounds.kl(terms, density="mixture")
        means = row_metrics(
            model.names, terms, kl, batch.observed, posterior.active, batch.row_weight
        )
        return finish(model.bound_name, value, report, posterior.active, means, batch.row_weight)


@spec
class IWAE(ImportanceWeighted):
    """Importance-weighted bound: log mean of S importance weights.

    Args:
        kl_weight: β on log p(z) - log q(z|x).
        samples: draws S, of each component or in all.
        draw: `stratified`, `iid` or `balanced`; None: the aggregator's.
        bound: `loose` (one log-mean-exp per component) or `tight` (one over all draws); None: the
            aggregator's.
        weights: factors of λ by modality.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import IWAE
        >>> model = mvkit.Model(
        ...     {"a": (3,), "b": (2,)}, latent_dim=2, objective=IWAE(samples=5), seed=0
        ... )
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.loss(rows).bound.shape
        torch.Size([4])

    Reference: Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016,
    https://arxiv.org/abs/1509.00519.
    """

    def bound_of(self, model: LatentModel, terms: Terms, log_w: Tensor, form: Form) -> Tensor:
        return bounds.iwae(log_w, terms.log_pi, bound=form)


@spec
class DReG(ImportanceWeighted):
    """IWAE with the doubly reparametrised gradient, whose signal does not fade as S grows.

    Its expectation is IWAE's gradient when the posterior has one component, or when components are
    drawn iid and normalised together (`tight`), without evidence-rule private latents; not with
    stratified or balanced draws of a mixture, nor in the published `loose` form. Those are usable
    estimators, here to reproduce results.

    Args:
        kl_weight: β on log p(z) - log q(z|x).
        samples: draws S, of each component or in all.
        draw: `stratified`, `iid` or `balanced`; None: the aggregator's.
        bound: `loose` or `tight`; None: the aggregator's.
        weights: factors of λ by modality.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import DReG
        >>> model = mvkit.Model(
        ...     {"a": (3,), "b": (2,)},
        ...     latent_dim=2,
        ...     aggregator="moe",
        ...     objective=DReG(samples=5),
        ...     seed=0,
        ... )
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.loss(rows).bound.shape
        torch.Size([4])

    Reference: Tucker et al., Doubly Reparameterized Gradient Estimators for Monte Carlo
    Objectives, 2019, https://arxiv.org/abs/1810.04152; Shi et al., 2019,
    https://arxiv.org/abs/1911.03393.
    """

    stop_density = True

    def bound_of(self, model: LatentModel, terms: Terms, log_w: Tensor, form: Form) -> Tensor:
        w_hat = bounds.normalised_weights(log_w, terms.log_pi, bound=form)

        def gradient_factor_of(site: str | None) -> Tensor:
            private_beta = 1.0 if site is None else model.modalities[site].private_beta
            return gradient_factor(w_hat, self.kl_weight * private_beta)

        if terms.scale_gradients is not None:
            terms.scale_gradients(gradient_factor_of)
        return bounds.dreg(log_w, terms.log_pi, bound=form)


def gradient_factor(w_hat: Tensor, beta: float) -> Tensor:
    """(1-β) + β ŵ: gradients through draws carry (1-β) ŵ + β ŵ², and the bound has one ŵ."""
    return (1 - beta) + beta * w_hat
