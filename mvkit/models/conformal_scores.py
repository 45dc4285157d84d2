"""Scores of known cells, by how much a model's intervals miss them, and corrections that follow.

Axes: b rows, c classes; places are the shape of a modality without its axis of classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.cells import cells_of
from mvkit.models.calibration import (
    Calibration,
    RankedScores,
    conformal_quantile,
    held_share,
    share_of,
)
from mvkit.models.cell_odds import CellOdds

NARROWEST = 1e-3  # of the usual deviation of a column's draws: scores are divided by no less
FIELDS = ("score", "floor", "cells", "own", "held", "effective")
Tensors = dict[str, Tensor]
Names = dict[str, tuple[str, ...]]


def calibration_of(
    known: Batch,
    hidden: Tensors,
    said: dict[str, Tensors],
    learnt: tuple[CellOdds, Tensors] | None,
    *,
    level: float,
    n: int,
    features: Names,
) -> Calibration:
    """Corrections by column from the scores of known cells.

    Args:
        known: conformed rows with their known values, on the CPU, one-hot.
        hidden: which of these were hidden from the model, {name: (b, *places) bool}.
        said: what the model says of them, see `Intervals.own`, by modality, without its first
            axis.
        learnt: what `learn_odds` returns.
        level: share that intervals are to hold.
        n: draws of each row.
        features: names of the columns, by modality.
    """
    parts: dict[str, Tensors] = {field: {} for field in FIELDS}
    ranked = {}
    far = {}
    odds, every_weight = learnt or (None, {})
    for name, places in hidden.items():
        x, own = known.data[name], said[name]
        if "p" in own:
            inside, scores = _of_classes(own["p"], x, level)
        else:
            parts["floor"][name] = NARROWEST * own["sd"].mean(0)
            inside, scores = _of_numbers(own, x, parts["floor"][name])
        weights = every_weight[name] if odds is not None and name in odds.names else None
        parts["cells"][name] = parts["effective"][name] = places.sum(0)
        parts["own"][name] = share_of(inside, places, weights)
        parts["held"][name] = held_share(scores, places, level, weights)
        if weights is None:
            parts["score"][name] = conformal_quantile(scores, places, level)
            continue
        ranked[name] = RankedScores.of(scores, torch.where(places, weights, 0.0))
        parts["effective"][name] = _effective_number(weights, places)
        gaps = ~cells_of(known, name)
        parts["score"][name] = _usual_score(ranked[name], weights, gaps, level).to(scores)
        endless = ranked[name].quantile(level, weights).isposinf() & gaps
        far[name] = endless.sum(0)
    few = {name: _too_few(cells, level) for name, cells in parts["cells"].items()}
    _warn_of_few(few, features, level)
    _warn_of_far(far, few, features)
    return Calibration(level, n, features=features, odds=odds, ranked=ranked, **parts)


def _of_numbers(own: Tensors, x: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the model's own intervals hold the true numbers, and by how many deviations these
    lie outside, each (b, *places).
    """
    sd = torch.maximum(own["sd"], floor).clamp(min=torch.finfo(x.dtype).tiny)
    low, high = own.get("centre", own["low"]), own.get("centre", own["high"])
    inside = (own["low"] <= x) & (x <= own["high"])
    return inside, torch.maximum(low - x, x - high) / sd


def _of_classes(p: Tensor, x: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Whether the model's own sets hold the true classes, and how improbable these are, each (b,
    *places); of bits there is a 0 or 1 instead of an axis of classes.
    """
    truth = x if x.shape == p.shape else torch.stack([1 - x, x], -1)
    share = (p * truth).sum(-1)
    inside = (smallest_set(p, level) & (truth > 0.5)).any(-1)
    return inside, 1 - share


def smallest_set(p: Tensor, level: float) -> Tensor:
    """The most probable classes that have a share `level` of the probability, (..., c) bool."""
    ordered, place = p.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(p, dtype=torch.bool).scatter(-1, place, before < level)


def _effective_number(weights: Tensor, places: Tensor) -> Tensor:
    """As many cells of one weight would say as much as these, (*places)."""
    counted = torch.where(places, weights, 0.0)
    return counted.sum(0).square() / counted.square().sum(0).clamp(min=1e-300)


def _usual_score(ranked: RankedScores, weights: Tensor, gaps: Tensor, level: float) -> Tensor:
    """The correction of a missing cell of mean weight, (*places); of columns without any, of a
    cell with weight 1.
    """
    mean = torch.where(gaps, weights, 0.0).sum(0, keepdim=True) / gaps.sum(0)
    return ranked.quantile(level, mean.nan_to_num(nan=1.0))[0]


def _too_few(cells: Tensor, level: float) -> Tensor:
    """Whether columns have known cells, but too few to say anything, (*places) bool."""
    return (cells > 0) & (cells < math.ceil(level / (1 - level) - 1e-9))


def _warn_of_few(few: Tensors, features: Names, level: float) -> None:
    """Warns of columns with too few known cells to say anything."""
    lacking = []
    for name, flags in few.items():
        lacking += _called(name, flags, features)
    if lacking:
        needed = math.ceil(level / (1 - level) - 1e-9)
        warnings.warn(
            f"calibrate: {_listed(lacking)} have fewer than {needed} known cells, of "
            f"which no interval of level {level:g} follows: theirs are infinite, sets hold all "
            "classes; hide more cells",
            stacklevel=4,
        )


def _warn_of_far(far: Tensors, few: Tensors, features: Names) -> None:
    """Warns of missing cells that are much likelier to be missing than all known ones."""
    columns = []
    number = 0
    for name, cells in far.items():
        some = (cells > 0) & ~few[name]
        columns += _called(name, some, features)
        number += int(cells[some].sum())
    if columns:
        warnings.warn(
            f"calibrate: {number} missing cells of {_listed(columns)} are in rows so much "
            "likelier to lack them than those of known cells that no interval follows: theirs "
            "are infinite, sets hold all classes; hide more cells, or give weights='equal', "
            "which takes cells to be missing completely at random",
            stacklevel=4,
        )


def _called(name: str, flags: Tensor, features: Names) -> list[str]:
    """What messages call the columns that have a flag."""
    titles: Sequence[object] = features[name] or range(flags.numel())
    return [f"{name}[{titles[i]}]" for i in flags.flatten().nonzero()[:, 0].tolist()]


def _listed(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - 3} more" if len(columns) > 3 else ""
    return f"{', '.join(columns[:3])}{more}"
