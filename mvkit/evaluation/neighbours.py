"""Precision and recall of samples: which lie where real values are, and the reverse.

Axes: b real rows, n generated rows, f features, k nearest neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from mvkit.core.batch import Batch
from mvkit.core.blocks import block_slices
from mvkit.errors import RequestError
from mvkit.evaluation.features import (
    OTHERS,
    REAL,
    RECONSTRUCTED,
    SAMPLES,
    featured_names,
    featured_rows,
    generated_features,
    no_features,
    scored_rows,
)
from mvkit.evaluation.metric import EvaluationContext, Metric, Score, Scores, mean
from mvkit.registry.fields import count, optional_count
from mvkit.registry.spec import field, spec

ROWS = 256  # whose distances to all others are computed at a time


def within_neighbours(points: Tensor, others: Tensor, k: int = 3) -> Tensor:
    """Which points lie in the region that others span, (b,) bool; in float64.

    The region is the union of a ball around each of the others, as wide as the distance to its
    k-th nearest neighbour among them.

    Args:
        points: features (b, f).
        others: features (n, f), n > k.
        k: nearest neighbours, a point itself left out.

    Raises:
        RequestError: k points, or fewer, to look for neighbours among.

    Example:
        >>> import torch
        >>> line = torch.arange(5.0).reshape(-1, 1)
        >>> within_neighbours(torch.tensor([[-1.0], [4.5], [9.0]]), line, k=1).tolist()
        [True, True, False]
    """
    if len(others) <= k:
        raise RequestError(
            f"{len(others)} rows are too few to have {k} neighbours each; give more rows, or "
            "fewer neighbours"
        )
    points, others = points.double(), others.double()
    # a row is its own nearest neighbour
    widths = [
        distances(others[rows], others).kthvalue(k + 1).values
        for rows in block_slices(len(others), ROWS)
    ]
    width = torch.cat(widths)
    inside = [
        (distances(points[rows], others) <= width).any(1)
        for rows in block_slices(len(points), ROWS)
    ]
    return torch.cat(inside) if inside else torch.zeros(0, dtype=torch.bool)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances of points (b, f) to points (n, f), (b, n): exactly 0 between equal ones."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


@spec
class PrecisionRecall(Metric):
    """Precision, recall and their reverse on features: of samples, of each modality given all
    others, and of reconstructions.

    Precision is the share of generated values that lie where real ones do, and recall that of
    real values that lie where generated ones do: sharp pictures of one kind have a high precision
    and a low recall. Values lie where others do if one of these is as near as its own k-th
    neighbour. Both depend on the number of rows, which must be the same to compare models.

    Args:
        sampler: what draws the latents of the samples; None: the prior.
        neighbours: k.
        limit: rows at most; None: all of them. The time grows with their square.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,)}, latent_dim=2, seed=0)
        >>> rows = mvkit.Batch({"a": torch.randn(60, 3)}, extra={"label": torch.arange(60) % 2})
        >>> report = mvkit.evaluate(model, rows, ["precision_recall"], features="classifier")
        >>> report.scores[0].name
        'a, samples, precision'

    Reference: Kynkäänniemi, Karras, Laine, Lehtinen and Aila, Improved Precision and Recall Metric
    for Assessing Generative Models, NeurIPS 2019, https://arxiv.org/abs/1904.06991.
    """

    sampler: str | None = field(default=None)
    neighbours: int = count(3)
    limit: int | None = optional_count(1000)

    def incompatibility(self, context: EvaluationContext) -> str | None:
        return no_features(context)

    def rows(self, context: EvaluationContext) -> Batch:
        rows = featured_rows(context, "precision_recall")
        return limited(rows, self.limit, context, "precision_recall")

    def score(self, context: EvaluationContext, block: Batch, generator: Generator) -> Scores:
        return generated_features(context, block, self.sampler, generator, reconstructed=True)

    def summary(self, context: EvaluationContext, scores: Scores) -> Iterator[Score]:
        m = len(context.model.names)
        kinds = {SAMPLES: 0, OTHERS: m - 1, RECONSTRUCTED: m}
        for name in featured_names(context):
            real = scored_rows(scores, name, REAL)
            for kind, given in kinds.items():
                generated = scored_rows(scores, name, kind)
                if not min(len(real), len(generated)):
                    continue
                near = {
                    "precision": within_neighbours(generated, real, self.neighbours),
                    "recall": within_neighbours(real, generated, self.neighbours),
                }
                for title, inside in near.items():
                    line = f"{name}, {kind}, {title}"
                    yield mean("precision_recall", line, inside.double(), given=given)


def limited(rows: Batch, limit: int | None, context: EvaluationContext, metric: str) -> Batch:
    """The first rows, which their contents decide; with a note where some are left out."""
    if limit is None or limit >= len(rows):
        return rows
    context.note(f"{metric}: {limit:,} of {len(rows):,} rows, chosen by their contents")
    return rows.take(slice(0, limit))
