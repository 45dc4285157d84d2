"""Diffusion by angles: y_φ = cos φ y + sin φ ε lies between data y (φ = 0) and noise ε (φ = π/2).

Along the way from noise to data that keeps distributions as they are, dy_φ/dφ is the mean of the
velocity v = cos φ ε - sin φ y given y_φ. From y_φ and v follow both ends, without a division:
y = cos φ y_φ - sin φ v and ε = sin φ y_φ + cos φ v. Where φ is π t / 2, cos² φ is the cosine
schedule.

Reference: Ho, Jain and Abbeel, Denoising Diffusion Probabilistic Models, 2020,
https://arxiv.org/abs/2006.11239; Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic
Models, 2021, https://arxiv.org/abs/2102.09672 (the cosine schedule); Salimans and Ho, Progressive
Distillation for Fast Sampling of Diffusion Models, 2022, https://arxiv.org/abs/2202.00512
(velocities, angles).

Axes: n rows, then the shape of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]  # of y_φ (n, *shape) at an angle, (n, *shape)
Solver = Literal["adams", "ddim"]

QUARTER = math.pi / 2
# angles lie denser near the data, where the rest of the noise is as small as the spread of the
# data given what is known of them
POWER = 1.5


def noised(y: Tensor, eps: Tensor, angle: Tensor) -> Tensor:
    """Data and noise (n, *shape) at angles (n, 1, ...), (n, *shape)."""
    return angle.cos() * y + angle.sin() * eps


def velocity(y: Tensor, eps: Tensor, angle: Tensor) -> Tensor:
    """Their velocity at these angles, (n, *shape)."""
    return angle.cos() * eps - angle.sin() * y


def without_mean(of: Velocity, noisy: Tensor, angle: float, mean: Tensor, ratio: float) -> Tensor:
    """The velocity of noisy residuals by a network that knows nothing of their mean, (n, *shape).

    The network tells velocities v' of noisy rows u. As ratio u = y + mean, the noise of y_φ is
    that of u at the angle φ' of tan φ' = tan φ / ratio, where u_φ' = (y_φ + cos φ mean) / N with
    N² = ratio² cos² φ + sin² φ. It tells ε = sin φ' u_φ' + cos φ' v', and v = (ε - sin φ y_φ) /
    cos φ; written out, nothing is divided by 0:
    v = ratio v' / N + (sin φ mean - sin φ cos φ (ratio² - 1) y_φ) / N².

    Args:
        of: the network.
        noisy: y_φ, (n, *shape).
        angle: φ.
        mean: what was taken from the rows, as a multiple of the spread of residuals, (n, *shape).
        ratio: the spread of rows as a multiple of that of residuals.
    """
    cosine, sine = math.cos(angle), math.sin(angle)
    size = math.hypot(ratio * cosine, sine)
    v = of((noisy + cosine * mean) / size, math.atan2(sine, ratio * cosine))
    apart = sine * mean - sine * cosine * (ratio**2 - 1) * noisy
    return ratio / size * v + apart / size**2


def angles(steps: int, begin: float = QUARTER) -> list[float]:
    """Angles from `begin`, noise alone by default, to data, `steps` + 1 of them."""
    return [begin * (1 - i / steps) ** POWER for i in range(steps + 1)]


def denoise(
    of: Velocity, eps: Tensor, steps: int, solver: Solver = "adams", begin: float = QUARTER
) -> Tensor:
    """Data to which noise eps (n, *shape) leads, (n, *shape).

    `ddim` takes the two ends that the velocity of each step tells for certain: y and ε turn by the
    angle of the step. `adams` follows dy_φ/dφ by the second-order method of Adams and Bashforth:
    one velocity a step too, and an error that falls with the square of the steps.

    Args:
        of: the velocity.
        eps: noise.
        steps: how many.
        solver: see above.
        begin: the angle of the first step, which takes y to be 0 there, (0, π/2]. Below π/2 what
            is drawn stays near 0 in its coarse form, the more the smaller it is.

    Reference: Song, Meng and Ermon, Denoising Diffusion Implicit Models, 2021,
    https://arxiv.org/abs/2010.02502, eq. 12 and 14; Meng et al., SDEdit, 2022,
    https://arxiv.org/abs/2108.01073 (draws that begin on the way); Liu, Ren, Lin and Zhao,
    Pseudo Numerical Methods for Diffusion Models on Manifolds, 2022,
    https://arxiv.org/abs/2202.09778.
    """
    y = math.sin(begin) * eps
    last_v: Tensor | None = None
    last_turn = 0.0
    for now, after in pairwise(angles(steps, begin)):
        v = of(y, now)
        turn = now - after
        if solver == "ddim":
            y = math.cos(turn) * y - math.sin(turn) * v
        elif last_v is None:
            y = y - turn * v
        else:
            ahead = turn / (2 * last_turn)
            y = y - turn * ((1 + ahead) * v - ahead * last_v)
        last_v, last_turn = v, turn
    return y
