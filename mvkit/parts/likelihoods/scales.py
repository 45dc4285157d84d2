"""Scales of likelihoods: a number, trained, measured on residuals, or decoded.

Axes: r repeats of a row (samples and drawn components), n rows, then the shape of the modality.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from mvkit.core.likelihood import Context
from mvkit.parts.likelihoods.numerics import limited_both

OPTIMAL_FLOOR = 1e-3
OPTIMAL_MOMENTUM = 0.99
FLOOR = 1e-3  # of trained and decoded scales, as a share of the spread of the data
LARGEST_LOG = 15.0  # of decoded scales
CONSTANT = 1e-6  # spread of a feature, as a share of its mean, that may be rounding


class Positive(nn.Module):
    """A positive number: a constant, or exp of a parameter."""

    def __init__(self, value: float | str, start: float = 1.0) -> None:
        super().__init__()
        self.value = start if isinstance(value, str) else float(value)
        self.log = nn.Parameter(torch.tensor(math.log(start))) if isinstance(value, str) else None

    @property
    def starts(self) -> bool:
        """Whether data may place it."""
        return self.log is not None

    def start(self, x: Tensor, observed: Tensor) -> None:
        """Starts a trained scale at that of the data, if nothing has trained it yet."""
        if self.log is not None and bool(self.log == math.log(self.value)):
            with torch.no_grad():
                self.log.copy_(spread_of(x, observed).log())

    def forward(self) -> Tensor | float:
        return self.value if self.log is None else self.log.exp()

    def log_value(self) -> Tensor | float:
        """Its logarithm."""
        return math.log(self.value) if self.log is None else self.log

    def fitted(self, residual: Tensor, context: Context) -> tuple[Tensor | float, Tensor | float]:
        """The number and its logarithm, whatever the residuals."""
        return self(), self.log_value()


class OptimalScale(nn.Module):
    """Root mean square of the residuals in training, then its running mean.

    Args:
        shape: of the modality, for a scale of each feature; (): one scale.
    """

    starts: ClassVar[bool] = False
    running: Tensor
    updates: Tensor

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.register_buffer("running", torch.ones(shape))
        self.register_buffer("updates", torch.zeros(shape, dtype=torch.long))

    def start(self, x: Tensor, observed: Tensor) -> None:
        """It follows the residuals, wherever they start."""

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
        count = self._sum(counted)
        # fillers and draws without weight are dropped, not multiplied by zero
        total = self._sum(torch.where(counted > 0, squares * counted, 0.0))
        observed = count > 0
        rms = (total / torch.where(observed, count, 1.0)).sqrt().clamp(min=OPTIMAL_FLOOR)
        momentum = torch.where(self.updates > 0, OPTIMAL_MOMENTUM, 0.0)
        moved = torch.lerp(rms, self.running, momentum.to(rms.dtype))
        self.running.copy_(torch.where(observed, moved, self.running))
        self.updates.add_(observed)
        return torch.where(observed, rms, self.running)

    def _sum(self, values: Tensor) -> Tensor:
        """Sum over all that shares a scale, (r, n, *shape) to the shape of the scale."""
        return values.sum((0, 1)) if self.running.ndim else values.sum()


class FlooredScale(nn.Module):
    """A trained scale of each feature, exp of a parameter and a floor that the data set.

    Args:
        shape: of the modality.
    """

    starts: ClassVar[bool] = True
    floor: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(shape))
        self.register_buffer("floor", torch.zeros(shape))

    def start(self, x: Tensor, observed: Tensor) -> None:
        """Scales start at those of the data, and their floor is set, if nothing is trained yet."""
        self.place(spread_by_feature(x, observed))

    def place(self, spread: Tensor) -> None:
        """Starts at these scales (*shape), and sets their floor, if nothing is trained yet."""
        if self.log.any() or self.floor.any():
            return
        with torch.no_grad():
            self.floor.copy_(FLOOR * spread)
            self.log.copy_((spread - FLOOR * spread).log())

    def forward(self) -> Tensor:
        return floored(self.log, self.floor).exp()

    def fitted(self, residual: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The scales and their logarithms, whatever the residuals."""
        log = floored(self.log, self.floor)
        return log.exp(), log


class DecodedScale(nn.Module):
    """Scales that decoders emit, exp of a number and a floor that the data set.

    Args:
        shape: of the modality, for a floor of each feature; (): one floor.
    """

    starts: ClassVar[bool] = True
    floor: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("floor", torch.zeros(shape))

    def start(self, x: Tensor, observed: Tensor) -> None:
        """Sets the floor, if nothing has set it yet."""
        if self.floor.any():
            return
        spread = spread_by_feature if self.floor.ndim else spread_of
        self.floor.copy_(FLOOR * spread(x, observed))

    def log_scale(self, raw: Tensor) -> Tensor:
        """Logarithms of the scales, of what decoders emit (..., n, *shape)."""
        return floored(limited_both(raw, LARGEST_LOG), self.floor)


class FeatureUnits(nn.Module):
    """What decoders emit are distances from each feature's mean, in units of its spread.

    Both are those of the training data, so that features on any scales train alike; before that,
    means are 0 and spreads 1.

    Args:
        shape: of the modality.
    """

    loc: Tensor
    spread: Tensor
    placed: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(shape))
        self.register_buffer("spread", torch.ones(shape))
        self.register_buffer("placed", torch.tensor(False))

    def start(self, x: Tensor, observed: Tensor) -> None:
        """Learns means and spreads, once."""
        if self.placed:
            return
        total = torch.where(observed, x, 0.0).double().sum(0)
        mean = total / observed.sum(0).clamp(min=1)
        residual = torch.where(observed, x - mean, 0.0)
        own = (residual.square().sum(0) / observed.sum(0).clamp(min=1)).sqrt()
        constant = own <= CONSTANT * mean.abs()
        self.loc.copy_(mean)
        self.spread.copy_(torch.where(constant, spread_by_feature(x, observed), own))
        self.placed.fill_(True)

    def forward(self, out: Tensor) -> Tensor:
        """Outputs (..., n, *shape) in the units of the values."""
        return torch.addcmul(self.loc, self.spread, out)


def floored(log: Tensor, floor: Tensor) -> Tensor:
    """Log(e^log + floor): never below the floor, with a slope that leads away from it."""
    return torch.logaddexp(log, floor.log())


def spread_of(x: Tensor, observed: Tensor) -> Tensor:
    """Root mean square of the observed elements around their feature's mean, (n, *shape) -> ();
    1 where there is none.
    """
    values = torch.where(observed, x, 0.0).double()
    count = observed.sum(0)
    mean = values.sum(0) / count.clamp(min=1)
    residual = torch.where(observed, x - mean, 0.0)
    variance = residual.square().sum() / count.sum().clamp(min=1)
    return torch.where(variance > 0, variance.sqrt(), 1.0)


def spread_by_feature(x: Tensor, observed: Tensor) -> Tensor:
    """Root mean square of each feature's observed elements around their mean, (*shape).

    Features that are constant or that nobody observes have 1e-3 of what all have together.
    """
    values = torch.where(observed, x, 0.0).double()
    count = observed.sum(0).clamp(min=1)
    residual = torch.where(observed, x - values.sum(0) / count, 0.0)
    spread = (residual.square().sum(0) / count).sqrt()
    return spread.clamp(min=FLOOR * float(spread_of(x, observed)))


Scale = Positive | OptimalScale | FlooredScale | DecodedScale


def scale_of(scale: float | str, shape: tuple[int, ...]) -> Scale:
    """The live scale of an option: a number, `trained`, `optimal` or `decoded`.

    Args:
        scale: the option.
        shape: of the modality, for a scale of each feature; (): one scale.
    """
    if scale == "optimal":
        return OptimalScale(shape)
    if scale == "decoded":
        return DecodedScale(shape)
    if scale == "trained" and shape:
        return FlooredScale(shape)
    return Positive(scale)
