"""Levels: the objective of a stack, and the bound of both levels together.

Axes: b rows, m modalities, p bottom latent of a modality.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import attrs
import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.decoding import Decoding
from mvkit.core.experts import Experts
from mvkit.core.family import Family
from mvkit.core.loss import Loss, weighted_mean
from mvkit.core.modality import Sizes
from mvkit.errors import RequestError, SpecError
from mvkit.models.inference import evaluation
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.objectives.elbo import ELBO
from mvkit.parts.objectives.objective import Objective
from mvkit.registry import plugins
from mvkit.registry.fields import factor
from mvkit.registry.spec import parts, spec


class TwoLevels(Protocol):
    """A stack: two models, and the way from the lower to the upper one."""

    @property
    def bottom(self) -> LatentModel:
        """The level that sees the data."""
        ...

    @property
    def top(self) -> LatentModel:
        """The level that sees the latents of the bottom."""
        ...

    def up(self, batch: Batch, experts: Experts, *, drawn: bool) -> Batch:
        """The bottom's latents as a batch of the top."""
        ...


@spec
class Levels(Objective):
    """Sum of the objectives of both levels; the gradient of the top stops at the latents that it
    models.

    The reported bound is that of both levels together: E Σ_m [log p(x_m|z_m) - log q(z_m|x_m)] and
    the top's bound on log p(z_1, …, z_M), in which the bottom's N(0, I) plays no part. If the
    bottom's objective is an `elbo` of the aggregator's posterior and of all modalities, the
    expectation is taken from its bound. Any other objective reports something else, so the
    expectation is then estimated at the latents that the top sees.

    Args:
        levels: objectives of the bottom and of the top; empty: the levels' own.
        kl_weight: multiplies the `kl_weight` of both.

    Example:
        >>> import mvkit, torch
        >>> shapes = {"a": (3,), "b": (2,)}
        >>> stack = mvkit.recipes.nexus(shapes, latent_dim=2, seed=0)
        >>> type(stack.objective).__name__, len(stack.objective.levels)
        ('Levels', 2)

    Reference: Vasco et al., Leveraging Hierarchy in Multimodal Generative Models for Effective
    Cross-Modality Inference (Nexus), 2022, https://doi.org/10.1016/j.neunet.2021.11.019.
    """

    levels: tuple[Any, ...] = parts("objective", default=())
    kl_weight: float = factor()

    @property
    def couples_rows(self) -> bool:  # type: ignore[override]
        return any(level.couples_rows for level in self.levels)

    def build(self, sizes: Sizes) -> Objective:
        """Refuses a `Model`, which has one level: a stack builds the levels' own objectives."""
        raise SpecError(
            "objective 'levels' is that of a Stack, one for each of two levels; take 'elbo', or "
            "mvkit.Stack([bottom, top], objective=…)"
        )

    def forward(self, model: TwoLevels, batch: Batch, experts: Experts) -> Loss:  # type: ignore[override]
        bottom, top = model.bottom, model.top
        objective, above = [
            attrs.evolve(level, kl_weight=level.kl_weight * self.kl_weight)
            for level in self.levels
        ]
        low = objective.forward(bottom, batch, experts)
        upper = model.up(batch, experts, drawn=True)
        upper_experts = top.experts(upper, training=experts.training, generator=experts.generator)
        high = above.forward(top, upper, upper_experts)
        if _reports_own_kl(objective, bottom.decoding):
            cross_entropy = _prior_cross_entropy(bottom.decoding.family, batch, experts)
            bound = low.bound + high.bound + cross_entropy
        else:
            bound = _bound_without_top(bottom.decoding, batch, experts, upper) + high.bound
        loss = low.loss + high.loss
        metrics = _by_level(low.metrics, high.metrics)
        bound_name = "bound" if "bound" in high.metrics else "surrogate_bound"
        counts = _by_level(low.counts, high.counts)
        mean = bound.mean()
        if batch.row_weight is not None:
            mean, counts[bound_name] = weighted_mean(bound, batch.row_weight)
        metrics |= {"loss": loss.detach(), bound_name: mean}
        return Loss(loss, bound, metrics, counts, low.weighted and high.weighted)


def _by_level(low: Mapping[str, Tensor], high: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Metrics by level, and the likelihoods of the data under their own names."""
    metrics = {f"levels.0/{key}": value for key, value in low.items()}
    metrics |= {f"levels.1/{key}": value for key, value in high.items()}
    return metrics | {key: value for key, value in low.items() if key.startswith("log_px/")}


def _reports_own_kl(objective: Objective, bottom: Decoding) -> bool:
    """Whether the bottom's bound is Σ_{m∈O} [E_q log p(x_m|z_m) - KL(q ‖ N(0, I))].

    With the rule `evidence` for private latents it is not: KLs are weighted, and some draws come
    from other priors.
    """
    if type(objective) is not ELBO or bottom.private_from != "observed":
        return False
    return objective.condition == "aggregator" and objective.reconstruct == "all"


@torch.no_grad()
def _prior_cross_entropy(family: Family, batch: Batch, experts: Experts) -> Tensor:
    """Σ_{m∈O} -E_q log p(z_m) under the bottom's own prior, (b,): the prior term that the top
    level replaces.
    """
    total = torch.zeros(())
    for i, (loc, scale) in enumerate(experts.private.values()):
        kl = family.kl(loc, scale, torch.zeros_like(loc), torch.ones_like(scale))
        if kl is None:
            raise _no_closed_form(family, "KL")
        total = total + torch.where(batch.observed[:, i], kl + _entropy(family, scale), 0.0)
    return total


@torch.no_grad()
def _bound_without_top(bottom: Decoding, batch: Batch, experts: Experts, upper: Batch) -> Tensor:
    """Σ_{m∈O} [log p(x_m|z_m) - E_q log q(z_m|x_m)] at the draws z_m that the top sees, (b,).

    The decoders are in evaluation mode meanwhile, so that they draw no noise and none of their
    running values moves again.
    """
    w = {name: rearrange(z, "b p -> 1 1 b p") for name, z in upper.data.items()}
    some = next(iter(w.values()))
    nothing = some[..., :0]
    with evaluation(cast(nn.ModuleDict, bottom.decoders)):
        log_px = bottom.log_px(batch, nothing, w, batch.observed)
    total = rearrange(log_px.sum(-1), "1 1 b -> b")
    for i, (_, scale) in enumerate(experts.private.values()):
        total = total + torch.where(batch.observed[:, i], _entropy(bottom.family, scale), 0.0)
    return total


def _entropy(family: Family, scale: Tensor) -> Tensor:
    """The family's entropy, (b, p) -> (b,).

    Raises:
        RequestError: it has no closed form.
    """
    entropy = family.entropy(scale)
    if entropy is None:
        raise _no_closed_form(family, "entropy")
    return entropy


def _no_closed_form(family: Family, what: str) -> RequestError:
    name = plugins.name_of("family", type(family)) or type(family).__name__
    return RequestError(
        f"a stack's bound needs the {what} of the bottom's family in closed form, and family "
        f"{name!r} has none"
    )
