"""Diversity: how far generated values are from each other.

Axes: n draws, b rows, x numbers of a modality.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import attrs
import torch
from einops import rearrange
from torch import Generator, Tensor

from mvkit.core.batch import Batch
from mvkit.core.blocks import block_slices
from mvkit.evaluation.features import (
    OTHERS,
    REAL,
    RECONSTRUCTED,
    SAMPLES,
    reconstruction,
    scored_rows,
)
from mvkit.evaluation.metric import (
    EvaluationContext,
    Metric,
    Score,
    Scores,
    mean,
    observes_all,
    observes_any,
    scatter,
)
from mvkit.evaluation.neighbours import ROWS, distances, limited
from mvkit.registry.fields import count, optional_count
from mvkit.registry.spec import field, spec

SPREAD = "spread"
POSTERIOR = "spread of the posterior"


def mean_distance(x: Tensor) -> float:
    """Mean distance of two different rows of x (b, f), over all pairs, in float64.

    Example:
        >>> import torch
        >>> mean_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        5.0
    """
    b = len(x)
    if b < 2:
        return math.nan
    x = x.double()
    total = sum(float(distances(x[rows], x).sum()) for rows in block_slices(b, ROWS))
    return total / (b * (b - 1))


def draw_distances(x: Tensor) -> Tensor:
    """Mean distance of two draws of a row, over all pairs of its draws, (b,).

    Args:
        x: draws (n, b, *shape), two at least.
    """
    flat = rearrange(x.double(), "n b ... -> n b (...)")
    pairs = itertools.combinations(flat.unbind(0), 2)
    return torch.stack([(a - b).norm(dim=1) for a, b in pairs]).mean(0)


@spec
class Diversity(Metric):
    """Mean distances between generated values, so that nobody wins by a mean.

    Of each modality, the mean distance of two rows: real ones, the model's reconstructions,
    samples, and what is generated from all others. And the spread: the mean distance of two draws
    from the same given modality, of all others; where `evaluate(sampler=…)` has a sampler, beside
    that of the posterior's own draws, with their ratio. All are Euclidean, in the model's units,
    of decoded means unless refiners draw.

    Args:
        sampler: what draws the latents of the samples; None: the prior.
        n: draws of each row.
        limit: rows at most; None: all of them. The time grows with their square.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
        >>> rows = {"a": torch.randn(60, 3), "b": torch.randn(60, 2)}
        >>> report = mvkit.evaluate(model, rows, ["diversity"])
        >>> report.scores[0].name
        'a, real'

    Reference: Zhu, Zhang, Pathak, Darrell, Efros, Wang and Shechtman, Toward Multimodal
    Image-to-Image Translation, NeurIPS 2017, https://arxiv.org/abs/1711.11586 (mean distance of
    draws, there of a network's features).
    """

    sampler: str | None = field(default=None)
    n: int = count(4, low=2)
    limit: int | None = optional_count(1000)

    def rows(self, context: EvaluationContext) -> Batch:
        return limited(context.rows, self.limit, context, "diversity")

    def score(self, context: EvaluationContext, block: Batch, generator: Generator) -> Scores:
        samples = context.draw(len(block), self.sampler, generator)
        scores: Scores = {}
        for name in context.model.names:
            observed = observes_all(block, [name])
            if observed.any():
                rows = block.take(observed)
                scores[name, REAL] = scatter(rows.data[name].flatten(1), observed)
                decoded = reconstruction(context, name, rows, generator)
                scores[name, RECONSTRUCTED] = scatter(decoded.flatten(1), observed)
            scores |= self._spreads(context, name, block, generator)
            if samples is not None:
                scores[name, SAMPLES] = samples[name].flatten(1)
            others = context.others(name)
            known = observed & observes_any(block, others)
            if known.any():
                rows = block.take(known)
                generated = context.translate(rows, [name], others, generator=generator)
                scores[name, OTHERS] = scatter(generated[name][0].flatten(1), known)
        return scores

    def _spreads(
        self, context: EvaluationContext, name: str, block: Batch, generator: Generator
    ) -> Scores:
        """Distances of draws given one modality, by what draws them, and by what is generated."""
        observed = observes_all(block, [name])
        rows = block.take(observed)
        sources = {SPREAD: context}
        if context.sampler is not None:
            sources[POSTERIOR] = attrs.evolve(context, sampler=None)
        scores: Scores = {}
        others = context.others(name)
        for title, source in sources.items():
            draws: dict[str, Tensor] = {}
            if others and len(rows):
                draws = source.translate(rows, others, [name], n=self.n, generator=generator)
            for other in others:
                distance = torch.zeros(0, dtype=torch.float64, device=observed.device)
                if other in draws:
                    distance = draw_distances(draws[other])
                scores[title, name, other] = scatter(distance, observed)
        return scores

    def summary(self, context: EvaluationContext, scores: Scores) -> Iterator[Score]:
        m = len(context.model.names)
        kinds = {REAL: None, RECONSTRUCTED: m, SAMPLES: 0, OTHERS: m - 1}
        for name in context.model.names:
            for kind, given in kinds.items():
                x = scored_rows(scores, name, kind)
                if len(x) > 1:
                    line = f"{name}, {kind}"
                    value = mean_distance(x)
                    yield Score("diversity", line, value, rows=len(x), given=given)
        spreads = {}
        for title in (SPREAD, POSTERIOR):
            own = {key: x for key, x in scores.items() if key[0] == title}
            if own:
                pooled = torch.stack(list(own.values())).nanmean(0)
                spreads[title] = mean("diversity", f"{title}, given 1", pooled, given=1)
                yield spreads[title]
            for (_, name, other), x in own.items():
                line = f"{title} of {other}, given {name}"
                yield mean("diversity", line, x, given=1, detail=True)
        if POSTERIOR in spreads:
            plain = spreads[POSTERIOR].value
            ratio = spreads[SPREAD].value / plain if plain else math.nan
            rows = spreads[SPREAD].rows
            yield Score("diversity", "spread, of the posterior's", ratio, rows=rows, given=1)
