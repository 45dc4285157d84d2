"""How the explorer shows the modalities of a row: as pictures, or as features by name.

Axes: n draws; places are the shape of a modality without its axis of classes.
"""

from __future__ import annotations

import base64
import datetime
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.cells import cells_of
from mvkit.data.column_kinds import Column
from mvkit.data.table_layout import TableLayout
from mvkit.evaluation.by_feature import places_of
from mvkit.models.imputed_sets import class_labels
from mvkit.models.imputed_spread import restored
from mvkit.models.multimodal import MultimodalModel
from mvkit.parts.likelihoods.discrete import has_classes
from mvkit.plots.grids import is_picture

DIGITS = 6  # that numbers are sent with
ROWS_LOOKED_AT = 500  # for the range of pictures
EPOCH = datetime.datetime(1970, 1, 1)
YES_AND_NO = ("no", "yes")
Cell = str | float | None
Cells = list[Cell]


@attrs.frozen(eq=False)
class View:
    """How a modality is shown.

    Args:
        name: the modality.
        shape: its shape in the user's units.
        features: names of its cells, one for each place; none of pictures.
        named: whether the data name them; else they are numbered.
        classes: what its classes are called, where it has some; none of numbers.
        columns: what each of its cells holds, where a table's layout says it.
        picture: whether it is shown as a picture, (c, h, w) with one channel or three.
        low, high: of pictures, the values that are black and white.
    """

    name: str
    shape: tuple[int, ...]
    features: tuple[str, ...]
    named: bool
    classes: tuple[str, ...]
    columns: tuple[Column, ...]
    picture: bool
    low: float = 0.0
    high: float = 1.0

    def described(self) -> dict[str, Any]:
        """The view as plain data for the page."""
        kind = "picture" if self.picture else "features"
        about: dict[str, Any] = {"name": self.name, "kind": kind, "features": self.features}
        if self.picture:
            channels, height, width = self.shape
            about |= {"channels": channels, "height": height, "width": width}
        else:
            about["chart"] = not self.named and not self.classes and len(self.shape) == 1
        return about

    def pixels(self, values: Tensor) -> str:
        """A picture (c, h, w) in the user's units as bytes, channels last, in base64."""
        share = (values.double() - self.low) / (self.high - self.low)
        levels = (share.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
        picture = rearrange(levels, "c h w -> h w c").contiguous()
        return base64.b64encode(picture.cpu().numpy().tobytes()).decode()

    def bounded(self, values: Tensor) -> Tensor:
        """Numbers (*places) as the columns of a table may hold them, which `mvkit impute` fills
        in: whole where all are, within the range of those observed.
        """
        if not self.columns:
            return values
        numbers = []
        for column, number in zip(self.columns, values.double().cpu().numpy(), strict=True):
            numbers.append(float(column.bounded(number)))
        return torch.tensor(numbers, dtype=torch.float64)

    def cells(self, values: Tensor) -> Cells:
        """Numbers (*places) in the user's units as the page shows them: words, days or numbers;
        None where they are NaN.
        """
        numbers = values.flatten().tolist()
        if not self.columns:
            return [plain(number) for number in numbers]
        cells = []
        for column, number in zip(self.columns, numbers, strict=True):
            cells.append(cell_of(column, number))
        return cells

    def class_cells(self, indices: Tensor, present: Tensor | None = None) -> Cells:
        """The names of classes (*places); None where there is none."""
        flags = torch.ones_like(indices, dtype=torch.bool) if present is None else present
        cells: Cells = []
        for index, flag in zip(indices.flatten().tolist(), flags.flatten().tolist(), strict=True):
            cells.append(self.classes[index] if flag else None)
        return cells

    def sets(self, flags: Tensor) -> list[list[str]]:
        """Sets of classes (*places, c) bool by name."""
        rows = flags.reshape(-1, flags.shape[-1]).tolist()
        return [list(itertools.compress(self.classes, row)) for row in rows]

    def most_probable(self, p: Tensor) -> dict[str, Any]:
        """The most probable classes of p (*places, c) by name, and how probable they are."""
        share, index = p.max(-1)
        return {"cells": self.class_cells(index), "share": numbers_of(share)}


def views_of(
    model: MultimodalModel, rows: Batch, layouts: Mapping[str, TableLayout]
) -> dict[str, View]:
    """How the modalities of a model are shown.

    Args:
        model: the model.
        rows: conformed; values of pictures are looked at for their range.
        layouts: of the tables that the modalities came from, by name; none: it is not known.
    """
    columns = _columns_of(layouts)
    few = rows.take(torch.arange(min(ROWS_LOOKED_AT, len(rows))))
    views = {}
    for name in model.names:
        views[name] = _view(model, name, columns.get(name, ()), few)
    return views


def _columns_of(layouts: Mapping[str, TableLayout]) -> dict[str, tuple[Column, ...]]:
    """What the columns of modalities hold, by modality."""
    columns = {}
    for layout in layouts.values():
        for group, names in layout.groups.items():
            columns[group] = tuple(layout.column(name) for name in names)
    return columns


def _view(model: MultimodalModel, name: str, columns: tuple[Column, ...], rows: Batch) -> View:
    modality = model.modalities[name]
    likelihood = model.schema.likelihoods[name]
    shape = modality.raw_shape
    pictured = is_picture(shape) and not likelihood.class_axis
    about: dict[str, Any] = {"name": name, "named": bool(modality.features)}
    if pictured:
        low, high = _range(model, name, rows)
        about |= {"features": (), "classes": (), "columns": (), "low": low, "high": high}
        return View(shape=shape, picture=True, **about)
    features = modality.features
    places = places_of(model, name)
    if not features:
        indices = itertools.product(*[range(size) for size in places])
        features = tuple(", ".join(map(str, index)) for index in indices)
    if tuple(column.name for column in columns) != features:
        columns = ()
    classes: tuple[str, ...] = ()
    if has_classes(likelihood):
        classes = _class_names(model, name, columns)
    return View(
        shape=shape, picture=False, features=features, classes=classes, columns=columns, **about
    )


def _class_names(
    model: MultimodalModel, name: str, columns: tuple[Column, ...]
) -> tuple[str, ...]:
    """What the classes of a modality are called; 0 and 1 of a table `no` and `yes`."""
    if not model.schema.likelihoods[name].class_axis and columns:
        return YES_AND_NO
    return tuple(str(label) for label in class_labels(model, name))


def _range(model: MultimodalModel, name: str, rows: Batch) -> tuple[float, float]:
    """The values that are black and white in pictures: 0 and 1, or the range of the rows where
    they leave these.
    """
    cells = rows.present(name)
    values = restored(model, name, rows.data[name])
    if values.shape != cells.shape:
        return 0.0, 1.0
    values = values[cells]
    if not len(values) or (values.min() >= 0 and values.max() <= 1):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low, low + 1)


def real_cells(model: MultimodalModel, view: View, row: Batch) -> Cells:
    """The classes that a conformed row has of a modality; None where it lacks them."""
    x = row.data[view.name][0]
    index = x.argmax(-1) if model.schema.likelihoods[view.name].class_axis else x.round()
    return view.class_cells(index.long(), cells_of(row, view.name)[0])


def real_values(model: MultimodalModel, view: View, row: Batch) -> Tensor:
    """What a conformed row has of a modality in the user's units, (*shape), NaN where it lacks
    it.
    """
    values = restored(model, view.name, row.data[view.name])[0].double()
    return torch.where(cells_of(row, view.name)[0], values, torch.nan)


def real_picture(model: MultimodalModel, view: View, row: Batch) -> dict[str, Any]:
    """What a conformed row has of a picture, `real`, and `absent`, flags of pixels that it lacks.

    `real` is None where it has none.
    """
    values = real_values(model, view, row)
    absent = values.isnan().all(0)
    if absent.all():
        return {"real": None}
    flags = base64.b64encode(absent.to(torch.uint8).cpu().numpy().tobytes()).decode()
    return {"real": view.pixels(values), "absent": flags if absent.any() else None}


def cell_of(column: Column, number: float) -> Cell:
    """A number of a table's column as the page shows it: a level by name, a day, or a number."""
    if math.isnan(number):
        return None
    if column.levels:
        return column.levels[round(number)]
    if column.kind == "date":
        return _day(round(number) if column.whole else number)
    return plain(number)


def _day(days: float) -> Cell:
    """Days since 1970 as a date; days that no calendar has stay numbers."""
    try:
        return (EPOCH + datetime.timedelta(days=days)).date().isoformat()
    except OverflowError:
        return plain(days)


def numbers_of(values: Tensor) -> list[float | None]:
    """Numbers of any shape in a row, as JSON has them."""
    return [plain(number) for number in values.flatten().tolist()]


def plain(number: float) -> float | None:
    """A number as it is sent, rounded; None: it is not finite, which JSON cannot say."""
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


def json_value(value: object) -> object:
    """Something known of a row as JSON can say it: text, a number, or its text."""
    if isinstance(value, Tensor):
        value = value.tolist()
    item = getattr(value, "item", None)
    if callable(item) and not isinstance(value, Sequence):
        value = item()
    if isinstance(value, float):
        return plain(value)
    return value if value is None or isinstance(value, str | int | bool) else str(value)
