"""Several copies of a model in one step: what each of them draws, and gradients that are scaled.

Inside `torch.vmap` a function sees one copy, and must not tell the copies apart. Noise must: each
copy has the noise of its own seed. What is done here is done for all copies at once, outside.

Axes: c copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import attrs
import torch
from torch import Tensor

from mvkit.errors import RequestError

Sampler = Callable[..., Tensor]


@attrs.frozen(eq=False)
class CopiesNoise:
    """The noise of several copies, each from a generator of its own.

    Args:
        generators: of the copies.
        asked: the generator that the copies are told of, which nobody draws from.
    """

    generators: Sequence[torch.Generator]
    asked: torch.Generator

    def draw(
        self, shape: tuple[int, ...], like: Tensor, generator: object, sampler: Sampler
    ) -> Tensor:
        """Noise of a shape for each copy, as it would draw it alone.

        Raises:
            RequestError: a draw from another generator than the one that the copies were given.
        """
        if generator is not self.asked:
            raise RequestError(
                "a part draws from another generator than that of its step; expected "
                "`experts.generator`; hand it to mvkit.core.noise.draw"
            )
        number = _numbers.get()
        dtype, device = like.dtype, like.device

        def draws() -> Tensor:
            each = []
            for own in self.generators:
                each.append(sampler(shape, dtype=dtype, device=device, generator=own))
            return torch.stack(each)

        noise: Tensor = _Outside.apply(number, draws)  # type: ignore[no-untyped-call]
        return noise


stacked_noise: ContextVar[CopiesNoise | None] = ContextVar("stacked_noise", default=None)
_numbers: ContextVar[Tensor] = ContextVar("numbers")  # of the copy, inside


@contextlib.contextmanager
def copies_draw(source: CopiesNoise, number: Tensor) -> Iterator[None]:
    """Inside, each of several copies draws its own noise.

    Args:
        source: the noise.
        number: of the copy, () inside `torch.vmap`.
    """
    tokens = stacked_noise.set(source), _numbers.set(number)
    try:
        yield
    finally:
        stacked_noise.reset(tokens[0])
        _numbers.reset(tokens[1])


class _Outside(torch.autograd.Function):
    """A tensor of all copies, (c, ...), for functions that see one copy."""

    @staticmethod
    def forward(number: Tensor, draws: Callable[[], Tensor]) -> Tensor:
        raise RuntimeError("the copies are seen by torch.vmap alone")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: object, in_dims: object, number: Tensor, draws: Callable[[], Tensor]
    ) -> tuple[Tensor, int]:
        return draws(), 0


def scale_gradient(latent: Tensor, factor: Tensor) -> None:
    """Multiplies what later flows back into a tensor by a factor that broadcasts with it.

    Inside `torch.vmap` too, where tensors do not know what flows back into them.
    """
    if stacked_noise.get() is None:
        if latent.requires_grad:
            latent.register_hook(lambda gradient: gradient * factor)
        return
    _Scaled.apply(latent, factor.detach())  # type: ignore[no-untyped-call]


class _Scaled(torch.autograd.Function):
    """Lets a tensor of all copies scale its gradient."""

    @staticmethod
    def forward(latent: Tensor, factor: Tensor) -> Tensor:
        raise RuntimeError("the copies are seen by torch.vmap alone")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: object, in_dims: tuple[int | None, int | None], latent: Tensor, factor: Tensor
    ) -> tuple[Tensor, int | None]:
        at, of = in_dims
        if at is None:
            raise RequestError("latents that are the same for all copies have no gradients")
        if latent.requires_grad:
            by = factor if of is None else factor.movedim(of, at)
            latent.register_hook(lambda gradient: gradient * by)
        return factor, of
