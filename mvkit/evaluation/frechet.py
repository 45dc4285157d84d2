"""Fréchet distance between generated and real values, on features of the user's network.

Axes: b rows, n rows of a subset, f features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from mvkit.core.batch import Batch
from mvkit.core.raw_values import full_precision
from mvkit.errors import ShapeError
from mvkit.evaluation.metric import (
    EvaluationContext,
    Metric,
    Score,
    Scores,
    finite,
    observes_all,
    observes_any,
    scatter,
    without_nan,
)
from mvkit.registry.spec import field, spec


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|μ - ν|² + tr(Σ + T - 2 (Σ T)^½), in float64.

    μ and Σ are the mean and the covariance of the features a (b, f); ν and T are those of b.

    Example:
        >>> import torch
        >>> a = torch.randn(1000, 3)
        >>> round(frechet_distance(a, a + 1), 6)
        3.0
    """
    a, b = a.double(), b.double()
    first, second = (torch.cov(x.T).reshape(x.shape[1], x.shape[1]) for x in (a, b))
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # Σ^½ T Σ^½ is symmetric and has the eigenvalues of Σ T, which is not
    products = torch.linalg.eigvalsh(root @ second @ root)
    cross = products.clamp(min=0).sqrt().sum()
    between = (a.mean(0) - b.mean(0)).square().sum()
    return float(between + first.trace() + second.trace() - 2 * cross)


@spec
class Frechet(Metric):
    """Fréchet distance of samples, and of each modality given all others, to the real rows.

    Args:
        sampler: what draws the latents of the samples; None: the prior.

    Reference: Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter, GANs Trained by a Two
    Time-Scale Update Rule Converge to a Local Nash Equilibrium, NeurIPS 2017,
    https://arxiv.org/abs/1706.08500.
    """

    sampler: str | None = field(default=None)

    def incompatibility(self, context: EvaluationContext) -> str | None:
        if context.features:
            return None
        return "no network to take features of; give features={name: function}"

    def score(self, context: EvaluationContext, block: Batch, generator: Generator) -> Scores:
        samples = context.draw(len(block), self.sampler, generator)
        scores: Scores = {}
        for name in context.features:
            others = context.others(name)
            observed = observes_all(block, [name])
            if observed.any():
                rows = block.take(observed)
                features = _features(context, name, rows.data[name], rows)
                scores[name, "real"] = scatter(features, observed)
            if samples is not None:
                scores[name, "samples"] = _features(context, name, samples[name], block)
            known = observed & observes_any(block, others)
            if known.any():
                rows = block.take(known)
                generated = context.translate(rows, [name], others, generator=generator)
                features = _features(context, name, generated[name][0], rows)
                scores[name, "given all others"] = scatter(features, known)
        return scores

    def summary(self, context: EvaluationContext, scores: Scores) -> Iterator[Score]:
        kinds = {"samples": 0, "given all others": len(context.model.names) - 1}
        for name in context.features:
            real = _complete(scores, name, "real")
            for kind, given in kinds.items():
                generated = _complete(scores, name, kind)
                rows = len(generated)
                if min(len(real), rows) > 1:
                    value = frechet_distance(real, generated)
                    yield Score("frechet", f"{name}, {kind}", value, rows=rows, given=given)


def _features(context: EvaluationContext, name: str, x: Tensor, rows: Batch) -> Tensor:
    """Features (n, f) of values x (n, *shape) of a modality in some rows."""
    restored = full_precision(context.model.modalities[name].restore(x))
    features = torch.as_tensor(context.features[name](restored)).detach()
    if features.ndim != 2 or len(features) != len(rows):
        raise ShapeError(
            f"evaluate: the features of {name!r} have shape {tuple(features.shape)} for "
            f"{tuple(x.shape)}; expected ({len(rows)}, features)"
        )
    return full_precision(finite(features, rows, f"a feature of {name!r}")).to(x.device)


def _complete(scores: Scores, name: str, kind: str) -> Tensor:
    """The features that were computed; none where there were no such rows."""
    features = scores.get((name, kind), torch.empty(0, 1))
    return features[without_nan(features)]
