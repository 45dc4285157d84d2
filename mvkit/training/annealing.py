"""training.annealing."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from mvkit.registry.spec import field, integer, number, positional_spec

if TYPE_CHECKING:
    pass


class Ramp(ABC):
    """A factor over the epochs of a stage. To implement one, write a spec with these two methods."""

    @abstractmethod
    def at(self, epoch: int, epochs: int) -> float:
        """The factor in `epoch`, counted from 1, of a stage of `epochs`."""

    @abstractmethod
    def last(self) -> float:
        """The factor that validation uses: the end value."""


def _fraction(epoch: int, warmup: int) -> float:
    return min(1.0, epoch / warmup)


@positional_spec
class Linear(Ramp):
    """From `start` (never quite used) straight to `end`, reached in epoch `epochs`: min(1, epoch / warmup)."""

    start: float = field(default=0.0, check=number())
    end: float = field(default=1.0, check=number())
    epochs: int = field(default=10, check=integer(1))

    def at(self, epoch: int, epochs: int) -> float:
        return self.start + (self.end - self.start) * _fraction(epoch, self.epochs)

    def last(self) -> float:
        return self.end


@positional_spec
class Cosine(Ramp):
    """From `start` to `end` along half a cosine, reached in epoch `epochs`."""

    start: float = field(default=0.0, check=number())
    end: float = field(default=1.0, check=number())
    epochs: int = field(default=10, check=integer(1))

    def at(self, epoch: int, epochs: int) -> float:
        share = 0.5 - 0.5 * math.cos(math.pi * _fraction(epoch, self.epochs))
        return self.start + (self.end - self.start) * share

    def last(self) -> float:
        return self.end


@positional_spec
class Cyclical(Ramp):
    """`cycles` linear ramps from `start` to `end` over the stage, each rising for `rise` of its length.

    Reference: Fu et al., Cyclical Annealing Schedule, 2019, https://arxiv.org/abs/1903.10145.
    """

    start: float = field(default=0.0, check=number())
    end: float = field(default=1.0, check=number())
    cycles: int = field(default=4, check=integer(1))
    rise: float = field(default=0.5, check=number(high=1.0, above=0.0))

    def at(self, epoch: int, epochs: int) -> float:
        length = epochs / self.cycles
        inside = ((epoch - 1) % length + 1) / length
        return self.start + (self.end - self.start) * min(1.0, inside / self.rise)

    def last(self) -> float:
        return self.end
