"""Moving averages of the weights of a network, and of the spread of what it is trained on.

Axes: n rows, then the shape of a row.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

BATCHES = 100  # from which a spread is measured; it then stays, so that the network can rely on it
LEAST = 1e-4  # of a spread: a modality that is reconstructed to the last digit has none


class Average(nn.Module):
    """A network whose weights are a moving average of those of another, in buffers.

    The first steps count more, so that initial weights are soon forgotten.

    Args:
        network: what is averaged.
        decay: how much of the average stays in a step.

    Reference: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992,
    https://doi.org/10.1137/0330046; Ho, Jain and Abbeel, 2020, https://arxiv.org/abs/2006.11239.
    """

    steps: Tensor

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.network = copy.deepcopy(network)
        for module in self.network.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, weight.detach().clone())
        self.register_buffer("steps", torch.zeros(()))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes one step towards the weights of a network."""
        kept = ((1 + self.steps) / (10 + self.steps)).clamp(max=self.decay)
        averages = dict(self.network.named_buffers())
        for name, weight in network.named_parameters():
            average = averages[name]
            average.lerp_(weight, (1 - kept).to(average.dtype))
        self.steps += 1

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the network makes of its inputs."""
        outputs: Tensor = self.network(*inputs)
        return outputs


class Spread(nn.Module):
    """The root mean square of residuals, measured in the first 100 batches: of each number in
    rows (k,), else of all together.

    Args:
        shape: of a row.
    """

    squares: Tensor
    numbers: Tensor
    batches: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape if len(shape) == 1 else (1,) * len(shape)
        self.register_buffer("squares", torch.zeros(self.shape))
        self.register_buffer("numbers", torch.zeros(self.shape))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, residual: Tensor, observed: Tensor) -> None:
        """Measures one batch, if it is among the first.

        Args:
            residual: (n, *shape).
            observed: which of them count, (n, *shape) bool.
        """
        counts = observed & (self.batches < BATCHES)
        squares = torch.where(counts, residual.square(), 0.0)
        self.squares += squares.sum(0).sum_to_size(self.shape)
        self.numbers += counts.to(residual.dtype).sum(0).sum_to_size(self.shape)
        self.batches += 1

    def forward(self) -> Tensor:
        """The spread, (*shape) with ones where numbers share it; 1 before anything is measured."""
        mean_square = self.squares / self.numbers.clamp(min=1.0)
        return torch.where(self.numbers > 0, mean_square.sqrt().clamp(min=LEAST), 1.0)
