"""Products of experts for many subsets at once, against plain autograd and torch's densities."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from mvkit.core.blocks import block_size, block_slices
from mvkit.core.product_of_experts import Factors

M, B, D = 3, 5, 2


class Experts:
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.loc = torch.randn(M, B, D, generator=generator, dtype=torch.float64).requires_grad_()
        self.scale = (
            torch.rand(M, B, D, generator=generator, dtype=torch.float64).add(0.3).requires_grad_()
        )


def factors(experts, kind, prior=1.0):
    mask = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0], [1, 1, 1]]).bool()
    members = torch.tensor([[i >> j & 1 for j in range(M)] for i in range(1, 2**M)]).bool()
    usable = (members[:, None] & ~mask).sum(-1) == 0
    if kind == "by row":
        members = members[:, None] & mask
    return Factors.of(experts, mask, members, usable, prior), members, mask, usable


def plainly(experts, members, mask, usable, prior=1.0):
    """Normals of all products, one by one."""
    locs, scales = [], []
    for k in range(len(members)):
        own = members[k] if members.ndim == 3 else members[k].expand(B, M)
        chosen = (own & mask).T[..., None].double()
        total = (chosen / experts.scale**2).sum(0) + prior + (~usable[k]).double()[:, None]
        locs.append((chosen * experts.loc / experts.scale**2).sum(0) / total)
        scales.append(total**-0.5)
    return Normal(torch.stack(locs), torch.stack(scales))


def gradients(value, *tensors):
    weights = torch.randn(
        value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype
    )
    return torch.autograd.grad(
        (value * weights).sum(),
        tensors,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )


@pytest.mark.parametrize("kind", ["alike", "by row"])
@pytest.mark.parametrize("cached", [1, 2 * B * D, 2**17])
def test_products_and_their_divergences(kind, cached, monkeypatch):
    monkeypatch.setattr("mvkit.core.product_of_experts.PRODUCTS", 4 * cached)
    experts = Experts()
    products, *rest = factors(experts, kind)
    plain = plainly(experts, *rest)
    for ours, theirs in zip(products.located, (plain.loc, plain.scale), strict=True):
        torch.testing.assert_close(ours, theirs)
        both = (gradients(value, experts.loc, experts.scale) for value in (ours, theirs))
        for a, b in zip(*both, strict=True):
            torch.testing.assert_close(a, b)
    for shape in ((1, 1, D), (1, B, D)):
        loc0 = torch.randn(shape, dtype=torch.float64).requires_grad_()
        scale0 = torch.rand(shape, dtype=torch.float64).add(0.5).requires_grad_()
        ours, theirs = (
            products.kl(loc0, scale0),
            kl_divergence(plain, Normal(loc0, scale0)).sum(-1),
        )
        torch.testing.assert_close(ours, theirs)
        both = (
            gradients(value, experts.loc, experts.scale, loc0, scale0) for value in (ours, theirs)
        )
        for a, b in zip(*both, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["alike", "by row"])
def test_picked_products_are_those_of_all(kind):
    experts = Experts()
    products, *_ = factors(experts, kind)
    component = torch.randint(7, (4, B, 1), generator=torch.Generator().manual_seed(2))
    for ours, every in zip(products.pick(component), products.located, strict=True):
        theirs = torch.gather(every, 0, component.expand(-1, -1, D))
        torch.testing.assert_close(ours, theirs)
        both = (gradients(value, experts.loc, experts.scale) for value in (ours, theirs))
        for a, b in zip(*both, strict=True):
            torch.testing.assert_close(a, b)


def test_looking_without_gradient_first_loses_none():
    experts = Experts()
    products, *_ = factors(experts, "alike")
    with torch.no_grad():
        assert not (products.located[0] * 1).requires_grad
    assert all(
        g.abs().sum() > 0 for g in gradients(products.located[0], experts.loc, experts.scale)
    )


@pytest.mark.parametrize("rows", [0, 4])
@pytest.mark.parametrize("latent", [0, 2])
@pytest.mark.parametrize("alike", [True, False])
def test_no_rows_and_no_latent(rows, latent, alike):
    experts = Experts()
    experts.loc, experts.scale = (torch.ones(M, rows, latent).requires_grad_() for _ in range(2))
    members = torch.ones(7, M).bool() if alike else torch.ones(7, rows, M).bool()
    products = Factors.of(
        experts, torch.ones(rows, M).bool(), members, torch.ones(7, rows).bool(), 1.0
    )
    kl = products.kl(torch.zeros(1, 1, latent), torch.ones(1, 1, latent))
    assert products.located[0].shape == (7, rows, latent)
    assert kl.shape == (7, rows)
    assert products.pick(torch.zeros(2, rows, 1).long())[1].shape == (2, rows, latent)
    (kl.sum() + products.located[0].sum()).backward()
    assert experts.loc.grad.shape == (M, rows, latent)


@pytest.mark.parametrize(("numbers", "size"), [(1, 8), (4, 2), (5, 1), (9, 1), (0, 32)])
def test_blocks_fit_their_budget_and_cover_the_axis(numbers, size):
    assert block_size(numbers, 32) == size
    slices = block_slices(11, size)
    assert [i for part in slices for i in range(11)[part]] == list(range(11))
    assert all(len(range(11)[part]) <= size for part in slices)
