"""The latent distribution with closed forms: a finite mixture of diagonal components.

Axes: s samples, j drawn components, k components, b rows, m modalities, d latent.
"""

from __future__ import annotations

import math
from functools import cached_property, partial
from typing import cast

import attrs
import torch
from einops import einsum, rearrange, reduce
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.blocks import DENSITIES, block_size
from mvkit.core.experts import Experts
from mvkit.core.family import Family
from mvkit.core.noise import Generator
from mvkit.core.normal_components import MANY, NormalComponents
from mvkit.core.posterior import Draws, Posterior, check_latents
from mvkit.core.product_of_experts import Factors, Located, product


@attrs.frozen(eq=False)
class Mixture(Posterior):
    """Finite mixture q(z) = sum_k w_k q_k(z), one per row; posteriors and most priors are one.

    Args:
        family: the location-scale family of the components.
        loc: locations, (k, b, d).
        scale: scales, (k, b, d).
        log_weight: log-weights, (k, b), normalised over k; -inf where a row cannot use the
            component.
        evidence: modalities that a component looked at, (k, b, m) bool; None for a prior.
        active: rows that objectives count, (b,) bool; None: all.
        order: an order of the components, (k,); components are picked along it, so that draws do
            not depend on the order in which modalities are declared.
        factors: what normal components are products of, in place of loc and scale, which are then
            computed when first looked at.

    Example:
        >>> import torch
        >>> from mvkit.parts.families import Normal
        >>> q = Mixture(Normal(), torch.zeros(1, 4, 2), torch.ones(1, 4, 2), torch.zeros(1, 4))
        >>> q.rsample(3).shape, q.log_prob(torch.zeros(3, 4, 2)).shape
        (torch.Size([3, 4, 2]), torch.Size([3, 4]))
    """

    family: Family
    _loc: Tensor | None
    _scale: Tensor | None
    log_weight: Tensor
    evidence: Tensor | None = None
    active: Tensor | None = None
    order: Tensor | None = None
    factors: Factors | None = None

    @property
    def loc(self) -> Tensor:
        """Locations, (k, b, d)."""
        return self._located(self._loc, 0)

    @property
    def scale(self) -> Tensor:
        """Scales, (k, b, d)."""
        return self._located(self._scale, 1)

    def _located(self, given: Tensor | None, i: int) -> Tensor:
        if given is not None:
            return given
        if self.factors is None:
            raise ValueError("a mixture needs loc and scale, or factors")
        return self.factors.located[i]

    @property
    def components(self) -> int:
        """The number of components, K."""
        return self.log_weight.shape[0]

    @property
    def mean(self) -> Tensor:
        """Mean of the mixture, (b, d)."""
        if self.components == 1:
            return rearrange(self.loc, "1 b d -> b d")
        return einsum(self.log_weight.exp(), self.loc, "k b, k b d -> b d")

    def draw(self, n: int, how: str, generator: Generator = None, site: str = "z") -> Draws:
        """Draws that keep track of their components.

        Args:
            n: number of samples S.
            how: `stratified`: n from every component, weighted; `iid`: n in all, each from a
                component drawn from the row's weights; `balanced`: one component per row, spread
                evenly over the batch.
            generator: source of randomness.
            site: name of the noise (see `mvkit.core.noise`).
        """
        k = self.components
        b, d = self._row_shape
        log_pi = self.log_weight
        drawn = k if how == "stratified" else 1
        eps = noise.draw(
            site, (n, drawn, b, d), log_pi, generator=generator, sampler=self.family.noise
        )
        if drawn == k:
            loc, scale, component = self.loc, self.scale, None
        else:
            picked = self._pick(n, how, generator)
            loc, scale = (rearrange(t, "s b d -> s 1 b d") for t in self._at(picked))
            component = rearrange(picked, "s b 1 -> s 1 b")
            log_pi = log_pi.new_zeros(1, b)
        log_qk = partial(self.family.log_prob_of_noise, eps, scale)
        return Draws(self, torch.addcmul(loc, scale, eps), component, log_pi, log_qk, self.kl)

    @property
    def _row_shape(self) -> torch.Size:
        return self.loc.shape[1:] if self.factors is None else self.factors.precision.shape[1:]

    def _at(self, picked: Tensor) -> tuple[Tensor, Tensor]:
        """Locations and scales of the components at indices (s, b, 1), (s, b, d) each."""
        if self.factors is not None:
            return self.factors.pick(picked)
        d = self.loc.shape[-1]
        index = picked.expand(-1, -1, d) if d else picked[..., :0]
        return torch.gather(self.loc, 0, index), torch.gather(self.scale, 0, index)

    def _pick(self, n: int, how: str, generator: Generator) -> Tensor:
        """Components drawn from the rows' weights, (s, b, 1); balanced ones have s = 1."""
        weight = self.log_weight.detach().exp()
        if self.order is not None:
            weight = weight[self.order]
        cdf = rearrange(weight.cumsum(0), "k b -> b k")
        cdf = cdf / cdf[..., -1:]
        b = len(cdf)
        s = 2 if how == "balanced" else n
        uniform = noise.draw("choice/component", (s, b), weight, generator=generator)
        if how == "balanced":
            rank = uniform[0].argsort().argsort()
            uniform = ((rank + uniform[1]) / b).clamp(max=1 - torch.finfo(weight.dtype).eps)
            uniform = rearrange(uniform, "b -> 1 b")
        points = rearrange(uniform, "s b -> b s").contiguous()
        # right=True skips components without weight: their interval is empty
        picked = torch.searchsorted(cdf.contiguous(), points, right=True)
        if self.order is not None:
            picked = self.order[picked]
        return rearrange(picked, "b s -> s b 1")

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of the whole mixture, (..., b, d) -> (..., b), in nats.

        Memory: K times z in blocks of at most `mvkit.core.blocks.DENSITIES` bytes, which are
        computed again in the backward pass if there are several.

        Raises:
            ShapeError: latents of another width, or for another number of rows.
        """
        check_latents(z, self._row_shape)
        if self.components == 1:
            return self.family.log_prob(z, self.loc[0], self.scale[0])
        b, d = z.shape[-2:]
        flat = z.reshape(math.prod(z.shape[:-2]), b, d)
        forms = self._forms(len(flat) * b // max(1, self._row_shape[0]))
        mixed = self._mixed if forms is None else forms.log_prob
        numbers = self.components * (d if forms is None else 2)
        pieces = torch.split(flat, block_size(b * numbers, DENSITIES))
        if len(pieces) > 1 and torch.is_grad_enabled():
            mixed = partial(checkpoint, mixed, use_reentrant=False)
        densities = torch.cat([mixed(piece, self.log_weight) for piece in pieces])
        return densities.reshape(*z.shape[:-2], densities.shape[-1])

    def _mixed(self, z: Tensor, log_weight: Tensor) -> Tensor:
        """Log-density of the mixture, (n, b, d) -> (n, b), of components of any family."""
        z = rearrange(z, "n b d -> n 1 b d")
        densities = self.family.log_prob(z, self.loc, self.scale)
        return torch.logsumexp(densities + log_weight, dim=-2)

    def _forms(self, draws: int) -> NormalComponents | None:
        """Normal components as quadratic forms, if that pays for so many draws of each row."""
        if self.family.density != "normal" or self.components < MANY:
            return None
        if self.factors is not None and not torch.is_grad_enabled():
            return self._stopped_products
        if draws < MANY:
            return None
        if self.factors is not None:
            return NormalComponents.of_products(self.factors)
        return NormalComponents.of(self.loc, self.scale)

    @cached_property
    def _stopped_products(self) -> NormalComponents:
        factors = cast(Factors, self.factors)
        with torch.inference_mode(False), torch.no_grad():  # what is kept may be asked anywhere
            return NormalComponents.of_products(factors)

    def joint(self, z: Tensor) -> Tensor:
        """Log w_k + log q_k(z), (..., b, d) -> (..., b, k)."""
        check_latents(z, self._row_shape)
        z = rearrange(z, "... b d -> ... 1 b d")
        densities = self.family.log_prob(z, self.loc, self.scale)
        return rearrange(densities + self.log_weight, "... k b -> ... b k")

    def kl(self, prior: object) -> Tensor | None:
        """KL(q_k ‖ p) of every component, (k, b), in nats; None where there is no closed form."""
        if not isinstance(prior, Mixture) or prior.components > 1:
            return None
        if prior.family.density != self.family.density:
            return None
        if self.factors is not None:
            return self.factors.kl(prior.loc, prior.scale)
        return self.family.kl(self.loc, self.scale, prior.loc, prior.scale)

    def detach(self) -> Mixture:
        """The same distribution with every parameter stopped, weights included."""
        return attrs.evolve(self.stop_density(), log_weight=self.log_weight.detach())

    def stop_density(self) -> Mixture:
        if self.factors is not None:
            return attrs.evolve(self, factors=self.factors.detach())
        return attrs.evolve(self, loc=self.loc.detach(), scale=self.scale.detach())

    def expand(self, b: int, m: int) -> Mixture:
        loc = self.loc.expand(-1, b, -1)
        scale = self.scale.expand(-1, b, -1)
        evidence = torch.zeros(self.components, b, m, dtype=torch.bool, device=loc.device)
        return Mixture(self.family, loc, scale, self.log_weight.expand(-1, b), evidence)

    def where(self, rows: Tensor, other: Posterior) -> Posterior:
        if not isinstance(other, Mixture):
            return super().where(rows, other)
        b, d = self.loc.shape[1:]
        loc = torch.cat([self.loc, other.loc.expand(-1, b, d)])
        scale = torch.cat([self.scale, other.scale.expand(-1, b, d)])
        ours = self.log_weight.masked_fill(~rows, -math.inf)
        theirs = other.log_weight.expand(-1, b).masked_fill(rows, -math.inf)
        evidence = self.evidence
        if evidence is not None:
            nothing = evidence.new_zeros(other.components, *evidence.shape[1:])
            evidence = torch.cat([evidence, nothing])
        return Mixture(self.family, loc, scale, torch.cat([ours, theirs]), evidence)

    def sample(
        self, n: int, component: int | None = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor]:
        """Draws of a prior, b = 1 or one for each of b = n rows whose weights are alike: latents
        (n, d) and their components (n,).
        """
        weight = self.log_weight[:, 0].exp()
        if component is None:
            uniform = noise.draw("choice/component", (n, 1), weight, generator=generator)
            cdf = weight.cumsum(0)
            picked = rearrange(torch.searchsorted(cdf / cdf[-1], uniform, right=True), "n 1 -> n")
        else:
            picked = torch.full((n,), component, device=weight.device)
        shape = (n, self.loc.shape[-1])
        eps = noise.draw("prior", shape, self.loc, generator=generator, sampler=self.family.noise)
        loc, scale = (_of_rows(values, picked) for values in (self.loc, self.scale))
        return loc + scale * eps, picked


def _of_rows(values: Tensor, picked: Tensor) -> Tensor:
    """Parameters (k, 1 or n, d) of the component that was picked for each of n rows, (n, d)."""
    if values.shape[1] == 1:
        return values[picked, 0]
    return values[picked, torch.arange(len(picked), device=values.device)]


def equal_weights(usable: Tensor, like: Tensor) -> Tensor:
    """Log-weights 1/n over the n usable components of each row, (k, b) bool -> (k, b).

    They have the dtype of `like`. A row without any keeps its first component, so that nothing is
    NaN; such rows must not be `active`.

    Example:
        >>> import torch
        >>> from mvkit.core import equal_weights
        >>> usable = torch.tensor([[True, True], [True, False]])
        >>> equal_weights(usable, torch.zeros(1)).exp().tolist()
        [[0.5, 1.0], [0.5, 0.0]]
    """
    count = reduce(usable.long(), "k b -> 1 b", "sum")
    first = torch.arange(len(usable), device=usable.device) == 0
    usable = usable | (rearrange(first, "k -> k 1") & (count == 0))
    return torch.where(usable, -torch.log(count.clamp(min=1).to(like.dtype)), -math.inf)


def one_component(
    experts: Experts, loc: Tensor, scale: Tensor, evidence: Tensor, active: Tensor | None = None
) -> Mixture:
    """A posterior of one component: parameters (b, d) or (1, b, d), evidence (b, m)."""
    loc, scale, evidence = (rearrange(t, "... b x -> (...) b x") for t in (loc, scale, evidence))
    return Mixture(experts.family, loc, scale, loc.new_zeros(loc.shape[:2]), evidence, active)


def raw_experts(experts: Experts, batch: Batch) -> dict[str, Mixture]:
    """Each expert as a posterior of its own, by modality, active where it is observed.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import raw_experts
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, aggregator="moe", seed=0)
        >>> batch = model.conform({"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)})
        >>> sorted(raw_experts(model.experts(batch), batch))
        ['a', 'b']
    """
    posteriors = {}
    for i, name in enumerate(experts.modalities):
        observed = batch.observed[:, i]
        evidence = torch.zeros_like(batch.observed)
        evidence[:, i] = observed
        loc, scale = experts.loc[i], experts.scale[i]
        posteriors[name] = one_component(experts, loc, scale, evidence, observed)
    return posteriors


def product_of_observed(experts: Experts, mask: Tensor, prior: Tensor | float) -> Mixture:
    """The product of the experts in `mask` (b, m) and a normal of precision `prior`, (1, b, 1).

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import product_of_observed
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, aggregator="moe", seed=0)
        >>> batch = model.conform({"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)})
        >>> product_of_observed(model.experts(batch), batch.observed, 1.0).mean.shape
        torch.Size([4, 2])
    """
    shown = experts.shown
    if len(shown) in (0, mask.shape[1]):
        loc, scale = _product(experts, mask, prior)
    else:
        loc, scale = _product(experts.only(shown), mask[:, shown], prior)
    return one_component(experts, loc, scale, mask)


def _product(experts: Located, mask: Tensor, prior: Tensor | float) -> tuple[Tensor, Tensor]:
    members = mask.new_ones(1, mask.shape[1])  # unobserved experts have no precision
    usable = reduce(mask, "b m -> 1 b", "max")
    return product(experts, mask, members, usable, prior)
