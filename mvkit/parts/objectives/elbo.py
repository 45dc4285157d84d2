"""Objectives: which terms to ask a model for, and which bound to make of them.

Axes: b rows, m modalities. Losses are averaged over all rows of the batch, whatever they lack.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from mvkit.core import bounds
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss, Metrics, finish, row_metrics, sum_of
from mvkit.core.modality import Sizes
from mvkit.core.posterior import Posterior
from mvkit.parts.aggregators.aggregator import raw_experts
from mvkit.parts.aggregators.mixtures import random_subsets
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.objectives.objective import Objective, check_names, draw_or_none
from mvkit.registry.spec import factors, field, integer, number, one_of, spec


@spec
class ELBO(Objective):
    """Evidence lower bound E_q Σ_{m∈O} λ_m log p(x_m|z) - β KL(q ‖ p).

    Args:
        kl_weight: β.
        samples: draws S, of each component or in all.
        draw: `stratified`, `iid` or `balanced`; None: the aggregator's.
        density: `component`: Σ_k w_k KL(q_k ‖ p), in closed form where there is one; `mixture`: the mixture's own
            density at the draws.
        condition: the posterior: the `aggregator`'s; the `unimodal` ones, each in turn; the raw `expert`s, each in
            turn; or the aggregator's given a random `subset` of what each row has.
        reduce: `mean` or `sum` over the conditions of a row.
        reconstruct: `all` observed modalities, or the condition's `own` evidence.
        weights: factors of λ by modality.

    Reference: Kingma and Welling, 2014, https://arxiv.org/abs/1312.6114; for the unimodal terms Vedantam et al.,
    2018, https://arxiv.org/abs/1705.10762.
    """

    kl_weight: float = field(default=1.0, check=number(0.0))
    samples: int = field(default=1, check=integer(1))
    draw: str | None = field(default=None, check=draw_or_none)
    density: str = field(default="component", check=one_of("component", "mixture"))
    condition: str = field(
        default="aggregator", check=one_of("aggregator", "unimodal", "expert", "subset")
    )
    reduce: str = field(default="mean", check=one_of("mean", "sum"))
    reconstruct: str = field(default="all", check=one_of("all", "own"))
    weights: dict[str, float] = field(default={}, check=factors)

    @property
    def trains_unimodal(self) -> bool:  # type: ignore[override]
        return self.condition in ("unimodal", "expert")

    @property
    def needs_experts(self) -> bool:  # type: ignore[override]
        return self.condition == "expert"

    @property
    def whole_density(self) -> bool:  # type: ignore[override]
        return self.density == "mixture"

    def build(self, sizes: Sizes) -> ELBO:
        check_names(self.weights, sizes, "weights")
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        values, reports, metrics, actives = [], [], [], []
        found = self._conditions(model, batch, experts)
        for name, posterior in found.items():
            alone = bool(name) and self.reconstruct == "own"
            value, reported, seen = self._bound(
                model, batch.hide([name]) if alone else batch, experts, posterior
            )
            if len(found) == 1:
                return finish(model.bound_name, value, reported, posterior.active, seen)
            active = (
                torch.ones_like(value).bool() if posterior.active is None else posterior.active
            )
            actives.append(active)
            values.append(torch.where(active, value, 0.0))
            reports.append(torch.where(active, reported, 0.0))
            metrics.append(seen)
        count = torch.stack(actives).sum(0)
        divide = count.clamp(min=1) if self.reduce == "mean" else 1
        value, reported = (sum_of(each) / divide for each in (values, reports))
        return finish(model.bound_name, value, reported, count > 0, Metrics.pooled(metrics))

    def _conditions(
        self, model: LatentModel, batch: Batch, experts: Experts
    ) -> Mapping[str, Posterior]:
        """The posteriors in turn, by the one modality that they look at, if it is one."""
        if self.condition == "unimodal":
            found: Mapping[str, Posterior] = model.aggregator.unimodal(experts, batch)
            return found
        if self.condition == "expert":
            return raw_experts(experts, batch)
        if self.condition == "subset":
            members, _ = random_subsets(experts, batch.observed, model.order, 1)
            batch = attrs.evolve(batch, mask=members[0], complete_rows=batch.no_rows)
        return {"": model.joint_posterior(batch, experts)}

    def _bound(
        self, model: LatentModel, batch: Batch, experts: Experts, posterior: Posterior
    ) -> tuple[Tensor, Tensor, Metrics]:
        """The bound (b,) under one posterior, the same with all weights at 1, and metrics."""
        terms = model.terms(
            batch,
            self.samples,
            experts=experts,
            posterior=posterior,
            draw=self.draw or model.aggregator.defaults.draw,
            reconstruct=self.reconstruct,
            want="kl" if self.density == "component" else "mixture",
        )
        weights, private = model.likelihood_weights(self.weights), model.private_betas
        value = bounds.elbo(
            terms, weights=weights, beta=self.kl_weight, private=private, density=self.density
        )
        with torch.no_grad():
            kl = bounds.kl(terms, density=self.density)
            reported = bounds.average(terms.log_px.sum(-1), terms.log_pi) - kl
        return (
            value,
            reported,
            row_metrics(model.names, terms, kl, batch.observed, posterior.active),
        )
