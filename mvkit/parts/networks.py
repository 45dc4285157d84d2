"""Default networks: rows in, rows out, no batch norm, nothing at the end that bounds outputs.

Axes: n rows, then the shape of a modality: (C, H, W), (C, L), or any other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.context_networks import built_network, check_takes_context
from mvkit.errors import SpecError
from mvkit.registry.spec import field, one_of, spec

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "tanh": nn.Tanh}
Shape = tuple[int, ...]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)

_activation = one_of(*ACTIVATIONS)


def _widths(value: object) -> str | None:
    fine = isinstance(value, tuple) and all(type(n) is int and n > 0 for n in value)
    return None if fine else "a list of positive widths"


class Network(ABC):
    """A pair of networks for a modality.

    To implement one, decorate a subclass with `@spec` and write both methods. Rows are the first
    axis; the modules must treat rows independently (hence no batch norm) and accept any number of
    them. For models with covariates, let both methods take `context=0`, a number of further inputs
    (n, context), and return modules whose `forward` takes rows and context.

    Example:
        >>> import torch
        >>> from mvkit.parts import MLP
        >>> MLP(hidden=(8,)).encoder((3,), 4)(torch.zeros(5, 3)).shape
        torch.Size([5, 4])
    """

    @abstractmethod
    def encoder(self, shape: Shape, width: int) -> nn.Module:
        """A module from (n, *shape) to (n, width)."""

    @abstractmethod
    def decoder(self, width: int, shape: Shape) -> nn.Module:
        """A module from (n, width) to (n, *shape)."""


def encoder_of(network: object, shape: Shape, width: int, context: int = 0) -> nn.Module:
    """A user's module as it is, or a network's encoder from (n, *shape) to (n, width).

    With a `context`, both take its rows (n, context) too.
    """
    if isinstance(network, nn.Module):
        check_takes_context(network, context, "encoders")
        return network
    return built_network(cast(Network, network).encoder, shape, width, context, "encoders")


class WithContext(nn.Module):
    """Layers to which a context is added: concatenated, in effect, to what each of some layers is
    given.

    Args:
        network: layers one after another.
        context: numbers of the context.
        layers: the positions of the layers.
    """

    def __init__(self, network: nn.Sequential, context: int, layers: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.projections = nn.ModuleDict()
        for i in layers:
            weight = cast(Tensor, network[i].weight)
            channels = len(cast(Tensor, network[i].bias))
            projection = nn.Linear(context, channels, bias=False)
            # as drawn where they were columns of the layer's own weight
            bound = 1 / math.sqrt(weight.numel() / channels + context)
            uniforms = noise.initial_uniforms(tuple(projection.weight.shape)).detach()
            projection.weight = nn.Parameter(bound * (2 * uniforms - 1))
            self.projections[str(i)] = projection

    def forward(self, rows: Tensor, context: Tensor) -> Tensor:
        """Rows (n, *shape) and their context (n, c) to outputs (n, ...)."""
        for i, layer in enumerate(self.network):
            rows = layer(rows)
            if str(i) in self.projections:
                shift = self.projections[str(i)](context)
                rows = rows + shift.reshape(*shift.shape, *[1] * (rows.ndim - 2))
        return rows


def with_context(network: nn.Sequential, context: int) -> nn.Module:
    """The layers, the first linear one of which sees the context too, and every convolution."""
    if not context:
        return network
    places: list[int] = []
    for i, layer in enumerate(network):
        first = isinstance(layer, nn.Linear) and not places
        if first or isinstance(layer, CONVOLUTIONS):
            places.append(i)
    return WithContext(network, context, places)


def _linear(before: int, after: int) -> nn.Linear:
    if after and before:
        return nn.Linear(before, after)
    layer = nn.Linear(1, 1)  # torch warns when it initialises a weight without elements
    layer.in_features, layer.out_features = before, after
    layer.weight = nn.Parameter(torch.zeros(after, before))
    layer.bias = nn.Parameter(torch.zeros(after))
    return layer


class StartsOutputs(ABC):
    """A decoder's module whose outputs training data may place before the first step."""

    @abstractmethod
    def start_outputs(self, mean: Tensor) -> None:
        """Makes the outputs (n, *shape) start around `mean`, (*shape)."""


class Dense(nn.Sequential, StartsOutputs):
    """Linear layers with activations between them, which training data may place."""

    def start_inputs(self, mean: Tensor, spread: Tensor) -> None:
        """Makes the first layer see rows (n, *shape) as if they were standardised.

        Args:
            mean: of each feature, (*shape).
            spread: standard deviation of each feature, (*shape), above 0.
        """
        first = next(layer for layer in self if isinstance(layer, nn.Linear))
        values = mean.numel()  # what follows them says which are observed
        with torch.no_grad():
            first.weight[:, :values].div_(spread.flatten())
            first.bias.sub_(first.weight[:, :values] @ mean.flatten())

    def start_outputs(self, mean: Tensor) -> None:
        last = [layer for layer in self if isinstance(layer, nn.Linear)][-1]
        with torch.no_grad():
            last.bias.add_(mean.flatten())


def _dense(widths: Sequence[int], activation: str) -> list[nn.Module]:
    """Linear layers through these widths, with activations between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [_linear(before, after), ACTIVATIONS[activation]()]
    return layers[:-1]


@spec
class MLP(Network):
    """Fully connected network with hidden layers.

    Args:
        hidden: widths of the hidden layers, from the input's side in encoders, reversed in
            decoders.
        activation: `relu`, `silu`, `gelu` or `tanh`.

    Example:
        >>> import torch
        >>> MLP(hidden=(32,)).encoder((1, 8, 8), 4)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 4])

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014,
    https://arxiv.org/abs/1312.6114.
    """

    hidden: tuple[int, ...] = field(default=(512, 512), check=_widths)
    activation: str = field(default="relu", check=_activation)

    def encoder(self, shape: Shape, width: int, context: int = 0) -> nn.Module:
        layers = _dense([math.prod(shape), *self.hidden, width], self.activation)
        if len(shape) != 1:
            layers = [nn.Flatten(), *layers]
        return with_context(Dense(*layers), context)

    def decoder(self, width: int, shape: Shape, context: int = 0) -> nn.Module:
        layers = _dense([width, *reversed(self.hidden), math.prod(shape)], self.activation)
        if len(shape) != 1:
            layers.append(nn.Unflatten(1, shape))
        return with_context(Dense(*layers), context)


@spec
class Linear(Network):
    """A single affine map: the networks of linear-Gaussian models, such as factor analysis.

    Example:
        >>> import torch
        >>> from mvkit.parts import Linear
        >>> Linear().decoder(4, (2, 3))(torch.zeros(5, 4)).shape
        torch.Size([5, 2, 3])

    Reference: Tipping and Bishop, Probabilistic Principal Component Analysis, 1999,
    https://doi.org/10.1111/1467-9868.00196.
    """

    def encoder(self, shape: Shape, width: int, context: int = 0) -> nn.Module:
        return MLP(hidden=()).encoder(shape, width, context)

    def decoder(self, width: int, shape: Shape, context: int = 0) -> nn.Module:
        return MLP(hidden=()).decoder(width, shape, context)


class _Layers(nn.Module):
    """Layers one after another; parameters are called `layers.…`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, rows: Tensor) -> Tensor:
        output: Tensor = self.layers(rows)
        return output


class _Reshaped(nn.Module):
    """Rows of another shape, such as with a channel axis or without."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), *self.shape)


class Convolutional(Network):
    """Strided convolutions that halve every spatial axis, rounding up, and one linear layer.

    Decoders are the mirror image: exact sizes by output padding, unbounded outputs. To implement
    one, decorate a subclass with `@spec` and set what is listed here.
    """

    channels: tuple[int, ...]
    activation: str
    name: str
    shapes: str
    axes: int
    down: type[nn.Module]
    up: type[nn.Module]

    def encoder(self, shape: Shape, width: int, context: int = 0) -> nn.Module:
        shapes = self._shapes(shape)
        layers: list[nn.Module] = [_Reshaped(shapes[0])]
        for (before, *_), (after, *_) in pairwise(shapes):
            layers.append(self.down(before, after, 3, stride=2, padding=1))
            layers.append(ACTIVATIONS[self.activation]())
        layers += [nn.Flatten(), _linear(math.prod(shapes[-1]), width)]
        if context:
            return with_context(nn.Sequential(*layers), context)
        return _Layers(*layers)

    def decoder(self, width: int, shape: Shape, context: int = 0) -> nn.Module:
        shapes = self._shapes(shape)[::-1]
        layers: list[nn.Module] = [_linear(width, math.prod(shapes[0]))]
        layers.append(nn.Unflatten(1, shapes[0]))
        for (before, *small), (after, *large) in pairwise(shapes):
            layers.append(ACTIVATIONS[self.activation]())
            extra = tuple(b - (2 * a - 1) for a, b in zip(small, large, strict=True))
            options = {"stride": 2, "padding": 1, "output_padding": extra}
            layers.append(self.up(before, after, 3, **options))
        layers.append(_Reshaped(shape))
        if context:
            return with_context(nn.Sequential(*layers), context)
        return _Layers(*layers)

    def _shapes(self, shape: Shape) -> list[Shape]:
        """Shapes (c, *space) of a row, and after each halving."""
        space = shape[-self.axes :]
        if len(shape) not in (self.axes, self.axes + 1) or min(space) < 8:
            raise SpecError(
                f"{self.name!r} takes shapes {self.shapes}, channels first, with sizes of at "
                f"least 8; got {shape}"
            )
        shapes = [shape if len(shape) > self.axes else (1, *shape)]
        for channels in self.channels:
            space = tuple((n + 1) // 2 for n in space)
            shapes.append((channels, *space))
        return shapes


@spec
class Conv(Convolutional):
    """Strided 2-d convolutions for pictures (C, H, W) or (H, W) of any size from 8 on.

    Args:
        channels: output channels of each halving.
        activation: `relu`, `silu`, `gelu` or `tanh`.

    Example:
        >>> import mvkit, torch
        >>> modality = mvkit.Modality((1, 8, 8), encoder="conv", decoder="conv")
        >>> model = mvkit.Model({"image": modality}, latent_dim=2, seed=0)
        >>> model.encode({"image": torch.zeros(3, 1, 8, 8)}).shape
        torch.Size([3, 2])

    Reference: Radford et al., Unsupervised Representation Learning with Deep Convolutional
    Generative Adversarial Networks, 2016, https://arxiv.org/abs/1511.06434 (without its batch
    norm).
    """

    channels: tuple[int, ...] = field(default=(32, 64, 128), check=_widths)
    activation: str = field(default="relu", check=_activation)
    name = "conv"
    shapes = "(C, H, W) or (H, W)"
    axes = 2
    down = nn.Conv2d
    up = nn.ConvTranspose2d


@spec
class Conv1d(Convolutional):
    """Strided 1-d convolutions for signals (C, L) or (L,) of any length from 8 on.

    Args:
        channels: output channels of each halving.
        activation: `relu`, `silu`, `gelu` or `tanh`.

    Example:
        >>> import mvkit, torch
        >>> modality = mvkit.Modality((2, 16), encoder="conv1d", decoder="conv1d")
        >>> model = mvkit.Model({"sound": modality}, latent_dim=2, seed=0)
        >>> model.encode({"sound": torch.zeros(3, 2, 16)}).shape
        torch.Size([3, 2])

    Reference: as `Conv`, on one axis.
    """

    channels: tuple[int, ...] = field(default=(32, 64, 128), check=_widths)
    activation: str = field(default="relu", check=_activation)
    name = "conv1d"
    shapes = "(C, L) or (L,)"
    axes = 1
    down = nn.Conv1d
    up = nn.ConvTranspose1d
