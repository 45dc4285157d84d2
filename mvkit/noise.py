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
