"""What can be chosen in the explorer, as plain data for its page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import attrs

from mvkit.core.batch import Batch
from mvkit.core.covariates import Conditions
from mvkit.errors import RequestError, suggest
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.stack import Stack
from mvkit.parts.conditional_samplers import ConditionalSampler

IDS_LISTED = 1000  # that the page proposes; all can be typed


@attrs.frozen(eq=False)
class RowNames:
    """What rows are called: by their ids, or by their numbers where they have none.

    Args:
        names: of all rows, in order.
        places: of each name.
        numbered: whether they are numbers.
    """

    names: Sequence[str]
    places: dict[str, int]
    numbered: bool

    @classmethod
    def of(cls, rows: Batch) -> RowNames:
        """The names of rows; of ids that read alike, the first is found by its name."""
        ids = rows.extra.get("id")
        every = range(len(rows)) if ids is None else getattr(ids, "tolist", lambda: ids)()
        names = [str(id) for id in every]
        places: dict[str, int] = {}
        for place, name in enumerate(names):
            places.setdefault(name, place)
        return cls(names, places, ids is None)

    def place(self, row: str | None, number: int | None) -> int:
        """The place of a row that is asked for by its name, or by its number.

        Raises:
            RequestError: there is no such row, or none was asked for.
        """
        last = len(self.names) - 1
        if row is not None:
            if row not in self.places:
                raise RequestError(f"explore: no row {row!r}; {self._nearest(row)}")
            return self.places[row]
        if number is None:
            raise RequestError("explore: which row? expected its id in `row`, or its `number`")
        if number > last:
            raise RequestError(f"explore: no row number {number}; expected one of 0 to {last}")
        return number

    def listed(self) -> list[str]:
        """The ids that the page proposes; none of rows without ids."""
        return [] if self.numbered else list(self.names[:IDS_LISTED])

    def _nearest(self, row: str) -> str:
        """The end of a message about a row that there is not."""
        if self.numbered:
            return f"expected a number from 0 to {len(self.names) - 1}"
        if len(self.names) > IDS_LISTED:
            return f"expected one of {len(self.names)} ids, such as {self.names[0]!r}"
        hint = suggest(row, self.places)
        return hint if hint.startswith("did") else f"expected an id, such as {self.names[0]!r}"


def controls_of(model: MultimodalModel) -> dict[str, Any]:
    """What can be chosen of a model: latents, clusters, samplers, refiners and covariates."""
    samplers = []
    for name, sampler in model.samplers.items():
        samplers.append({"name": name, "given": isinstance(sampler, ConditionalSampler)})
    return {
        "latents": model.latent_dim,
        "clusters": model.n_clusters,
        "samplers": samplers,
        "refiners": list(model.refiners),
        "unrefined": why_unrefined(model),
        "covariates": [_covariate(model, name) for name in model.schema.covariates],
    }


def why_unrefined(model: MultimodalModel) -> str:
    """Why nothing can be drawn by refiners; empty where something can."""
    if isinstance(model, Stack):
        return "a stack has no refiners"
    return "" if model.refiners else "no refiner was trained: mvkit.fit_refiner"


def _covariate(model: MultimodalModel, name: str) -> dict[str, Any]:
    levels = model.schema.covariates[name].levels
    if levels:
        return {"name": name, "levels": levels}
    low, high = range_of(model, name)
    return {"name": name, "levels": [], "low": low, "high": high}


def range_of(model: MultimodalModel, name: str) -> tuple[float, float]:
    """The range of a number of the rows in training; around 0 where none is known."""
    conditions = cast(Conditions, model.decoding.conditions)
    column = list(conditions.covariates).index(name)
    known = conditions.rows[:, column]
    known = known[~known.isnan()]
    if not len(known) or bool((known == known[0]).all()):
        return -3.0, 3.0
    return float(known.min()), float(known.max())
