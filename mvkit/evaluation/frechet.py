"""Fréchet distance between generated and real values, on features of a network that the user gives.

Axes: b rows, f features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.errors import ShapeError
from mvkit.evaluation.metric import (
    EvaluationContext,
    Metric,
    Score,
    Scores,
    finite,
    scatter,
    subset,
)
from mvkit.registry.spec import field, spec


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|μ - ν|² + tr(Σ + T - 2 (Σ T)^½) of the means and covariances of features (b, f), in float64.

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
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return float(
        (a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * cross
    )


@spec
class Frechet(Metric):
    """Fréchet distance of samples, and of each modality given all others, to the real rows.

    Args:
        sampler: what draws the latents of the samples; None: the prior.

    Reference: Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter, GANs Trained by a Two Time-Scale Update Rule
    Converge to a Local Nash Equilibrium, NeurIPS 2017, https://arxiv.org/abs/1706.08500.
    """

    sampler: str | None = field(default=None)

    def incompatibility(self, study: EvaluationContext) -> str | None:
        """See `Metric.refusal`."""
        return (
            None
            if study.features
            else "no network to take features of; give features={name: function}"
        )

    def score(
        self, study: EvaluationContext, block: Batch, generator: torch.Generator
    ) -> dict[Any, Tensor]:
        """See `Metric.score`."""
        names = study.model.names
        samples = study.draw(len(block), self.sampler, generator)
        found = {}
        for name in study.features:
            has = subset(block, [name], names)
            if has.any():
                found[name, "real"] = self._features(study, name, block.data[name], block, has)
            if samples is not None:
                found[name, "samples"] = self._features(
                    study, name, samples[name], block, torch.ones_like(has)
                )
            others = [k for k in names if k != name]
            known = has & block.hide(others).observed.any(1)
            if others and known.any():
                made = study.translate(block.take(known), [name], others, generator=generator)[
                    name
                ][0]
                values = torch.zeros_like(block.data[name]).index_copy(
                    0, known.nonzero()[:, 0], made
                )
                found[name, "given all others"] = self._features(study, name, values, block, known)
        return found

    @staticmethod
    def _features(
        study: EvaluationContext, name: str, x: Tensor, block: Batch, rows: Tensor
    ) -> Tensor:
        """Features (b, f) of the flagged rows, NaN in the others."""
        kept = block.take(rows)
        found = torch.as_tensor(
            study.features[name](study.model.modalities[name].restore(x[rows]))
        ).detach()
        if found.ndim != 2 or len(found) != len(kept):
            raise ShapeError(
                f"evaluate: the features of {name!r} have shape {tuple(found.shape)} for {tuple(x[rows].shape)}; "
                f"expected ({len(kept)}, features)"
            )
        return scatter(finite(found, kept, f"a feature of {name!r}").to(rows.device), rows)

    def summary(self, study: EvaluationContext, scores: Scores) -> list[Score]:
        """See `Metric.summary`."""
        found = []
        for name in study.features:
            for what in ("samples", "given all others"):
                real, made = (
                    _complete(scores.get((name, kind), torch.empty(0, 1)))
                    for kind in ("real", what)
                )
                if min(len(real), len(made)) > 1:
                    given = 0 if what == "samples" else len(study.model.names) - 1
                    value = frechet_distance(real, made)
                    found.append(
                        Score("frechet", f"{name}, {what}", value, rows=len(made), given=given)
                    )
        return found


def _complete(features: Tensor) -> Tensor:
    return features[~features.isnan().any(1)]
