"""MMD: how far draws of the posterior, of all rows together, are from draws of the prior.

Axes: b own rows, c rows of all processes, m modalities, d latent, s scales of the kernel.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import Tensor

from mvkit.core.all_rows import all_rows
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss
from mvkit.core.modality import Sizes
from mvkit.core.posterior import ForeignDensity, Posterior
from mvkit.errors import SpecError
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.objectives.composite import auxiliary_loss
from mvkit.parts.objectives.objective import Objective, active_rows
from mvkit.registry.fields import choice, factor
from mvkit.registry.spec import field, number, spec

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of Tolstikhin et al.


def scales(value: object) -> str | None:
    """A check: a list of positive numbers, one at least."""
    positive = number(above=0.0)
    fine = isinstance(value, tuple) and value and all(positive(item) is None for item in value)
    return None if fine else "a list of numbers greater than 0, one at least"


@spec
class MMD(Objective):
    """Maximum mean discrepancy -α MMD²(q(z), p(z)) of the aggregate posterior from the prior.

    One draw z_i of each row's posterior, and one y_i of the prior for each row, given its
    covariates if the prior depends on them. MMD² is the mean over rows of the U-statistic's terms
    Σ_{j≠i} [k(z_i, z_j) + k(y_i, y_j)] / (n-1) - Σ_j [k(z_i, y_j) + k(y_i, z_j)] / n, over the n
    rows that count: it is unbiased, and so may be negative. Weights of rows multiply their own
    terms; a row of weight 0 is in no sum. Only the shared latent is looked at; weights of
    components, of mixtures, get no gradient.

    Args:
        alpha: α.
        kl_weight: a further factor, for ramps.
        kernel: `imq`, the mean over scales of c / (c + ‖x-y‖²), or `rbf`, that of
            exp(-‖x-y‖² / c), where c = 2 d · scale: the mean of ‖x-y‖² under N(0, I), times scale.
        scales: of the kernel.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import MMD
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, objective=MMD(), seed=0)
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.loss(rows).bound.shape
        torch.Size([4])

    Reference: Tolstikhin et al., Wasserstein Auto-Encoders, 2018,
    https://arxiv.org/abs/1711.01558; Zhao, Song and Ermon, InfoVAE, 2019,
    https://arxiv.org/abs/1706.02262.
    """

    alpha: float = factor()
    kl_weight: float = factor()
    kernel: str = choice("imq", "rbf")
    scales: tuple[float, ...] = field(default=SCALES, check=scales)
    couples_rows = True

    def build(self, sizes: Sizes) -> MMD:
        if not sizes.latent:
            raise SpecError(
                "'mmd' compares shared latents, and a model with latent_dim=0 has none; expected "
                "1 or more; leave it out"
            )
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        posterior = model.joint_posterior(batch, experts)
        active = active_rows(posterior, batch)
        counted = active
        if batch.row_weight is not None:
            counted = active & (batch.row_weight > 0)
        z = rearrange(posterior.draw(1, "iid", experts.generator).z, "1 1 b d -> b d")
        y = _prior_draws(model, batch, experts, posterior)
        values = self._terms(z, y, counted)
        weight = -self.alpha * self.kl_weight
        return auxiliary_loss("mmd", values, weight, active, batch.row_weight)

    def _terms(self, z: Tensor, y: Tensor, counted: Tensor) -> Tensor:
        """The terms of the own rows, (b,)."""
        every_z, first = all_rows(z)
        every_y, _ = all_rows(y)
        every_counted, _ = all_rows(counted)
        rows = torch.arange(len(z), device=z.device) + first
        is_own = rearrange(rows, "b -> b 1") == torch.arange(len(every_z), device=z.device)
        among = every_counted & ~is_own
        within = self._kernel(z, every_z) + self._kernel(y, every_y)
        between = self._kernel(z, every_y) + self._kernel(y, every_z)
        n = every_counted.sum()
        within_mean = torch.where(among, within, 0.0).sum(1) / (n - 1).clamp(min=1)
        between_mean = torch.where(every_counted, between, 0.0).sum(1) / n.clamp(min=1)
        return within_mean - between_mean

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        """K(x, y) of all pairs, (b, d) and (c, d) -> (b, c)."""
        norms = rearrange(x.square().sum(1), "b -> b 1") + y.square().sum(1)
        distance = (norms - 2 * einsum(x, y, "b d, c d -> b c")).clamp(min=0.0)
        total = torch.zeros_like(distance)
        for scale in self.scales:
            width = 2 * x.shape[1] * scale
            if self.kernel == "imq":
                total = total + width / (width + distance)
            else:
                total = total + torch.exp(-distance / width)
        return total / len(self.scales)


def _prior_draws(
    model: LatentModel, batch: Batch, experts: Experts, posterior: Posterior
) -> Tensor:
    """A draw of the prior for each row, (b, d)."""
    prior = model.prior_at(experts, posterior)
    if isinstance(prior, ForeignDensity):
        z, _ = prior.sample(len(batch), None, experts.generator)
        return z
    of_rows = prior.expand(*batch.observed.shape)
    draws = of_rows.draw(1, "iid", experts.generator, "prior")
    return rearrange(draws.z, "1 1 b d -> b d")
