"""Generation: rows from the prior, modalities from one another.

Axes: n samples, b rows, d latent, p private latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit import noise
from mvkit.errors import RequestError
from mvkit.estimates import Condition
from mvkit.mixture import Mixture
from mvkit.posterior import Posterior
from mvkit.private import Private

if TYPE_CHECKING:
    from mvkit.model import Model


@attrs.frozen(eq=False)
class Latents:
    """Where samples came from: z (n, d), private {name: (n, p)}, cluster (n,) or None."""

    z: Tensor
    private: dict[str, Tensor]
    cluster: Tensor | None


@attrs.frozen(eq=False)
class Translation:
    """How to generate modalities from a posterior; see `Model.translate`."""

    to: tuple[str, ...]
    n: int
    latent: str
    sample: bool
    private_source: str
    generator: torch.Generator | None

    def __attrs_post_init__(self) -> None:
        for value, known in ((self.latent, ("draw", "mean")), (self.private_source, ("prior", "cross"))):
            if value not in known:
                raise RequestError(f"translate: got {value!r}; expected one of {known}")

    @property
    def drawn(self) -> bool:
        """Whether latents are drawn, not their means."""
        return self.latent == "draw"

    def latents(self, found: Condition) -> Tensor:
        """Draws or copies of the mean of a condition's posterior, (n, b, d)."""
        if self.drawn:
            return found.posterior.rsample(self.n, self.generator)
        mean = found.posterior.mean
        return mean.expand(self.n, *mean.shape)


def translate(model: Model, plan: Translation, found: Condition) -> dict[str, Tensor]:
    """Modalities {name: (n, b, *shape)} of the rows of a condition."""
    z = plan.latents(found)
    made = {}
    for name in plan.to:
        w = private_latent(model, name, found, z, source=plan.private_source, drawn=plan.drawn)
        made[name] = decode(model, name, z, w, sample=plan.sample, generator=plan.generator)
    return made


def private_latent(model: Model, name: str, found: Condition, z: Tensor, *, source: str, drawn: bool) -> Tensor | None:
    """Private latents of a modality for draws z (n, b, d): its own where it was given, else from `source`."""
    p = model.modalities[name].private_dim
    if not p:
        return None
    given = rearrange(found.batch.observed[:, model.names.index(name)], "b -> b 1")
    loc, scale = found.experts.private[name]
    if not drawn:
        return torch.where(given, loc, 0.0).expand(*z.shape[:-1], p)
    shape = (*z.shape[:-1], p)
    eps = noise.draw(f"w/{name}", shape, loc, generator=found.experts.generator, sampler=model.family.noise)
    other = Private.cross(model, name, shape, found.experts) if source == "cross" else eps
    return torch.where(given, loc + scale * eps, other)


def decode(
    model: Model,
    name: str,
    z: Tensor,
    w: Tensor | None,
    *,
    sample: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Means (or draws) of a modality at latents z (..., d) and private latents w (..., p), None for zeros."""
    p, decoder = model.modalities[name].private_dim, model.decoders[name]
    if p:
        w = z.new_zeros(*z.shape[:-1], p) if w is None else w
        z = torch.cat([z, w.expand(*z.shape[:-1], p)], -1)
    out, likelihood = decoder(z), decoder.likelihood
    return likelihood.sample(out, generator) if sample else likelihood.mean(out)  # type: ignore[union-attr, operator]


def sampled(prior: Any, n: int, generator: torch.Generator | None) -> Tensor:
    """Draws (n, d) of a distribution of torch's kind, which knows no generator: the global one is seeded for it."""
    with torch.random.fork_rng(enabled=generator is not None):
        if generator is not None:
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        drawn: Tensor = prior.sample((n,))
    return drawn


def prior_draws(
    model: Model, n: int, cluster: int | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor | None]:
    """Draws z (n, d) of the prior, and their clusters (n,) if it has any."""
    prior = model.prior_at()
    if isinstance(prior, Mixture):
        z, picked = prior.sample(n, cluster, generator)
        return z, picked if model.n_clusters else None
    if isinstance(prior, Posterior):
        return rearrange(prior.draw(n, "iid", generator, "prior").z, "n 1 1 d -> n d"), None
    return sampled(prior, n, generator), None


def from_latents(
    model: Model, z: Tensor, *, sample: bool, generator: torch.Generator | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rows {name: (n, *shape)} at z (n, d), and their private latents, drawn from their priors."""
    private = {}
    for name, modality in model.modalities.items():
        if modality.private_dim:
            shape = (len(z), modality.private_dim)
            private[name] = noise.draw(f"w/{name}", shape, z, generator=generator, sampler=model.family.noise)
    data = {k: decode(model, k, z, private.get(k), sample=sample, generator=generator) for k in model.names}
    return data, private
