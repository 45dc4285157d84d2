"""Products of normal experts, for many subsets at once: 2^m - 1 of them in mixtures of products.

Axes: s samples, k subsets, b rows, m modalities, d latent. Long subset axes are computed in blocks
that stay in the cache, with analytic gradients, so that nothing of the size (k, b, d) is held
unless somebody looks at it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import attrs
import torch
from einops import einsum, rearrange
from torch import Tensor

from mvkit.core.blocks import FLOAT32, PRODUCTS, block_size, block_slices
from mvkit.core.stacked_copies import Stacked, of_all_copies, stacked_noise


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
    """What products are made of: normals whose precision is the sum of their members' and a guard.

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
        """The factors of normal experts.

        Args:
            experts: normal experts.
            mask: those that each row has, (b, m) bool.
            members: experts of each subset, (k, m) for all rows alike or (k, b, m) bool.
            usable: rows that observe all members, (k, b) bool; the others get proper normals
                without meaning.
            prior: precision added to each product, broadcastable to (k, b, 1).
        """
        observed = rearrange(mask, "b m -> m b 1")
        precision = torch.where(observed, experts.scale.square().reciprocal(), 0.0)
        # a standard normal guards what a row cannot use: a product of nothing has NaN gradients
        guard = rearrange(~usable, "k b -> k b 1").to(precision.dtype) + prior
        return cls(precision, precision * experts.loc, members.to(precision.dtype), guard)

    def detach(self) -> Factors:
        """The same, stopped."""
        return attrs.evolve(
            self, precision=self.precision.detach(), weighted=self.weighted.detach()
        )

    @cached_property
    def located(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every product, (k, b, d) each."""
        with torch.enable_grad():  # kept, even if first looked at where nobody wants a gradient
            return _located(self.precision, self.weighted, self.members, self.guard)

    def pick(self, component: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the products at indices (s, b, 1), (s, b, d) each."""
        guard = torch.gather(self.guard, 0, component)
        if self.members.ndim == 2:
            members = self.members[rearrange(component, "s b 1 -> s b")]
        else:
            index = component.expand(-1, -1, self.members.shape[-1])
            members = torch.gather(self.members, 0, index)
        return _located(self.precision, self.weighted, members, guard)

    def kl(self, loc0: Tensor, scale0: Tensor) -> Tensor:
        """KL of every product from N(loc0, scale0), (1, b or 1, d) each, in nats, (k, b)."""
        return _kl(self.precision, self.weighted, self.members, self.guard, loc0, scale0)


def product(
    experts: Located, mask: Tensor, members: Tensor, usable: Tensor, prior: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (k, b, d) of products of normal experts (see `Factors.of`)."""
    return Factors.of(experts, mask, members, usable, prior).located


def over_members(members: Tensor, values: Tensor) -> Tensor:
    """Sums over the members of subsets, (k, m) or (k, b, m), and (m, b, d) -> (k, b, d)."""
    if members.ndim == 3:
        return einsum(members, values, "k b m, m b d -> k b d")
    # three times as fast as einsum's batched product
    sums = members @ rearrange(values, "m b d -> m (b d)")
    return torch.unflatten(sums, 1, values.shape[1:])


def _over_subsets(members: Tensor, values: Tensor) -> Tensor:
    """Sums over the subsets of each expert, (k, m) or (k, b, m), and (k, b, d) -> (m, b, d)."""
    if members.ndim == 3:
        return einsum(members, values, "k b m, k b d -> m b d")
    sums = members.T @ rearrange(values, "k b d -> k (b d)")
    return torch.unflatten(sums, 1, values.shape[1:])


def subset_blocks(members: Tensor, precision: Tensor) -> list[slice]:
    """Slices of the subset axis; mostly one."""
    if torch.compiler.is_exporting():  # a choice would bound the number of rows
        return [slice(0, len(members))]
    if 0 < len(members) * precision[0].numel() * FLOAT32 <= PRODUCTS:
        return [slice(0, len(members))]
    return block_slices(len(members), block_size(precision[0].numel(), PRODUCTS))


class Saved(Protocol):
    """What the forward pass of an autograd function keeps for its gradient."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _Located(torch.autograd.Function):
    """Mean and standard deviation of products."""

    @staticmethod
    def forward(
        ctx: Saved, precision: Tensor, weighted: Tensor, members: Tensor, guard: Tensor
    ) -> tuple[Tensor, Tensor]:
        shape = (len(members), *precision.shape[1:])
        loc = precision.new_empty(shape)
        scale = precision.new_empty(shape)
        for block in subset_blocks(members, precision):
            total = over_members(members[block], precision).add_(guard[block])
            scale[block] = torch.rsqrt(total)
            loc[block] = over_members(members[block], weighted).div_(total)
        ctx.save_for_backward(loc, scale, members)
        return loc, scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Saved, to_loc: Tensor, to_scale: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, members = ctx.saved_tensors
        to_precision = to_weighted = loc.new_zeros(())
        for block in subset_blocks(members, loc):
            sd = scale[block]
            variance = sd * sd
            to_means = to_loc[block] * variance
            to_total = variance.mul_(sd).mul_(to_scale[block]).mul_(-0.5)
            to_total.addcmul_(to_means, loc[block], value=-1.0)
            to_precision = to_precision + _over_subsets(members[block], to_total)
            to_weighted = to_weighted + _over_subsets(members[block], to_means)
        return to_precision, to_weighted, None, None


class _KL(torch.autograd.Function):
    """KL of products from one normal, without holding the products."""

    @staticmethod
    def forward(ctx: Saved, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        precision, weighted, members, guard, loc0, scale0 = tensors
        precision0 = scale0.square().reciprocal()
        divergences = []
        for block in subset_blocks(members, precision):
            variance = over_members(members[block], precision).add_(guard[block]).reciprocal_()
            shift = over_members(members[block], weighted).mul_(variance).sub_(loc0)
            ratio = variance.mul_(precision0)
            squares = shift.square_().mul_(precision0).add_(ratio)
            divergences.append(squares.sub_(ratio.log_()).sub_(1.0).sum(-1).mul_(0.5))
        return torch.cat(divergences)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Saved, gradient: Tensor) -> tuple[Tensor | None, ...]:
        precision, weighted, members, guard, loc0, scale0 = ctx.saved_tensors
        precision0 = scale0.square().reciprocal()
        gradient = rearrange(gradient, "k b -> k b 1")
        to_precision = to_weighted = to_loc0 = to_scale0 = precision.new_zeros(())
        for block in subset_blocks(members, precision):
            total = over_members(members[block], precision).add_(guard[block])
            variance = total.reciprocal()
            loc = over_members(members[block], weighted).mul_(variance)
            shift = loc - loc0
            to_loc = (shift * precision0).mul_(gradient[block])
            if ctx.needs_input_grad[4]:
                to_loc0 = to_loc0 - to_loc.sum_to_size(loc0.shape)
            if ctx.needs_input_grad[5]:
                squares = shift.square_().add_(variance).mul_(precision0)
                each = (1.0 - squares).mul_(gradient[block]) / scale0
                to_scale0 = to_scale0 + each.sum_to_size(scale0.shape)
            to_means = to_loc.mul_(variance)
            to_variance = (precision0 - total).mul_(gradient[block]).mul_(0.5)
            to_total = to_variance.mul_(variance).mul_(variance).addcmul_(to_means, loc).neg_()
            to_precision = to_precision + _over_subsets(members[block], to_total)
            to_weighted = to_weighted + _over_subsets(members[block], to_means)
        return to_precision, to_weighted, None, None, to_loc0, to_scale0


_located_of_one: Callable[..., tuple[Tensor, Tensor]] = _Located.apply
_kl_of_one: Callable[..., Tensor] = _KL.apply


def _located(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of products; see `Factors`."""
    if stacked_noise.get() is None:
        return _located_of_one(*tensors)

    def rule(stacked: Stacked) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        loc, scale = _located_of_one(*_side_by_side(stacked))
        apart = (stacked.copies, -1)
        return (loc.unflatten(1, apart), scale.unflatten(1, apart)), (1, 1)

    located: tuple[Tensor, Tensor] = of_all_copies(rule, *tensors)
    return located


def _kl(*tensors: Tensor) -> Tensor:
    """KL of products from one normal; see `Factors`."""
    if stacked_noise.get() is None:
        return _kl_of_one(*tensors)

    def rule(stacked: Stacked) -> tuple[Tensor, int]:
        divergences = _kl_of_one(*_side_by_side(stacked))
        return divergences.unflatten(1, (stacked.copies, -1)), 1

    kl: Tensor = of_all_copies(rule, *tensors)
    return kl


def _side_by_side(stacked: Stacked) -> list[Tensor]:
    """Precision, weighted, members, guard and so on of all copies as those of one, whose rows are
    the rows of all.
    """
    b = stacked.tensors[0].shape[-2]
    arguments = []
    for position, (tensor, axis) in enumerate(zip(stacked.tensors, stacked.axes, strict=True)):
        if position == 2 and axis is None and tensor.ndim == 2:
            arguments.append(tensor)  # members (k, m) of all rows alike
            continue
        each = tensor.unsqueeze(0) if axis is None else tensor.movedim(axis, 0)
        if each.ndim == 3:  # members (k, m) of each copy
            each = rearrange(each, "c k m -> c k 1 m")
        of_rows = each.expand(stacked.copies, -1, b, -1)
        arguments.append(rearrange(of_rows, "c k b x -> k (c b) x"))
    return arguments
