"""Networks for the columns of tables: piecewise linear codes of numbers, residual blocks, and a
layer that is cut into a piece for each column.

Axes: n rows, k columns, t pieces, y numbers of a column's piece, f numbers that a column takes.
"""

from __future__ import annotations

import math

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn

from mvkit.core.noise import initial_uniforms
from mvkit.errors import SpecError
from mvkit.parts.networks import Linear, Network, Shape, StartsOutputs, with_context
from mvkit.registry.fields import count, switch
from mvkit.registry.spec import field, number, spec

Knots = tuple[tuple[float, ...], ...]


def _knots(value: object) -> str | None:
    """A check: rising numbers, two at least, for each column."""
    expected = "a list for each column of rising numbers, two at least"
    if not isinstance(value, tuple):
        return expected
    for column in value:
        if not isinstance(column, tuple) or len(column) < 2 or list(column) != sorted(set(column)):
            return expected
    return None


class PiecewiseLinearCode(nn.Module):
    """Each number as t numbers in [0, 1]: how far it is through each piece between knots.

    Columns with fewer pieces have zeros in those that they lack. Where rows come with an
    indicator, of 0 and 1 in as many columns more, the codes of missing values are 0, and the
    indicator follows them.

    Args:
        knots: of each column, rising.
        indicator: whether rows are (n, 2 k): values, and which are observed.
    """

    low: Tensor
    width: Tensor

    def __init__(self, knots: Knots, indicator: bool) -> None:
        super().__init__()
        self.indicator = indicator
        pieces = max(len(column) for column in knots) - 1
        low = torch.zeros(len(knots), pieces)
        width = torch.full((len(knots), pieces), math.inf)  # nothing is any way through it
        for i, column in enumerate(knots):
            edges = torch.tensor(column, dtype=torch.float64)
            low[i, : len(column) - 1] = edges[:-1]
            width[i, : len(column) - 1] = edges.diff()
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("width", width, persistent=False)

    @property
    def numbers(self) -> int:
        """How many numbers a row becomes."""
        return self.low.numel() + (len(self.low) if self.indicator else 0)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (n, k) or (n, 2 k) to codes (n, k t) or (n, k t + k)."""
        values = rows[:, : len(self.low)]
        code = ((rearrange(values, "n k -> n k 1") - self.low) / self.width).clamp(0.0, 1.0)
        if not self.indicator:
            return rearrange(code, "n k t -> n (k t)")
        observed = rows[:, len(self.low) :]
        code = code * rearrange(observed, "n k -> n k 1")
        return torch.cat([rearrange(code, "n k t -> n (k t)"), observed], 1)


class ResidualBlock(nn.Module):
    """h + W₂ dropout(gelu(W₁ norm(h)))."""

    def __init__(self, width: int, dropout_rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, h: Tensor) -> Tensor:
        """Features (n, width) to features."""
        hidden = self.dropout(nn.functional.gelu(self.inner(self.norm(h))))
        output: Tensor = h + self.outer(hidden)
        return output


@spec
class Tabular(Network):
    """Network for rows of numbers (n, k): a linear layer, residual blocks and another one.

    Covariates join what the first linear layer sees.

    Args:
        width: of the blocks.
        blocks: how many; 0: one linear layer and nothing else.
        dropout_rate: inside the blocks, in training.
        knots: of each column; encoders then see its piecewise linear code. Empty: the numbers.

    Example:
        >>> import torch
        >>> network = Tabular(width=8, blocks=1, knots=((0.0, 1.0, 4.0),))
        >>> network.encoder((1,), 3)(torch.zeros(5, 1)).shape
        torch.Size([5, 3])

    Reference: Gorishniy, Rubachev and Babenko, On Embeddings for Numerical Features in Tabular
    Deep Learning, 2022, https://arxiv.org/abs/2203.05556 (knots); Gorishniy et al., Revisiting
    Deep Learning Models for Tabular Data, 2021, https://arxiv.org/abs/2106.11959 (blocks).
    """

    width: int = count(256)
    blocks: int = count(3, low=0)
    dropout_rate: float = field(default=0.0, check=number(0.0, 1.0))
    knots: Knots = field(default=(), check=_knots)

    def encoder(self, shape: Shape, width: int, context: int = 0) -> nn.Module:
        layers: list[nn.Module] = []
        numbers = math.prod(shape)
        if self.knots:
            code = PiecewiseLinearCode(self.knots, self._with_indicator(numbers))
            layers.append(code)
            numbers = code.numbers
        elif len(shape) != 1:
            layers.append(nn.Flatten())
        return with_context(nn.Sequential(*layers, *self._blocks(numbers, width)), context)

    def decoder(self, width: int, shape: Shape, context: int = 0) -> nn.Module:
        layers = self._blocks(width, math.prod(shape))
        if len(shape) != 1:
            layers.append(nn.Unflatten(1, shape))
        return with_context(nn.Sequential(*layers), context)

    def _with_indicator(self, numbers: int) -> bool:
        """Whether rows of so many numbers come with an indicator.

        Raises:
            SpecError: knots of another number of columns.
        """
        columns = len(self.knots)
        if numbers not in (columns, 2 * columns):
            raise SpecError(
                f"knots of {columns} columns, and rows of {numbers} numbers; expected a list for "
                "each column of the modality",
                "knots",
            )
        return numbers == 2 * columns

    def _blocks(self, before: int, after: int) -> list[nn.Module]:
        if not self.blocks:
            return [nn.Linear(before, after)]
        blocks = [ResidualBlock(self.width, self.dropout_rate) for _ in range(self.blocks)]
        return [
            nn.Linear(before, self.width),
            *blocks,
            nn.LayerNorm(self.width),
            nn.GELU(),
            nn.Linear(self.width, after),
        ]


class ColumnPieces(nn.Module, StartsOutputs):
    """One linear layer from z to a piece y_k for each column, and its linear map of y_k and s.

    Args:
        latents: numbers of s and z together.
        labels: numbers of s, which come first.
        piece: numbers of each y_k.
        columns: how many columns there are.
        shape: of a row.
        context: numbers of what decoders see of the covariates, beside z.
    """

    def __init__(
        self, latents: int, *, labels: int, piece: int, columns: int, shape: Shape, context: int
    ) -> None:
        super().__init__()
        self.labels = labels
        self.shape = shape
        self.pieces = nn.Linear(latents - labels + context, columns * piece)
        inputs = piece + labels
        numbers = math.prod(shape) // columns
        bound = 1 / math.sqrt(inputs)  # as linear layers are drawn
        self.weight = nn.Parameter(bound * _symmetric((columns, inputs, numbers)))
        self.bias = nn.Parameter(bound * _symmetric((columns, numbers)))

    def forward(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        """Latents (n, latents), and their context (n, context), to outputs (n, *shape)."""
        label, z = rows[:, : self.labels], rows[:, self.labels :]
        seen = z if context is None else torch.cat([z, context], -1)
        columns = len(self.weight)
        pieces = rearrange(self.pieces(seen), "n (k y) -> n k y", k=columns)
        inputs = torch.cat([pieces, repeat(label, "n s -> n k s", k=columns)], -1)
        numbers = einsum(inputs, self.weight, "n k i, k i f -> n k f") + self.bias
        return numbers.reshape(-1, *self.shape)

    def start_outputs(self, mean: Tensor) -> None:
        with torch.no_grad():
            self.bias.add_(mean.reshape(self.bias.shape))


def _symmetric(shape: tuple[int, ...]) -> Tensor:
    """Uniforms in [-1, 1) for initial weights."""
    return 2 * initial_uniforms(shape) - 1


@spec
class ByColumn(Network):
    """Decoder of a homogeneous layer Y = g(z), cut into a piece y_k for each column: h_k(y_k, s).

    The first axis of a modality is that of its columns. The layer g is linear, so that the layers
    of several modalities are one of all columns. Encoders are linear.

    Args:
        piece: numbers of each y_k.
        labels: how many latents, the first ones, are s, which g does not see and every h_k does;
            0: none.
        together: whether a row is one column, as the classes (c,) of one variable are.

    Example:
        >>> import torch
        >>> network = ByColumn(piece=2, labels=4)
        >>> network.decoder(7, (3,))(torch.zeros(5, 7)).shape
        torch.Size([5, 3])

    Reference: Nazabal, Olmos, Ghahramani and Valera, Handling Incomplete Heterogeneous Data using
    VAEs (HI-VAE), 2020, https://arxiv.org/abs/1807.03653.
    """

    piece: int = count(5)
    labels: int = count(0, low=0)
    together: bool = switch(False)

    def encoder(self, shape: Shape, width: int, context: int = 0) -> nn.Module:
        return Linear().encoder(shape, width, context)

    def decoder(self, width: int, shape: Shape, context: int = 0) -> nn.Module:
        if self.labels >= width:
            raise SpecError(
                f"s takes {self.labels} of {width} latents, which leaves none for z; expected "
                "fewer labels",
                "labels",
            )
        columns = 1 if self.together else shape[0]
        sizes = {"labels": self.labels, "piece": self.piece, "columns": columns}
        return ColumnPieces(width, shape=shape, context=context, **sizes)
