"""parts.objectives.composite."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from mvkit.core.batch import Batch
from mvkit.core.bounds import kl_to
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss, over_rows, sum_of
from mvkit.core.modality import Sizes
from mvkit.errors import SpecError
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.objectives.objective import Objective
from mvkit.registry.spec import field, integer, number, numbers, one_of, parts, spec


@spec
class Align(Objective):
    """Alignment -α Σ_{m∈O} KL(q(z|x_O) ‖ q_m(z|x_m)) of the posterior and the unimodal ones.

    Args:
        alpha: α.
        kl_weight: a further factor, for ramps.
        estimate: `auto`: by components in closed form where there is one, else from samples; `samples`.
        samples: draws S from each component where sampled.

    Reference: Suzuki, Nakayama and Matsuo, Joint Multimodal Learning with Deep MultimodalModel Models, 2016,
    https://arxiv.org/abs/1611.01891.
    """

    alpha: float = field(default=1.0, check=number(0.0))
    kl_weight: float = field(default=1.0, check=number(0.0))
    estimate: str = field(default="auto", check=one_of("auto", "samples"))
    samples: int = field(default=1, check=integer(1))
    trains_unimodal = True

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        posterior = model.joint_posterior(batch, experts)
        total = posterior.log_weight.new_zeros(len(batch))
        samples = self.samples if self.estimate == "samples" else None
        for i, surrogate in enumerate(model.aggregator.unimodal(experts, batch).values()):
            kl = kl_to(posterior, surrogate, experts.generator, samples)
            total = total + torch.where(batch.observed[:, i], kl, 0.0)
        value = -self.alpha * self.kl_weight * total
        active = (
            torch.ones_like(batch.observed[:, 0]) if posterior.active is None else posterior.active
        )
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
        if (
            not isinstance(self.terms, tuple)
            or not self.terms
            or len(self.weights or self.terms) != len(self.terms)
        ):
            raise SpecError(
                f"{len(self.terms)} terms and {len(self.weights)} weights; expected lists, as long, not empty"
            )
        for i, term in enumerate(self.terms):
            try:
                term.build(sizes)
            except SpecError as error:
                raise error.within(f"terms.{i}") from None
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        terms = [
            attrs.evolve(term, kl_weight=term.kl_weight * self.kl_weight) for term in self.terms
        ]
        losses = [term.forward(model, batch, experts) for term in terms]
        weights = self.weights or (1.0,) * len(losses)
        total = sum_of([weight * one.loss for weight, one in zip(weights, losses, strict=True)])
        metrics = {
            f"{i}/{key}": value
            for i, one in enumerate(losses)
            for key, value in one.metrics.items()
        }
        counts = {
            f"{i}/{key}": value
            for i, one in enumerate(losses)
            for key, value in one.counts.items()
        }
        first = losses[0]
        metrics |= {**first.metrics, "loss": total.detach()}
        return Loss(total, first.bound, metrics, counts | first.counts)
