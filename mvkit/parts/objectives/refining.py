"""The objective that trains refiners, on what decoders make of random parts of each row.

Axes: b rows, m modalities, d shared and p private latent.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from mvkit.core.row_picks import indices_of
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
    is not. Values that a row lacks count nowhere. Nothing but refiners has a gradient, so that it
    belongs in a stage of its own: `Stage("refine", trainable=["refiners.*"])`.

    Args:
        refiners: {modality: a refiner by name or spec}, made if the model has none like it; empty:
            those that it has.
        kl_weight: a factor of the loss, for ramps.

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
        with torch.no_grad():
            z, own = _latents(model, batch, experts)
        values = {}
        for name in names:
            latent = torch.cat([z, own[name]], -1) if name in own else z
            values[name] = self._of_modality(model, name, batch, latent, experts)
        return _loss(batch, model.names, values, self.kl_weight)

    def _of_modality(
        self, model: LatentModel, name: str, batch: Batch, latent: Tensor, experts: Experts
    ) -> Tensor:
        """What a refiner minimises of each row, (b,)."""
        d = model.latent_dim
        decoding = model.decoding
        with torch.no_grad():
            z, w = latent[:, :d], latent[:, d:]
            out = decoding.decode(name, z, w, rows=RowContext.of(batch))
            context = decoding.context(batch.covariates)
        observed = batch.present(name)
        refiner = cast(Refiner, model.refiners[name])
        generator = experts.generator
        value = refiner.loss(out, batch.data[name], latent, context, observed, generator)
        if tuple(value.shape) != (len(batch),):
            raise ShapeError(
                f"refiner of {name!r}: loss returned {tuple(value.shape)}; expected a number for "
                f"each row, {(len(batch),)}"
            )
        return value


def _latents(
    model: LatentModel, batch: Batch, experts: Experts
) -> tuple[Tensor, dict[str, Tensor]]:
    """Draws of z (b, d) given a random part of each row, and of private latents {name: (b, p)}:
    those of the posterior where the modality is in that part, else of the prior.
    """
    generator = experts.generator
    kept = random_part(batch.observed, model.like, generator)
    part = attrs.evolve(batch, mask=kept, **indices_of(kept))
    known = model.experts(part, generator=generator)
    posterior = model.aggregator.inference(known, part)
    z = rearrange(posterior.draw(1, "iid", generator).z, "1 1 b d -> b d")
    private = {}
    for name, (loc, scale) in known.private.items():
        eps = model.decoding.private_noise(name, tuple(loc.shape), loc, generator)
        has = rearrange(kept[:, model.names.index(name)], "b -> b 1")
        private[name] = torch.where(has, loc + scale * eps, eps)
    return z, private


def random_part(observed: Tensor, like: Tensor, generator: noise.Generator) -> Tensor:
    """A random non-empty part of what rows have, (b, m) bool; its size is random too.

    Args:
        observed: what they have, (b, m) bool.
        like: a tensor of the dtype and on the device of the draws.
        generator: source of randomness.
    """
    b, m = observed.shape
    uniform = noise.draw("choice/subset", (b, m + 1), like, generator=generator)
    kept = observed & (uniform[:, :m] < uniform[:, m:])
    return torch.where(kept.any(1, keepdim=True), kept, observed)


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
