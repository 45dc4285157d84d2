"""Mapping of new cells onto a trained model, also of a batch that it has never seen.

Axes: b rows, d latent.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import pandas as pd
from numpy.typing import NDArray

import mvkit
from mvkit.errors import RequestError, check_whole_number
from mvkit.models.multimodal import MultimodalModel
from mvkit_omics.asking import Data, DataLike, encoded, extra_of, rows_of

EVERY = "all"  # the line of all cells
Level = str | int
Like = Level | Mapping[Level, Level]


@attrs.frozen(eq=False)
class Mapped:
    """A model that knows new levels of a covariate, and how it came to.

    Args:
        model: a copy of the trained model, with the new levels.
        history: of the training of the new levels.
        moved: how far latents of old cells moved, by level and of all: `cells`, `mean` and
            `largest` distance, and `relative`, the mean in units of the latents' spread; None: no
            old cells were given.
    """

    model: mvkit.Model
    history: mvkit.History
    moved: pd.DataFrame | None


def map_new(
    model: MultimodalModel,
    data: DataLike,
    covariate: str = "batch",
    level: Level | Sequence[Level] | None = None,
    *,
    like: Like = "average",
    epochs: int = 100,
    old: DataLike | None = None,
    trainable: Sequence[str] = (),
    **options: Any,
) -> Mapped:
    """Maps new cells of a level that training never saw: its weights are trained, the rest frozen.

    The model itself stays as it is: a copy gets the level (`Model.add_level`), and `mvkit.fit`
    trains its weights alone on the new cells. Latents of cells of other levels then stay where
    they were, to the bit. New cells of a level that is known need no mapping.

    Args:
        model: trained.
        data: the new cells.
        covariate: what has a new level.
        level: the level of all new cells; None: the levels that the data name and the model does
            not know.
        like: the level that it begins like, or the `average`; or a mapping by new level.
        epochs: of training.
        old: cells whose latents are compared before and after.
        trainable: globs of what is trained besides, see `mvkit.Stage`; old latents then move.
        options: of `mvkit.fit`: lr, batch_size, seed, validation, progress, …

    Returns:
        The copy, its history, and how far old latents moved.

    Raises:
        RequestError: a Stack, a covariate or a level that cannot be, data of another level.
    """
    if not isinstance(model, mvkit.Model):
        raise RequestError(
            f"map_new: got {type(model).__name__}; expected a Model, which can have new levels"
        )
    epochs = check_whole_number("map_new: epochs", epochs, 1)
    rows = rows_of(data)
    levels = _new_levels(model, rows, covariate, level)
    if level is not None and covariate not in extra_of(rows):
        rows = _with_column(rows, covariate, levels[0])
    mapped = copy.deepcopy(model)
    for new in levels:
        mapped.add_level(covariate, new, like=_begun_like(like, new))
    globs = [f"covariates.{covariate}.{new}" for new in levels]
    stage = mvkit.Stage(epochs=epochs, trainable=[*globs, *trainable])
    history = mvkit.fit(mapped, rows, epochs=epochs, stages=[stage], **options)
    mapped.training_rows = model.training_rows  # of the rows that the rest was trained on
    moved = None
    if old is not None:
        moved = movement(model, mapped, rows_of(old), covariate)
    return Mapped(mapped, history, moved)


def movement(
    before: MultimodalModel, after: MultimodalModel, rows: Data, covariate: str
) -> pd.DataFrame:
    """How far latents of cells are from one another in two models; see `Mapped`.

    Args:
        before: a model.
        after: another of the same latents.
        rows: cells.
        covariate: a line is made for each of its levels, and one for all cells.
    """
    z = encoded(before, rows).double()
    distance = (encoded(after, rows).double() - z).norm(dim=1).numpy()
    spread = float((z - z.mean(0)).norm(dim=1).square().mean().sqrt())
    groups: dict[object, NDArray[np.bool_]] = {}
    column = extra_of(rows).get(covariate)
    if column is not None:
        values = np.asarray(column)
        for level in dict.fromkeys(values.tolist()):
            groups[level] = values == level
    groups[EVERY] = np.ones(len(distance), dtype=bool)
    lines = {}
    for level, flags in groups.items():
        kept = distance[flags]
        mean = float(kept.mean())
        relative = mean / spread if spread else float("nan")
        lines[level] = [len(kept), mean, float(kept.max()), relative]
    columns = ["cells", "mean", "largest", "relative"]
    table = pd.DataFrame.from_dict(lines, orient="index", columns=columns)
    return table.astype({"cells": int})


def _new_levels(
    model: mvkit.Model, rows: Data, covariate: str, level: Level | Sequence[Level] | None
) -> list[Level]:
    """The levels that the model is to be given, checked against what the data name."""
    column = extra_of(rows).get(covariate)
    named = [] if column is None else list(dict.fromkeys(np.asarray(column).tolist()))
    conditions = model.schema.covariates.get(covariate)
    known = () if conditions is None else conditions.levels
    unknown = [value for value in named if value not in known]
    if level is None:
        return _checked_unknown(covariate, unknown, known, column is not None)
    levels = [level] if isinstance(level, str | int) else list(level)
    if column is None and len(levels) != 1:
        raise RequestError(
            f"map_new: {len(levels)} levels, and the data say nothing of {covariate!r}; expected "
            f"one level, or the column {covariate!r} in the data's extra"
        )
    for value in named:
        if value not in levels and value not in known:
            raise RequestError(
                f"map_new: the data have {covariate!r} {value!r}, which is neither known nor in "
                f"level={level!r}; expected all new levels; leave level out to take them all"
            )
    return levels


def _checked_unknown(
    covariate: str, unknown: list[Any], known: tuple[Level, ...], there: bool
) -> list[Level]:
    if not there:
        raise RequestError(
            f"map_new: the data say nothing of {covariate!r}; expected a level: level='new'"
        )
    if not unknown:
        raise RequestError(
            f"map_new: the model knows all levels of {covariate!r} in the data; expected a new "
            "one; encode these cells as they are"
        )
    kind = type(known[0]) if known else str
    return [kind(value) for value in unknown]


def _with_column(rows: Data, covariate: str, level: Level) -> Data:
    """The rows, all of one level."""
    extra = {**extra_of(rows), covariate: [level] * len(rows)}
    if isinstance(rows, mvkit.Batch):
        return attrs.evolve(rows, extra=extra)
    if isinstance(rows, mvkit.MultimodalDataset):
        return attrs.evolve(rows, batch=attrs.evolve(rows.batch, extra=extra))
    raise RequestError(
        f"map_new: sparse rows say nothing of {covariate!r}; expected it among their covariates; "
        f"make them with SparseRows(…, covariates={{{covariate!r}: …}})"
    )


def _begun_like(like: Like, level: Level) -> Level:
    """The level that a new one begins like."""
    if isinstance(like, Mapping):
        return like.get(level, "average")
    return like
