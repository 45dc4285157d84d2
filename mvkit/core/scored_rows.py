"""What a likelihood is told of the rows of a modality: those that observe it, or all under a mask.

Axes: s samples, j drawn components, r repeats of a row (both of them), b rows, n of these rows,
d latent.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from einops import rearrange, repeat
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.raw_values import widened


@attrs.frozen(eq=False)
class ScoredRows:
    """The rows of a modality that a likelihood is asked about.

    Args:
        x: their values, (n, *shape), zeros where unobserved.
        elements: which elements are observed, (n, *shape) bool; None: all.
        weight: how much each draw of a row counts, (r, n); None: all alike.
        exposure: of each row, (n,), NaN where unknown; None: unknown.
        covariates: of each row, {name: (n,)}.
        rows: which of the rows are there, (n,) bool; the others look like one that is, and count
            for nothing; None: all.
    """

    x: Tensor
    elements: Tensor | None
    weight: Tensor | None
    exposure: Tensor | None
    covariates: Mapping[str, Tensor]
    rows: Tensor | None = None

    @classmethod
    def of(
        cls,
        batch: Batch,
        name: str,
        index: Tensor | None,
        weight: Tensor | None,
        covariates: Mapping[str, Tensor],
        repeats: int,
    ) -> ScoredRows:
        """The rows of a modality of a conformed batch.

        Args:
            batch: the batch.
            name: the modality.
            index: the rows that observe it, (n,); None: all rows are computed.
            weight: how much each draw of each row counts, (r, b); None: all alike.
            covariates: what likelihoods are told of them, {name: (b,)}.
            repeats: r.
        """
        x = batch.data[name]
        elements = None if batch.elements is None else batch.elements.get(name)
        exposure = batch.exposure.get(name)
        scored = cls(x, elements, weight, exposure, covariates)
        if index is not None:
            return scored._at(index)
        if batch.seen_by_all(name):
            return scored
        rows = batch.observed[:, list(batch.data).index(name)]
        return scored._under(rows, repeats)

    def _at(self, index: Tensor) -> ScoredRows:
        """The rows at an index (n,)."""

        def at(values: Tensor | None, axis: int = 0) -> Tensor | None:
            return None if values is None else values.index_select(axis, index)

        covariates = {}
        for key, values in self.covariates.items():
            covariates[key] = values.index_select(0, index)
        return ScoredRows(
            self.x.index_select(0, index),
            at(self.elements),
            at(self.weight, 1),
            at(self.exposure),
            covariates,
        )

    def _under(self, rows: Tensor, repeats: int) -> ScoredRows:
        """All rows, of which some (b,) bool are there.

        In place of the others stand the values of the first that is there. No likelihood of those
        is infinite, so that none makes a gradient NaN.
        """
        first = rows.to(torch.uint8).argmax().reshape(1)

        def filled(values: Tensor) -> Tensor:
            return torch.where(widened(rows, values.shape), values, values.index_select(0, first))

        elements = self.elements
        if elements is not None:  # a batch in which no row is there has no first
            elements = filled(elements) | ~rows.any()
        exposure = self.exposure
        if exposure is not None:
            exposure = torch.where(rows.any(), filled(exposure), 1.0)
        counted = rows.to(self.x.dtype)
        weight = self.weight
        if weight is None:
            weight = rearrange(counted, "b -> 1 b").expand(repeats, -1)
        else:
            weight = torch.where(rows, weight, 0.0)
        x = filled(self.x)
        return attrs.evolve(
            self, x=x, elements=elements, exposure=exposure, weight=weight, rows=rows
        )


def counted_draws(
    weight: Tensor | None, used: Tensor, z: Tensor, row_weight: Tensor | None
) -> Tensor | None:
    """How much each draw of each row counts for a modality, ((s j), b); None: all alike.

    Args:
        weight: of the drawn components, (j, b); None: all alike.
        used: whether it is reconstructed, (b,), or (s or 1, j, b) where that depends on the draw.
        z: the draws, (s, j, b, d).
        row_weight: of each row, (b,); None: all alike.
    """
    if row_weight is not None:
        weight = row_weight.expand(z.shape[1:3]) if weight is None else weight * row_weight
    if used.ndim == 1:
        return None if weight is None else repeat(weight, "j b -> (s j) b", s=len(z))
    counts = used.expand(z.shape[:-1]).to(z.dtype)
    if weight is not None:
        counts = counts * weight
    return rearrange(counts, "s j b -> (s j) b")
