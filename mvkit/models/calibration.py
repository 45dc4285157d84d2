"""Calibration: what known cells say of a model's intervals, and quantiles of their scores.

Axes: b rows; places are the shape of a modality without its axis of classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.errors import RequestError

if TYPE_CHECKING:
    from pandas import DataFrame

Tensors = dict[str, Tensor]


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
    """

    level: float
    n: int
    score: Tensors
    floor: Tensors
    cells: Tensors
    own: Tensors
    held: Tensors
    features: dict[str, tuple[str, ...]]

    def frame(self) -> DataFrame:
        """A row for each column: its modality and name, known cells, the share of them that the
        model's own intervals hold, and calibrated ones, and the correction.
        """
        import pandas as pd

        lines = []
        for name, cells in self.cells.items():
            columns = self.features[name] or range(cells.numel())
            numbers = []
            for values in (cells, self.own[name], self.held[name], self.score[name]):
                numbers.append(values.flatten().tolist())
            for line in zip(columns, *numbers, strict=True):
                lines.append((name, *line))
        titles = ["modality", "column", "cells", "own_coverage", "coverage", "correction"]
        return pd.DataFrame(lines, columns=titles)


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


def held_share(scores: Tensor, places: Tensor, level: float) -> Tensor:
    """Share of the cells of each column that the quantile of the other half holds, (*places).

    Halves take turns, in the order of the rows.

    Args:
        scores: of all cells, (b, *places).
        places: which of them count, (b, *places) bool.
        level: share that is to be held.
    """
    odd = places.cumsum(0) % 2 == 1
    held = torch.zeros_like(places)
    for half in (odd, ~odd):
        limit = conformal_quantile(scores, places & half, level)
        held = held | (places & ~half & (scores <= limit))
    return held.sum(0) / places.sum(0)
