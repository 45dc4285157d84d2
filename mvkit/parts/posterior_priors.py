"""Priors made of posteriors: of trained pseudo-inputs, or of the rows themselves.

Axes: c pseudo-inputs or covariates, k components, b rows, d latent.
"""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.mixture import Mixture
from mvkit.core.modality import Sizes
from mvkit.errors import RequestError
from mvkit.parts.aggregators.aggregator import Aggregator
from mvkit.parts.objectives.objective import Objective
from mvkit.parts.priors import Prior
from mvkit.registry.fields import count
from mvkit.registry.spec import field, number, spec


@spec
class Vamp:
    """VampPrior p(z) = 1/C Σ_c q(z|u_c): the aggregator's posterior of trained pseudo-inputs.

    Args:
        components: number of pseudo-inputs C.

    Example:
        >>> import mvkit
        >>> from mvkit.parts import Vamp
        >>> model = mvkit.Model(
        ...     {"a": (3,), "b": (2,)}, latent_dim=2, prior=Vamp(components=5), seed=0
        ... )
        >>> model.sample(3)["b"].shape
        torch.Size([3, 2])

    Reference: Tomczak and Welling, VAE with a VampPrior, AISTATS 2018,
    https://arxiv.org/abs/1705.07120.
    """

    components: int = count(20)

    def build(self, sizes: Sizes) -> VampPrior:
        """The prior with its pseudo-inputs."""
        return VampPrior(self, sizes)


class VampPrior(nn.Module, Prior):
    """Holds the pseudo-inputs, in the space of covariates too; the model encodes them."""

    def __init__(self, spec: Vamp, sizes: Sizes) -> None:
        super().__init__()
        self.inputs = nn.ParameterDict()
        for name, modality in sizes.modalities.items():
            self.inputs[name] = noise.initial_uniforms((spec.components, *modality.shape))
        context = sizes.context("encoders")
        self.context = nn.Parameter(torch.zeros(spec.components, context)) if context else None

    @property
    def pseudo_context(self) -> Tensor | None:
        return self.context

    @property
    def pseudo_inputs(self) -> dict[str, Tensor]:
        return dict(self.inputs.items())

    def forward(self, posterior: Mixture | None = None) -> Mixture:
        if posterior is None:
            raise RequestError(
                "prior 'vamp': needs a model that encodes its pseudo-inputs; ask the model"
            )
        return posterior


@spec
class PosteriorMixture:
    """Data-dependent prior of each latent: 1/|O| Σ_m q(z|x_m), and a share of N(0, I) if wanted.

    Args:
        standard: weight of the standard component, from 0 to below 1.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model(
        ...     {"a": (3,), "b": (2,)},
        ...     latent_dim=2,
        ...     aggregator="moe",
        ...     prior="posterior_mixture",
        ...     seed=0,
        ... )
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.loss(rows).bound.shape
        torch.Size([4])

    Reference: Sutter, Meng, Agostini, Chopard, Fortin, Vogt, Shahbaba and Mandt, Unity by
    Diversity: Improved Representation Learning for Multimodal VAEs (MMVM), NeurIPS 2024,
    https://arxiv.org/abs/2403.05300.
    """

    standard: float = field(default=0.0, check=number(0.0, 0.999))

    def build(self, sizes: Sizes) -> PosteriorMixturePrior:
        """The prior, without parameters."""
        return PosteriorMixturePrior(self)


class PosteriorMixturePrior(nn.Module, Prior):
    """The posterior of a row is the prior of its latents."""

    conditional = True

    def __init__(self, spec: PosteriorMixture) -> None:
        super().__init__()
        self.standard = spec.standard

    def incompatibility(self, aggregator: Aggregator, objective: Objective) -> str | None:
        """It must not be the very posterior whose KL from it is taken."""
        if not aggregator.defaults.mixture:
            return (
                "posterior_mixture is the posterior itself where that has one component, so no KL "
                "is left; take aggregator='moe' or 'mopoe'"
            )
        if self.standard == 0 and objective.whole_density:
            return (
                "posterior_mixture without a standard component is the density of the posterior, "
                "so the two cancel in this objective's KL; take objective='elbo' with "
                "density='component', or a share `standard` above 0"
            )
        return None

    def forward(self, posterior: Mixture | None = None) -> Mixture:
        if posterior is None:
            raise RequestError(
                "prior 'posterior_mixture' depends on rows, so there is nothing to draw without "
                "any; call mvkit.fit_sampler(model, data, 'gmm'), then "
                "model.sample(n, sampler='gmm')"
            )
        mixture = attrs.evolve(posterior, evidence=None, active=None, order=None)
        if not self.standard:
            return mixture
        loc = torch.cat([mixture.loc, torch.zeros_like(mixture.loc[:1])])
        scale = torch.cat([mixture.scale, torch.ones_like(mixture.scale[:1])])
        log_pi = mixture.log_weight + math.log(1 - self.standard)
        log_standard = torch.full_like(log_pi[:1], math.log(self.standard))
        return Mixture(mixture.family, loc, scale, torch.cat([log_pi, log_standard]))
