"""Densities of many normal components at once, by matrix products.

The log-density of a normal component is a quadratic form of z. That of a product of experts is the
sum of its members' forms and a constant, so that all 2^m - 1 subsets cost m forms and one product
with the table of members.

Axes: n samples, b rows, k components, m modalities, d latent, f forms.
"""

from __future__ import annotations

import math
from functools import partial

import attrs
import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mvkit.core.product_of_experts import Factors, over_members, subset_blocks

MANY = 8  # fewer components, or draws of each row, cost less one by one


@attrs.frozen(eq=False)
class NormalComponents:
    """Normal components of each row, as sums of a few quadratic forms.

    Numbers are float64, in which differences of large squares keep what float32 can show.

    Args:
        centre: where latents are measured from, (b, d): any point near the components.
        forms: factors of squares and of distances from the centre, (b, 2d, f).
        shares: how often each form is in each component, (b, f, k); None: each form is one.
        constant: log-densities at the centre, (k, b).

    Example:
        >>> import torch
        >>> loc, scale = torch.zeros(3, 4, 2), torch.ones(3, 4, 2)  # 3 components, 4 rows
        >>> log_weight = torch.full((3, 4), 1 / 3).log()
        >>> NormalComponents.of(loc, scale).log_prob(torch.zeros(5, 4, 2), log_weight).shape
        torch.Size([5, 4])
    """

    centre: Tensor
    forms: Tensor
    shares: Tensor | None
    constant: Tensor

    @classmethod
    def of(cls, loc: Tensor, scale: Tensor) -> NormalComponents:
        """Components of these means and standard deviations, (k, b, d) each."""
        wide = _wide(loc)
        centre = loc.detach().to(wide).mean(0)
        precision = scale.to(wide).square().reciprocal()
        linear = precision * (loc.to(wide) - centre)
        forms = torch.cat([precision * -0.5, linear], -1)
        constant = _at_centre(precision, linear)
        return cls(centre, rearrange(forms, "k b d -> b d k"), None, constant)

    @classmethod
    def of_products(cls, factors: Factors) -> NormalComponents:
        """Components that are products of experts."""
        wide = _wide(factors.precision)
        precision, weighted = factors.precision.to(wide), factors.weighted.to(wide)
        members, guard = factors.members.to(wide), factors.guard.to(wide)
        centre = (weighted.sum(0) / (precision.sum(0) + 1.0)).detach()
        linear = weighted - precision * centre
        of_experts = torch.cat([precision * -0.5, linear], -1)
        of_guard = torch.cat([torch.full_like(centre, -0.5), -centre], -1)
        forms = torch.cat([of_experts, rearrange(of_guard, "b d -> 1 b d")])
        by_row = members if members.ndim == 3 else rearrange(members, "k m -> k 1 m")
        shares = torch.cat([by_row.expand(-1, len(centre), -1), guard], -1)
        forms, shares = rearrange(forms, "f b d -> b d f"), rearrange(shares, "k b f -> b f k")
        of_block = _products_at_centre
        if torch.is_grad_enabled():
            of_block = partial(checkpoint, _products_at_centre, use_reentrant=False)
        constants = []
        for block in subset_blocks(members, precision):
            constants.append(of_block(members[block], guard[block], precision, linear, centre))
        return cls(centre, forms, shares, torch.cat(constants))

    def log_prob(self, z: Tensor, log_weight: Tensor) -> Tensor:
        """Log-density of their mixture, (n, b, d) -> (n, b), in nats.

        Args:
            z: latents; one row of them, or of components, serves all rows of the other.
            log_weight: log-weights, (k, b).
        """
        at_centre = rearrange(self.constant + log_weight, "k b -> b 1 k")
        n, rows, _ = z.shape
        if len(at_centre) == 1:
            z = rearrange(z, "n b d -> (n b) 1 d")
        distance = rearrange(z.to(self.centre.dtype) - self.centre, "n b d -> b n d")
        features = torch.cat([distance.square(), distance], -1)
        forms, shares = self.forms, self.shares
        if len(forms) != len(features):
            forms = forms.expand(len(features), -1, -1)
        if shares is not None:
            features = features @ forms
            forms = shares
        densities = _log_sum_exp(torch.baddbmm(at_centre, features, forms), z.dtype)
        if len(at_centre) == 1:
            return rearrange(densities, "1 (n b) -> n b", n=n, b=rows)
        return rearrange(densities, "b n -> n b")


def _wide(like: Tensor) -> torch.dtype:
    """The dtype of quadratic forms: float64, where a device has it."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def _at_centre(precision: Tensor, linear: Tensor) -> Tensor:
    """Log-densities of components at the centre, (k, b).

    Args:
        precision: inverse variances, (k, b, d).
        linear: the same times the components' distances from the centre.
    """
    logs = precision.log() - linear.square() / precision - math.log(2 * math.pi)
    return 0.5 * reduce(logs, "k b d -> k b", "sum")


def _products_at_centre(
    members: Tensor, guard: Tensor, precision: Tensor, linear: Tensor, centre: Tensor
) -> Tensor:
    """Log-densities of some products at the centre, (k, b); `linear` as of `_at_centre`."""
    total = over_members(members, precision) + guard
    return _at_centre(total, over_members(members, linear) - guard * centre)


def _log_sum_exp(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Log of sums of exponentials over the last axis, in `dtype`; overwrites the logits."""
    highest = logits.detach().amax(-1, keepdim=True)
    highest = highest.clamp(min=torch.finfo(highest.dtype).min)  # if no component has weight
    shares = logits.sub_(highest).to(dtype).exp()
    return (shares.sum(-1).log() + highest.squeeze(-1)).to(dtype)
