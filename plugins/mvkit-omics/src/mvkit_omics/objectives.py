"""Objectives of published models of cells, to be added to `elbo` in a `sum`.

Axes: b rows, m modalities, d latent.
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
from einops import rearrange
from torch import Tensor

from mvkit import Batch, Loss, Mixture, Objective, SpecError, field, spec
from mvkit.core import Experts, Sizes
from mvkit.parts import LatentModel, Standard
from mvkit.parts.objectives.composite import auxiliary_loss
from mvkit.registry import as_part
from mvkit.registry.fields import count, factor


@spec
class Jeffreys(Objective):
    """Agreement -α Σ_{m<n ∈ O} [KL(q_m ‖ q_n) + KL(q_n ‖ q_m)] of the experts of a row.

    Rows with one modality have no pair, and count as 0.

    Args:
        alpha: α.
        kl_weight: a further factor, for ramps.

    Reference: Ashuach, Gabitto, Koodli, Saldi, Jordan and Yosef, MultiVI: deep generative model
    for the integration of multimodal data, 2023, https://doi.org/10.1038/s41592-023-01909-9.
    """

    alpha: float = factor()
    kl_weight: float = factor()
    trains_unimodal = True
    needs_experts = True

    def build(self, sizes: Sizes) -> Jeffreys:
        """The objective itself.

        Raises:
            SpecError: experts whose divergence has no closed form.
        """
        zero = torch.zeros(1)
        one = torch.ones(1)
        if sizes.family.kl(zero, one, zero, one) is None:
            raise SpecError(
                "'jeffreys' needs a family whose KL has a closed form; take family='normal'",
                "family",
            )
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        divergence = experts.loc.new_zeros(len(batch))
        for i, j in itertools.combinations(range(len(model.names)), 2):
            both = batch.observed[:, i] & batch.observed[:, j]
            divergence = divergence + torch.where(both, _both_ways(experts, i, j), 0.0)
        active = batch.observed.any(1)
        weight = -self.alpha * self.kl_weight
        return auxiliary_loss("jeffreys", divergence, weight, active, batch.row_weight)


def _both_ways(experts: Experts, i: int, j: int) -> Tensor:
    """KL(q_i ‖ q_j) + KL(q_j ‖ q_i) of two experts, (b,)."""
    first = experts.loc[i], experts.scale[i]
    second = experts.loc[j], experts.scale[j]
    there = cast(Tensor, experts.family.kl(*first, *second))
    back = cast(Tensor, experts.family.kl(*second, *first))
    return there + back


@spec
class Consistency(Objective):
    """Consistency -α Σ_{m∈O} E‖z_m - z̄‖² of what single modalities say, z_m ~ q(z|x_m, x_a).

    x_a is the `anchor`, such as the batch of a cell; z̄ is the mean of the M draws of a row. The
    expectation is taken in closed form: Σ_m ‖μ_m - μ̄‖² + (1 - 1/M) Σ_m Σ_d σ²_md.

    Args:
        alpha: α.
        anchor: a modality that goes with each of the others, where it is observed; empty: none.
        kl_weight: a further factor, for ramps.

    Reference: He et al., Mosaic integration and knowledge transfer of single-cell multimodal data
    with MIDAS, 2024, https://doi.org/10.1038/s41587-023-02040-y (one draw there, and α = 50).
    """

    alpha: float = factor(50.0)
    anchor: str = field(default="", check=lambda v: None if isinstance(v, str) else "a name")
    kl_weight: float = factor()
    trains_unimodal = True

    def build(self, sizes: Sizes) -> Consistency:
        """The objective itself.

        Raises:
            SpecError: an anchor that is no modality.
        """
        if self.anchor and self.anchor not in sizes.names:
            raise SpecError(
                f"no modality {self.anchor!r}; expected one of {list(sizes.names)}, or ''",
                "anchor",
            )
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        locs = []
        variances = []
        there = []
        for i, name in enumerate(model.names):
            if name == self.anchor:
                continue
            shown = batch.hide([name, self.anchor] if self.anchor else [name])
            loc, variance = _moments(model.aggregator.forward(experts, shown))
            observed = batch.observed[:, i : i + 1]
            locs.append(torch.where(observed, loc, 0.0))
            variances.append(torch.where(observed, variance, 0.0))
            there.append(observed)
        observed = torch.stack(there)
        means = torch.stack(locs)
        number = observed.sum(0).clamp(min=1).to(means.dtype)
        centre = means.sum(0) / number
        distance = torch.where(observed, means - centre, 0.0).square().sum((0, 2))
        spread = ((1 - 1 / number) * torch.stack(variances).sum(0)).sum(1)
        weight = -self.alpha * self.kl_weight
        values = distance + spread
        active = batch.observed.any(1)
        return auxiliary_loss("consistency", values, weight, active, batch.row_weight)


@spec
class LatentKL(Objective):
    """A further KL, -α KL(q(u|x_O) ‖ N(0, I)) of the last latents u of z = (c, u).

    Beside `elbo` it makes β + α the factor of the KL of u, while that of c stays β.

    Args:
        dims: how many latents u has.
        alpha: α.
        kl_weight: a further factor, for ramps.

    Reference: He et al., Mosaic integration and knowledge transfer of single-cell multimodal data
    with MIDAS, 2024, https://doi.org/10.1038/s41587-023-02040-y.
    """

    dims: int = count(2)
    alpha: float = factor()
    kl_weight: float = factor()

    def build(self, sizes: Sizes) -> LatentKL:
        """The objective itself.

        Raises:
            SpecError: more latents than there are, or another prior than the standard normal.
        """
        if self.dims > sizes.latent:
            raise SpecError(
                f"got {self.dims} of {sizes.latent} latents; expected no more than there are",
                "dims",
            )
        if as_part("prior", sizes.prior) != Standard() or sizes.family.density != "normal":
            raise SpecError(
                "'latent_kl' is that to a standard normal prior; take prior='standard' and "
                "family='normal'",
                "prior",
            )
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        posterior = _mixture(model.joint_posterior(batch, experts))
        loc = posterior.loc[..., -self.dims :]
        scale = posterior.scale[..., -self.dims :]
        zero = torch.zeros_like(loc)
        of_components = cast(Tensor, experts.family.kl(loc, scale, zero, zero + 1))
        kl = (posterior.log_weight.exp() * of_components).sum(0)
        weight = -self.alpha * self.kl_weight
        return auxiliary_loss("latent_kl", kl, weight, batch.observed.any(1), batch.row_weight)


def _moments(posterior: object) -> tuple[Tensor, Tensor]:
    """Means and variances of a posterior, (b, d) each."""
    mixture = _mixture(posterior)
    share = rearrange(mixture.log_weight.exp(), "k b -> k b 1")
    mean = (share * mixture.loc).sum(0)
    deviation = mixture.family.deviation * mixture.scale
    second = (share * (deviation.square() + (mixture.loc - mean).square())).sum(0)
    return mean, second


def _mixture(posterior: object) -> Mixture:
    """A posterior that is a mixture of components with locations and scales.

    Raises:
        SpecError: it is something else.
    """
    if isinstance(posterior, Mixture):
        return posterior
    raise SpecError(
        f"got a posterior {type(posterior).__name__}; expected normals, of which objectives of "
        "MIDAS know the moments; take aggregator='poe'",
        "aggregator",
    )
