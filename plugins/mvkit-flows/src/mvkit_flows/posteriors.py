"""Posteriors through flows: mixtures whose components were bent, and products of them, sampled by
Hamiltonian chains.

Axes: n samples, s samples, j drawn components, k components (one a modality), b rows, d latent, w
context.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import attrs
import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.mixture import Mixture
from mvkit.core.posterior import Draws, Posterior
from mvkit.errors import RequestError

ACCEPTANCE = 0.8  # what chains adapt their steps to
START = 16  # pairs of points behind the moments that chains start from


def nodes(n: int, like: Tensor, sampler: noise.Sampler) -> Tensor:
    """2 n points of the standard noise, the same at every call, (2 n, 1, d): each with its mirror
    image.
    """
    generator = torch.Generator(like.device).manual_seed(0)
    half = noise.draw("nodes", (n, 1, like.shape[-1]), like, generator=generator, sampler=sampler)
    return torch.cat([half, -half])


@attrs.frozen(eq=False)
class Transported(Posterior):
    """Mixture whose component k went through flow k: log q_k(z) = log F_k(f_k(z)) + log |∂f_k/∂z|.

    Args:
        base: the mixture before the flows.
        flows: zuko's lazy transforms from z to the base, one a component; None where no row can
            use the component.
        context: what the flows are conditional on, (k, b, w); None: nothing.
        points: pairs of points behind means, which have no closed form.
    """

    base: Mixture
    flows: tuple[nn.Module | None, ...]
    context: Tensor | None
    points: int

    @property
    def log_weight(self) -> Tensor:
        return self.base.log_weight

    @property
    def evidence(self) -> Tensor | None:
        return self.base.evidence

    @property
    def active(self) -> Tensor | None:
        return self.base.active

    def draw(
        self, n: int, how: str, generator: torch.Generator | None = None, site: str = "z"
    ) -> Draws:
        drawn = self.base.draw(n, how, generator, site)
        s, j, b, _ = drawn.z.shape
        stratified = repeat(torch.arange(j, device=drawn.z.device), "j -> s j b", s=s, b=b)
        picked = stratified if drawn.component is None else drawn.component.expand(s, j, b)
        z, ladj = drawn.z, torch.zeros_like(drawn.z[..., 0])
        for k, flow in enumerate(self.flows):
            index = (picked == k).nonzero(as_tuple=True)
            if flow is None or not len(index[0]):
                continue
            context = None if self.context is None else self.context[k].index_select(0, index[2])
            bent, change = flow(context).inv.call_and_ladj(drawn.z[index])
            z, ladj = z.index_put(index, bent), ladj.index_put(index, change)
        return Draws(self, z, drawn.component, drawn.log_pi, lambda: drawn.log_qk - ladj, self.kl)

    def each(self, z: Tensor) -> Tensor:
        """Log q_k(z), (..., b, d) -> (..., k, b); 0 where no row can use the component."""
        found = []
        for k, flow in enumerate(self.flows):
            if flow is None:
                found.append(torch.zeros_like(z[..., 0]))
                continue
            at, ladj = flow(None if self.context is None else self.context[k]).call_and_ladj(z)
            loc, scale = self.base.loc[k], self.base.scale[k]
            found.append(
                self.base.family.log_density((at - loc) / scale).sum(-1)
                - scale.log().sum(-1)
                + ladj
            )
        return torch.stack(found, -2)

    def log_prob(self, z: Tensor) -> Tensor:
        return torch.logsumexp(self.each(z) + self.base.log_weight, -2)

    def moments(self, pairs: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of each component, (k, b, d), from the same pairs of points for all
        rows.
        """
        points = nodes(pairs, self.base.loc, self.base.family.noise)
        found = []
        for k, flow in enumerate(self.flows):
            z = self.base.loc[k] + self.base.scale[k] * points
            z = (
                z
                if flow is None
                else flow(None if self.context is None else self.context[k]).inv(z)
            )
            found.append((z.mean(0), z.var(0)))
        mean, variance = (torch.stack(each) for each in zip(*found, strict=True))
        return mean, variance

    @property
    def mean(self) -> Tensor:
        weight = rearrange(self.log_weight.exp(), "k b -> k b 1")
        return reduce(weight * self.moments(self.points)[0], "k b d -> b d", "sum")

    def detach(self) -> Transported:
        flows = tuple(
            None if one is None else copy.deepcopy(one).requires_grad_(False) for one in self.flows
        )
        context = None if self.context is None else self.context.detach()
        return attrs.evolve(self, base=self.base.detach(), flows=flows, context=context)


@attrs.frozen(eq=False)
class Product(Posterior):
    """Product of n components of a mixture over p(z)^(n-1): q(z|x_S) ∝ ∏_{m∈S} q_m(z|x_m) /
    p(z)^(n-1).

    Its draws are the ends of Hamiltonian chains, one a draw, all rows at once. They start at the
    product of normals of the components' means and variances, which is all but exact where they
    are normal, and adapt their step in the first half; the more components differ from normal, the
    more steps they need. Draws carry no gradient.

    Args:
        parts: the components.
        members: those that a row multiplies, (k, b) bool.
        prior: log p(z), (..., b, d) -> (..., b); None: it is not divided out.
        steps: transitions of a chain.
        leapfrog: leapfrog steps of a transition.
        chains: pairs of chains behind means.

    Reference: Neal, MCMC using Hamiltonian Dynamics, 2011, https://arxiv.org/abs/1206.1901;
    Senellart et al., 2023, https://arxiv.org/abs/2305.11832.
    """

    parts: Transported
    members: Tensor
    prior: Callable[[Tensor], Tensor] | None
    steps: int
    leapfrog: int
    chains: int

    @property
    def log_weight(self) -> Tensor:
        return torch.zeros_like(self.parts.log_weight[:1])

    @property
    def evidence(self) -> Tensor:
        return rearrange(self.members, "k b -> 1 b k")

    @property
    def excess(self) -> Tensor:
        """How often the product counts the prior too many, (b,)."""
        return (
            0.0 * self.log_weight[0]
            if self.prior is None
            else (self.members.sum(0) - 1).clamp(min=0)
        )

    def target(self, z: Tensor) -> Tensor:
        """Log-density up to a constant a row, (..., b, d) -> (..., b)."""
        total = torch.where(self.members, self.parts.each(z), 0.0).sum(-2)
        return total if self.prior is None else total - self.excess * self.prior(z)

    def start(self) -> tuple[Tensor, Tensor]:
        """Mean and scale of the product of normals with the components' moments over N(0,
        I)^(n-1), (b, d) each.
        """
        mean, variance = self.parts.moments(START)
        precision = torch.where(
            rearrange(self.members, "k b -> k b 1"), variance.reciprocal(), 0.0
        )
        # exact posteriors are no broader together than apart; learnt ones might leave nothing
        total = torch.maximum(
            precision.sum(0) - rearrange(self.excess, "b -> b 1"), precision.amax(0)
        )
        total = torch.where(total > 0, total, 1.0)
        return (precision * mean).sum(0) / total, torch.rsqrt(total)

    def draw(
        self, n: int, how: str, generator: torch.Generator | None = None, site: str = "z"
    ) -> Draws:
        b, d = self.parts.base.loc.shape[1:]

        def normals(at: str) -> Tensor:
            shape, like = (n, 1, b, d), self.parts.base.loc
            drawn = noise.draw(at, shape, like, generator=generator, sampler=torch.randn)
            return rearrange(drawn, "n 1 b d -> n b d")

        def uniforms(at: str) -> Tensor:
            return noise.draw(at, (n, b), self.parts.base.loc, generator=generator)

        z = rearrange(self._chains(normals, uniforms, site)[-1], "n b d -> n 1 b d")
        return Draws(self, z, None, self.log_weight, lambda: self.log_prob(z), self.kl)

    @property
    def mean(self) -> Tensor:
        like = self.parts.base.loc
        generator = torch.Generator(like.device).manual_seed(0)

        def normals(at: str) -> Tensor:  # mirrored pairs: no error where the product is symmetric
            half = noise.draw(
                at,
                (self.chains, 1, like.shape[-1]),
                like,
                generator=generator,
                sampler=torch.randn,
            )
            return torch.cat([half, -half]).expand(-1, like.shape[1], -1)

        def uniforms(at: str) -> Tensor:
            return repeat(
                noise.draw(at, (self.chains, 1), like, generator=generator), "n 1 -> (2 n) 1"
            )

        return reduce(self._chains(normals, uniforms, "nodes"), "t n b d -> b d", "mean")

    def _chains(
        self, normals: Callable[[str], Tensor], uniforms: Callable[[str], Tensor], site: str
    ) -> Tensor:
        """States of the second half of the transitions, (t, n, b, d)."""
        # also inside inference_mode, whose tensors autograd refuses
        with torch.inference_mode(False), torch.enable_grad():
            fixed = attrs.evolve(self, parts=_ordinary(self.parts), members=self.members.clone())
            with torch.no_grad():
                loc, scale = fixed.start()
            z = loc + scale * normals(site).clone()
            return hamiltonian(
                fixed.target, z, scale, normals, uniforms, steps=self.steps, leapfrog=self.leapfrog
            )

    def log_prob(self, z: Tensor) -> Tensor:
        raise RequestError(
            "a product of flow posteriors is known up to a constant only; posterior() has a "
            "density"
        )

    def detach(self) -> Product:
        return attrs.evolve(self, parts=self.parts.detach())


def _ordinary(parts: Transported) -> Transported:
    """The same, stopped, in tensors that autograd takes."""
    base, still = parts.base.detach(), parts.context
    base = attrs.evolve(
        base, loc=base.loc.clone(), scale=base.scale.clone(), log_weight=base.log_weight.clone()
    )
    return attrs.evolve(
        parts, base=base, context=None if still is None else still.detach().clone()
    )


def hamiltonian(
    log_density: Callable[[Tensor], Tensor],
    z: Tensor,
    scale: Tensor,
    normals: Callable[[str], Tensor],
    uniforms: Callable[[str], Tensor],
    *,
    steps: int,
    leapfrog: int,
) -> Tensor:
    """Hamiltonian Monte Carlo, all chains and rows at once; the step of each row is adapted in the
    first half.

    Args:
        log_density: (n, b, d) -> (n, b), up to a constant a row.
        z: where chains start, (n, b, d).
        scale: rough scales of the target, (b, d).
        normals: noise (n, b, d) for a site.
        uniforms: noise (n, b) for a site.
        steps: transitions.
        leapfrog: leapfrog steps of each.

    Returns:
        States after the transitions of the second half, (t, n, b, d).

    Reference: Neal, MCMC using Hamiltonian Dynamics, 2011, https://arxiv.org/abs/1206.1901.
    """

    def slope(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        value = log_density(z)
        return value.detach(), torch.autograd.grad(value.sum(), z)[0] * scale

    step = torch.full_like(scale[:, :1], z.shape[-1] ** -0.25)
    value, gradient = slope(z)
    kept = []
    for t in range(steps):
        momentum = normals(f"hmc/momentum/{t}")
        before = value - momentum.square().sum(-1) / 2
        at, there, uphill = z, value, gradient
        for _ in range(leapfrog):
            momentum = momentum + step / 2 * uphill
            at = at + step * scale * momentum
            there, uphill = slope(at)
            momentum = momentum + step / 2 * uphill
        gain = (there - momentum.square().sum(-1) / 2 - before).nan_to_num(nan=-torch.inf)
        taken = uniforms(f"choice/accept/{t}").log() < gain
        moved = rearrange(taken, "n b -> n b 1")
        z, value, gradient = (
            torch.where(moved, at, z),
            torch.where(taken, there, value),
            torch.where(moved, uphill, gradient),
        )
        if 2 * t < steps:
            chance = reduce(gain.clamp(max=0.0).exp(), "n b -> b 1", "mean")
            step = step * torch.exp((chance - ACCEPTANCE) / 2)
        if 2 * t >= steps - 1:
            kept.append(z)
    return torch.stack(kept)
