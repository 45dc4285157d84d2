"""Ramps: factors that change over the epochs of a stage, such as the warm-up of a KL weight."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from mvkit.registry.fields import count
from mvkit.registry.spec import field, number, positional_spec


class Ramp(ABC):
    """A factor for each epoch of a stage. To implement one, write a spec with two methods.

    Example:
        >>> from mvkit import spec
        >>> from mvkit.parts import Ramp
        >>> @spec
        ... class Half(Ramp):
        ...     def at(self, epoch, epochs):
        ...         return 0.5
        ...     def last(self):
        ...         return 1.0
        >>> Half().at(1, 10)
        0.5
    """

    @abstractmethod
    def at(self, epoch: int, epochs: int) -> float:
        """The factor in `epoch`, counted from 1, of a stage of `epochs`."""

    @abstractmethod
    def last(self) -> float:
        """The factor used in validation: the end value."""


@positional_spec
class Interpolation(Ramp):
    """A ramp between two values; subclasses say how much of the way is done in an epoch."""

    start: float = field(default=0.0, check=number())
    end: float = field(default=1.0, check=number())

    @abstractmethod
    def share(self, epoch: int, epochs: int) -> float:
        """How much of the way from `start` to `end` is done in `epoch`, in [0, 1]."""

    def at(self, epoch: int, epochs: int) -> float:
        return self.start + (self.end - self.start) * self.share(epoch, epochs)

    def last(self) -> float:
        return self.end


@positional_spec
class Linear(Interpolation):
    """Straight from `start`, the value before the first epoch, to `end` in epoch `epochs`.

    Example:
        >>> from mvkit.parts import LinearRamp
        >>> [LinearRamp(0.0, 1.0, 4).at(epoch, 10) for epoch in range(1, 6)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """

    epochs: int = count(10)

    def share(self, epoch: int, epochs: int) -> float:
        return min(1.0, epoch / self.epochs)


@positional_spec
class Cosine(Interpolation):
    """Half a cosine from `start` to `end`, which is reached in epoch `epochs`.

    Example:
        >>> from mvkit.parts import Cosine
        >>> [round(Cosine(0.0, 1.0, 4).at(epoch, 10), 2) for epoch in range(1, 6)]
        [0.15, 0.5, 0.85, 1.0, 1.0]
    """

    epochs: int = count(10)

    def share(self, epoch: int, epochs: int) -> float:
        angle = math.pi * min(1.0, epoch / self.epochs)
        return 0.5 - 0.5 * math.cos(angle)


@positional_spec
class Cyclical(Interpolation):
    """`cycles` linear ramps from `start` to `end` per stage, each rising for `rise` of its length.

    Example:
        >>> from mvkit.parts import Cyclical
        >>> [Cyclical(cycles=2).at(epoch, 8) for epoch in range(1, 9)]
        [0.5, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0]

    Reference: Fu et al., Cyclical Annealing Schedule, 2019, https://arxiv.org/abs/1903.10145.
    """

    cycles: int = count(4)
    rise: float = field(default=0.5, check=number(high=1.0, above=0.0))

    def share(self, epoch: int, epochs: int) -> float:
        length = epochs / self.cycles
        position = ((epoch - 1) % length + 1) / length
        return min(1.0, position / self.rise)
