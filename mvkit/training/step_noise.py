"""The noise of each step of a stage: a function of where the step is, so that runs resume."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from mvkit.core import noise


class StepNoise:
    """Seeds the noise of steps, and what modules such as Dropout draw from torch's generators.

    Args:
        seed: of the run.
        stage: number of the stage.
        rank: number of the process.
        device: of the model.

    Attributes:
        generator: source of the noise inside `at`.
    """

    def __init__(self, seed: int, stage: int, rank: int, device: torch.device) -> None:
        self.seed = seed
        self.stage = stage
        self.rank = rank
        self.generator = torch.Generator(device)
        self.turns = noise.Turns(device)

    @contextlib.contextmanager
    def at(self, *keys: int) -> Iterator[torch.Generator]:
        """Inside, all noise is a function of seed, stage, process and keys, such as epoch and
        batch.
        """
        seed = self.begin(*keys)
        with self.turns.step(seed):
            yield self.generator

    def begin(self, *keys: int) -> int:
        """Seeds the generator of a step, and no other; returns the seed."""
        seed = noise.seed_of(self.seed, self.stage, *keys, self.rank)
        self.generator.manual_seed(seed)
        return seed
