"""The evidence lower bound, under the posterior of all modalities, of each alone, or of subsets.

Axes: b rows, m modalities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mvkit.core import bounds
from mvkit.core.batch import Batch
from mvkit.core.bounds import Density
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss, Metrics, finish, row_metrics, sum_of
from mvkit.core.mixture import raw_experts
from mvkit.core.modality import Sizes
from mvkit.core.posterior import Posterior
from mvkit.core.terms import Draw, Reconstruct
from mvkit.parts.aggregators.mixtures import random_subsets
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.objectives.objective import DRAWS, Objective, active_rows, check_names
from mvkit.registry.fields import choice, count, factor
from mvkit.registry.spec import factors, field, spec


@spec
class ELBO(Objective):
    """Evidence lower bound E_q Σ_{m∈O} λ_m log p(x_m|z) - β KL(q ‖ p).

    Args:
        kl_weight: β.
        samples: draws S, of each component or in all.
        draw: `stratified`, `iid` or `balanced`; None: the aggregator's.
        density: `component`: Σ_k w_k KL(q_k ‖ p), in closed form where there is one; `mixture`:
            the mixture's own density at the draws.
        condition: the posterior: the `aggregator`'s; the `unimodal` ones, each in turn; the raw
            `expert`s, each in turn; or the aggregator's given a random `subset` of what each row
            has.
        reduce: `mean` or `sum` over the conditions of a row.
        reconstruct: `all` observed modalities, or the condition's `own` evidence. What is reported
            is then called `surrogate_bound`, as it is for `sum` over several conditions: it bounds
            no log p(x_O).
        weights: factors of λ by modality.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import ELBO
        >>> model = mvkit.Model(
        ...     {"a": (3,), "b": (2,)}, latent_dim=2, objective=ELBO(kl_weight=0.5), seed=0
        ... )
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.loss(rows).bound.shape
        torch.Size([4])

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014,
    https://arxiv.org/abs/1312.6114; for the unimodal terms Vedantam et al., 2018,
    https://arxiv.org/abs/1705.10762.
    """

    kl_weight: float = factor()
    samples: int = count(1)
    draw: Draw | None = choice(None, *DRAWS)
    density: Density = choice("component", "mixture")
    condition: str = choice("aggregator", "unimodal", "expert", "subset")
    reduce: Literal["mean", "sum"] = choice("mean", "sum")
    reconstruct: Reconstruct = choice("all", "own")
    weights: Mapping[str, float] = field(default={}, check=factors)

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
        check_names(self.weights, sizes.names, "weights")
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        posteriors = self._posteriors(model, batch, experts)
        bound_name = self._bound_name(model)
        values = []
        reports = []
        metrics = []
        actives = []
        for name, posterior in posteriors.items():
            own = name and self.reconstruct == "own"
            decoded = batch.hide([name]) if own else batch
            value, report, means = self._bound(model, decoded, experts, posterior)
            if len(posteriors) == 1:
                return finish(bound_name, value, report, posterior.active, means, batch.row_weight)
            active = active_rows(posterior, batch)
            values.append(torch.where(active, value, 0.0))
            reports.append(torch.where(active, report, 0.0))
            metrics.append(means)
            actives.append(active)
        count = torch.stack(actives).sum(0)
        divisor = count.clamp(min=1) if self.reduce == "mean" else 1
        value = sum_of(values) / divisor
        report = sum_of(reports) / divisor
        return finish(
            bound_name, value, report, count > 0, Metrics.pooled(metrics), batch.row_weight
        )

    def _bound_name(self, model: LatentModel) -> str:
        """The metric's name of what is reported: not every condition bounds log p(x_O) of a row.

        A sum over conditions is several bounds, and reconstructions of the `own` evidence alone
        leave out modalities, unless each component looked at all of them.
        """
        one_by_one = self.condition in ("unimodal", "expert")
        whole = self.condition == "aggregator" and not model.aggregator.defaults.mixture
        left_out = self.reconstruct == "own" and not whole
        if left_out or (one_by_one and self.reduce == "sum"):
            return "surrogate_bound"
        return model.bound_name

    def _posteriors(
        self, model: LatentModel, batch: Batch, experts: Experts
    ) -> Mapping[str, Posterior]:
        """The posteriors in turn, by the modality that they look at; `""` if it is not one."""
        if self.condition == "unimodal":
            return model.aggregator.unimodal(experts, batch)
        if self.condition == "expert":
            return raw_experts(experts, batch)
        if self.condition == "subset":
            members, _ = random_subsets(experts, batch.observed, model.order, 1)
            batch = batch.narrowed(members[0])
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
        value = bounds.elbo(
            terms,
            weights=model.likelihood_weights(self.weights),
            beta=self.kl_weight,
            private=model.private_betas,
            density=self.density,
        )
        with torch.no_grad():
            kl = bounds.kl(terms, density=self.density)
            report = bounds.likelihood(terms) - kl
        means = row_metrics(
            model.names, terms, kl, batch.observed, posterior.active, batch.row_weight
        )
        return value, report, means
