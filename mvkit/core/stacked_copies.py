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
        dtype, device = like.dtype, like.device

        def rule(stacked: Stacked) -> tuple[Tensor, int]:
            each = []
            for own in self.generators:
                each.append(sampler(shape, dtype=dtype, device=device, generator=own))
            return torch.stack(each), 0

        noise: Tensor = of_all_copies(rule, _numbers.get())
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


@attrs.frozen(eq=False)
class Stacked:
    """Tensors of several copies, as `torch.vmap` holds them.

    Args:
        copies: how many copies there are.
        tensors: the tensors.
        axes: the axis of the copies in each; None: the same for all.
    """

    copies: int
    tensors: tuple[Tensor, ...]
    axes: tuple[int | None, ...]

    def broadcastable(self) -> list[Tensor]:
        """The tensors with the copies in front, for functions that broadcast, (c, ...) each."""
        pairs = list(zip(self.tensors, self.axes, strict=True))
        most = max(tensor.ndim - (axis is not None) for tensor, axis in pairs)
        tensors = []
        for tensor, axis in pairs:
            if axis is not None:
                each = tensor.movedim(axis, 0)
                lacking = (1,) * (most + 1 - tensor.ndim)  # axes that broadcasting adds in front
                tensor = each.reshape(len(each), *lacking, *each.shape[1:])
            tensors.append(tensor)
        return tensors


Rule = Callable[[Stacked], tuple[Any, Any]]


def of_all_copies(rule: Rule, *tensors: Tensor) -> Any:
    """What a rule makes of tensors of all copies at once, inside `torch.vmap`, which sees one.

    Args:
        rule: from the tensors of all copies to results, and the axis of the copies in each.
        tensors: of one copy; one at least differs between the copies.
    """
    return _OfAll.apply(rule, *tensors)  # type: ignore[no-untyped-call]


class _OfAll(torch.autograd.Function):
    """A rule for all copies, which autograd sees as what it is made of."""

    @staticmethod
    def forward(rule: Rule, *tensors: Tensor) -> Any:
        raise RuntimeError("what all copies have in common is computed for each; expected tensors")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: the rule is made of functions that have gradients."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], rule: Rule, *tensors: Tensor) -> tuple[Any, Any]:
        return rule(Stacked(info.batch_size, tensors, in_dims[1:]))


def scale_gradient(latent: Tensor, factor: Tensor) -> None:
    """Multiplies what later flows back into a tensor by a factor that broadcasts with it.

    Inside `torch.vmap` too, where tensors do not know what flows back into them.
    """
    if stacked_noise.get() is not None:
        of_all_copies(_scale_gradient, latent, factor.detach())
    elif latent.requires_grad:
        latent.register_hook(lambda gradient: gradient * factor)


def _scale_gradient(stacked: Stacked) -> tuple[Tensor, int]:
    """Scales the gradient of a latent of all copies; returns the factor, since it must return."""
    latent = stacked.tensors[0]
    axis, axis_of_factor = stacked.axes
    if axis is None or axis_of_factor is None:
        raise RequestError(
            "latents or their weights are the same for all copies; expected those of each"
        )
    factor = stacked.tensors[1].movedim(axis_of_factor, axis)
    if latent.requires_grad:
        latent.register_hook(lambda gradient: gradient * factor)
    return factor, axis
