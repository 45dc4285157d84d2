"""Likelihoods of real values around the decoder's output: normal, Laplace, Student's t.

Axes: r repeats of a row (samples and drawn components), n rows, then the shape of the modality.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.likelihood import ALONE, Context, Likelihood
from mvkit.core.modality import Sizes
from mvkit.parts import families
from mvkit.registry.spec import field, number, one_of, spec

OPTIMAL_FLOOR = 1e-3
OPTIMAL_MOMENTUM = 0.99
LOG_2 = math.log(2.0)

_positive = number(above=0.0)
_positive_or_trained = one_of("trained", other=_positive)


class Positive(nn.Module):
    """A positive number: a constant, or exp of a parameter."""

    def __init__(self, value: float | str, start: float = 1.0) -> None:
        super().__init__()
        self.value = start if isinstance(value, str) else float(value)
        self.log = nn.Parameter(torch.tensor(math.log(start))) if isinstance(value, str) else None

    def move(self, value: Tensor) -> None:
        """Starts a trained number elsewhere, if nothing has trained it yet."""
        if self.log is not None and bool(self.log == math.log(self.value)):
            with torch.no_grad():
                self.log.copy_(value.log())

    def forward(self) -> Tensor | float:
        return self.value if self.log is None else self.log.exp()

    def log_value(self) -> Tensor | float:
        """Its logarithm."""
        return math.log(self.value) if self.log is None else self.log

    def fitted(self, residual: Tensor, context: Context) -> tuple[Tensor | float, Tensor | float]:
        """The number and its logarithm, whatever the residuals."""
        return self(), self.log_value()


class OptimalScale(nn.Module):
    """Root mean square of the residuals in training, then its running mean."""

    running: Tensor
    updates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.tensor(1.0))
        self.register_buffer("updates", torch.tensor(0))

    def forward(self) -> Tensor:
        return self.running

    def fitted(self, residual: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The scale and its logarithm, in training measured on the residuals (r, n, *shape)."""
        scale = self._measured(residual, context) if self.training else self.running
        return scale, scale.log()

    def _measured(self, residual: Tensor, context: Context) -> Tensor:
        squares = residual.detach().square()
        counted = torch.ones_like(squares)
        if context.elements is not None:
            counted = context.elements.expand(squares.shape)
        if context.weight is not None:
            ones = [1] * (squares.ndim - 2)
            counted = counted * context.weight.reshape(*context.weight.shape, *ones)
        count = counted.sum()
        # fillers and draws without weight are dropped, not multiplied by zero
        total = torch.where(counted > 0, squares * counted, 0.0).sum()
        observed = count > 0
        rms = (total / torch.where(observed, count, 1.0)).sqrt().clamp(min=OPTIMAL_FLOOR)
        momentum = torch.where(self.updates > 0, OPTIMAL_MOMENTUM, 0.0)
        moved = torch.lerp(rms, self.running, momentum.to(rms.dtype))
        self.running.copy_(torch.where(observed, moved, self.running))
        self.updates.add_(observed)
        return torch.where(observed, rms, self.running)


def _spread(x: Tensor, observed: Tensor) -> Tensor:
    """Root mean square of the observed elements around their feature's mean, (n, *shape) -> ();
    1 where there is none.
    """
    values = torch.where(observed, x, 0.0).double()
    count = observed.sum(0)
    mean = values.sum(0) / count.clamp(min=1)
    residual = torch.where(observed, x - mean, 0.0)
    variance = residual.square().sum() / count.sum().clamp(min=1)
    return torch.where(variance > 0, variance.sqrt(), 1.0)


class LocationScale(nn.Module, Likelihood):
    """Likelihoods around the decoder's output with one scale for the modality."""

    def __init__(self, density: str, scale: float | str) -> None:
        super().__init__()
        self.density = density
        self.scale = OptimalScale() if scale == "optimal" else Positive(scale)
        self.starts = scale == "trained"

    def start(self, x: Tensor, observed: Tensor) -> None:
        """A trained scale starts at that of the data around each feature's mean."""
        if isinstance(self.scale, Positive):
            self.scale.move(_spread(x, observed))

    def log_prob(self, out: Tensor, x: Tensor, context: Context) -> Tensor:
        residual = x - out
        scale, log_scale = self.scale.fitted(residual, context)
        if self.density == "laplace":
            return -(residual.abs() / scale + log_scale + LOG_2)
        # few passes: n draws of all rows come through here
        constant = out.new_full((), -0.5 * math.log(2 * math.pi)) - log_scale
        if isinstance(scale, Tensor):
            residual, scale = residual / scale, 1.0
        return torch.addcmul(constant, residual, residual, value=-0.5 / scale**2)

    def sanity_warning(self, x: Tensor) -> str | None:
        """Whole numbers up to 255 look like pictures that nobody scaled."""
        if isinstance(self.scale, OptimalScale) or self.scale.log is not None:
            return None
        whole = bool((x >= 0).all() & (x == x.round()).all())
        if self.scale.value >= 1 or not whole or not 100 < float(x.max()) <= 255:
            return None
        return (
            "whole numbers up to 255 under a scale below 1; divide pictures of 0…255 by 255, or "
            "choose another scale"
        )

    def mean(self, out: Tensor, context: Context = ALONE) -> Tensor:
        return out

    def sample(self, out: Tensor, context: Context = ALONE) -> Tensor:
        family = families.LaplaceSoftmax() if self.density == "laplace" else families.Normal()
        eps = noise.draw("x", out.shape, out, generator=context.generator, sampler=family.noise)
        x: Tensor = out + self.scale() * eps
        return x


@spec
class Normal:
    """Normal likelihood N(x; out, σ²) with one σ for the modality.

    Args:
        scale: σ in the units of the data; `trained`; or `optimal`: the root mean square of the
            residuals over the batch in training, its running mean afterwards.

    Reference: Rybkin, Daniilidis and Levine, Simple and Effective VAE Training with Calibrated
    Decoders, 2021, https://arxiv.org/abs/2006.13202 (`optimal`).
    """

    scale: float | str = field(default=1.0, check=one_of("trained", "optimal", other=_positive))

    def build(self, sizes: Sizes) -> LocationScale:
        """The likelihood with its scale."""
        return LocationScale("normal", self.scale)


@spec
class Laplace:
    """Laplace likelihood with one scale b for the modality: robust to outliers.

    Args:
        scale: b in the units of the data, or `trained`.

    Reference: Shi et al., Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
    Generative Models, 2019, https://arxiv.org/abs/1911.03393.
    """

    scale: float | str = field(default=1.0, check=_positive_or_trained)

    def build(self, sizes: Sizes) -> LocationScale:
        """The likelihood with its scale."""
        return LocationScale("laplace", self.scale)


class StudentTLikelihood(nn.Module, Likelihood):
    """Student's t around the decoder's output."""

    def __init__(self, df: float | str, scale: float | str) -> None:
        super().__init__()
        self.df = Positive(df, start=4.0)
        self.scale = Positive(scale)
        self.starts = scale == "trained"

    def start(self, x: Tensor, observed: Tensor) -> None:
        """A trained scale starts at that of the data around each feature's mean."""
        self.scale.move(_spread(x, observed))

    def log_prob(self, out: Tensor, x: Tensor, context: Context) -> Tensor:
        df, scale = self.df(), self.scale()
        nu = df if isinstance(df, Tensor) else out.new_tensor(df)
        normaliser = torch.lgamma((nu + 1) / 2) - torch.lgamma(nu / 2)
        normaliser = normaliser - 0.5 * torch.log(nu * math.pi)
        squares = ((x - out) / scale).square()
        return normaliser - self.scale.log_value() - (nu + 1) / 2 * torch.log1p(squares / nu)

    def mean(self, out: Tensor, context: Context = ALONE) -> Tensor:
        """The centre, also where df ≤ 1 leaves no mean."""
        return out

    def sample(self, out: Tensor, context: Context = ALONE) -> Tensor:
        df = torch.as_tensor(self.df(), dtype=out.dtype, device=out.device).expand(out.shape)

        def gammas(size: tuple[int, ...], **options: object) -> Tensor:
            return torch._standard_gamma(df / 2, generator=context.generator)

        normal = noise.draw("x", out.shape, out, generator=context.generator, sampler=torch.randn)
        gamma = noise.draw("x/gamma", out.shape, out, generator=context.generator, sampler=gammas)
        # chi-square of df degrees: twice a gamma of df / 2, which torch keeps above 0
        chi = 2 * gamma.clamp(min=torch.finfo(out.dtype).tiny)
        x: Tensor = out + self.scale() * normal * torch.rsqrt(chi / df)
        return x


@spec
class StudentT:
    """Student's t likelihood: heavy tails for data with gross errors.

    Args:
        df: degrees of freedom, or `trained` (from 4).
        scale: in the units of the data, or `trained`.

    Reference: Takahashi et al., Student-t Variational Autoencoder for Robust Density Estimation,
    2018, https://doi.org/10.24963/ijcai.2018/374.
    """

    df: float | str = field(default=4.0, check=_positive_or_trained)
    scale: float | str = field(default=1.0, check=_positive_or_trained)

    def build(self, sizes: Sizes) -> StudentTLikelihood:
        """The likelihood with its numbers."""
        return StudentTLikelihood(self.df, self.scale)
