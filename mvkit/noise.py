"""Randomness, all of it: every draw of mvkit comes from here, so that tests can put in their own.

Sites: `z`, `w/<modality>`, `cross/<modality>`, `prior` (standard noise of the family);
`choice/component`, `choice/subset`, `choice/dropout` (uniforms).
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor

Source = Callable[[str, tuple[int, ...], torch.dtype, torch.device], Tensor]
injected: ContextVar[Source | None] = ContextVar("mvkit_noise", default=None)


class Sampler(Protocol):
    """What makes standard noise: `torch.randn`, `torch.rand`, or a family's own."""

    def __call__(
        self, size: tuple[int, ...], *, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
    ) -> Tensor: ...


def draw(
    site: str,
    shape: tuple[int, ...],
    like: Tensor,
    *,
    generator: torch.Generator | None = None,
    sampler: Sampler = torch.rand,
) -> Tensor:
    """Noise of `shape` for a site, of the dtype and on the device of `like`.

    Args:
        site: what the noise is for (see the module's docstring).
        shape: shape of the result.
        like: tensor that gives dtype and device.
        generator: source of randomness; None: torch's global one.
        sampler: maker of the noise, uniforms in [0, 1) by default.
    """
    source = injected.get()
    if source is not None:
        return source(site, shape, like.dtype, like.device)
    return sampler(shape, dtype=like.dtype, device=like.device, generator=generator)


def seed_of(*keys: int) -> int:
    """A seed that is a function of whole numbers, such as (seed, stage, epoch, step): their splitmix64 hash."""
    state = 0
    for key in keys:
        state = (state ^ key % 2**64) + 0x9E3779B97F4A7C15
        state = (state ^ (state % 2**64) >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state % 2**63
