"""The objective that trains refiners, on what decoders make of random parts of each row.

Axes: r draws, b rows, m modalities, d shared and p private latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss, over_rows, weighted_mean
from mvkit.core.modality import Sizes
from mvkit.core.row_context import RowContext
from mvkit.errors import RequestError, ShapeError
from mvkit.parts.latent_model import LatentModel
from mvkit.parts.objectives.objective import Objective, check_names
from mvkit.parts.refiners import Refiner
from mvkit.registry.fields import factor
from mvkit.registry.spec import parts, spec


@spec
class Refine(Objective):
    """Trains refiners: each row is encoded from a random part of what it has, and decoded.

    A refiner sees reconstructions where its modality is in that part, and translations where it
    is not; one that is told which of these it sees (`knows_given`) is also trained on draws of
    the prior, where the part is empty. One whose `latents_from` is "own" sees reconstructions
    alone: its modality is added to the part. Values that a row lacks count nowhere. Nothing but
    refiners has a gradient, so that it belongs in a stage of its own: `Stage("refine",
    trainable=["refiners.*"])`.

    Args:
        refiners: {modality: a refiner by name or spec}, made if the model has none like it; empty:
            those that it has.
        kl_weight: a factor of the loss, for ramps.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,)}, latent_dim=2, seed=0)
        >>> _ = mvkit.fit_refiner(model, {"a": torch.randn(50, 3)}, epochs=1, progress=False)
        >>> sorted(model.refiners)
        ['a']

    Reference: Pandey, Mukherjee, Rai and Kumar, DiffuseVAE, 2022,
    https://arxiv.org/abs/2201.00308 (a refiner in a second stage, given the decoder's output).
    """

    refiners: Mapping[str, Any] = parts("refiner", default={})
    kl_weight: float = factor()
    needs_refiners = True

    def build(self, sizes: Sizes) -> Refine:
        check_names(self.refiners, sizes.names, "refiners")
        return self

    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        names = [name for name in model.names if name in (self.refiners or model.refiners)]
        if not names or any(name not in model.refiners for name in names):
            raise RequestError(
                "objective 'refine': the model has no refiners to train; expected some; call "
                "mvkit.fit_refiner(model, data)"
            )
        groups: dict[tuple[bool, str], dict[str, Refiner]] = {}
        for name in names:
            refiner = cast(Refiner, model.refiners[name])
            group = refiner.knows_given, refiner.latents_from
            groups.setdefault(group, {})[name] = refiner
        values: dict[str, Tensor] = {}
        for (_, latents_from), refiners in sorted(groups.items()):
            of_group = _values_of_own if latents_from == "own" else _values
            values |= of_group(model, refiners, batch, experts)
        in_order = {name: values[name] for name in names}
        return _loss(batch, model.names, in_order, self.kl_weight)


@attrs.frozen(eq=False)
class PartialLatents:
    """Latents of rows, drawn from a part of what each row has.

    Args:
        z: (r, b, d).
        private: {name: (r, b, p)}.
        kept: the part, (b, m) bool.
    """

    z: Tensor
    private: Mapping[str, Tensor]
    kept: Tensor

    def of_modality(self, name: str, given: Tensor, r: int) -> Tensor:
        """What r draws of a modality are decoded from, (r, b, d + p): of one draw of the latents
        in rows where it was `given` (b,) bool, else each of a draw of its own.
        """
        latent = torch.cat([self.z, self.private[name]], -1) if name in self.private else self.z
        return torch.where(rearrange(given, "b -> b 1"), latent[:1], latent[:r])


def _values(
    model: LatentModel, refiners: Mapping[str, Refiner], batch: Batch, experts: Experts
) -> dict[str, Tensor]:
    """What refiners minimise of each row, {name: (b,)}; all of them are told what was given, or
    none.
    """
    knows_given = any(refiner.knows_given for refiner in refiners.values())
    generator = experts.generator
    draw_part = random_part
    if knows_given and not model.prior.conditional:  # where there is a prior to draw from
        draw_part = random_part_or_none
    with torch.no_grad():
        kept = draw_part(batch.observed, model.like, generator)
        part = batch.keeping(kept)
        known = model.experts(part, generator=generator)
        r = max(refiner.latent_draws for refiner in refiners.values())
        latents = _latents(model, known, r, list(known.private))
    values = {}
    for name, refiner in refiners.items():
        values[name] = _of_modality(model, name, refiner, batch, latents, generator)
    return values


def _values_of_own(
    model: LatentModel, refiners: Mapping[str, Refiner], batch: Batch, experts: Experts
) -> dict[str, Tensor]:
    """What refiners minimise of each row, {name: (b,)}, each given a part with its modality."""
    generator = experts.generator
    with torch.no_grad():
        some = random_part(batch.observed, model.like, generator)
        every = model.experts(batch, generator=generator)
    values = {}
    for name, refiner in refiners.items():
        own = model.names.index(name)
        kept = some.clone()
        kept[:, own] |= batch.observed[:, own]
        with torch.no_grad():
            known = every.part(kept)
            private = [name] if name in known.private else []
            latents = _latents(model, known, refiner.latent_draws, private)
        values[name] = _of_modality(model, name, refiner, batch, latents, generator)
    return values


def _of_modality(
    model: LatentModel,
    name: str,
    refiner: Any,
    batch: Batch,
    latents: PartialLatents,
    generator: noise.Generator,
) -> Tensor:
    """What a refiner minimises of each row, (b,)."""
    d = model.latent_dim
    decoding = model.decoding
    given = latents.kept[:, model.names.index(name)]
    with torch.no_grad():
        latent = latents.of_modality(name, given, refiner.latent_draws)
        z, w = latent[..., :d], latent[..., d:]
        out = decoding.decode(name, z, w, rows=RowContext.of(batch))
        context = decoding.context(batch.covariates)
    observed = batch.present(name)
    options = {"given": given} if refiner.knows_given else {}
    if not options:
        out, latent = out[0], latent[0]
    x = batch.data[name]
    value: Tensor = refiner.loss(out, x, latent, context, observed, generator, **options)
    if tuple(value.shape) != (len(batch),):
        raise ShapeError(
            f"refiner of {name!r}: loss returned {tuple(value.shape)}; expected a number for "
            f"each row, {(len(batch),)}"
        )
    return value


def _latents(
    model: LatentModel, known: Experts, r: int, private_of: Sequence[str]
) -> PartialLatents:
    """R draws of z given the part of each row that is known, from the prior where that is nothing;
    and of private latents, from the posterior where the modality is in that part, else from the
    prior.
    """
    part, generator = known.batch, known.generator
    kept = part.observed
    posterior = model.aggregator.inference(known, part)
    given_some = kept.any(1)
    if not bool(given_some.all()):
        context = model.prior_context(part.covariates)
        if context is not None:
            context = context.expand(len(part), -1)
        prior = model.prior_at(context=context).expand(*kept.shape)
        posterior = posterior.where(given_some, prior)
    z = rearrange(posterior.draw(r, "iid", generator).z, "r 1 b d -> r b d")
    private = {}
    for name in private_of:
        loc, scale = known.private[name]
        eps = model.decoding.private_noise(name, (r, *loc.shape), loc, generator)
        has = rearrange(kept[:, model.names.index(name)], "b -> b 1")
        private[name] = torch.where(has, loc + scale * eps, eps)
    return PartialLatents(z, private, kept)


def random_part(observed: Tensor, like: Tensor, generator: noise.Generator) -> Tensor:
    """A random non-empty part of what rows have, (b, m) bool; its size is random too.

    Args:
        observed: what they have, (b, m) bool.
        like: a tensor of the dtype and on the device of the draws.
        generator: source of randomness.
    """
    kept = random_part_or_none(observed, like, generator)
    return torch.where(kept.any(1, keepdim=True), kept, observed)


def random_part_or_none(observed: Tensor, like: Tensor, generator: noise.Generator) -> Tensor:
    """A random part of what rows have, which may be nothing, (b, m) bool; see `random_part`."""
    b, m = observed.shape
    uniform = noise.draw("choice/subset", (b, m + 1), like, generator=generator)
    return observed & (uniform[:, :m] < uniform[:, m:])


def _loss(
    batch: Batch, names: tuple[str, ...], values: Mapping[str, Tensor], factor: float
) -> Loss:
    """The loss of what refiners minimise of each row, {name: (b,)}; their means as metrics."""
    row_weight = batch.row_weight
    every = torch.zeros_like(next(iter(values.values())))
    metrics, counts = {}, {}
    for name, value in values.items():
        has = batch.observed[:, names.index(name)]
        value = torch.where(has, value, 0.0)
        every = every + value
        weight = has.to(value) if row_weight is None else row_weight
        mean, count = weighted_mean(value.detach(), weight, has)
        metrics[f"refine/{name}"] = mean
        counts[f"refine/{name}"] = count
    loss = factor * over_rows(every, row_weight)
    no_bound = torch.full_like(every.detach(), torch.nan)
    metrics = {"loss": loss.detach(), **metrics}
    return Loss(loss, no_bound, metrics, counts, row_weight is not None)
