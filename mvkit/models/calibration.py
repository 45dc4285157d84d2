"""Calibration: what known cells say of a model's intervals, and quantiles of their scores.

Axes: b rows; places are the shape of a modality without its axis of classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.cells import flat_cells
from mvkit.errors import RequestError
from mvkit.models.cell_odds import CellOdds

if TYPE_CHECKING:
    from pandas import DataFrame

Tensors = dict[str, Tensor]
TOLERANCE = 1e-10  # of the sum of weights, in which rounding stays


@attrs.frozen(eq=False)
class Calibration:
    """What known cells say of a model's intervals, by column; `mvkit.calibrate` makes one.

    Args:
        level: share that intervals and sets are to hold.
        n: draws of each row.
        score: of numbers, how many deviations of the draws are added at each end; of classes, how
            improbable a member of a set may be; {modality: (*places)}. Infinite, as intervals
            are then, where there are too few known cells to say, or none.
        floor: of numbers, the smallest deviation, {modality: (*places)}.
        cells: known cells, {modality: (*places)}.
        own: share of them that the model's own intervals and sets held, likewise; NaN of none.
        held: share of them that intervals and sets held which the other half of them calibrated,
            likewise.
        features: names of the columns, by modality; none: they are numbered.
        effective: as many known cells of one weight would say as much, likewise.
        odds: by which cells are weighted; None: all have one weight.
        ranked: of modalities in which they are, the known cells' scores in order, and the sums of
            their weights. `score` is then that of a missing cell of mean weight, and cells have
            their own; see `limits`.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (2,)}, latent_dim=1, seed=0)
        >>> full = {"a": torch.randn(100, 2)}
        >>> shown = {"a": full["a"].clone()}
        >>> shown["a"][:50, 0] = torch.nan
        >>> mvkit.calibrate(model, shown, full).frame()["cells"].tolist()
        [50, 0]
    """

    level: float
    n: int
    score: Tensors
    floor: Tensors
    cells: Tensors
    own: Tensors
    held: Tensors
    features: dict[str, tuple[str, ...]]
    effective: Tensors
    odds: CellOdds | None = None
    ranked: dict[str, RankedScores] = attrs.field(factory=dict)

    def limits(self, batch: Batch) -> Tensors:
        """Corrections of all cells of conformed rows, by modality: (*places), or where known cells
        are weighted (b, *places). Those of cells that are likelier to be missing are larger.
        """
        if self.odds is None:
            return self.score
        weights = self.odds.of(batch)
        limits = dict(self.score)
        for name, ranked in self.ranked.items():
            limits[name] = ranked.quantile(self.level, weights[name]).to(self.score[name])
        return limits

    def frame(self) -> DataFrame:
        """A row for each column: its modality and name, known cells, the share of them that the
        model's own intervals hold, and calibrated ones, the correction, and how many cells of
        one weight would say as much. Shares are of cells weighted by their odds to be missing.
        """
        import pandas as pd

        lines = []
        for name, cells in self.cells.items():
            columns = self.features[name] or range(cells.numel())
            numbers = [cells.flatten().tolist()]
            for values in (self.own, self.held, self.score, self.effective):
                numbers.append(values[name].flatten().tolist())
            for line in zip(columns, *numbers, strict=True):
                lines.append((name, *line))
        titles = ["modality", "column", "cells", "own_coverage", "coverage", "correction"]
        return pd.DataFrame(lines, columns=[*titles, "effective_cells"])


def check_level(where: str, level: object) -> float:
    """The level as a float; raises RequestError unless it is between 0 and 1."""
    if isinstance(level, float | int) and not isinstance(level, bool) and 0 < level < 1:
        return float(level)
    raise RequestError(f"{where}={level!r}; expected a share between 0 and 1, such as 0.9")


def conformal_quantile(scores: Tensor, places: Tensor, level: float) -> Tensor:
    """The ⌈(n + 1) level⌉-th smallest of the n scores of each column; infinite if n is too small.

    Args:
        scores: of all cells, (b, *places).
        places: which of them count, (b, *places) bool.
        level: share of new scores that is to be at most as large.
    """
    ordered = torch.where(places, scores, torch.inf).sort(0).values
    count = places.sum(0)
    # a share such as 0.9 is a little more in binary: 10 (n + 1) / 10 must stay whole
    rank = torch.ceil((count + 1).double() * level - 1e-9).long()
    within = ordered.gather(0, rearrange((rank - 1).clamp(0, len(scores) - 1), "... -> 1 ..."))[0]
    return torch.where(rank <= count, within, torch.inf)


@attrs.frozen(eq=False)
class RankedScores:
    """Scores of known cells in order and their weights, of which quantiles are taken.

    Args:
        scores: of each column in order, (b, *places), infinite beyond the last.
        sums: of the weights of the cells up to each, (b, *places).
    """

    scores: Tensor
    sums: Tensor

    @classmethod
    def of(cls, scores: Tensor, weights: Tensor) -> RankedScores:
        """Scores of cells, (b, *places), whose weights are 0 where they do not count."""
        ordered, order = torch.where(weights > 0, scores, torch.inf).sort(0)
        sums = weights.double().gather(0, order).cumsum(0)
        longest = int((weights > 0).sum(0).max())
        return cls(ordered[: max(1, longest)], sums[: max(1, longest)])

    def quantile(self, level: float, own: Tensor) -> Tensor:
        """The smallest score up to which known cells have the share `level` of the weights, a new
        cell's own included, which lies at infinity; infinite if its own is more than the rest.

        Args:
            level: the share.
            own: the weights of new cells, (r, *places).

        Returns:
            Of each new cell, (r, *places).

        Reference: Tibshirani, Barber, Candès and Ramdas, Conformal prediction under covariate
        shift, 2019, https://arxiv.org/abs/1904.06019 (corollary 1).
        """
        total = self.sums[-1]
        needed = level * (total + own.double()) - TOLERANCE * total
        places = torch.searchsorted(_by_column(self.sums), _by_column(needed))
        beyond = torch.full_like(self.scores[:1], torch.inf)
        scores = flat_cells(torch.cat([self.scores, beyond]))
        return scores.gather(0, rearrange(places, "k r -> r k")).reshape(own.shape)


def _by_column(x: Tensor) -> Tensor:
    """Values (b, *places) as (k, b)."""
    return rearrange(flat_cells(x), "b k -> k b").contiguous()


def held_share(
    scores: Tensor, places: Tensor, level: float, weights: Tensor | None = None
) -> Tensor:
    """Share of the cells of each column that the quantile of the other half holds, (*places).

    Halves take turns, in the order of the rows.

    Args:
        scores: of all cells, (b, *places).
        places: which of them count, (b, *places) bool.
        level: share that is to be held.
        weights: of all cells, (b, *places); None: all are 1.
    """
    odd = places.cumsum(0) % 2 == 1
    held = torch.zeros_like(places)
    for half in (odd, ~odd):
        if weights is None:
            limit = conformal_quantile(scores, places & half, level)
        else:
            known = torch.where(places & half, weights, 0.0)
            limit = RankedScores.of(scores, known).quantile(level, weights)
        held = held | (places & ~half & (scores <= limit))
    return share_of(held, places, weights)


def share_of(flags: Tensor, places: Tensor, weights: Tensor | None = None) -> Tensor:
    """Share of the cells of each column that have a flag, (*places), NaN of none.

    Args:
        flags: of all cells, (b, *places) bool.
        places: which of them count, likewise.
        weights: of all cells, (b, *places); None: all are 1.
    """
    if weights is None:
        return (flags & places).sum(0) / places.sum(0)
    counted = torch.where(places, weights, 0.0)
    return torch.where(flags, counted, 0.0).sum(0) / counted.sum(0)
