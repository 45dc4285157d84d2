"""Networks that tell the velocity of diffusion from noisy rows, what a decoder says of them, the
angle, and whatever else is known.

Axes: n rows, k numbers that are known of a row, e of an embedding, f numbers of a row, c channels,
i and o channels before and after a layer.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

OCTAVES = 4  # frequencies at which an angle is shown


def shown(angle: Tensor) -> Tensor:
    """Angles (n,) as numbers that a network can take, (n, 2 OCTAVES)."""
    frequencies = 2.0 ** torch.arange(OCTAVES, device=angle.device, dtype=angle.dtype)
    phases = rearrange(angle, "n -> n 1") * frequencies
    return torch.cat([phases.cos(), phases.sin()], 1)


class Embedding(nn.Sequential):
    """Angles and what is known of rows as one vector each, (n, e).

    Args:
        known: numbers that are known of a row, k.
        width: of the vector, e.
    """

    def __init__(self, known: int, width: int) -> None:
        layers = nn.Linear(2 * OCTAVES + known, width), nn.SiLU(), nn.Linear(width, width)
        super().__init__(*layers, nn.SiLU())

    def of(self, angle: Tensor, known: Tensor) -> Tensor:
        """The vectors of angles (n,) and of what is known (n, k)."""
        vectors: Tensor = self(torch.cat([shown(angle), known], 1))
        return vectors


class Dense(nn.Module):
    """A residual network of linear layers, each of which sees the embedding.

    Args:
        shape: of a row.
        known: numbers that are known of a row, k.
        hidden: width of the layers.
        layers: how many residual ones.
    """

    def __init__(self, shape: tuple[int, ...], known: int, hidden: int, layers: int) -> None:
        super().__init__()
        numbers = math.prod(shape)
        self.embedding = Embedding(known, hidden)
        self.first = nn.Linear(2 * numbers, hidden)
        self.layers = nn.ModuleList()
        for _ in range(layers):
            self.layers.append(DenseLayer(hidden))
        self.last = nn.Linear(hidden, numbers)

    def forward(self, noisy: Tensor, out: Tensor, angle: Tensor, known: Tensor) -> Tensor:
        """Velocities of rows, (n, *shape).

        Args:
            noisy: the rows, (n, *shape).
            out: what the decoder says of them, (n, *shape).
            angle: (n,).
            known: (n, k).
        """
        embedding = self.embedding.of(angle, known)
        hidden = self.first(torch.cat([noisy.flatten(1), out.flatten(1)], 1))
        for layer in self.layers:
            hidden = layer(hidden, embedding)
        numbers: Tensor = self.last(functional.silu(hidden))
        return numbers.reshape(noisy.shape)


class DenseLayer(nn.Module):
    """Two linear layers around which the rows go as well."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.shift = nn.Linear(width, width)
        self.last = nn.Linear(width, width)

    def forward(self, rows: Tensor, embedding: Tensor) -> Tensor:
        """Rows and their embedding, (n, width) each, to (n, width)."""
        hidden = self.first(self.norm(rows)) + self.shift(embedding)
        residual: Tensor = self.last(functional.silu(hidden))
        return rows + residual


class UNet(nn.Module):
    """A small U-Net for pictures (C, H, W) or (H, W) of any size from 8 on.

    Every halving rounds up, and pictures on their way up take the sizes that they had.

    Args:
        shape: of a picture.
        known: numbers that are known of a row, k.
        channels: of the convolutions at full size, and after each halving.
    """

    def __init__(self, shape: tuple[int, ...], known: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        colours = shape[0] if len(shape) == 3 else 1
        self.shape = (colours, *shape[-2:])
        width = 4 * channels[0]
        self.embedding = Embedding(known, width)
        self.first = nn.Conv2d(2 * colours, channels[0], 3, padding=1)
        self.down, self.halve = nn.ModuleList(), nn.ModuleList()
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for before, after in pairwise(channels):
            self.down.append(Residual(before, before, width))
            self.halve.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
            self.grow.insert(0, nn.Conv2d(after, before, 3, padding=1))
            self.up.insert(0, Residual(2 * before, before, width))
        self.middle = Residual(channels[-1], channels[-1], width)
        self.norm = group_norm(channels[0])
        self.last = nn.Conv2d(channels[0], colours, 3, padding=1)

    def forward(self, noisy: Tensor, out: Tensor, angle: Tensor, known: Tensor) -> Tensor:
        """Velocities of pictures, (n, *shape); see `Dense.forward`."""
        embedding = self.embedding.of(angle, known)
        pictures = [noisy.reshape(-1, *self.shape), out.reshape(-1, *self.shape)]
        hidden = self.first(torch.cat(pictures, 1))
        passed = []
        for residual, halve in zip(self.down, self.halve, strict=True):
            hidden = residual(hidden, embedding)
            passed.append(hidden)
            hidden = halve(hidden)
        hidden = self.middle(hidden, embedding)
        for grow, residual in zip(self.grow, self.up, strict=True):
            across = passed.pop()
            hidden = grow(functional.interpolate(hidden, size=across.shape[-2:]))
            hidden = residual(torch.cat([hidden, across], 1), embedding)
        pixels: Tensor = self.last(functional.silu(self.norm(hidden)))
        return pixels.reshape(noisy.shape)


class Residual(nn.Module):
    """Two convolutions, scaled and shifted by the embedding between them, around which the
    pictures go as well.

    Args:
        before: channels, i.
        after: channels, o.
        width: of the embedding, e.
    """

    def __init__(self, before: int, after: int, width: int) -> None:
        super().__init__()
        self.first_norm, self.last_norm = group_norm(before), group_norm(after)
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.last = nn.Conv2d(after, after, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * after)
        self.around = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, pictures: Tensor, embedding: Tensor) -> Tensor:
        """Pictures (n, i, h, w) and their embedding (n, e) to (n, o, h, w)."""
        hidden = self.first(functional.silu(self.first_norm(pictures)))
        scale, shift = rearrange(self.modulation(embedding), "n c -> n c 1 1").chunk(2, 1)
        hidden = self.last_norm(hidden) * (1 + scale) + shift
        residual: Tensor = self.last(functional.silu(hidden))
        around: Tensor = self.around(pictures)
        return around + residual


def group_norm(channels: int) -> nn.GroupNorm:
    """A norm over groups of at least 4 channels within a picture, 8 groups of them at most.

    Of a single number there is nothing to normalise, which torch refuses: one channel of a picture
    that halvings leave a single pixel of.
    """
    return nn.GroupNorm(math.gcd(8, max(1, channels // 4)), channels)
