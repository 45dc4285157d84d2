"""Numbers that stay finite: bounded logarithms, and what Stirling leaves of the gamma function."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

LARGE = 16.0  # from here on the series is exact to float64
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def softplus(x: Tensor) -> Tensor:
    """Log(1 + e^x) to float64's precision; torch's own drops e^-x from 20 on."""
    return functional.softplus(x, threshold=40.0)


def limited(raw: Tensor, limit: float) -> Tensor:
    """Numbers as they are up to `limit`, above it growing as a logarithm, to twice the limit.

    So that exponentials of what a network emits stay finite, with a slope that leads back.
    """
    excess = functional.relu(raw - limit)
    return torch.where(raw > limit, limit + torch.log1p(excess), raw).clamp(max=2 * limit)


def limited_both(raw: Tensor, limit: float) -> Tensor:
    """As `limited`, above and, in the mirror, below."""
    return -limited(-limited(raw, limit), limit)


def gamma_remainder(z: Tensor, log_z: Tensor) -> Tensor:
    """Log Γ(z) - z log z + z, of z > 0 and its logarithm, without the cancellation at large z."""
    small = z.clamp(max=LARGE)
    direct = torch.lgamma(small) - small * log_z.clamp(max=math.log(LARGE)) + small
    inverse = 1 / z.clamp(min=LARGE)
    square = inverse * inverse
    series = 1 / 1260 - square * (1 / 1680 - square / 1188)
    series = inverse * (1 / 12 - square * (1 / 360 - square * series))
    stirling = HALF_LOG_TWO_PI - 0.5 * log_z.clamp(min=math.log(LARGE)) + series
    return torch.where(z > LARGE, stirling, direct)
