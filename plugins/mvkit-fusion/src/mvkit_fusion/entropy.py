"""The entropy of component weights as an objective of its own. Axes: k components, b rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mvkit import spec
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss
from mvkit.parts.objectives.objective import Objective
from mvkit.registry.spec import field, number

if TYPE_CHECKING:
    from mvkit import Model


@spec
class Entropy(Objective):
    """Entropy α H(π) of the posterior's component weights, to be added to `elbo` in a `sum`.

    Beside Σ_S π_S f_S, where f_S is the bound of one component, it makes π ∝ exp(f_S) the best
    weights. Alone it bounds
    nothing: on log p(x) it is H(π) - log K that may be added, and the constant trains nothing.

    Args:
        alpha: α.
        kl_weight: a further factor, for ramps.

    Reference: Mancisidor, Jenssen, Yu and Kampffmeyer, Aggregation of Dependent Expert
    Distributions in Multimodal Variational Autoencoders, ICML 2025,
    https://arxiv.org/abs/2505.01134.
    """

    alpha: float = field(default=1.0, check=number(0.0))
    kl_weight: float = field(default=1.0, check=number(0.0))

    def forward(self, model: Model, batch: Batch, experts: Experts) -> Loss:
        """See `Objective.forward`."""
        posterior = model.joint_posterior(batch, experts)
        log_weight = posterior.log_weight
        active = (
            torch.ones_like(batch.observed[:, 0]) if posterior.active is None else posterior.active
        )
        counted = torch.isfinite(log_weight) & active  # 0 log 0 is 0
        entropy = -(log_weight.exp() * torch.where(counted, log_weight, 0.0)).sum(0)
        value = self.alpha * self.kl_weight * entropy
        mean = entropy.detach().sum() / active.sum().clamp(min=1)
        nothing = torch.full_like(value.detach(), torch.nan)  # it bounds nothing
        loss = -value.mean()
        return Loss(
            loss, nothing, {"loss": loss.detach(), "entropy": mean}, {"entropy": active.sum()}
        )
