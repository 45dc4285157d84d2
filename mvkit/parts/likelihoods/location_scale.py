"""Likelihoods of real values around the decoder's output: normal, Laplace, Student's t.

Axes: r repeats of a row (samples and drawn components), n rows, then the shape of the modality.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.likelihood import ALONE, Context, Likelihood
from mvkit.core.modality import Sizes
from mvkit.core.noise import Generator
from mvkit.parts import families
from mvkit.parts.likelihoods.scales import (
    DecodedScale,
    FeatureUnits,
    FlooredScale,
    Positive,
    scale_of,
)
from mvkit.registry.spec import field, number, one_of, spec

LOG_2 = math.log(2.0)

_positive = number(above=0.0)


def _positive_or_decoded(value: object) -> str | None:
    expected = _positive(value)
    return None if value == "decoded" or expected is None else f"{expected} or 'decoded'"


_positive_or_trained = one_of("trained", other=_positive)
_scale = one_of("trained", other=_positive_or_decoded)
_scope = one_of("modality", "feature")
_outputs = one_of("values", "standardised")


class AroundCentre(nn.Module, Likelihood):
    """Likelihoods with a centre that decoders emit and a scale, of the modality or by feature.

    To implement one, write `log_density` and `scaled_noise`.

    Args:
        scale: a number, `trained`, `optimal` or `decoded`.
        shape: of the modality, for a scale of each feature; (): one scale.
        units: of what decoders emit; None: those of the values.
        numbers: what else there is, in the order of files: before the scale.
    """

    reparametrised = True

    def __init__(
        self,
        scale: float | str,
        shape: tuple[int, ...] = (),
        *,
        units: FeatureUnits | None = None,
        **numbers: nn.Module,
    ) -> None:
        super().__init__()
        for name, number_of_law in numbers.items():
            self.add_module(name, number_of_law)
        self.scale = scale_of(scale, shape)
        self.units = units
        self.starts = self.scale.starts or units is not None
        self.params = 2 if scale == "decoded" else 1

    def start(self, x: Tensor, observed: Tensor) -> None:
        """A trained scale starts at that of the data around each feature's mean."""
        if self.units is not None:
            self.units.start(x, observed)
        if self.units is not None and isinstance(self.scale, FlooredScale):
            self.scale.place(self.units.spread)
        else:
            self.scale.start(x, observed)

    def first_outputs(self, mean: Tensor, spread: Tensor) -> Tensor:
        """Decoders start at the data's mean, and where they emit it, at its spread."""
        if self.units is not None:
            mean, spread = torch.zeros_like(mean), torch.ones_like(spread)
        return mean if self.params == 1 else torch.stack([mean, spread.log()], -1)

    @abstractmethod
    def log_density(
        self, residual: Tensor, scale: Tensor | float, log_scale: Tensor | float
    ) -> Tensor:
        """Log-densities of values at these distances from the centre, (r, n, *shape)."""

    @abstractmethod
    def scaled_noise(self, like: Tensor, scale: Tensor | float, generator: Generator) -> Tensor:
        """Draws around 0 of the shape of `like`; the scale broadcasts with it."""

    def log_prob(self, out: Tensor, x: Tensor, context: Context) -> Tensor:
        if isinstance(self.scale, DecodedScale):
            log_scale = self._decoded_log_scale(out, self.scale)
            # standardised first: slopes of 1 / scale² would overflow
            residual = (x - self.centre(out)) * (-log_scale).exp()
            return self.log_density(residual, 1.0, log_scale)
        residual = x - self.centre(out)
        return self.log_density(residual, *self.scale.fitted(residual, context))

    def mean(self, out: Tensor, context: Context = ALONE) -> Tensor:
        return self.centre(out)

    def sample(self, out: Tensor, context: Context = ALONE) -> Tensor:
        centre, scale = self.centre_and_scale(out)
        return centre + self.scaled_noise(centre, scale, context.generator)

    def centre(self, out: Tensor) -> Tensor:
        """Centres of the law in the units of the values, (..., n, *shape)."""
        centre = out if self.params == 1 else out[..., 0]
        return centre if self.units is None else self.units(centre)

    def centre_and_scale(self, out: Tensor) -> tuple[Tensor, Tensor | float]:
        """Centres (..., n, *shape), and scales that broadcast with them."""
        if isinstance(self.scale, DecodedScale):
            return self.centre(out), self._decoded_log_scale(out, self.scale).exp()
        return self.centre(out), self.scale()

    def _decoded_log_scale(self, out: Tensor, scale: DecodedScale) -> Tensor:
        """Logarithms of the scales that decoders emit, (..., n, *shape)."""
        raw = out[..., 1]
        if self.units is not None:
            raw = raw + self.units.spread.log()
        return scale.log_scale(raw)

    def sanity_warning(self, x: Tensor) -> str | None:
        """Whole numbers up to 255 look like pictures that nobody scaled."""
        if not isinstance(self.scale, Positive) or self.scale.log is not None:
            return None
        whole = bool((x >= 0).all() & (x == x.round()).all())
        if self.scale.value >= 1 or not whole or not 100 < float(x.max()) <= 255:
            return None
        return (
            "whole numbers up to 255 under a scale below 1; divide pictures of 0…255 by 255, or "
            "choose another scale"
        )


class LocationScale(AroundCentre):
    """The normal and the Laplace law.

    Args:
        density: `normal` or `laplace`.
        scale, shape, units: as of `AroundCentre`.
    """

    def __init__(
        self,
        density: str,
        scale: float | str,
        shape: tuple[int, ...] = (),
        units: FeatureUnits | None = None,
    ) -> None:
        super().__init__(scale, shape, units=units)
        self.density = density

    def log_density(
        self, residual: Tensor, scale: Tensor | float, log_scale: Tensor | float
    ) -> Tensor:
        if self.density == "laplace":
            return -(residual.abs() / scale + log_scale + LOG_2)
        # few passes: n draws of all rows come through here
        constant = residual.new_full((), -0.5 * math.log(2 * math.pi)) - log_scale
        if isinstance(scale, Tensor):
            residual, scale = residual / scale, 1.0
        return torch.addcmul(constant, residual, residual, value=-0.5 / scale**2)

    def log_prob_sum(self, out: Tensor, x: Tensor, context: Context) -> Tensor:
        law_of_x = type(self).log_prob is LocationScale.log_prob
        if isinstance(self.scale, DecodedScale) or not law_of_x:
            return super().log_prob_sum(out, x, context)
        residual = x - self.centre(out)
        scale, log_scale = self.scale.fitted(residual, context)
        normal = self.density == "normal"
        normaliser = log_scale + out.new_full((), 0.5 * math.log(2 * math.pi) if normal else LOG_2)
        normaliser = normaliser.expand(x.shape[1:])
        if context.elements is not None:
            residual = torch.where(context.elements, residual, 0.0)
            normaliser = torch.where(context.elements, normaliser, 0.0)
        if isinstance(scale, Tensor):
            residual, scale = residual / scale, 1.0
        # few passes: n draws of all rows come through here
        if normal:
            grad = torch.is_grad_enabled()
            terms = residual * residual if grad else residual.mul_(residual)
            factor = -0.5 / scale**2
        else:
            terms, factor = residual.abs(), -1.0 / scale
        axes = tuple(range(1 - x.ndim, 0))
        return terms.sum(axes) * factor - normaliser.sum(axes)

    def scaled_noise(self, like: Tensor, scale: Tensor | float, generator: Generator) -> Tensor:
        family = families.LaplaceSoftmax() if self.density == "laplace" else families.Normal()
        eps = noise.draw("x", like.shape, like, generator=generator, sampler=family.noise)
        return scale * eps


def shape_of(by: str, sizes: Sizes) -> tuple[int, ...]:
    """Shape of a number that there is for the `modality`, or for each `feature`."""
    return sizes.shape if by == "feature" else ()


def units_of(outputs: str, sizes: Sizes) -> FeatureUnits | None:
    """Units of what decoders emit; None: those of the values."""
    return FeatureUnits(sizes.shape) if outputs == "standardised" else None


@spec
class Normal:
    """Normal likelihood N(x; out, σ²).

    Args:
        scale: σ in the units of the data; `trained`; `optimal`: the root mean square of the
            residuals over the batch in training, its running mean afterwards; or `decoded`:
            decoders emit a second number a for each element, σ = exp(a) and a floor.
        by: one σ for the `modality`, or for each `feature`, where it is trained or optimal. The
            floor of scales that are decoded or trained by feature is 1e-3 of the spread that
            the training data have, of either.
        outputs: decoders emit `values`; or `standardised` ones: distances from each feature's
            mean in units of its spread, both learnt of the training data before the first step,
            so that features on any scales train alike.

    Example:
        >>> import mvkit
        >>> noise = {"name": "normal", "scale": "trained", "by": "feature"}
        >>> model = mvkit.Model({"a": mvkit.Modality((3,), noise)}, latent_dim=2, seed=0)
        >>> model.decoders["a"].likelihood.scale.log.shape
        torch.Size([3])

    Reference: Rybkin, Daniilidis and Levine, Simple and Effective VAE Training with Calibrated
    Decoders, 2021, https://arxiv.org/abs/2006.13202 (`optimal`).
    """

    scale: float | str = field(
        default=1.0, check=one_of("trained", "optimal", other=_positive_or_decoded)
    )
    by: str = field(default="modality", check=_scope, quiet=True)
    outputs: str = field(default="values", check=_outputs, quiet=True)

    def build(self, sizes: Sizes) -> LocationScale:
        """The likelihood with its scale."""
        units = units_of(self.outputs, sizes)
        return LocationScale("normal", self.scale, shape_of(self.by, sizes), units)


@spec
class Laplace:
    """Laplace likelihood with scale b: robust to outliers.

    Args:
        scale: b in the units of the data; `trained`; or `decoded`: decoders emit a second
            number a for each element, whose exp, and a floor, it is (see `Normal`).
        by: one b for the `modality`, or for each `feature`, where it is trained.
        outputs: what decoders emit: `values`, or `standardised` ones (see `Normal`).

    Example:
        >>> import mvkit
        >>> model = mvkit.Model({"x": mvkit.Modality((3,), "laplace")}, latent_dim=2, seed=0)
        >>> model.log_likelihood({"x": [[0.1, 4.0, -1.0]]}, n=5).shape
        torch.Size([1])

    Reference: Shi et al., Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
    Generative Models, 2019, https://arxiv.org/abs/1911.03393.
    """

    scale: float | str = field(default=1.0, check=_scale)
    by: str = field(default="modality", check=_scope, quiet=True)
    outputs: str = field(default="values", check=_outputs, quiet=True)

    def build(self, sizes: Sizes) -> LocationScale:
        """The likelihood with its scale."""
        units = units_of(self.outputs, sizes)
        return LocationScale("laplace", self.scale, shape_of(self.by, sizes), units)


class StudentTLikelihood(AroundCentre):
    """Student's t around the decoder's output, whose mean is the centre, also where df ≤ 1.

    Args:
        df: degrees of freedom, or `trained`.
        scale, shape, units: as of `AroundCentre`.
    """

    df: Positive

    def __init__(
        self,
        df: float | str,
        scale: float | str,
        shape: tuple[int, ...] = (),
        units: FeatureUnits | None = None,
    ) -> None:
        super().__init__(scale, shape, units=units, df=Positive(df, start=4.0))

    def sanity_warning(self, x: Tensor) -> str | None:
        """Nothing is odd: its tails take what lies far out."""
        return None

    def log_density(
        self, residual: Tensor, scale: Tensor | float, log_scale: Tensor | float
    ) -> Tensor:
        df = self.df()
        nu = df if isinstance(df, Tensor) else residual.new_tensor(df)
        normaliser = torch.lgamma((nu + 1) / 2) - torch.lgamma(nu / 2)
        normaliser = normaliser - 0.5 * torch.log(nu * math.pi)
        squares = (residual / scale).square()
        return normaliser - log_scale - (nu + 1) / 2 * torch.log1p(squares / nu)

    def scaled_noise(self, like: Tensor, scale: Tensor | float, generator: Generator) -> Tensor:
        df = torch.as_tensor(self.df(), dtype=like.dtype, device=like.device).expand(like.shape)

        def gammas(size: tuple[int, ...], **options: object) -> Tensor:
            return torch._standard_gamma(df / 2, generator=generator)

        normal = noise.draw("x", like.shape, like, generator=generator, sampler=torch.randn)
        gamma = noise.draw("x/gamma", like.shape, like, generator=generator, sampler=gammas)
        # chi-square of df degrees: twice a gamma of df / 2, which torch keeps above 0
        chi = 2 * gamma.clamp(min=torch.finfo(like.dtype).tiny)
        return scale * normal * torch.rsqrt(chi / df)


@spec
class StudentT:
    """Student's t likelihood: heavy tails for data with gross errors.

    Args:
        df: degrees of freedom, or `trained` (from 4).
        scale: in the units of the data; `trained`; or `decoded`: decoders emit a second
            number a for each element, whose exp, and a floor, it is (see `Normal`).
        by: one scale for the `modality`, or for each `feature`, where it is trained.
        outputs: what decoders emit: `values`, or `standardised` ones (see `Normal`).

    Example:
        >>> import mvkit
        >>> model = mvkit.Model({"x": mvkit.Modality((3,), "student_t")}, latent_dim=2, seed=0)
        >>> model.log_likelihood({"x": [[0.1, 40.0, -1.0]]}, n=5).shape
        torch.Size([1])

    Reference: Takahashi et al., Student-t Variational Autoencoder for Robust Density Estimation,
    2018, https://doi.org/10.24963/ijcai.2018/374.
    """

    df: float | str = field(default=4.0, check=_positive_or_trained)
    scale: float | str = field(default=1.0, check=_scale)
    by: str = field(default="modality", check=_scope, quiet=True)
    outputs: str = field(default="values", check=_outputs, quiet=True)

    def build(self, sizes: Sizes) -> StudentTLikelihood:
        """The likelihood with its numbers."""
        units = units_of(self.outputs, sizes)
        return StudentTLikelihood(self.df, self.scale, shape_of(self.by, sizes), units)
