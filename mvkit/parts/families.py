"""Location-scale families: z = loc + scale * eps, the shape of every expert.

Axes: d latent, the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mvkit.core import noise
from mvkit.core.family import Family
from mvkit.core.modality import Sizes
from mvkit.core.noise import Generator
from mvkit.core.product_of_experts import Saved
from mvkit.core.stacked_copies import Stacked, of_all_copies, stacked_noise
from mvkit.errors import SpecError
from mvkit.registry import plugins
from mvkit.registry.spec import spec

RAW_LIMIT = 15.0  # keeps exp(raw) and its inverse finite in float32
FLOOR = 1e-6


class _NormalKL(torch.autograd.Function):
    """KL of normals, summed over the last axis, with an analytic gradient."""

    @staticmethod
    def forward(ctx: Saved, loc: Tensor, scale: Tensor, loc0: Tensor, scale0: Tensor) -> Tensor:
        ctx.save_for_backward(loc, scale, loc0, scale0)
        inverse = scale0.reciprocal()
        ratio = scale * inverse
        shift = (loc - loc0).mul_(inverse)
        kl = torch.addcmul(shift.square_(), ratio, ratio).sub_(1.0).mul_(0.5)
        return kl.sub_(ratio.log_()).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Saved, gradient: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, loc0, scale0 = ctx.saved_tensors
        gradient = rearrange(gradient, "... -> ... 1")
        precision = scale0.square().reciprocal()
        to_loc = (loc - loc0).mul_(precision).mul_(gradient)
        to_scale = torch.addcmul(scale.reciprocal().neg_(), scale, precision).mul_(gradient)
        to_loc0 = to_scale0 = None
        if ctx.needs_input_grad[2]:
            to_loc0 = (-to_loc).sum_to_size(loc0.shape)
        if ctx.needs_input_grad[3]:
            squares = (loc - loc0).square_().addcmul_(scale, scale).mul_(precision)
            to_scale0 = ((1.0 - squares).mul_(gradient) / scale0).sum_to_size(scale0.shape)
        return to_loc.sum_to_size(loc.shape), to_scale.sum_to_size(scale.shape), to_loc0, to_scale0


_normal_kl: Callable[..., Tensor] = _NormalKL.apply


def _stacked_kl(stacked: Stacked) -> tuple[Tensor, int]:
    """KL of normals of several copies, (c, ...)."""
    return _normal_kl(*stacked.broadcastable()), 0


class NormalDensity(Family):
    """Normal experts. To implement one, decorate a subclass with `@spec` and write `scale`."""

    density = "normal"
    closed_product = True
    noise = staticmethod(torch.randn)

    def log_density(self, eps: Tensor) -> Tensor:
        return eps * eps * -0.5 - 0.5 * math.log(2 * math.pi)

    def kl(self, loc: Tensor, scale: Tensor, loc0: Tensor, scale0: Tensor) -> Tensor:
        if stacked_noise.get() is None:
            return _normal_kl(loc, scale, loc0, scale0)
        divergence: Tensor = of_all_copies(_stacked_kl, loc, scale, loc0, scale0)
        return divergence

    def entropy(self, scale: Tensor) -> Tensor:
        return (scale.log() + 0.5 * math.log(2 * math.pi) + 0.5).sum(-1)


@spec
class Normal(NormalDensity):
    """Normal experts whose encoder emits the log-variance: scale = exp(raw / 2).

    Example:
        >>> import torch
        >>> from mvkit.parts import NormalFamily
        >>> NormalFamily().scale(torch.zeros(2)).tolist()  # raw numbers are log-variances
        [1.0, 1.0]

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014,
    https://arxiv.org/abs/1312.6114.
    """

    def scale(self, raw: Tensor) -> Tensor:
        return torch.exp(raw.clamp(-RAW_LIMIT, RAW_LIMIT) / 2)


@spec
class NormalSoftplus(NormalDensity):
    """Normal experts with scale = softplus(raw) + 1e-6, which grows linearly.

    Example:
        >>> import mvkit
        >>> model = mvkit.Model(
        ...     {"a": (3,), "b": (2,)}, latent_dim=2, family="normal_softplus", seed=0
        ... )
        >>> model.sample(3)["a"].shape
        torch.Size([3, 3])

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014,
    https://arxiv.org/abs/1312.6114.
    """

    def scale(self, raw: Tensor) -> Tensor:
        return functional.softplus(raw.clamp(-RAW_LIMIT, RAW_LIMIT)) + FLOOR


@spec
class LaplaceSoftmax(Family):
    """Laplace experts with scale = softmax(raw over d) * D + 1e-6: the scales of a row sum to D.

    Example:
        >>> import torch
        >>> from mvkit.parts import LaplaceSoftmax
        >>> round(LaplaceSoftmax().scale(torch.zeros(1, 4)).sum().item(), 3)  # D
        4.0

    Reference: Shi et al., Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
    Generative Models, 2019, https://arxiv.org/abs/1911.03393 (their code).
    """

    density = "laplace"
    deviation = math.sqrt(2.0)

    def scale(self, raw: Tensor) -> Tensor:
        shares = functional.softmax(raw.clamp(-RAW_LIMIT, RAW_LIMIT), dim=-1)
        return shares * raw.shape[-1] + FLOOR

    def raw(self, scale: Tensor) -> Tensor:
        """Numbers of these scales where they sum to D; else of scales in their proportions."""
        return scale.log()

    def noise(
        self,
        size: tuple[int, ...],
        *,
        dtype: torch.dtype,
        device: torch.device,
        generator: Generator,
    ) -> Tensor:
        uniforms = noise.uniforms(size, dtype=dtype, device=device, generator=generator)
        centred = uniforms - 0.5
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


def check_product(sizes: Sizes, name: str, instead: str) -> None:
    """Raises SpecError if the family's experts have no closed product.

    Example:
        >>> import mvkit
        >>> try:
        ...     mvkit.Model({"a": (3,)}, aggregator="poe", family="laplace_softmax")
        ... except mvkit.SpecError as error:
        ...     print("no closed product" in str(error))
        True
    """
    family: Family = sizes.family
    if not family.closed_product:
        known = plugins.name_of("family", type(family)) or type(family).__name__
        raise SpecError(
            f"aggregator {name!r} multiplies experts, and family {known!r} has no closed product; "
            f"take a normal family, or {instead}"
        )
