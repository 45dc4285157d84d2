"""Products of normal experts, for many subsets at once: 2^m - 1 of them in mixtures of products.

Axes: s samples, k subsets, b rows, m modalities, d latent. Long subset axes are gone through in blocks that stay in the
cache, with analytic gradients, so that nothing of the size (k, b, d) is held unless somebody looks at it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import attrs
import torch
from einops import einsum, rearrange
from torch import Tensor

CACHED = (
    2**16
)  # numbers of a block of subsets that stays in the cache while several passes go over it


def blocks(k: int, numbers: int) -> list[slice]:
    """Ranges of an axis of k, each entry of so many numbers, that stay in the cache."""
    size = max(1, CACHED // max(1, numbers))
    return [slice(start, start + size) for start in range(0, k, size)]


class Located(Protocol):
    """Experts: locations and scales, (m, b, d) each."""

    @property
    def loc(self) -> Tensor: ...

    @property
    def scale(self) -> Tensor: ...


@attrs.frozen(eq=False)
class SomeExperts:
    """Locations and scales of some experts, (m, b, d) each."""

    loc: Tensor
    scale: Tensor


@attrs.frozen(eq=False, slots=False)
class Factors:
    """What products are made of: each is normal, with the summed precision of its members, and of the guard.

    Args:
        precision: precisions of the experts, zeros where unobserved, (m, b, d).
        weighted: the same times their locations.
        members: experts of each subset as numbers, (k, m) for all rows alike or (k, b, m).
        guard: precision added to each product, (k, b, 1).
    """

    precision: Tensor
    weighted: Tensor
    members: Tensor
    guard: Tensor

    @classmethod
    def of(
        cls, experts: Located, mask: Tensor, members: Tensor, usable: Tensor, prior: Tensor | float
    ) -> Factors:
        """Those of normal experts.

        Args:
            experts: normal experts.
            mask: those that each row has, (b, m) bool.
            members: experts of each subset, (k, m) for all rows alike or (k, b, m) bool.
            usable: rows that observe all members, (k, b) bool; what the others get is proper, but means nothing.
            prior: precision added to each product, broadcastable to (k, b, 1).
        """
        precision = torch.where(
            rearrange(mask, "b m -> m b 1"), experts.scale.square().reciprocal(), 0.0
        )
        # a standard normal guards what a row cannot use: a product of nothing would make NaN gradients
        guard = rearrange(~usable, "k b -> k b 1").to(precision.dtype) + prior
        return cls(precision, precision * experts.loc, members.to(precision.dtype), guard)

    @cached_property
    def located(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every product, (k, b, d) each."""
        with (
            torch.enable_grad()
        ):  # it is kept, and may first be looked at where nobody wants a gradient
            found: tuple[Tensor, Tensor] = _Located.apply(
                self.precision, self.weighted, self.members, self.guard
            )  # type: ignore[no-untyped-call]
        return found

    def pick(self, component: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the products that rows picked, (s, b, 1) indices -> (s, b, d) each."""
        guard = torch.gather(self.guard, 0, component)
        if self.members.ndim == 2:
            members = self.members[rearrange(component, "s b 1 -> s b")]
        else:
            members = torch.gather(
                self.members, 0, component.expand(-1, -1, self.members.shape[-1])
            )
        found: tuple[Tensor, Tensor] = _Located.apply(
            self.precision, self.weighted, members, guard
        )  # type: ignore[no-untyped-call]
        return found

    def kl(self, loc0: Tensor, scale0: Tensor) -> Tensor:
        """KL of every product from N(loc0, scale0), (1, b or 1, d) each, in nats, (k, b)."""
        found: Tensor = _KL.apply(
            self.precision, self.weighted, self.members, self.guard, loc0, scale0
        )  # type: ignore[no-untyped-call]
        return found


def product(
    experts: Located, mask: Tensor, members: Tensor, usable: Tensor, prior: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (k, b, d) of products of normal experts, one for each subset; see `Factors.of`."""
    return Factors.of(experts, mask, members, usable, prior).located


def _over_members(members: Tensor, each: Tensor) -> Tensor:
    """Sums over the members of subsets, (k, m) or (k, b, m), and (m, b, d) -> (k, b, d)."""
    if members.ndim == 3:
        return einsum(members, each, "k b m, m b d -> k b d")
    flat = members @ rearrange(
        each, "m b d -> m (b d)"
    )  # three times as fast as einsum's batched product
    return torch.unflatten(flat, 1, each.shape[1:])


def _over_subsets(members: Tensor, each: Tensor) -> Tensor:
    """Sums over the subsets that experts are in, (k, m) or (k, b, m), and (k, b, d) -> (m, b, d)."""
    if members.ndim == 3:
        return einsum(members, each, "k b m, k b d -> m b d")
    flat = members.T @ rearrange(each, "k b d -> k (b d)")
    return torch.unflatten(flat, 1, each.shape[1:])


class _Located(torch.autograd.Function):
    """Mean and standard deviation of products."""

    @staticmethod
    def forward(
        ctx: Any, precision: Tensor, weighted: Tensor, members: Tensor, guard: Tensor
    ) -> tuple[Tensor, Tensor]:
        shape = (len(members), *precision.shape[1:])
        loc, scale = precision.new_empty(shape), precision.new_empty(shape)
        for block in blocks(shape[0], precision[0].numel()):
            total = _over_members(members[block], precision).add_(guard[block])
            scale[block] = torch.rsqrt(total)
            loc[block] = _over_members(members[block], weighted).div_(total)
        ctx.save_for_backward(loc, scale, members)
        return loc, scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_loc: Tensor, to_scale: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, members = ctx.saved_tensors
        to_precision = to_weighted = torch.zeros((), dtype=loc.dtype, device=loc.device)
        for block in blocks(len(loc), loc[0].numel()):
            at = scale[block]
            variance = at * at
            to_means = to_loc[block] * variance
            to_total = (
                variance.mul_(at)
                .mul_(to_scale[block])
                .mul_(-0.5)
                .addcmul_(to_means, loc[block], value=-1.0)
            )
            to_precision = to_precision + _over_subsets(members[block], to_total)
            to_weighted = to_weighted + _over_subsets(members[block], to_means)
        return to_precision, to_weighted, None, None


class _KL(torch.autograd.Function):
    """KL of products from one normal, without holding the products."""

    @staticmethod
    def forward(
        ctx: Any,
        precision: Tensor,
        weighted: Tensor,
        members: Tensor,
        guard: Tensor,
        loc0: Tensor,
        scale0: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(precision, weighted, members, guard, loc0, scale0)
        precision0 = scale0.square().reciprocal()
        found = []
        for block in blocks(len(members), precision[0].numel()):
            variance = _over_members(members[block], precision).add_(guard[block]).reciprocal_()
            shift = _over_members(members[block], weighted).mul_(variance).sub_(loc0)
            ratio = variance.mul_(precision0)
            squares = shift.square_().mul_(precision0).add_(ratio)
            found.append(squares.sub_(ratio.log_()).sub_(1.0).sum(-1).mul_(0.5))
        return torch.cat(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        precision, weighted, members, guard, loc0, scale0 = ctx.saved_tensors
        precision0 = scale0.square().reciprocal()
        gradient = rearrange(gradient, "k b -> k b 1")
        to_precision = to_weighted = torch.zeros(
            (), dtype=precision.dtype, device=precision.device
        )
        priors: list[Tensor | None] = [None, None]
        for block in blocks(len(members), precision[0].numel()):
            total = _over_members(members[block], precision).add_(guard[block])
            variance = total.reciprocal()
            loc = _over_members(members[block], weighted).mul_(variance)
            shift = loc - loc0
            to_loc = (shift * precision0).mul_(gradient[block])
            if ctx.needs_input_grad[4]:
                part = (-to_loc).sum_to_size(loc0.shape)
                priors[0] = part if priors[0] is None else priors[0] + part
            if ctx.needs_input_grad[5]:
                squares = (shift.square_().add_(variance)).mul_(precision0)
                part = ((1.0 - squares).mul_(gradient[block]) / scale0).sum_to_size(scale0.shape)
                priors[1] = part if priors[1] is None else priors[1] + part
            to_means = to_loc.mul_(variance)
            to_variance = (precision0 - total).mul_(gradient[block]).mul_(0.5)
            to_total = to_variance.mul_(variance).mul_(variance).addcmul_(to_means, loc).neg_()
            to_precision = to_precision + _over_subsets(members[block], to_total)
            to_weighted = to_weighted + _over_subsets(members[block], to_means)
        return to_precision, to_weighted, None, None, *priors
