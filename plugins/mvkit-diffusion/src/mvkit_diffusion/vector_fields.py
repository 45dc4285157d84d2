"""The network behind both samplers, and how it is trained.

Axes: n draws, b rows, v numbers of all latents, s blocks of them, f numbers of a condition, h its
width in the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

OCTAVES = 4  # frequencies that a time is shown at
WARMUP = 0.02  # share of the steps in which the learning rate rises


class VectorField(nn.Module):
    """F(y, u, c): what moves latents y that are partly noise, at times u, given a condition c.

    A residual network whose layers see the times. Its last layer begins at 0.

    Args:
        number: numbers of all latents, v.
        blocks: blocks of them that have times of their own, s.
        features: numbers of a condition, f.
        width: of the layers, h.
        layers: hidden layers.
    """

    octaves: Tensor

    def __init__(self, number: int, blocks: int, features: int, width: int, layers: int) -> None:
        super().__init__()
        times = blocks * (2 * OCTAVES + 1)
        octaves = math.pi * 2.0 ** torch.arange(OCTAVES)
        self.register_buffer("octaves", octaves, persistent=False)
        self.condition = nn.Sequential(
            nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.first = nn.Linear(number, width)
        self.times = nn.Linear(times, width * (layers + 1), bias=False)
        self.layers = nn.ModuleList()
        for _ in range(layers):
            self.layers.append(nn.Linear(width, width))
        self.last = nn.Linear(width, number)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, y: Tensor, u: Tensor, condition: Tensor) -> Tensor:
        """F (n, b, v) of latents (n, b, v).

        Args:
            y: the latents, of unit variance.
            u: times of the blocks, 0 where they are noise and 1 where they are not, (b, s).
            condition: what `self.condition` makes of the numbers of one, (b, h).
        """
        shifts = self.times(self._seen(u)).chunk(len(self.layers) + 1, -1)
        hidden = self.first(y) + (condition + shifts[0])
        for layer, shift in zip(self.layers, shifts[1:], strict=True):
            hidden = hidden + layer(nn.functional.silu(hidden + shift))
        field: Tensor = self.last(nn.functional.silu(hidden))
        return field

    def _seen(self, u: Tensor) -> Tensor:
        """Times (b, s) as the network sees them, (b, their number)."""
        phase = rearrange(u, "b s -> b s 1") * self.octaves.to(u)
        seen = torch.cat([rearrange(u, "b s -> b s 1"), phase.sin(), phase.cos()], -1)
        return rearrange(seen, "b s k -> b (s k)")


def train(
    field: nn.Module, loss_of_step: Callable[[], Tensor], steps: int, lr: float, ema: float
) -> None:
    """Minimises a loss by Adam; leaves moving averages of the weights in the network.

    The learning rate rises first, and then falls to 0 by a half cosine.

    Args:
        field: the network.
        loss_of_step: the loss of the next batch, ().
        steps: of Adam.
        lr: the highest learning rate.
        ema: how much of the averages stays in a step, but for the first steps, which leave less.
    """
    weights = list(field.parameters())
    averages = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.Adam(weights, lr)
    warmup = max(1, round(WARMUP * steps))
    for step in range(steps):
        rate = lr * min(1.0, (step + 1) / warmup) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of_step()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        kept = min(ema, (step + 1) / (step + 10))
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight.detach(), 1 - kept)
    with torch.no_grad():
        for average, weight in zip(averages, weights, strict=True):
            weight.copy_(average)
