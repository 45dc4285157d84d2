"""Networks for the columns of tables: piecewise linear codes of numbers, and residual blocks.

Axes: n rows, k columns, t pieces.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit.errors import SpecError
from mvkit.parts.networks import Network, Shape, with_context
from mvkit.registry.fields import count
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
