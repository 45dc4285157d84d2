"""Noise that a test chooses, in the place of every draw of mvkit."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mvkit.core.noise import Source, injected, seeded


@contextlib.contextmanager
def noise(source: Source) -> Iterator[None]:
    """Inside, every draw of mvkit is `source(site, shape, dtype, device)`, not a generator's.

    Args:
        source: makes the noise; for the sites see `mvkit.core.noise`.

    Example:
        >>> import torch, mvkit
        >>> from mvkit.testing import noise
        >>> model = mvkit.Model({"a": (2,)}, latent_dim=1, seed=0)
        >>> with noise(lambda site, shape, dtype, device: torch.zeros(shape, dtype=dtype)):
        ...     z = model.posterior({"a": torch.zeros(1, 2)}).rsample(1)
        >>> bool((z == model.encode({"a": torch.zeros(1, 2)})).all())
        True
    """
    token = injected.set(source)
    try:
        yield
    finally:
        injected.reset(token)


def bound_noise(rows: Sequence[int], names: Sequence[str]) -> Source:
    """Noise bound to row ids and modality names: permuting or splitting a batch changes none.

    Args:
        rows: an id for each row of the batch, in its order.
        names: the modalities in the model's order. An axis of drawn components as long as this is
            taken to be one component per modality (moe).

    Example:
        >>> import mvkit, torch
        >>> from mvkit.testing import bound_noise, noise
        >>> model = mvkit.Model({"a": (2,)}, latent_dim=1, seed=0)
        >>> with noise(bound_noise([7, 8, 9], ["a"])):
        ...     z = model.posterior({"a": torch.zeros(3, 2)}).rsample(1)
        >>> with noise(bound_noise([9, 8, 7], ["a"])):
        ...     turned = model.posterior({"a": torch.zeros(3, 2)}).rsample(1)
        >>> torch.equal(z.flip(1), turned)
        True
    """

    def source(
        site: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        uniform = site.startswith("choice/")
        axis = 1 if uniform else 2
        if len(shape) <= axis or shape[axis] != len(rows):
            raise ValueError(f"noise of shape {shape} at {site!r} has no axis of {len(rows)} rows")
        lead = shape[:axis]
        trail = shape[axis + 1 :]
        keys: Sequence[object] = range(math.prod(lead))
        if site == "choice/dropout":  # one per modality, then two per row
            keys = [*names, *range(lead[0] - len(names))]
        elif not uniform and lead[1] == len(names):
            keys = list(itertools.product(range(lead[0]), names))
        draws = [
            _hashed((site, row, key), trail, uniform=uniform)
            for row, key in itertools.product(rows, keys)
        ]
        noise = torch.stack(draws).reshape(len(rows), *lead, *trail)
        return noise.movedim(0, axis).to(dtype=dtype, device=device).contiguous()

    return source


def _hashed(key: object, shape: tuple[int, ...], *, uniform: bool) -> Tensor:
    """Noise that is a function of a key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    generator = seeded(int.from_bytes(digest[:7], "big"))
    draw = torch.rand if uniform else torch.randn
    return draw(shape, generator=generator, dtype=torch.float64)
