"""Fréchet distance between generated and real values, on features of a network.

Axes: b rows, f features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from mvkit.core.batch import Batch
from mvkit.evaluation.features import (
    OTHERS,
    REAL,
    SAMPLES,
    featured_names,
    featured_rows,
    generated_features,
    no_features,
    scored_rows,
)
from mvkit.evaluation.metric import EvaluationContext, Metric, Score, Scores
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

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,)}, latent_dim=2, seed=0)
        >>> rows = mvkit.Batch({"a": torch.randn(60, 3)}, extra={"label": torch.arange(60) % 2})
        >>> report = mvkit.evaluate(model, rows, ["frechet"], features="classifier")
        >>> report.scores[0].name
        'a, samples'

    Reference: Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter, GANs Trained by a Two
    Time-Scale Update Rule Converge to a Local Nash Equilibrium, NeurIPS 2017,
    https://arxiv.org/abs/1706.08500.
    """

    sampler: str | None = field(default=None)

    def incompatibility(self, context: EvaluationContext) -> str | None:
        return no_features(context)

    def rows(self, context: EvaluationContext) -> Batch:
        return featured_rows(context, "frechet")

    def score(self, context: EvaluationContext, block: Batch, generator: Generator) -> Scores:
        return generated_features(context, block, self.sampler, generator)

    def summary(self, context: EvaluationContext, scores: Scores) -> Iterator[Score]:
        kinds = {SAMPLES: 0, OTHERS: len(context.model.names) - 1}
        for name in featured_names(context):
            real = scored_rows(scores, name, REAL)
            for kind, given in kinds.items():
                generated = scored_rows(scores, name, kind)
                rows = len(generated)
                if min(len(real), rows) > 1:
                    _note_few_rows(context, min(len(real), rows), real.shape[1])
                    value = frechet_distance(real, generated)
                    yield Score("frechet", f"{name}, {kind}", value, rows=rows, given=given)


def _note_few_rows(context: EvaluationContext, rows: int, features: int) -> None:
    """Says so where rows are too few for the covariance of so many features."""
    if rows <= features:
        context.note(
            f"frechet: {rows:,} rows are too few for {features:,} features: the covariances lack "
            "rank, and distances are too large; compare equal numbers of rows, or give more rows "
            "than features"
        )
