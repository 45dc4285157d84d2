"""The sampler `latent_diffusion`: diffusion of latents, each with a time of its own.

Axes: n draws, b rows, v numbers of all latents, s blocks of them.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor

from mvkit import spec
from mvkit.core import Generator, noise
from mvkit.parts.conditional_samplers import SamplerSizes
from mvkit.registry import field, number, one_of
from mvkit.registry.fields import count, optional_count
from mvkit_diffusion.samplers import Asked, LatentSampler, Step

ADAMS = {  # factors of the last values, the newest first, by how many there are
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
}


@spec
class LatentDiffusion:
    """Diffusion of z and private latents, given codes and private latents of whatever a row has.

    Every latent has a time of its own, as in multi-time training: those of the modalities of a
    random subset are at the end, where nothing is noise; those of the other modalities, and z, are
    noised alike, cos φ ε + sin φ z (variance-preserving, φ = π t / 2); those that a row lacks stay
    at the beginning, where all is noise. A network learns cos φ z - sin φ ε, from which the score
    follows, given these latents, their times and the codes of the subset: means and scales of the
    posteriors that each modality leads to alone, and which are there. Sizes of subsets occur
    equally often, so that one fit serves them all. Draws go back from noise along dy/dφ = cos φ z
    - sin φ ε by the three-step method of Adams and Bashforth; means are the network's answer to
    noise alone.

    What is said of private latents, covariates and row weights in `latent_flow` holds here too,
    but that z and private latents of modalities that a row lacks are drawn given the draws of the
    private latents of those that it has.

    Args:
        steps: steps of Adam; None: as many as there are rows, from 2,000 to 8,000.
        batch: rows of a step.
        lr: the highest learning rate; it rises first, and falls to 0.
        ema: how much of the moving averages of the weights, which are used, stays in a step.
        width: of the network's layers.
        layers: hidden layers.
        integration: steps back from noise, one evaluation each.
        eta: None: as above. 0 to 1: by DDIM instead, with this share of fresh noise in a step: 0:
            none; 1: as in DDPM. In 25 steps these lose 5 and 10 % of the spread of normal latents,
            12 and 20 % where little of it is left; Adams and Bashforth lose less than 1 %.

    Reference: Bounoua, Franzese and Michiardi, Multi-modal Latent Diffusion, Entropy 2024,
    https://arxiv.org/abs/2306.04445; Song, Meng and Ermon, Denoising Diffusion Implicit Models,
    ICLR 2021, https://arxiv.org/abs/2010.02502.
    """

    steps: int | None = optional_count()
    batch: int = count(256)
    lr: float = field(default=1e-3, check=number(above=0.0))
    ema: float = field(default=0.999, check=number(0.0, 0.99999))
    width: int = count(384)
    layers: int = count(3)
    integration: int = count(25)
    eta: float | None = field(default=None, check=one_of(None, other=number(0.0, 1.0)))

    def build(self, width: int, sizes: SamplerSizes) -> LatentDiffusionSampler:
        """The sampler, not yet fitted."""
        return LatentDiffusionSampler(self, sizes)


class LatentDiffusionSampler(LatentSampler):
    """Goes back from noise by what its network learnt."""

    spec: LatentDiffusion

    def __init__(self, spec: LatentDiffusion, sizes: SamplerSizes) -> None:
        super().__init__("latent_diffusion", spec, sizes)

    def shows(self, known: Tensor) -> Tensor:
        """All of them."""
        return known

    def loss(self, step: Step) -> Tensor:
        """Mean of (F(y) - (cos φ z - sin φ ε))² over all numbers, 0 for what is not wanted.

        F's error is that of the score, -(cos φ y - sin φ F) / cos φ, times cos φ / sin φ.
        """
        angle = math.pi / 2 * step.time
        y = angle.cos() * step.eps + angle.sin() * step.z
        known = rearrange(step.z, "b v -> 1 b v")
        value = self.value(rearrange(y, "b v -> 1 b v"), step.time, step.asked, known)
        target = angle.cos() * step.z - angle.sin() * step.eps
        error = rearrange(value, "1 b v -> b v") - target
        return self.mean_square(error, step.asked)

    def value(self, y: Tensor, t: Tensor, asked: Asked, known: Tensor) -> Tensor:
        """F (n, b, v) at wanted latents y (n, b, v) and times t (b, 1), and given ones known."""
        of_blocks = self.latents.of_blocks
        given = torch.where(of_blocks(asked.given), known, 0.0)
        seen = torch.where(of_blocks(asked.wanted), y, given)
        u = torch.where(asked.wanted, t, asked.given.to(t.dtype))
        return self.field_of(seen, u, asked.condition)

    def generated(self, asked: Asked, known: Tensor, eps: Tensor, generator: Generator) -> Tensor:
        if self.spec.eta is not None:
            return self._denoised(asked, known, eps, self.spec.eta, generator)
        steps = self.spec.integration
        y = eps
        values: list[Tensor] = []
        for i in range(steps):
            values = [self.value(y, self._time(y, i), asked, known), *values[:2]]
            slope = torch.zeros_like(y)
            for weight, value in zip(ADAMS[len(values)], values, strict=True):
                slope = slope + weight * value
            y = y + math.pi / 2 / steps * slope
        return y

    def _time(self, y: Tensor, i: int) -> Tensor:
        """The time after i steps, (b, 1)."""
        return y.new_full((y.shape[1], 1), i / self.spec.integration)

    def _denoised(
        self, asked: Asked, known: Tensor, eps: Tensor, eta: float, generator: Generator
    ) -> Tensor:
        """Latents (n, b, v) by DDIM, with fresh noise; see `generated`."""
        steps = self.spec.integration
        y = eps
        for i in range(steps):
            value = self.value(y, self._time(y, i), asked, known)
            angle, after = (math.pi / 2 * j / steps for j in (i, i + 1))
            z = math.sin(angle) * y + math.cos(angle) * value
            spread = fresh_spread(angle, after, eta)
            kept = math.sqrt(max(math.cos(after) ** 2 - spread**2, 0.0))
            y = math.sin(after) * z + kept * (math.cos(angle) * y - math.sin(angle) * value)
            if spread:
                site, shape = f"prior/{i}", tuple(y.shape)
                fresh = noise.draw(site, shape, y, generator=generator, sampler=torch.randn)
                y = y + spread * fresh
        return y


def fresh_spread(angle: float, after: float, eta: float) -> float:
    """Spread of the fresh noise in a step between two angles (eq. 16 of DDIM)."""
    share = math.cos(after) / math.cos(angle)
    rest = 1 - math.sin(angle) ** 2 / math.sin(after) ** 2
    return eta * share * math.sqrt(rest)
