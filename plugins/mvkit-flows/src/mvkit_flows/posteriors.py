"""Posteriors through flows: mixtures whose components were bent, and products of them.

Axes: n samples, s samples, j drawn components, k components (one per modality), b rows, d latent,
w context.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import attrs
import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from mvkit import Mixture, RequestError
from mvkit.core import Draws, Generator, Posterior, noise
from mvkit_flows.hamiltonian import NoiseAt, hamiltonian

LEAST_PRECISION = 1e-3  # of a product that can be normalised
START = 16  # pairs of points behind the moments that chains start from


def mirrored(points: Tensor) -> Tensor:
    """Points and their mirror images: their means have no error where the law is symmetric."""
    return torch.cat([points, -points])


@attrs.frozen(eq=False)
class Transported(Posterior):
    """Mixture whose component k went through flow k: log q_k(z) = log F_k(f_k(z)) + log |∂f_k/∂z|.

    Args:
        base: the mixture before the flows.
        flows: zuko's lazy transforms from z to the base, one per component; None where no row can
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

    def draw(self, n: int, how: str, generator: Generator = None, site: str = "z") -> Draws:
        drawn = self.base.draw(n, how, generator, site)
        s, j, b, _ = drawn.z.shape
        if drawn.component is None:
            picked = repeat(torch.arange(j, device=drawn.z.device), "j -> s j b", s=s, b=b)
        else:
            picked = drawn.component.expand(s, j, b)
        z = drawn.z
        log_det = torch.zeros_like(z[..., 0])
        for k, flow in enumerate(self.flows):
            index = (picked == k).nonzero(as_tuple=True)
            if flow is None or not len(index[0]):
                continue
            context = self._context(k, index[2])
            bent, change = flow(context).inv.call_and_ladj(drawn.z[index])
            z = z.index_put(index, bent)
            log_det = log_det.index_put(index, change)
        return Draws(
            self, z, drawn.component, drawn.log_pi, lambda: drawn.log_qk - log_det, self.kl
        )

    def _context(self, k: int, rows: Tensor | None = None) -> Tensor | None:
        """What flow k is conditional on, (b, w), or (n, w) of some rows."""
        if self.context is None:
            return None
        return self.context[k] if rows is None else self.context[k].index_select(0, rows)

    def each(self, z: Tensor) -> Tensor:
        """Log q_k(z), (..., b, d) -> (..., k, b); 0 where no row can use the component."""
        log_q = []
        for k, flow in enumerate(self.flows):
            if flow is None:
                log_q.append(torch.zeros_like(z[..., 0]))
                continue
            straight, log_det = flow(self._context(k)).call_and_ladj(z)
            loc, scale = self.base.loc[k], self.base.scale[k]
            log_q.append(self.base.family.log_prob(straight, loc, scale) + log_det)
        return torch.stack(log_q, -2)

    def log_prob(self, z: Tensor) -> Tensor:
        return torch.logsumexp(self.each(z) + self.base.log_weight, -2)

    def moments(self, pairs: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of each component, (k, b, d), from the same points for all rows.

        Without flows the variances of a normal base are exact, whatever the points.
        """
        base = self.base
        shape = (pairs, 1, base.loc.shape[-1])
        generator = noise.seeded(0, base.loc.device)
        sampler = base.family.noise
        eps = noise.draw("nodes", shape, base.loc, generator=generator, sampler=sampler)
        points = mirrored(eps)
        means = []
        variances = []
        for k, flow in enumerate(self.flows):
            z = base.loc[k] + base.scale[k] * points
            if flow is not None:
                z = flow(self._context(k)).inv(z)
            means.append(z.mean(0))
            variances.append(z.var(0) / points.var(0))
        return torch.stack(means), torch.stack(variances)

    @property
    def mean(self) -> Tensor:
        means, _ = self.moments(self.points)
        weight = rearrange(self.log_weight.exp(), "k b -> k b 1")
        return reduce(weight * means, "k b d -> b d", "sum")

    def detach(self) -> Transported:
        flows = []
        for flow in self.flows:
            flows.append(None if flow is None else copy.deepcopy(flow).requires_grad_(False))
        context = None if self.context is None else self.context.detach()
        return Transported(self.base.detach(), tuple(flows), context, self.points)


@attrs.frozen(eq=False)
class Product(Posterior):
    """Product of n components of a mixture: q(z|x_S) ∝ ∏_{m∈S} q_m(z|x_m) / p(z)^(n-1).

    Its draws are the ends of Hamiltonian chains, one per draw, all rows at once. They start at the
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
        """How often the product is divided by the prior, (b,): once less than it has components.

        Exact posteriors are no broader together than apart. Learnt ones may be so broad that
        nothing could normalise the quotient, going by normals with the same moments: it is then
        divided as far as its precision stays above that of the sharpest component.
        """
        if self.prior is None:
            return 0.0 * self.log_weight[0]
        precision = self._precisions[1]
        total = precision.sum(0)
        count = (self.members.sum(0) - 1).clamp(min=0)
        proper = (total - rearrange(count, "b -> b 1") > LEAST_PRECISION).all(-1)
        room = (total - precision.amax(0)).amin(-1)
        return torch.where(proper, count, torch.minimum(count, room))

    @functools.cached_property
    def _precisions(self) -> tuple[Tensor, Tensor]:
        """Means and precisions of the components, (k, b, d) each, without gradient; zero precision
        where a row does not multiply them.
        """
        with torch.no_grad():
            means, variances = self.parts.moments(START)
        members = rearrange(self.members, "k b -> k b 1")
        return means, torch.where(members, variances.reciprocal(), 0.0)

    def target(self, z: Tensor) -> Tensor:
        """Log-density up to a constant per row, (..., b, d) -> (..., b)."""
        total = torch.where(self.members, self.parts.each(z), 0.0).sum(-2)
        return total if self.prior is None else total - self.excess * self.prior(z)

    def start(self) -> tuple[Tensor, Tensor]:
        """Mean and scale, (b, d) each, of the product of normals with the components' moments."""
        means, precision = self._precisions
        total = precision.sum(0) - rearrange(self.excess, "b -> b 1")
        total = torch.where(total > 0, total, 1.0)
        return (precision * means).sum(0) / total, torch.rsqrt(total)

    def draw(self, n: int, how: str, generator: Generator = None, site: str = "z") -> Draws:
        like = self.parts.base.loc
        b, d = like.shape[1:]

        def normals(at: str) -> Tensor:
            shape = (n, 1, b, d)
            eps = noise.draw(at, shape, like, generator=generator, sampler=torch.randn)
            return rearrange(eps, "n 1 b d -> n b d")

        def uniforms(at: str) -> Tensor:
            return noise.draw(at, (n, b), like, generator=generator)

        states = self._chains(normals, uniforms, site)
        z = rearrange(states[-1], "n b d -> n 1 b d")
        return Draws(self, z, None, self.log_weight, lambda: self.log_prob(z), self.kl)

    @property
    def mean(self) -> Tensor:
        like = self.parts.base.loc
        b, d = like.shape[1:]
        generator = noise.seeded(0, like.device)

        def normals(at: str) -> Tensor:
            shape = (self.chains, 1, d)
            eps = noise.draw(at, shape, like, generator=generator, sampler=torch.randn)
            return mirrored(eps).expand(-1, b, -1)

        def uniforms(at: str) -> Tensor:
            uniform = noise.draw(at, (self.chains, 1), like, generator=generator)
            return repeat(uniform, "n 1 -> (2 n) 1")

        return reduce(self._chains(normals, uniforms, "nodes"), "t n b d -> b d", "mean")

    def _chains(self, normals: NoiseAt, uniforms: NoiseAt, site: str) -> Tensor:
        """States of the second half of the transitions, (t, n, b, d)."""
        # also inside inference_mode, whose tensors autograd refuses
        with torch.inference_mode(False), torch.enable_grad():
            product = attrs.evolve(self, parts=_ordinary(self.parts), members=self.members.clone())
            with torch.no_grad():
                loc, scale = product.start()
            z = loc + scale * normals(site).clone()
            transitions = {"steps": self.steps, "leapfrog": self.leapfrog}
            return hamiltonian(product.target, z, scale, normals, uniforms, **transitions)

    def log_prob(self, z: Tensor) -> Tensor:
        raise RequestError(
            "a product of flow posteriors is known up to a constant only; posterior() has a "
            "density"
        )

    def detach(self) -> Product:
        return attrs.evolve(self, parts=self.parts.detach())


def _ordinary(parts: Transported) -> Transported:
    """The same, stopped, in tensors that autograd takes."""
    base = parts.base.detach()
    base = attrs.evolve(
        base, loc=base.loc.clone(), scale=base.scale.clone(), log_weight=base.log_weight.clone()
    )
    context = None if parts.context is None else parts.context.detach().clone()
    return attrs.evolve(parts, base=base, context=context)
