"""Objectives: which terms to ask a model for, and which bound to make of them.

Axes: b rows, m modalities. Losses are averaged over all rows of the batch, whatever they lack.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from mvkit import bounds
from mvkit.aggregators import random_subsets, raw_experts
from mvkit.batch import Batch
from mvkit.errors import SpecError, suggest
from mvkit.experts import Experts
from mvkit.losses import Loss, Metrics, finish, over_rows, row_metrics, sum_of
from mvkit.modality import Sizes
from mvkit.posterior import Posterior
from mvkit.spec import factors, field, integer, number, numbers, one_of, parts, spec
from mvkit.terms import Terms

if TYPE_CHECKING:
    from mvkit.model import Model

draw_or_none = one_of(None, "stratified", "iid", "balanced")
_bound = one_of(None, "loose", "tight")


class Objective(ABC):
    """Turns a batch into a loss.

    To implement one, decorate a subclass with `@spec`, give it a `kl_weight` that multiplies every KL-like part
    (ramps act on it), and write `forward`. Draw from `experts.generator`. `build` may refuse options that do not
    fit the model.
    """

    kl_weight: float

    trains_unimodal = False  # whether it trains each unimodal posterior, whatever a row observes
    whole_density = False  # whether it takes the density of the whole mixture, not of its components
    needs_experts = False  # whether it looks at raw experts, which not every aggregator has

    @abstractmethod
    def forward(self, model: Model, batch: Batch, experts: Experts) -> Loss:
        """The loss of a conformed batch whose experts are given."""

    def build(self, sizes: Sizes) -> Objective:
        """The live part: itself, after checks."""
        return self


def check_names(given: dict[str, float], sizes: Sizes, path: str) -> None:
    """Raises SpecError if a mapping by modality names one that the model lacks."""
    for name in given:
        if name not in sizes.names:
            raise SpecError(f"no modality {name!r}; {suggest(name, sizes.names)}", path)


def divergence(
    posterior: Posterior, other: Posterior, generator: torch.Generator | None, samples: int | None = None
) -> Tensor:
    """Σ_k w_k KL(q_k ‖ other), (b,): in closed form where there is one, else (or with `samples`) from draws."""
    kl = posterior.kl(other) if samples is None else None
    if kl is None:
        draws = posterior.draw(samples or 1, "stratified", generator)
        kl = (draws.log_qk - other.log_prob(draws.z)).mean(0)
    return (posterior.log_weight.exp() * kl).sum(0)


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
    condition: str = field(default="aggregator", check=one_of("aggregator", "unimodal", "expert", "subset"))
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

    def forward(self, model: Model, batch: Batch, experts: Experts) -> Loss:
        values, reports, metrics, actives = [], [], [], []
        found = self._conditions(model, batch, experts)
        for name, posterior in found.items():
            alone = bool(name) and self.reconstruct == "own"
            value, reported, seen = self._bound(model, batch.hide([name]) if alone else batch, experts, posterior)
            if len(found) == 1:
                return finish(model, value, reported, posterior.active, seen)
            active = torch.ones_like(value).bool() if posterior.active is None else posterior.active
            actives.append(active)
            values.append(torch.where(active, value, 0.0))
            reports.append(torch.where(active, reported, 0.0))
            metrics.append(seen)
        count = torch.stack(actives).sum(0)
        divide = count.clamp(min=1) if self.reduce == "mean" else 1
        value, reported = (sum_of(each) / divide for each in (values, reports))
        return finish(model, value, reported, count > 0, Metrics.pooled(metrics))

    def _conditions(self, model: Model, batch: Batch, experts: Experts) -> Mapping[str, Posterior]:
        """The posteriors in turn, by the one modality that they look at, if it is one."""
        if self.condition == "unimodal":
            found: Mapping[str, Posterior] = model.aggregator.unimodal(experts, batch)
            return found
        if self.condition == "expert":
            return raw_experts(experts, batch)
        if self.condition == "subset":
            members, _ = random_subsets(experts, batch.observed, model.order, 1)
            batch = attrs.evolve(batch, mask=members[0], whole=batch.no_rows)
        return {"": model.fused(batch, experts)}

    def _bound(
        self, model: Model, batch: Batch, experts: Experts, posterior: Posterior
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
        weights, private = model.weights(self.weights), model.private_betas
        value = bounds.elbo(terms, weights=weights, beta=self.kl_weight, private=private, density=self.density)
        with torch.no_grad():
            kl = bounds.divergence(terms, density=self.density)
            reported = bounds.average(terms.log_px.sum(-1), terms.log_weight) - kl
        return value, reported, row_metrics(model, terms, kl, batch.observed, posterior.active)


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

    def _loss(self, model: Model, batch: Batch, experts: Experts, *, doubly: bool) -> Loss:
        """The importance-weighted loss, its gradient doubly reparametrised if asked."""
        posterior = model.fused(batch, experts)
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
        weights, private = model.weights(self.weights), model.private_betas
        log_w = bounds.log_weights(terms, weights=weights, beta=self.kl_weight, private=private)
        if doubly:
            value = bounds.dreg(log_w, terms.log_weight, bound=form)
            self._rescale(model, terms, bounds.normalised(log_w, terms.log_weight, bound=form))
        else:
            value = bounds.iwae(log_w, terms.log_weight, bound=form)
        with torch.no_grad():
            reported = bounds.iwae(bounds.log_weights(terms), terms.log_weight, bound=form)
            kl = bounds.divergence(terms, density="mixture")
        metrics = row_metrics(model, terms, kl, batch.observed, posterior.active)
        return finish(model, value, reported, posterior.active, metrics)

    def _rescale(self, model: Model, terms: Terms, share: Tensor) -> None:
        """Gradients through draws carry (1-β) ŵ + β ŵ² in all: ŵ is in the surrogate, the rest is put in here."""

        def factor(site: str | None) -> Tensor:
            beta = self.kl_weight * (1.0 if site is None else model.modalities[site].private_beta)
            return (1 - beta) + beta * share

        if terms.scaled is not None:
            terms.scaled(factor)


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

    def forward(self, model: Model, batch: Batch, experts: Experts) -> Loss:
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

    def forward(self, model: Model, batch: Batch, experts: Experts) -> Loss:
        return self._loss(model, batch, experts, doubly=True)


@spec
class Align(Objective):
    """Alignment -α Σ_{m∈O} KL(q(z|x_O) ‖ q_m(z|x_m)) of the posterior and the unimodal ones.

    Args:
        alpha: α.
        kl_weight: a further factor, for ramps.
        estimate: `auto`: by components in closed form where there is one, else from samples; `samples`.
        samples: draws S from each component where sampled.

    Reference: Suzuki, Nakayama and Matsuo, Joint Multimodal Learning with Deep Generative Models, 2016,
    https://arxiv.org/abs/1611.01891.
    """

    alpha: float = field(default=1.0, check=number(0.0))
    kl_weight: float = field(default=1.0, check=number(0.0))
    estimate: str = field(default="auto", check=one_of("auto", "samples"))
    samples: int = field(default=1, check=integer(1))
    trains_unimodal = True

    def forward(self, model: Model, batch: Batch, experts: Experts) -> Loss:
        posterior = model.fused(batch, experts)
        total = posterior.log_weight.new_zeros(len(batch))
        samples = self.samples if self.estimate == "samples" else None
        for i, surrogate in enumerate(model.aggregator.unimodal(experts, batch).values()):
            kl = divergence(posterior, surrogate, experts.generator, samples)
            total = total + torch.where(batch.observed[:, i], kl, 0.0)
        value = -self.alpha * self.kl_weight * total
        active = torch.ones_like(batch.observed[:, 0]) if posterior.active is None else posterior.active
        value = torch.where(active, value, 0.0)
        mean = torch.where(active, total.detach(), 0.0).sum() / active.sum().clamp(min=1)
        nothing = torch.full_like(value.detach(), torch.nan)  # it bounds nothing
        loss = -over_rows(value)
        return Loss(loss, nothing, {"loss": loss.detach(), "align": mean}, {"align": active.sum()})


@spec
class Sum(Objective):
    """Weighted sum of objectives, on the same experts.

    Args:
        terms: the objectives; the reported bound is that of the first.
        weights: a factor for each; empty: ones.
        kl_weight: multiplies the `kl_weight` of every term.

    Reference: the form of Vedantam et al., 2018, https://arxiv.org/abs/1705.10762, among others.
    """

    terms: tuple[Any, ...] = parts("objective")
    weights: tuple[float, ...] = field(default=(), check=numbers)
    kl_weight: float = field(default=1.0, check=number(0.0))

    @property
    def trains_unimodal(self) -> bool:  # type: ignore[override]
        return any(term.trains_unimodal for term in self.terms)

    @property
    def needs_experts(self) -> bool:  # type: ignore[override]
        return any(term.needs_experts for term in self.terms)

    @property
    def whole_density(self) -> bool:  # type: ignore[override]
        return any(term.whole_density for term in self.terms)

    def build(self, sizes: Sizes) -> Sum:
        if not isinstance(self.terms, tuple) or not self.terms or len(self.weights or self.terms) != len(self.terms):
            raise SpecError(
                f"{len(self.terms)} terms and {len(self.weights)} weights; expected lists, as long, not empty"
            )
        for i, term in enumerate(self.terms):
            try:
                term.build(sizes)
            except SpecError as error:
                raise error.within(f"terms.{i}") from None
        return self

    def forward(self, model: Model, batch: Batch, experts: Experts) -> Loss:
        terms = [attrs.evolve(term, kl_weight=term.kl_weight * self.kl_weight) for term in self.terms]
        losses = [term.forward(model, batch, experts) for term in terms]
        weights = self.weights or (1.0,) * len(losses)
        total = sum_of([weight * one.loss for weight, one in zip(weights, losses, strict=True)])
        metrics = {f"{i}/{key}": value for i, one in enumerate(losses) for key, value in one.metrics.items()}
        counts = {f"{i}/{key}": value for i, one in enumerate(losses) for key, value in one.counts.items()}
        first = losses[0]
        metrics |= {**first.metrics, "loss": total.detach()}
        return Loss(total, first.bound, metrics, counts | first.counts)
