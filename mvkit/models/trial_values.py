"""Rows that parts are tried on: made-up values that a likelihood takes, the same at every call."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mvkit.core.likelihood import Context, Likelihood, sample_of
from mvkit.core.noise import kept_global, seeded


def dtype_of(part: object) -> torch.dtype:
    """The dtype of a part's parameters; torch's default if it has none."""
    parameters = part.parameters() if isinstance(part, nn.Module) else ()
    return next((parameter.dtype for parameter in parameters), torch.get_default_dtype())


def even_steps(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Numbers from -1 to 1 in even steps."""
    return torch.linspace(-1, 1, math.prod(shape), dtype=dtype).reshape(shape)


def supported_values(
    part: Likelihood, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor | None:
    """The first of normal, uniform, count and one-hot values that a likelihood takes.

    If it takes none, draws of its own; None if it does not take those.
    """
    for x in made_up_values(shape, dtype):
        if not part.out_of_support(x).any():
            return x
    draws = _draws(part, shape, dtype)
    fits = tuple(draws.shape) == shape and not part.out_of_support(draws).any()
    return draws if fits else None


@torch.no_grad()
def _draws(part: Likelihood, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Draws of a likelihood, (*shape)."""
    numbers = (part.params,) if part.params > 1 else ()
    out = even_steps((1, *shape, *numbers), dtype)
    if isinstance(part, nn.Module):
        out = out.to(dtype_of(part))
    with kept_global():
        draws = sample_of(part, out, Context(generator=seeded(0)))
    return draws[0].to(dtype)


def made_up_values(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Normal, uniform, count and one-hot values of a shape, the same at every call."""
    generator = seeded(0)
    normal = torch.randn(shape, dtype=dtype, generator=generator)
    uniform = torch.rand(shape, dtype=dtype, generator=generator)
    classes = torch.randint(shape[-1], shape[:-1], generator=generator)
    counts = torch.randint(5, shape, generator=generator).to(dtype)
    one_hot = functional.one_hot(classes, shape[-1]).to(dtype)
    return normal, uniform, counts, one_hot
