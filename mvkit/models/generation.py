"""Generation: rows from the prior, modalities from one another.

Axes: n samples, b rows, d latent, p private latent.
"""

from __future__ import annotations

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.noise import Generator
from mvkit.errors import check_option
from mvkit.models.inference import ConditionalPosterior, check_count
from mvkit.parts.latent_model import LatentModel


@attrs.frozen(eq=False)
class Latents:
    """Where samples came from: z (n, d), private {name: (n, p)}, cluster (n,) or None."""

    z: Tensor
    private: dict[str, Tensor]
    cluster: Tensor | None


@attrs.frozen(eq=False)
class GenerationOptions:
    """How to generate modalities from a posterior; see `Model.translate`."""

    to: tuple[str, ...]
    n: int = attrs.field(converter=check_count)
    latent: str
    sample: bool
    private_source: str
    generator: Generator

    def __attrs_post_init__(self) -> None:
        check_option("translate: latent", self.latent, "draw", "mean")
        check_option("translate: private_source", self.private_source, "prior", "cross")

    @property
    def draws_latents(self) -> bool:
        """Whether latents are drawn, instead of taking their means."""
        return self.latent == "draw"

    def latents(self, condition: ConditionalPosterior) -> Tensor:
        """Draws of a posterior, or copies of its mean, (n, b, d)."""
        if self.draws_latents:
            return condition.posterior.rsample(self.n, self.generator)
        mean = condition.posterior.mean
        return mean.expand(self.n, *mean.shape)


def generate(
    model: LatentModel, options: GenerationOptions, condition: ConditionalPosterior
) -> dict[str, Tensor]:
    """Modalities {name: (n, b, *shape)} of the rows of a conditional posterior."""
    z = options.latents(condition)
    data = {}
    for name in options.to:
        w = _private_latent(model, name, condition, z, options)
        data[name] = model.decoding.decode(
            name, z, w, sample=options.sample, generator=options.generator
        )
    return data


def _private_latent(
    model: LatentModel,
    name: str,
    condition: ConditionalPosterior,
    z: Tensor,
    options: GenerationOptions,
) -> Tensor | None:
    """Private latents of a modality for draws z (n, b, d): its own where it was given, else from their source."""
    p = model.modalities[name].private_dim
    if not p:
        return None
    given = rearrange(condition.batch.observed[:, model.names.index(name)], "b -> b 1")
    loc, scale = condition.experts.private[name]
    shape = (*z.shape[:-1], p)
    if not options.draws_latents:
        return torch.where(given, loc, 0.0).expand(shape)
    generator = condition.experts.generator
    eps = model.decoding.private_noise(name, shape, loc, generator)
    other = eps
    if options.private_source == "cross":
        other = model.decoding.auxiliary_prior(name, shape, loc, generator)
    return torch.where(given, loc + scale * eps, other)


def prior_draws(
    model: LatentModel, n: int, cluster: int | None, generator: Generator
) -> tuple[Tensor, Tensor | None]:
    """Draws z (n, d) of the prior, or of one of its clusters, and their clusters (n,) if it has any."""
    z, component = model.prior_at().sample(n, cluster, generator)
    return z, component if model.n_clusters else None
