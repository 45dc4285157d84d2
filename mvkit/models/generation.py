"""Generation: rows from the prior, modalities from one another.

Axes: n samples, b rows, d latent, p private latent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, cast, overload

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.decoding import Decoding
from mvkit.core.noise import Generator
from mvkit.core.row_context import RowContext
from mvkit.errors import RequestError, bad_option
from mvkit.models.asked_rows import Stated, StatesRows
from mvkit.models.clusters import check_clusters
from mvkit.models.inference import ConditionalLatents, Evaluable, check_count, evaluation
from mvkit.models.refined_decoding import Asked, refined
from mvkit.models.refiners import HasRefiners, Wanted, asked_refiners
from mvkit.models.sampler_requests import sampled_latents
from mvkit.parts.conditional_samplers import LatentDraws
from mvkit.parts.latent_model import LatentModel

Units = Literal["data", "model"]


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
    covariates: Mapping[str, Tensor] = attrs.field(factory=dict)
    exposure: Mapping[str, Tensor] = attrs.field(factory=dict)
    refiners: Asked = attrs.field(factory=dict)
    background: bool = True
    where: str = "translate"  # the function that messages name

    def __attrs_post_init__(self) -> None:
        if self.sample and not self.background:
            raise RequestError(
                f"{self.where}: background=False with draws of the likelihood, which hold it; "
                "expected means; leave sample=True out"
            )
        if self.latent not in ("draw", "mean"):
            raise bad_option(f"{self.where}: latent", self.latent, "draw", "mean")
        if self.private_source not in ("prior", "cross"):
            where = f"{self.where}: private_source"
            raise bad_option(where, self.private_source, "prior", "cross")

    def row_context(self, batch: Batch) -> RowContext:
        """What decoders are told of the rows of a batch: its covariates and exposures, or those
        that were asked for.
        """
        rows = RowContext.of(batch)
        counted = {name: x for name, x in rows.elements.items() if name not in self.exposure}
        covariates = {**rows.covariates, **self.covariates}
        exposure = {**rows.exposure, **self.exposure}
        return RowContext(covariates, exposure, counted, self.background)

    @property
    def draws_latents(self) -> bool:
        """Whether latents are drawn, instead of taking their means."""
        return self.latent == "draw"

    def latents(self, condition: ConditionalLatents) -> Tensor:
        """Draws of the shared latent of rows, or copies of its mean, (n, b, d)."""
        return self.joint_latents(condition)[0]

    def joint_latents(self, condition: ConditionalLatents) -> LatentDraws:
        """The same, with the private latents that come with it, {name: (n, b, p)}."""
        if self.draws_latents:
            return condition.draw(self.n, self.generator)
        z, private = condition.mean(self.generator)
        copies = {name: w.expand(self.n, *w.shape) for name, w in private.items()}
        return z.expand(self.n, *z.shape), copies


def generate(
    model: LatentModel, options: GenerationOptions, condition: ConditionalLatents
) -> dict[str, Tensor]:
    """Modalities {name: (n, b, *shape)} of the rows of a conditional posterior or sampler."""
    z, private = options.joint_latents(condition)
    rows = options.row_context(condition.batch)
    given = dict(zip(model.names, condition.batch.observed.unbind(1), strict=True))
    decoding = refined(model.decoding, options.refiners, given)
    data = {}
    for name in options.to:
        w = private.get(name)
        if w is None:
            w = _private_latent(model, name, condition, z, options)
        data[name] = decoding.decode(
            name, z, w, sample=options.sample, rows=rows, generator=options.generator
        )
    return data


def _private_latent(
    model: LatentModel,
    name: str,
    condition: ConditionalLatents,
    z: Tensor,
    options: GenerationOptions,
) -> Tensor | None:
    """Private latents of a modality for draws z (n, b, d): its own where it was given, else from
    their source.
    """
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
    model: LatentModel,
    n: int,
    cluster: int | None,
    generator: Generator,
    covariates: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Draws z (n, d) of the prior, or of one of its clusters, and their clusters (n,) if it has
    any; of rows with these covariates, if it depends on them.
    """
    context = model.prior_context(covariates or {})
    if context is not None:
        context = context.expand(n, -1)
    z, component = model.prior_at(context=context).sample(n, cluster, generator)
    return z, component if model.n_clusters else None


class Samples(Evaluable, StatesRows, HasRefiners, Protocol):
    """A model that rows can be drawn from: `Model` or `Stack`."""

    n_clusters: int
    prior_name: str

    def in_units(self, data: dict[str, Tensor], units: Units) -> dict[str, Tensor]:
        """Values of the model in the units asked for."""
        ...


@overload
def sample(
    self: Samples,
    n: int,
    *,
    cluster: int | None = None,
    sampler: str | None = None,
    sample: bool = False,
    refine: Wanted = False,
    covariates: Stated = None,
    exposure: Stated = None,
    latents: Literal[False] = False,
    units: Units = "data",
    generator: Generator = None,
) -> dict[str, Tensor]: ...


@overload
def sample(
    self: Samples,
    n: int,
    *,
    cluster: int | None = None,
    sampler: str | None = None,
    sample: bool = False,
    refine: Wanted = False,
    covariates: Stated = None,
    exposure: Stated = None,
    latents: Literal[True],
    units: Units = "data",
    generator: Generator = None,
) -> tuple[dict[str, Tensor], Latents]: ...


def sample(
    self: Samples,
    n: int,
    *,
    cluster: int | None = None,
    sampler: str | None = None,
    sample: bool = False,
    refine: Wanted = False,
    covariates: Stated = None,
    exposure: Stated = None,
    latents: bool = False,
    units: Units = "data",
    generator: Generator = None,
) -> dict[str, Tensor] | tuple[dict[str, Tensor], Latents]:
    """Rows from the prior, {name: (n, *shape)}: decoder means, or draws with `sample`.

    Args:
        self: the model.
        n: number of rows.
        cluster: draw z from this component of a mixture prior.
        sampler: draw z, and private latents that it models, from a sampler that
            `mvkit.fit_sampler` fitted; None: from the prior.
        sample: draw from the likelihood as well.
        refine: draw from refiners that `mvkit.fit_refiner` trained, in place of means or draws of
            the likelihood: all modalities, or those named.
        latents: return a pair (data, latents): z, private, cluster.
        covariates: what the model is conditioned on, {name: one value, or (n,)}; what is not
            stated is drawn, whole rows at a time, from those of training.
        exposure: of modalities that have one, likewise; not given: the median of training.
        units: see `decode`.
        generator: source of randomness.
    """
    n = check_count(n)
    if cluster is not None:
        _check_cluster(self, cluster, sampler)
    refiners = asked_refiners(self, refine, self.names, "sample")
    with evaluation(self), torch.no_grad():
        picked = None
        rows = _sampled_rows(self, n, covariates, exposure, generator)
        drawn: Mapping[str, Tensor] = {}
        if sampler is None:
            z, picked = self.prior_draws(n, cluster, generator, rows.covariates)
        else:
            z, drawn = sampled_latents(self, sampler, n, rows.covariates, generator)
        options: dict[str, Any] = {"sample": sample, "rows": rows, "generator": generator}
        decoding = refined(cast(Decoding, self.decoding), refiners)
        if drawn:
            data, private = _decoded(decoding, z, drawn, options)
        else:
            data, private = decoding.from_latents(z, **options)
        data = self.in_units(data, units)
    return (data, Latents(z, private, picked)) if latents else data


def _decoded(
    decoding: Decoding, z: Tensor, drawn: Mapping[str, Tensor], options: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rows {name: (n, *shape)} at z (n, d) and private latents that were drawn {name: (n, p)}, and
    all private latents: the others are drawn from their priors.
    """
    priors = decoding.private_prior(z, options["generator"])
    private = {**priors, **drawn}
    data = {}
    for name in decoding.names:
        data[name] = decoding.decode(name, z, private.get(name), **options)
    return data, private


def _sampled_rows(
    model: Samples, n: int, covariates: Stated, exposure: Stated, generator: Generator
) -> RowContext:
    """What is given of n rows: what the caller states, and covariates of training rows."""
    stated = model.row_context("sample", covariates, exposure, (n,), partly=True)
    conditions = model.decoding.conditions
    if conditions is None or set(conditions.covariates) == set(stated.covariates):
        return stated
    drawn = conditions.draw(n, generator)
    return attrs.evolve(stated, covariates={**drawn, **stated.covariates})


def _check_cluster(self: Samples, cluster: int, sampler: str | None) -> None:
    check_clusters(self, "sample(cluster=…)")
    if not 0 <= cluster < self.n_clusters:
        raise RequestError(f"sample: no cluster {cluster}; expected 0 to {self.n_clusters - 1}")
    if sampler is not None:
        raise RequestError(
            f"sample: a cluster is one of the prior's, not of sampler {sampler!r}; give one "
            "of them"
        )


def with_bits(batch: Batch, names: Iterable[str], generator: Generator) -> Batch:
    """The batch with bits drawn in place of the probabilities of some modalities."""
    data = dict(batch.data)
    for name in names:
        p = data[name]
        uniform = noise.draw(f"choice/binarise/{name}", (1, *p.shape), p, generator=generator)
        data[name] = (rearrange(uniform, "1 ... -> ...") < p).to(p.dtype)
    return attrs.evolve(batch, data=data)
