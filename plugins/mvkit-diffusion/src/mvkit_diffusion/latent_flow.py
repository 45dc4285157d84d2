"""The sampler `latent_flow`: conditional flow matching on latents.

Axes: n draws, b rows, v numbers of all latents, s blocks of them.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from mvkit import spec
from mvkit.core import Generator
from mvkit.parts.conditional_samplers import SamplerSizes
from mvkit.registry import field, number
from mvkit.registry.fields import count, optional_count
from mvkit_diffusion.samplers import Asked, LatentSampler, Step


@spec
class LatentFlow:
    """Flow matching on z and private latents, given the codes of whatever a row has.

    Latents x_t = (1 - t) ε + t z go straight from noise to draws of the rows' posteriors (the
    optimal-transport path, with a spread of 0 at its end). A network learns their velocity z - ε
    given x_t, t and the codes: means and scales of the posteriors that each modality of a subset
    leads to alone, and which are there. Subsets are random parts of what each row has, every size
    from none to all as often, so that one fit serves them all. Draws follow the velocity from
    noise by Heun's method; means are the network's answer to noise alone.

    Private latents of modalities that a row lacks are drawn together with z; those of modalities
    that it has are draws of their posteriors. Which values go together of modalities that no
    fitting row had together, nothing tells. Covariates that decoders see are part of the
    condition; row weights count as in training.

    Args:
        steps: steps of Adam; None: as many as there are rows, from 2,000 to 8,000.
        batch: rows of a step.
        lr: the highest learning rate; it rises first, and falls to 0.
        ema: how much of the moving averages of the weights, which are used, stays in a step.
        width: of the network's layers.
        layers: hidden layers.
        integration: steps of Heun's method, two evaluations each.

    Reference: Lipman, Chen, Ben-Hamu, Nickel and Le, Flow Matching for Generative Modeling, ICLR
    2023, https://arxiv.org/abs/2210.02747.
    """

    steps: int | None = optional_count()
    batch: int = count(256)
    lr: float = field(default=2e-3, check=number(above=0.0))
    ema: float = field(default=0.999, check=number(0.0, 0.99999))
    width: int = count(384)
    layers: int = count(3)
    integration: int = count(12)

    def build(self, width: int, sizes: SamplerSizes) -> LatentFlowSampler:
        """The sampler, not yet fitted."""
        return LatentFlowSampler(self, sizes)


class LatentFlowSampler(LatentSampler):
    """Integrates the velocity that its network learnt."""

    spec: LatentFlow

    def __init__(self, spec: LatentFlow, sizes: SamplerSizes) -> None:
        super().__init__("latent_flow", spec, sizes)

    def shows(self, known: Tensor) -> Tensor:
        """None: the codes tell all, as posteriors are drawn independently."""
        return torch.zeros_like(known)

    def loss(self, step: Step) -> Tensor:
        """Mean of (v(x_t) - (z - ε))² over all numbers, where 0 stands for what is not wanted."""
        t = step.time
        x = (1 - t) * step.eps + t * step.z
        velocity = self.velocity(rearrange(x, "b v -> 1 b v"), t, step.asked)
        error = rearrange(velocity, "1 b v -> b v") - (step.z - step.eps)
        return self.mean_square(error, step.asked)

    def velocity(self, x: Tensor, t: Tensor, asked: Asked) -> Tensor:
        """The velocity (n, b, v) of latents x (n, b, v) at times t (b, 1).

        It is that of standard normal latents, which is known, and what the network adds to it.
        """
        spread = ((1 - t).square() + t.square()).sqrt()  # of x, if latents have unit variance
        y = torch.where(self.latents.of_blocks(asked.wanted), x / spread, 0.0)
        added = self.field_of(y, torch.where(asked.wanted, t, 0.0), asked.condition)
        return (2 * t - 1) / spread.square() * x + added / spread

    def generated(self, asked: Asked, known: Tensor, eps: Tensor, generator: Generator) -> Tensor:
        step = 1 / self.spec.integration
        x = eps
        t = x.new_zeros(x.shape[1], 1)
        for _ in range(self.spec.integration):
            before = self.velocity(x, t, asked)
            t = t + step
            after = self.velocity(x + step * before, t, asked)
            x = x + step / 2 * (before + after)
        return x
