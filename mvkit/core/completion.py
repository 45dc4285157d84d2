"""Completion: what rows lack, drawn from the decoders, and the probability that it is missing.

Axes: s samples, j drawn components, b rows, d latent, p private latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.decoding import Decoding
from mvkit.core.likelihood import Context, sample_of
from mvkit.core.missingness import Missingness
from mvkit.core.noise import Generator
from mvkit.errors import ShapeError


class Completes(Protocol):
    """A model that may say why values are missing."""

    @property
    def decoding(self) -> Decoding:
        """What generates."""
        ...

    @property
    def missingness(self) -> Missingness | None:
        """Why values are missing; None: at random."""
        ...


@attrs.frozen(eq=False)
class Completion:
    """Complete rows at draws of the latents.

    Args:
        outputs: what decoders emit for all rows, whatever they observe, {name: ((s j), b,
            *shape)}; only of modalities whose gaps are explained.
        x: observed values, and draws in place of missing ones, {name: (s, j, b, *shape)}.
        log_ps: log-probability of what is observed and what is missing, (s, j, b); None if
            nothing is said of it.
    """

    outputs: Mapping[str, Tensor] = attrs.field(factory=dict)
    x: Mapping[str, Tensor] = attrs.field(factory=dict)
    log_ps: Tensor | None = None


NOTHING_EXPLAINED = Completion()


def explained(missingness: Missingness | None, batch: Batch) -> tuple[str, ...]:
    """Modalities whose gaps a model explains and no question hides."""
    if missingness is None:
        return ()
    return tuple(name for name in missingness.modalities if name not in batch.hidden)


def completion(
    model: Completes, batch: Batch, z: Tensor, w: Mapping[str, Tensor], generator: Generator
) -> Completion:
    """The rows completed at latents, if the model explains what is missing.

    Args:
        model: the model.
        batch: a conformed batch.
        z: shared latents, (s, j, b, d).
        w: private latents, {name: (s, j, b, p)}; rows that lack a modality draw theirs from p(w).
        generator: source of randomness.

    Raises:
        ShapeError: the log-probabilities have another shape than (s, j, b).
    """
    missingness = model.missingness
    names = explained(missingness, batch)
    if missingness is None or not names:
        return NOTHING_EXPLAINED
    observed = {name: _present(model.decoding, batch, name) for name in names}
    if not missingness.looks_at_values:
        return Completion(log_ps=_log_ps(missingness, {}, observed, z))
    decoding = model.decoding
    private = {name: _private(decoding, batch, name, w[name], generator) for name in w}
    every_row = dict.fromkeys(names)
    outputs = decoding.outputs(every_row, z, private, decoding.context(batch.covariates))
    x = {}
    for name in names:
        x[name] = _completed(decoding, batch, name, outputs[name], z, generator)
    return Completion(outputs, x, _log_ps(missingness, x, observed, z))


def _present(decoding: Decoding, batch: Batch, name: str) -> Tensor:
    """Which values are observed, (b, *shape) bool, without an axis of classes."""
    present = batch.present(name)
    return present[..., 0] if decoding.decoders[name].likelihood.class_axis else present


def _log_ps(
    missingness: Missingness, x: Mapping[str, Tensor], observed: Mapping[str, Tensor], z: Tensor
) -> Tensor:
    """The log-probabilities of a part, whose shape is checked."""
    log_ps = missingness.log_prob(x, observed, z)
    if log_ps.shape != z.shape[:-1]:
        raise ShapeError(
            f"missingness {type(missingness).__name__}: log_prob returned "
            f"{tuple(log_ps.shape)}; expected {tuple(z.shape[:-1])}: samples, components, rows"
        )
    return log_ps


def _private(
    decoding: Decoding, batch: Batch, name: str, w: Tensor, generator: Generator
) -> Tensor:
    """Private latents (s, j, b, p), of rows that lack the modality from their prior."""
    if batch.seen_by_all(name):
        return w
    observed = rearrange(batch.observed[:, decoding.names.index(name)], "b -> b 1")
    return torch.where(observed, w, decoding.private_noise(name, tuple(w.shape), w, generator))


def _completed(
    decoding: Decoding, batch: Batch, name: str, output: Tensor, z: Tensor, generator: Generator
) -> Tensor:
    """Observed values, and draws with gradients in place of missing ones, (s, j, b, *shape)."""
    x = batch.data[name]
    elements = (batch.elements or {}).get(name)
    if elements is None and batch.seen_by_all(name):
        return x.expand(*z.shape[:2], *x.shape)
    decoder = decoding.decoders[name]
    covariates = decoding.standardised(batch.covariates)
    context = Context(covariates=covariates, generator=generator)
    if decoder.has_exposure:
        context = decoder.likelihood_context(batch.exposure.get(name), elements, context)
    output = rearrange(output, "(s j) ... -> s j ...", s=len(z))
    with noise.labelled(generator, name):  # other blocks may lack other modalities
        drawn = sample_of(decoder.likelihood, output, context)
    return torch.where(batch.present(name), x, drawn)
