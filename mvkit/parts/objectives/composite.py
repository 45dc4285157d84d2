"""Objectives to be added up: alignment of posteriors, and the weighted sum.

Axes: b rows, m modalities.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss, over_rows, sum_of, weighted_mean
from mvkit.core.modality import Sizes
from mvkit.core.noise import Generator
from mvkit.core.posterior import Posterior
from mvkit.errors import SpecError
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.objectives.contrast import Temperature, contrast
from mvkit.parts.objectives.objective import Objective, active_rows
from mvkit.registry.fields import choice, count, factor
from mvkit.registry.spec import field, name, number, numbers, parts, spec


def kl_to(
    posterior: Posterior, other: Posterior, generator: Generator, samples: int | None = None
) -> Tensor:
    """Σ_k w_k KL(q_k ‖ other), (b,).

    Args:
        posterior: q.
        other: the distribution that it is compared with.
        generator: source of randomness.
        samples: draws of each component; None: the closed form, or one draw where there is none.
    """
    divergence = posterior.kl(other) if samples is None else None
    if divergence is None:
        draws = posterior.draw(samples or 1, "stratified", generator)
        divergence = (draws.log_qk - other.log_prob(draws.z)).mean(0)
    return (posterior.log_weight.exp() * divergence).sum(0)


def kl_to_unimodal(
    model: LatentModel,
    batch: Batch,
    experts: Experts,
    posterior: Posterior,
    samples: int | None = None,
) -> Tensor:
    """Σ_{m∈O} KL(q(z|x_O) ‖ q_m(z|x_m)), (b,), from draws if `samples` says how many."""
    total = posterior.log_weight.new_zeros(len(batch))
    unimodal = model.aggregator.unimodal(experts, batch)
    for i, surrogate in enumerate(unimodal.values()):
        kl = kl_to(posterior, surrogate, experts.generator, samples)
        total = total + torch.where(batch.observed[:, i], kl, 0.0)
    return total


def auxiliary_loss(
    name: str, values: Tensor, weight: float, active: Tensor, row_weight: Tensor | None = None
) -> Loss:
    """The loss of an objective that bounds nothing, to be added to one that does.

    Args:
        name: what the mean of the values over active rows is called among the metrics.
        values: one number per row, (b,).
        weight: times the values is what is maximised.
        active: rows that count, (b,) bool.
        row_weight: how much each row counts, (b,); None: all alike.
    """
    weighted = torch.where(active, weight * values, 0.0)
    values = values.detach()
    count = active.sum()
    mean = torch.where(active, values, 0.0).sum() / count.clamp(min=1)
    no_bound = torch.full_like(values, torch.nan)
    if row_weight is not None:
        mean, count = weighted_mean(values, row_weight, active)
    loss = -over_rows(weighted, row_weight)
    metrics = {"loss": loss.detach(), name: mean}
    return Loss(loss, no_bound, metrics, {name: count}, row_weight is not None)


@spec
class Align(Objective):
    """Alignment -α Σ_{m∈O} KL(q(z|x_O) ‖ q_m(z|x_m)) of the posterior and the unimodal ones.

    With `contrast`, each row's unimodal codes are told from those of the other rows instead:
    InfoNCE, with a trained temperature, over the pairs of modalities that a row observes (see
    `mvkit.parts.objectives.contrast`).

    Args:
        alpha: α.
        kl_weight: a further factor, for ramps.
        estimate: `auto`: by components in closed form where there is one, else from samples;
            `samples`; `contrast`.
        samples: draws S from each component where sampled.
        temperature: of `contrast`, at first; it is trained, between 0.01 and 1.
        key: what the trained temperature is called in the model; two that differ in it have one
            each.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import ELBO, Align, Sum
        >>> both = Sum(terms=[ELBO(), Align(alpha=0.1)])
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, objective=both, seed=0)
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.loss(rows).bound.shape
        torch.Size([4])

    Reference: Suzuki, Nakayama and Matsuo, Joint Multimodal Learning with Deep Generative Models,
    2016, https://arxiv.org/abs/1611.01891; for the contrast Radford et al., Learning Transferable
    Visual Models From Natural Language Supervision (CLIP), 2021,
    https://arxiv.org/abs/2103.00020, and van den Oord, Li and Vinyals, Representation Learning
    with Contrastive Predictive Coding, 2018, https://arxiv.org/abs/1807.03748.
    """

    alpha: float = factor()
    kl_weight: float = factor()
    estimate: str = choice("auto", "samples", "contrast")
    samples: int = count(1)
    temperature: float = field(default=0.07, check=number(0.01, 1.0), quiet=True)
    key: str = field(default="align", check=name, quiet=True)
    trains_unimodal = True

    @property
    def couples_rows(self) -> bool:  # type: ignore[override]
        return self.estimate == "contrast"

    def build(self, sizes: Sizes) -> Align:
        if self.estimate == "contrast" and (len(sizes.names) < 2 or not sizes.latent):
            raise SpecError(
                f"'contrast' compares the shared codes of two modalities; got {len(sizes.names)} "
                f"and latent_dim={sizes.latent}; take another",
                "estimate",
            )
        return self

    def modules(self, sizes: Sizes) -> nn.Module | None:
        return Temperature(self.temperature) if self.estimate == "contrast" else None

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        posterior = model.joint_posterior(batch, experts)
        if self.estimate == "contrast":
            return self._contrast(model, batch, experts, active_rows(posterior, batch))
        samples = self.samples if self.estimate == "samples" else None
        kl = kl_to_unimodal(model, batch, experts, posterior, samples)
        weight = -self.alpha * self.kl_weight
        active = active_rows(posterior, batch)
        return auxiliary_loss("align", kl, weight, active, batch.row_weight)

    def _contrast(
        self, model: LatentModel, batch: Batch, experts: Experts, active: Tensor
    ) -> Loss:
        """The loss of `contrast`, which reports the temperature too."""
        scale = model.trained(self)()
        values = contrast(model, batch, experts, scale)
        weight = -self.alpha * self.kl_weight
        loss = auxiliary_loss("align", values, weight, active, batch.row_weight)
        metrics = {**loss.metrics, "temperature": 1 / scale.detach()}
        return attrs.evolve(loss, metrics=metrics)


@spec
class Sum(Objective):
    """Weighted sum of objectives, on the same experts.

    Args:
        terms: the objectives; the reported bound is that of the first that has one.
        weights: a factor for each; empty: ones.
        kl_weight: multiplies the `kl_weight` of every term.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import ELBO, MMD, Sum
        >>> both = Sum(terms=[ELBO(kl_weight=0.0), MMD()])
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, objective=both, seed=0)
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.loss(rows).bound.shape
        torch.Size([4])

    Reference: the form of Vedantam et al., 2018, https://arxiv.org/abs/1705.10762, among others.
    """

    terms: tuple[Any, ...] = parts("objective")
    weights: tuple[float, ...] = field(default=(), check=numbers)
    kl_weight: float = factor()

    @property
    def trains_unimodal(self) -> bool:  # type: ignore[override]
        return any(term.trains_unimodal for term in self.terms)

    @property
    def needs_experts(self) -> bool:  # type: ignore[override]
        return any(term.needs_experts for term in self.terms)

    @property
    def whole_density(self) -> bool:  # type: ignore[override]
        return any(term.whole_density for term in self.terms)

    @property
    def couples_rows(self) -> bool:  # type: ignore[override]
        return any(term.couples_rows for term in self.terms)

    def build(self, sizes: Sizes) -> Sum:
        terms, weights = self.terms, self.weights
        fits = len(weights) in (0, len(terms))
        if not isinstance(terms, tuple) or not terms or not fits:
            raise SpecError(
                f"{len(terms)} terms and {len(weights)} weights; expected a list of terms, and "
                "weights for none or all of them"
            )
        for i, term in enumerate(terms):
            try:
                term.build(sizes)
            except SpecError as error:
                raise error.within(f"terms.{i}") from None
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        losses = []
        metrics: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for i, term in enumerate(self.terms):
            ramped = attrs.evolve(term, kl_weight=term.kl_weight * self.kl_weight)
            loss = ramped.forward(model, batch, experts)
            losses.append(loss)
            metrics |= {f"{i}/{key}": value for key, value in loss.metrics.items()}
            counts |= {f"{i}/{key}": value for key, value in loss.counts.items()}
        weights = self.weights or (1.0,) * len(losses)
        pairs = zip(weights, losses, strict=True)
        total = sum_of([weight * loss.loss for weight, loss in pairs])
        # what only aligns posteriors reports no bound
        reporting = [loss for loss in losses if _reports_bound(loss)]
        first = (reporting or losses)[0]
        metrics |= {**first.metrics, "loss": total.detach()}
        weighted = all(loss.weighted for loss in losses)
        return Loss(total, first.bound, metrics, counts | first.counts, weighted)


def _reports_bound(loss: Loss) -> bool:
    return "bound" in loss.metrics or "surrogate_bound" in loss.metrics
