"""Location-scale families: z = loc + scale * eps, the shape of every expert.

Axes: s samples, j drawn components, k posterior components, b rows, m modalities, d latent.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from mvkit.core.family import Family
from mvkit.registry.spec import spec

RAW_LIMIT = 15.0  # keeps exp(raw) and its inverse finite in float32


FLOOR = 1e-6


def _normal_noise(
    size: tuple[int, ...],
    *,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator | None,
) -> Tensor:
    return torch.randn(size, dtype=dtype, device=device, generator=generator)


def _normal_log_density(eps: Tensor) -> Tensor:
    return eps * eps * -0.5 - 0.5 * math.log(2 * math.pi)


class _NormalKL(torch.autograd.Function):
    """KL(N(loc, scale) ‖ N(loc0, scale0)) summed over the last axis, with an analytic gradient."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, scale: Tensor, loc0: Tensor, scale0: Tensor) -> Tensor:
        ctx.save_for_backward(loc, scale, loc0, scale0)
        inverse = scale0.reciprocal()
        ratio = scale * inverse
        shift = (loc - loc0).mul_(inverse)
        kl = torch.addcmul(shift.square_(), ratio, ratio).sub_(1.0).mul_(0.5)
        return kl.sub_(ratio.log_()).sum(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, loc0, scale0 = ctx.saved_tensors
        gradient = rearrange(gradient, "... -> ... 1")
        precision = scale0.square().reciprocal()
        to_loc = (loc - loc0).mul_(precision).mul_(gradient)
        to_scale = torch.addcmul(scale.reciprocal().neg_(), scale, precision).mul_(gradient)
        prior: list[Tensor | None] = [None, None]
        if ctx.needs_input_grad[2]:
            prior[0] = (-to_loc).sum_to_size(loc0.shape)
        if ctx.needs_input_grad[3]:
            squares = (loc - loc0).square_().addcmul_(scale, scale).mul_(precision)
            prior[1] = ((1.0 - squares).mul_(gradient) / scale0).sum_to_size(scale0.shape)
        return to_loc.sum_to_size(loc.shape), to_scale.sum_to_size(scale.shape), *prior


def _normal_kl(loc: Tensor, scale: Tensor, loc0: Tensor, scale0: Tensor) -> Tensor:
    kl: Tensor = _NormalKL.apply(loc, scale, loc0, scale0)  # type: ignore[no-untyped-call]
    return kl


def _normal_entropy(scale: Tensor) -> Tensor:
    return (scale.log() + 0.5 * math.log(2 * math.pi) + 0.5).sum(-1)


@spec
class Normal(Family):
    """Normal experts whose encoder emits the log-variance: scale = exp(raw / 2).

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014, https://arxiv.org/abs/1312.6114.
    """

    density = "normal"
    closed_product = True

    def scale(self, raw: Tensor) -> Tensor:
        return torch.exp(raw.clamp(-RAW_LIMIT, RAW_LIMIT) / 2)

    noise = staticmethod(_normal_noise)
    log_density = staticmethod(_normal_log_density)
    kl = staticmethod(_normal_kl)
    entropy = staticmethod(_normal_entropy)


@spec
class NormalSoftplus(Family):
    """Normal experts with scale = softplus(raw) + 1e-6, which grows linearly.

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014, https://arxiv.org/abs/1312.6114.
    """

    density = "normal"
    closed_product = True

    def scale(self, raw: Tensor) -> Tensor:
        return functional.softplus(raw.clamp(-RAW_LIMIT, RAW_LIMIT)) + FLOOR

    noise = staticmethod(_normal_noise)
    log_density = staticmethod(_normal_log_density)
    kl = staticmethod(_normal_kl)
    entropy = staticmethod(_normal_entropy)


@spec
class LaplaceSoftmax(Family):
    """Laplace experts with scale = softmax(raw over d) * D + 1e-6: the scales of a row sum to D.

    Reference: Shi et al., Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep MultimodalModel
    Models, 2019, https://arxiv.org/abs/1911.03393 (their code).
    """

    density = "laplace"

    def scale(self, raw: Tensor) -> Tensor:
        return functional.softmax(raw.clamp(-RAW_LIMIT, RAW_LIMIT), dim=-1) * raw.shape[-1] + FLOOR

    def noise(
        self,
        size: tuple[int, ...],
        *,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator | None,
    ) -> Tensor:
        centred = torch.rand(size, dtype=dtype, device=device, generator=generator) - 0.5
        # a uniform of exactly 0 would give log 0
        tail = (1 - 2 * centred.abs()).clamp(min=torch.finfo(dtype).tiny)
        return -torch.sign(centred) * torch.log(tail)

    def log_density(self, eps: Tensor) -> Tensor:
        return -eps.abs() - math.log(2.0)

    def kl(self, loc: Tensor, scale: Tensor, loc0: Tensor, scale0: Tensor) -> Tensor:
        distance = (loc - loc0).abs()
        spread = scale * torch.exp(-distance / scale) + distance
        return (torch.log(scale0 / scale) + spread / scale0 - 1.0).sum(-1)

    def entropy(self, scale: Tensor) -> Tensor:
        return (scale.log() + math.log(2.0) + 1.0).sum(-1)
