"""Noise that a test chooses, in the place of every draw of mvkit."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mvkit.core.noise import Source, injected


@contextlib.contextmanager
def noise(source: Source) -> Iterator[None]:
    """Inside, every draw of mvkit calls `source(site, shape, dtype, device)` instead of a generator.

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
    """Noise bound to row ids and modality names: what permuting or splitting a batch leaves unchanged.

    Args:
        rows: an id for each row of the batch, in its order.
        names: the modalities in the model's order. An axis of drawn components as long as this is taken to be one
            component a modality (moe).
    """

    def make(
        site: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        choice = site.startswith("choice/")
        axis = 1 if choice else 2
        if len(shape) <= axis or shape[axis] != len(rows):
            raise ValueError(f"noise of shape {shape} at {site!r} has no axis of {len(rows)} rows")
        lead, trail = shape[:axis], shape[axis + 1 :]
        columns = []
        for row in rows:
            if site == "choice/dropout":  # one a modality, then two a row
                keys = [*names, *range(lead[0] - len(names))]
            elif not choice and lead[1] == len(names):
                keys = [(s, name) for s in range(lead[0]) for name in names]
            else:
                keys = list(range(int(torch.tensor(lead).prod())))
            drawn = [_hashed((site, row, key), trail, uniform=choice) for key in keys]
            columns.append(torch.stack(drawn).reshape(*lead, *trail))
        return torch.stack(columns, axis).to(dtype=dtype, device=device)

    return make


def _hashed(key: object, shape: tuple[int, ...], *, uniform: bool) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    make = torch.rand if uniform else torch.randn
    return make(shape, generator=generator, dtype=torch.float64)
