"""The entropy of component weights as an objective of its own.

Axes: k components, b rows.
"""

from __future__ import annotations

import torch

from mvkit import Batch, Loss, Objective, spec
from mvkit.core import Experts
from mvkit.parts import LatentModel
from mvkit.parts.objectives.composite import auxiliary_loss
from mvkit.parts.objectives.objective import active_rows
from mvkit.registry.fields import factor


@spec
class Entropy(Objective):
    """Entropy α H(π) of the posterior's component weights, to be added to `elbo` in a `sum`.

    Beside Σ_S π_S f_S, where f_S is the bound of one component, it makes π ∝ exp(f_S) the best
    weights. Alone it bounds nothing: on log p(x) it is H(π) - log K that may be added, and the
    constant trains nothing.

    Args:
        alpha: α.
        kl_weight: a further factor, for ramps.

    Reference: Mancisidor, Jenssen, Yu and Kampffmeyer, Aggregation of Dependent Expert
    Distributions in Multimodal Variational Autoencoders, ICML 2025,
    https://arxiv.org/abs/2505.01134.
    """

    alpha: float = factor()
    kl_weight: float = factor()

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        posterior = model.joint_posterior(batch, experts)
        log_pi = posterior.log_weight
        counted = torch.where(torch.isfinite(log_pi), log_pi, 0.0)  # 0 log 0 is 0
        entropy = -(log_pi.exp() * counted).sum(0)
        weight = self.alpha * self.kl_weight
        return auxiliary_loss("entropy", entropy, weight, active_rows(posterior, batch))
