"""How sure the filling of tables is: tables completed several times, intervals and sets.

Axes: b rows, k columns of a modality, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mvkit import recipes
from mvkit.core.batch import Batch, conform
from mvkit.core.cells import cells_of
from mvkit.core.noise import seed_of, seeded
from mvkit.data.column_kinds import Column
from mvkit.data.dataset import MultimodalDataset
from mvkit.data.table_layout import observing
from mvkit.errors import SpecError
from mvkit.models import imputation
from mvkit.models.conformal import Weights, calibrate
from mvkit.models.imputed_sets import class_labels, sets_of
from mvkit.models.model import Model
from mvkit.tables.choices import Choices, model_of, stage_of
from mvkit.tables.neighbours import moves_of
from mvkit.tables.rows import MixedRows, Moves, drawn
from mvkit.training.fit import fit
from mvkit.training.multiple import bootstrap

if TYPE_CHECKING:
    from pandas import DataFrame

DRAWS = 199  # of each row, whose quantiles are the ends of intervals
Frames = dict[str, "DataFrame"]


@attrs.frozen(eq=False)
class TableIntervals:
    """Calibrated intervals and sets of tables, by table.

    Args:
        low, high: ends of intervals, of columns of numbers and of ordered categories.
        sets: tuples of the values that a cell may have, of other columns.
        coverage: how the intervals did, by column; see `Calibration.frame`.
    """

    low: Frames
    high: Frames
    sets: Frames
    coverage: DataFrame


def fitted(
    data: MultimodalDataset,
    columns: Mapping[str, list[Column]],
    chosen: Choices,
    seed: int,
    progress: bool | None,
    missingness: object = None,
) -> tuple[Model, MultimodalDataset]:
    """A model that was trained on rows, and these with fitted transforms.

    Args:
        data: the rows, each of which observes something.
        columns: what the columns of each modality hold.
        chosen: from `choose`.
        seed: of weights and noise.
        progress: show a bar; None: on a terminal only.
        missingness: why numbers are missing; None: at random.
    """
    numbers = {name: "standardise" for name, own in columns.items() if own[0].numeric}
    training = data.fit_transforms(numbers)
    model = model_of(training, columns, chosen, seed)
    if missingness is not None:
        model = explaining(model, tuple(numbers), missingness, seed)
    options: dict[str, Any] = {"batch_size": chosen["batch_size"], "progress": progress}
    fit(model, training, stages=[stage_of(len(training), chosen)], seed=seed, **options)
    return model, training


def explaining(model: Model, numbers: Sequence[str], missingness: object, seed: int) -> Model:
    """A fresh model like another, that explains why numbers are missing: not-MIWAE.

    Raises:
        SpecError: tables without numbers, whose gaps alone can be explained.
    """
    if not numbers:
        raise SpecError(
            "the tables have no numbers, and gaps among categories cannot be explained; expected "
            "None; leave missingness out",
            "missingness",
        )
    part: Any = {"name": missingness} if isinstance(missingness, str) else missingness
    if isinstance(part, Mapping):
        part = {"modalities": list(numbers), **part}
    spec = model.spec
    return recipes.not_miwae(
        model.modalities,
        model.latent_dim,
        samples=5,
        missingness=part,
        aggregator=spec.aggregator,
        seed=seed,
    )


def completed(
    rows: MixedRows,
    chosen: Choices,
    m: int,
    seed: int,
    progress: bool | None,
    missingness: object = None,
) -> Iterator[dict[str, np.ndarray]]:
    """All cells, (b, k) by modality, drawn from each of m models that were fitted to bootstraps of
    the rows.
    """
    known = observing(rows.data.batch).nonzero()[:, 0]
    for number in range(m):
        own_seed = seed_of(seed, number)
        sample = known[bootstrap(len(known), own_seed)]
        data = rows.data.take(sample)
        model, _ = fitted(data, rows.columns, chosen, own_seed, progress, missingness)
        donors = rows.data.take(sample.unique()).batch
        n = chosen["neighbours"]
        moves = moves_of(model, rows.data.batch, rows.columns, n, own_seed, donors)
        yield drawn(model, rows.data.batch, rows.columns, 1, own_seed, moves)[0]


def calibrated(
    model: Model,
    rows: MixedRows,
    shown: MultimodalDataset,
    level: float,
    weights: Weights,
    seed: int,
    moves: Moves,
    values: Moves,
) -> TableIntervals:
    """Intervals and sets of missing cells, calibrated on cells that were hidden from training.

    Intervals of numbers move as their predictions do, and reach as far as what is filled in, which
    knows of the hidden cells too.

    Args:
        model: trained on the rows of `shown`.
        rows: the tables.
        shown: the same rows with more gaps.
        level: share that intervals and sets are to hold.
        weights: of the hidden cells, see `calibrate`.
        seed: of the draws.
        moves: of the numbers that are missing in `shown`, see `predicted`.
        values: what is filled in, (b, k) by modality.
    """
    options: dict[str, Any] = {"n": DRAWS, "empty": "prior"}
    options["generator"] = seeded(seed, model.like.device)
    asked: dict[str, Any] = {"level": level, "weights": weights}
    full = _with_moves(rows.data.batch, moves, -1)  # truths, seen from where the model predicts
    calibration = calibrate(model, shown.batch, full, **asked, **options)
    filled = imputation.impute(model, shown.batch, intervals=calibration, **options)
    ends: dict[str, Frames] = {"low": {}, "high": {}}
    sets = {}
    certain = {}
    known = conform(rows.data.batch, model.schema)
    for group, flags in filled.sets.items():  # cells that were hidden to calibrate are known
        certain[group] = sets_of(model, group, flags, known, ~cells_of(known, group))
    for name in rows.layouts:
        low = _with_moves(filled.low, moves, 1)
        high = _with_moves(filled.high, moves, 1)
        ends["low"][name] = _ends(rows, name, _reaching(low, values, torch.minimum))
        ends["high"][name] = _ends(rows, name, _reaching(high, values, torch.maximum))
        sets[name] = _sets(model, rows, name, certain)
    coverage = calibration.frame()
    return TableIntervals(ends["low"], ends["high"], sets, coverage)


def _with_moves(batch: Batch, moves: Moves, sign: int) -> Batch:
    """A batch in the user's units whose numbers are moved, forth or back."""
    data = dict(batch.data)
    for name, move in moves.items():
        if name in data:
            data[name] = data[name].double() + sign * torch.from_numpy(move)
    return attrs.evolve(batch, data=data)


def _reaching(
    ends: Batch, values: Moves, farther: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Ends of intervals by modality, or what is filled in where that lies farther out."""
    reached = {}
    for name, x in ends.data.items():
        filled = torch.from_numpy(values[name]).reshape(x.shape) if name in values else x
        reached[name] = farther(x.double(), filled.double())
    return reached


def _has_ends(column: Column) -> bool:
    return column.numeric or column.kind == "ordered"


def _ends(rows: MixedRows, table: str, values: Mapping[str, Any]) -> DataFrame:
    """A table of one end of all intervals; observed cells are what they are.

    Args:
        rows: the tables.
        table: which of them.
        values: by modality, (b, k).
    """
    layout = rows.layouts[table]
    columns = tuple(column for column in layout.columns if _has_ends(column))
    names = [column.name for column in columns]
    frame = rows.frames[table]
    frame = frame[[label for label in frame.columns if str(label) in names]]
    if not columns:
        return frame
    wanted = {group: values[group].double().numpy() for group in layout.groups if group in values}
    own = {}
    for group, new in rows.tables_of(_numbers_only(rows, wanted)).items():
        own[group] = new.loc[frame.index]
    return attrs.evolve(layout, columns=columns).join(frame, own)


def _numbers_only(rows: MixedRows, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values of all modalities, of those without ends the first class, which nobody sees."""
    filled = {}
    for group, columns in rows.columns.items():
        filled[group] = np.zeros((len(rows.data), len(columns)))
        if group in values and _has_ends(columns[0]):
            filled[group] = values[group]
    return filled


def _sets(model: Model, rows: MixedRows, table: str, sets: Mapping[str, Any]) -> DataFrame:
    """A table of tuples: what each cell of a category or a bit may be, or is.

    Args:
        model: the model.
        rows: the tables.
        table: which of them.
        sets: by modality, (b, k, c) bool, or (b, c) of one column.
    """
    from pandas import DataFrame

    layout = rows.layouts[table]
    columns: dict[str, list[tuple[object, ...]]] = {}
    for group, names in layout.groups.items():
        if group not in sets:
            continue
        flags = sets[group].reshape(len(rows.data), len(names), -1)
        labels = class_labels(model, group)
        for i, name in enumerate(names):
            columns[name] = [tuple(compress(labels, cell)) for cell in flags[:, i].tolist()]
    frame = DataFrame(columns, index=rows.ids)
    return frame.loc[rows.frames[table].index]
