"""Integrals and sums of densities in one dimension, and how far draws lie from them.

Axes: n nodes or draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import torch
from torch import Tensor

NODES = 4001
REACH = 4.5  # of the nodes before their double exponential
FAR = 1e6  # what is allowed there has no end
STEPS = 200  # of bisection

Allowed = Callable[[float], bool]


@attrs.frozen(eq=False)
class Nodes:
    """Points on the line and their weights, such that Σ weight f(point) is the integral of f.

    Args:
        point: in increasing order, (n,) float64.
        weight: likewise.
    """

    point: Tensor
    weight: Tensor

    def total(self, log_density: Tensor) -> Tensor:
        """Integrals of densities (..., n) at the points, (...)."""
        return (log_density.exp() * self.weight).sum(-1)

    def distance(self, draws: Tensor, log_density: Tensor) -> float:
        """Largest difference between the shares of draws and of a density below a point.

        Args:
            draws: (n,).
            log_density: at the points.
        """
        mass = (log_density.exp() * self.weight).cumsum(-1)
        mass = mass / mass[-1]
        edges = 0.5 * (self.point[1:] + self.point[:-1])
        below = torch.searchsorted(draws.sort().values, edges, right=True) / len(draws)
        return float((below - mass[:-1]).abs().max())


def nodes_between(low: float, high: float, centre: float = 0.0, width: float = 1.0) -> Nodes:
    """Nodes of an interval, which may be without end on either side.

    Their density is doubly exponential, so that singular ends and heavy tails are integrated too.

    Args:
        low: the lower end.
        high: the upper end.
        centre: where most of the density lies.
        width: of where most of it lies.

    Reference: Takahasi and Mori, Double Exponential Formulas for Numerical Integration, 1974,
    https://doi.org/10.2977/prims/1195192451.
    """
    t = torch.linspace(-REACH, REACH, NODES, dtype=torch.float64)
    step = float(t[1] - t[0])
    inner = 0.5 * math.pi * torch.sinh(t)
    slope = 0.5 * math.pi * torch.cosh(t) * step
    if math.isinf(low) and math.isinf(high):
        return Nodes(centre + width * torch.sinh(inner), width * torch.cosh(inner) * slope)
    if math.isinf(high):
        return _within(low, high, low + width * inner.exp(), width * inner.exp() * slope)
    if math.isinf(low):
        upside_down = nodes_between(-high, math.inf, -centre, width)
        return Nodes(-upside_down.point.flip(0), upside_down.weight.flip(0))
    half = 0.5 * (high - low)
    point = low + half + half * torch.tanh(inner)
    return _within(low, high, point, half * slope / torch.cosh(inner).square())


def _within(low: float, high: float, point: Tensor, weight: Tensor) -> Nodes:
    """Without the points that rounding moves to an end, where a density may be infinite."""
    room = 8 * torch.finfo(point.dtype).eps * point.abs()
    inside = (point - low > room) & (high - point > room)
    return Nodes(point[inside], weight[inside])


def ends_of(allowed: Allowed, start: float) -> tuple[float, float]:
    """The interval around an allowed number in which all numbers are allowed."""
    return -_end(lambda x: allowed(-x), -start), _end(allowed, start)


def _end(allowed: Allowed, start: float) -> float:
    """The upper end, by bisection."""
    if allowed(FAR):
        return math.inf
    low, high = start, FAR
    for _ in range(STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low
