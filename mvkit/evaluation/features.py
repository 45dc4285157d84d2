"""Features of values, real and generated, which distances and neighbours of samples rest on.

They are those of the user's networks, or the hidden layers of the classifiers that are fitted.

Axes: b rows, n rows of a subset, f features.
"""

from __future__ import annotations

import attrs
import torch
from torch import Generator, Tensor

from mvkit.core.batch import Batch
from mvkit.core.raw_values import full_precision
from mvkit.errors import ShapeError
from mvkit.evaluation.metric import (
    EvaluationContext,
    Scores,
    finite,
    observes_all,
    observes_any,
    scatter,
    without_nan,
)

REAL = "real"
SAMPLES = "samples"
OTHERS = "given all others"
RECONSTRUCTED = "reconstructed"


def no_features(context: EvaluationContext) -> str | None:
    """Why there are no features; None if there are."""
    if context.features:
        return None
    if context.fits_features:
        return context.unlabelled()
    return (
        "no network to take features of; give features={name: function}, or "
        "features='classifier' for the hidden layers of fitted classifiers"
    )


def featured_names(context: EvaluationContext) -> tuple[str, ...]:
    """The modalities that have features."""
    return context.model.names if context.fits_features else tuple(context.features)


def featured_rows(context: EvaluationContext, metric: str) -> Batch:
    """The rows to take features of: where classifiers are fitted, those they have not seen."""
    return context.held(metric) if context.fits_features else context.rows


def generated_features(
    context: EvaluationContext,
    block: Batch,
    sampler: str | None,
    generator: Generator,
    *,
    reconstructed: bool = False,
) -> Scores:
    """Features by modality of the rows, of samples, and of what is generated from all others.

    Args:
        context: has the model, and what takes the features.
        block: conformed rows.
        sampler: what draws the latents of the samples; None: the prior.
        generator: of the block.
        reconstructed: of the model's reconstructions, too: decoded means of posteriors.

    Returns:
        {(name, kind): (b, f)}, NaN in rows that are not scored.
    """
    samples = context.draw(len(block), sampler, generator)
    scores: Scores = {}
    for name in featured_names(context):
        others = context.others(name)
        observed = observes_all(block, [name])
        if observed.any():
            rows = block.take(observed)
            features = features_of(context, name, rows.data[name], rows)
            scores[name, REAL] = scatter(features, observed)
        if samples is not None:
            scores[name, SAMPLES] = features_of(context, name, samples[name], block)
        known = observed & observes_any(block, others)
        if known.any():
            rows = block.take(known)
            generated = context.translate(rows, [name], others, generator=generator)
            features = features_of(context, name, generated[name][0], rows)
            scores[name, OTHERS] = scatter(features, known)
        if reconstructed and observed.any():
            rows = block.take(observed)
            decoded = reconstruction(context, name, rows, generator)
            features = features_of(context, name, decoded, rows)
            scores[name, RECONSTRUCTED] = scatter(features, observed)
    return scores


def reconstruction(
    context: EvaluationContext, name: str, rows: Batch, generator: Generator
) -> Tensor:
    """A modality decoded from the mean of the posterior given all that rows have, (n, *shape)."""
    plain = attrs.evolve(context, sampler=None)
    names = context.model.names
    decoded = plain.translate(rows, [name], names, latent="mean", generator=generator)
    return decoded[name][0]


def features_of(context: EvaluationContext, name: str, x: Tensor, rows: Batch) -> Tensor:
    """Features (n, f) of values x (n, *shape) of a modality in some rows.

    Raises:
        ShapeError: a network that returns something else than (n, f).
        DataError: features that are not finite.
    """
    if context.fits_features:
        hidden = torch.from_numpy(context.perceptron(name).hidden(x))
        return finite(hidden, rows, f"a feature of {name!r}").to(x.device)
    restored = full_precision(context.model.modalities[name].restore(x))
    features = torch.as_tensor(context.features[name](restored)).detach()
    if features.ndim != 2 or len(features) != len(rows):
        raise ShapeError(
            f"evaluate: the features of {name!r} have shape {tuple(features.shape)} for "
            f"{tuple(x.shape)}; expected ({len(rows)}, features)"
        )
    return full_precision(finite(features, rows, f"a feature of {name!r}")).to(x.device)


def scored_rows(scores: Scores, name: str, kind: str) -> Tensor:
    """The features (n, f) of a kind that were computed; none where there were no such rows."""
    features = scores.get((name, kind), torch.empty(0, 1))
    return features[without_nan(features)]
