"""What the explorer answers: rows, and what is imputed, clustered and moved of them.

Axes: n draws, b rows (one), c clusters or classes.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import mvkit
from mvkit.apps.explorer_controls import RowNames, controls_of
from mvkit.apps.explorer_draws import (
    DRAWS,
    Draws,
    asks_for_new_rows,
    centre_of_new_rows,
    centre_of_row,
    check_names,
    draws_from_row,
    draws_of_new_rows,
    moved,
    without_features,
)
from mvkit.apps.explorer_requests import Asked
from mvkit.apps.explorer_views import (
    View,
    json_value,
    numbers_of,
    real_cells,
    real_picture,
    real_values,
    views_of,
)
from mvkit.core.batch import Batch
from mvkit.data.dataset import MultimodalDataset
from mvkit.data.table_layout import TableLayout
from mvkit.errors import RequestError
from mvkit.models.asked_rows import stated_covariates
from mvkit.models.conformal import Intervals
from mvkit.models.conformal_scores import smallest_set
from mvkit.models.imputed_spread import restored
from mvkit.models.multimodal import MultimodalModel
from mvkit.parts.likelihoods.discrete import has_classes

ROUNDING = 1e-6  # of numbers beside their size
Plain = dict[str, Any]
Answer = dict[str, Any]  # as JSON has it


class Explorer:
    """A model and rows, of which a page asks.

    Args:
        model: the model.
        data: the rows.
        title: of the page.
        layouts: of the tables that the rows came from, by name, if they are known.

    Raises:
        DataError: data of another model.
    """

    def __init__(
        self,
        model: MultimodalModel,
        data: MultimodalDataset,
        *,
        title: str = "",
        layouts: Mapping[str, TableLayout] | None = None,
    ) -> None:
        self.model = model
        self.title = title
        self.rows = model.conform(data)
        self.names = RowNames.of(self.rows)
        self.views = views_of(model, self.rows, layouts or {})
        self.labels = data.labels

    def description(self) -> Answer:
        """What there is to choose from."""
        return {
            "title": self.title,
            "version": mvkit.__version__,
            "rows": len(self.rows),
            "ids": self.names.listed(),
            "numbered": self.names.numbered,
            "modalities": [view.described() for view in self.views.values()],
            "draws": DRAWS,
            **controls_of(self.model),
        }

    def row(self, plain: Plain) -> Answer:
        """What is known of a row: its modalities, label and covariates.

        Args:
            plain: `row`, its id, or `number`.

        Raises:
            RequestError: no such row.
        """
        place, row = self._picked(Asked.of(plain))
        covariates = stated_covariates(row)
        label = None if self.labels is None else json_value(self.labels[place])
        return {
            "number": place,
            "id": self.names.names[place],
            "label": label,
            "observed": _observed(row),
            "covariates": {name: json_value(value) for name, value in covariates.items()},
        }

    def answer(self, plain: Plain) -> Answer:
        """What is generated of a row.

        Args:
            plain: options of `Asked`.

        Returns:
            Of each modality what is real and imputed, with intervals, and moved; the clusters of
            the row, and what is to be noted.

        Raises:
            RequestError: a row, a name or a value that cannot be; a modality that the row lacks.
            DataError: values that the model cannot take.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            answer = self._answer(Asked.of(plain))
        notes = [str(warning.message) for warning in caught]
        return {**answer, "notes": list(dict.fromkeys(notes))}

    def _answer(self, asked: Asked) -> Answer:
        _, row = self._picked(asked)
        given = self._given(row, asked)
        seen = without_features(row, self._places(asked.hidden))
        given = tuple(name for name in given if name in _observed(seen))
        if asks_for_new_rows(self.model, asked):
            draws = draws_of_new_rows(self.model, row, asked)
        else:
            draws = draws_from_row(self.model, seen, given, asked)
        modalities = {}
        for name, view in self.views.items():
            shown = self._modality(view, row, draws, asked)
            shown["given"] = name in given
            modalities[name] = shown
        if asked.dim is not None:
            self._move(modalities, row, seen, given, asked)
        return {"modalities": modalities, "clusters": self._clusters(seen, given)}

    def _picked(self, asked: Asked) -> tuple[int, Batch]:
        """The row that is asked for: its place, and itself as a batch."""
        place = self.names.place(asked.row, asked.number)
        return place, self.rows.take(torch.tensor([place]))

    def _given(self, row: Batch, asked: Asked) -> tuple[str, ...]:
        """The modalities that are ticked.

        Raises:
            RequestError: one that there is not, or that the row lacks.
        """
        observed = _observed(row)
        if asked.given is None:
            return tuple(observed)
        check_names("modality", asked.given, self.model.names)
        for name in asked.given:
            if name not in observed:
                raise RequestError(
                    f"explore: {name!r} is ticked, but the row lacks it; expected some of "
                    f"{observed}; untick it"
                )
        return asked.given

    def _places(self, hidden: Mapping[str, tuple[str, ...]]) -> dict[str, list[int]]:
        """Places of features by modality, from their names.

        Raises:
            RequestError: a modality or a feature that there is not.
        """
        check_names("modality", hidden, self.model.names)
        places = {}
        for name, features in hidden.items():
            known = self.views[name].features
            check_names(f"feature of {name!r}", features, known)
            places[name] = [known.index(feature) for feature in features]
        return places

    def _modality(self, view: View, row: Batch, draws: Draws, asked: Asked) -> Answer:
        """What is real of a modality, and what is imputed with intervals."""
        if view.classes:
            return self._classes(view, row, draws, asked)
        if view.picture:
            return self._pictures(view, row, draws, asked)
        return self._numbers(view, row, draws, asked)

    def _classes(self, view: View, row: Batch, draws: Draws, asked: Asked) -> Answer:
        """Of a modality of classes: the most probable ones, and sets of what they may be."""
        p = self._probabilities(view, draws.means[view.name])[0]
        likely = view.most_probable(p)
        sets = view.sets(smallest_set(p, asked.level))
        real = real_cells(self.model, view, row)
        inside = []
        for cell, names in zip(real, sets, strict=True):
            inside.append(None if cell is None else cell in names)
        return {
            "real": real,
            "mean": likely["cells"],
            "share": likely["share"],
            "set": sets,
            "inside": inside,
        }

    def _numbers(self, view: View, row: Batch, draws: Draws, asked: Asked) -> Answer:
        """Of a modality that is shown by features: means, and the ends of intervals."""
        mean = self._in_units(view.name, draws.means[view.name].mean(0))[0]
        low, high = map(view.bounded, self._ends(view, row, draws, asked))
        values = real_values(self.model, view, row)
        # values went through the model's float32: 5 of a table may come back as 5.0000002
        slack = ROUNDING * (values.abs() + high - low)
        held = (low <= values + slack) & (values - slack <= high)
        inside = []
        for flag, missing in zip(held.flatten(), values.isnan().flatten(), strict=True):
            inside.append(None if missing else bool(flag))
        return {
            "real": view.cells(values),
            "mean": view.cells(view.bounded(mean)),
            "low": view.cells(low),
            "high": view.cells(high),
            "width": numbers_of(high - low),
            "inside": inside,
        }

    def _pictures(self, view: View, row: Batch, draws: Draws, asked: Asked) -> Answer:
        """Of a picture: the real one, the mean, draws, and the ends of intervals.

        Pictures of bits have no intervals: a pixel may be 0 or 1.
        """
        mean = self._in_units(view.name, draws.means[view.name].mean(0))[0]
        shown = self._in_units(view.name, draws.shown[view.name])
        pictures = {
            **real_picture(self.model, view, row),
            "mean": view.pixels(mean),
            "draws": [view.pixels(picture[0]) for picture in shown],
        }
        if not has_classes(self.model.schema.likelihoods[view.name]):
            low, high = self._ends(view, row, draws, asked)
            pictures |= {"low": view.pixels(low), "high": view.pixels(high)}
        return pictures

    def _ends(self, view: View, row: Batch, draws: Draws, asked: Asked) -> tuple[Tensor, Tensor]:
        """The ends of the intervals of a modality of numbers, in the user's units, (*shape)."""
        name = view.name
        samples, means = {name: draws.samples[name]}, {name: draws.means[name]}
        ends = Intervals(asked.level).of(self.model, row, samples, means)
        return ends[f"low/{name}"][0, 0].double(), ends[f"high/{name}"][0, 0].double()

    def _probabilities(self, view: View, means: Tensor) -> Tensor:
        """Probabilities of the classes, (b, *places, c), of means (n, b, *shape)."""
        p = means.mean(0)
        has_axis = self.model.schema.likelihoods[view.name].class_axis
        return p if has_axis else torch.stack([1 - p, p], -1)

    def _in_units(self, name: str, values: Tensor) -> Tensor:
        """Values of the model in the user's units."""
        return restored(self.model, name, values)

    def _move(
        self,
        modalities: dict[str, Answer],
        row: Batch,
        seen: Batch,
        given: tuple[str, ...],
        asked: Asked,
    ) -> None:
        """Adds to what is shown of modalities what they are at a latent, and after a move of it.

        Args:
            modalities: by name; they are changed.
            row: all that the row has.
            seen: what is ticked of it.
            given: the modalities that are ticked.
            asked: the request.
        """
        if asks_for_new_rows(self.model, asked):
            latent = centre_of_new_rows(self.model, row, asked)
        else:
            latent = centre_of_row(self.model, seen, given, asked)
        for name, values in moved(self.model, seen, given, latent, asked).items():
            modalities[name] |= self._moved(self.views[name], values)

    def _moved(self, view: View, values: Tensor) -> Answer:
        """What a modality is before and after a move, of means (2, *shape)."""
        if view.classes:
            before, after = self._probabilities(view, values[None])
            change = (after - before).abs().sum(-1) / 2
            likely = view.most_probable(after)
            return {
                "moved": likely["cells"],
                "moved_share": likely["share"],
                "change": numbers_of(change),
            }
        before, after = self._in_units(view.name, values)
        if view.picture:
            return {"centre": view.pixels(before), "moved": view.pixels(after)}
        cells = view.cells(view.bounded(after))
        return {"moved": cells, "change": numbers_of(after - before)}

    def _clusters(self, seen: Batch, given: tuple[str, ...]) -> list[float | None] | None:
        """The responsibilities of the clusters for what is ticked; None: nothing is, or none."""
        if not self.model.n_clusters or not given:
            return None
        return numbers_of(self.model.clusters(seen.hide(given), soft=True)[0])


def _observed(row: Batch) -> list[str]:
    """The modalities that one conformed row has."""
    flags = row.observed[0].tolist()
    return list(itertools.compress(row.data, flags))
