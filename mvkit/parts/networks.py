"""Default networks: rows in, rows out, no batch norm, nothing at the end that bounds the numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from torch import Tensor, nn

from mvkit.errors import SpecError
from mvkit.registry.spec import field, one_of, spec

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "tanh": nn.Tanh}


_activation = one_of(*ACTIVATIONS)


def _widths(value: object) -> str | None:
    fine = isinstance(value, tuple) and all(type(n) is int and n > 0 for n in value)
    return None if fine else "a list of positive widths"


class Network(ABC):
    """A pair of networks for a modality.

    To implement one, decorate a subclass with `@spec` and write both methods. Rows are the first axis; the
    modules must treat rows independently (hence no batch norm) and accept any number of them.
    """

    @abstractmethod
    def encoder(self, shape: tuple[int, ...], width: int) -> nn.Module:
        """A module from (n, *shape) to (n, width)."""

    @abstractmethod
    def decoder(self, width: int, shape: tuple[int, ...]) -> nn.Module:
        """A module from (n, width) to (n, *shape)."""


def _layers(widths: list[int], activation: str) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [_linear(before, after), ACTIVATIONS[activation]()]
    return layers[:-1]


def _linear(before: int, after: int) -> nn.Linear:
    if after and before:
        return nn.Linear(before, after)
    layer = nn.Linear(1, 1)  # torch warns when it initialises a weight without elements
    layer.in_features, layer.out_features = before, after
    layer.weight = nn.Parameter(torch.zeros(after, before))
    layer.bias = nn.Parameter(torch.zeros(after))
    return layer


@spec
class MLP(Network):
    """Fully connected network with hidden layers.

    Args:
        hidden: widths of the hidden layers, from the input's side in encoders, reversed in decoders.
        activation: `relu`, `silu`, `gelu` or `tanh`.

    Example:
        >>> import torch
        >>> MLP(hidden=(32,)).encoder((1, 8, 8), 4)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 4])

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014, https://arxiv.org/abs/1312.6114.
    """

    hidden: tuple[int, ...] = field(default=(512, 512), check=_widths)
    activation: str = field(default="relu", check=_activation)

    def encoder(self, shape: tuple[int, ...], width: int) -> nn.Module:
        layers = _layers([math.prod(shape), *self.hidden, width], self.activation)
        return nn.Sequential(*([nn.Flatten()] if len(shape) != 1 else []), *layers)

    def decoder(self, width: int, shape: tuple[int, ...]) -> nn.Module:
        layers = _layers([width, *reversed(self.hidden), math.prod(shape)], self.activation)
        return nn.Sequential(*layers, *([nn.Unflatten(1, shape)] if len(shape) != 1 else []))


@spec
class Linear(Network):
    """A single affine map: the networks of linear-Gaussian models, such as factor analysis.

    Reference: Tipping and Bishop, Probabilistic Principal Component Analysis, 1999,
    https://doi.org/10.1111/1467-9868.00196.
    """

    def encoder(self, shape: tuple[int, ...], width: int) -> nn.Module:
        return MLP(hidden=()).encoder(shape, width)

    def decoder(self, width: int, shape: tuple[int, ...]) -> nn.Module:
        return MLP(hidden=()).decoder(width, shape)


class _Convolutions(nn.Module):
    """Strided convolutions that halve every spatial axis (rounding up), then one linear layer."""

    def __init__(
        self, shape: tuple[int, ...], plan: list[tuple[int, ...]], width: int, activation: str
    ) -> None:
        super().__init__()
        conv = nn.Conv2d if len(shape) == 3 else nn.Conv1d
        layers: list[nn.Module] = [_Channels(shape)]
        for before, after in pairwise(plan):
            layers += [
                conv(before[0], after[0], 3, stride=2, padding=1),
                ACTIVATIONS[activation](),
            ]
        self.layers = nn.Sequential(*layers, nn.Flatten(), _linear(math.prod(plan[-1]), width))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class _Deconvolutions(nn.Module):
    """The mirror of `_Convolutions`: exact sizes by output padding, unbounded outputs."""

    def __init__(
        self, width: int, shape: tuple[int, ...], plan: list[tuple[int, ...]], activation: str
    ) -> None:
        super().__init__()
        deconv = nn.ConvTranspose2d if len(plan[0]) == 3 else nn.ConvTranspose1d
        up = plan[::-1]
        layers: list[nn.Module] = [_linear(width, math.prod(up[0])), nn.Unflatten(1, up[0])]
        for before, after in pairwise(up):
            padding = tuple(b - (2 * a - 1) for a, b in zip(before[1:], after[1:], strict=True))
            deconvolve = deconv(
                before[0], after[0], 3, stride=2, padding=1, output_padding=padding
            )  # type: ignore[arg-type]
            layers += [ACTIVATIONS[activation](), deconvolve]
        self.layers = nn.Sequential(*layers, _Channels(shape))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)  # type: ignore[no-any-return]


class _Channels(nn.Module):
    """Gives rows the shape `shape`: adds or removes the channel axis of plain pictures and signals."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)


def _plan(
    shape: tuple[int, ...], axes: int, channels: tuple[int, ...], name: str
) -> list[tuple[int, ...]]:
    """Shapes (c, *space) after each halving."""
    space = shape[-axes:]
    if len(shape) not in (axes, axes + 1) or min(space) < 8:
        sizes = "(C, H, W) or (H, W)" if axes == 2 else "(C, L) or (L,)"
        raise SpecError(
            f"{name!r} takes shapes {sizes}, channels first, with sizes of at least 8; got {shape}"
        )
    plan: list[tuple[int, ...]] = [((shape[0] if len(shape) > axes else 1), *space)]
    for width in channels:
        space = tuple((n + 1) // 2 for n in space)
        plan.append((width, *space))
    return plan


@spec
class Conv(Network):
    """Strided 2-d convolutions for pictures (C, H, W) or (H, W) of any size from 8 on.

    Args:
        channels: output channels of each halving.
        activation: `relu`, `silu`, `gelu` or `tanh`.

    Reference: Radford et al., Unsupervised Representation Learning with Deep Convolutional MultimodalModel
    Adversarial Networks, 2016, https://arxiv.org/abs/1511.06434 (without its batch norm).
    """

    channels: tuple[int, ...] = field(default=(32, 64, 128), check=_widths)
    activation: str = field(default="relu", check=_activation)

    def encoder(self, shape: tuple[int, ...], width: int) -> nn.Module:
        plan = _plan(shape, 2, self.channels, "conv")
        return _Convolutions(plan[0], plan, width, self.activation)

    def decoder(self, width: int, shape: tuple[int, ...]) -> nn.Module:
        return _Deconvolutions(
            width, shape, _plan(shape, 2, self.channels, "conv"), self.activation
        )


@spec
class Conv1d(Network):
    """Strided 1-d convolutions for signals (C, L) or (L,) of any length from 8 on.

    Args:
        channels: output channels of each halving.
        activation: `relu`, `silu`, `gelu` or `tanh`.

    Reference: as `Conv`, on one axis.
    """

    channels: tuple[int, ...] = field(default=(32, 64, 128), check=_widths)
    activation: str = field(default="relu", check=_activation)

    def encoder(self, shape: tuple[int, ...], width: int) -> nn.Module:
        plan = _plan(shape, 1, self.channels, "conv1d")
        return _Convolutions(plan[0], plan, width, self.activation)

    def decoder(self, width: int, shape: tuple[int, ...]) -> nn.Module:
        return _Deconvolutions(
            width, shape, _plan(shape, 1, self.channels, "conv1d"), self.activation
        )
