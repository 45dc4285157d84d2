"""Simulated missingness: a pure function of (seed, row, place), whatever the batches or workers.

Axes: b rows, m modalities, n places of a modality.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.modality import Modality
from mvkit.core.noise import row_uniforms
from mvkit.core.raw_values import widened
from mvkit.data.align import presence
from mvkit.errors import DataError, check_option, check_whole_number, suggest

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Modalities = Mapping[str, Modality]
Rate = float | Mapping[object, float]  # a share of places, or shares by modality or label


def at_random(rows: int, modalities: int, rate: float, seed: int) -> Bools:
    """A mask (b, m), True where observed, in which each place is missing with probability `rate`.

    A row keeps one place at least.
    """
    everything = np.ones((rows, modalities), dtype=bool)
    return _kept(everything, row_uniforms(seed, rows, modalities), rate)


def _kept(seen: Bools, uniform: Array, rate: float | Array) -> Bools:
    """Places seen (b, n) whose uniform is at least the rate; else that of the largest uniform."""
    kept = seen & (uniform >= rate)
    lost = seen.any(1) & ~kept.any(1)
    kept[lost, np.where(seen[lost], uniform[lost], -1.0).argmax(1)] = True
    return kept


@attrs.frozen
class Simulation:
    """What to hide of a dataset; see `MultimodalDataset.with_missing`."""

    rate: Rate
    of: str
    by: str | None
    block: int
    seed: int

    def __attrs_post_init__(self) -> None:
        check_option("with_missing: of", self.of, "modalities", "elements")
        check_option("with_missing: by", self.by, None, "label", "value")
        check_whole_number("with_missing: block", self.block, 1)
        rates = self.rate.values() if isinstance(self.rate, Mapping) else [self.rate]
        for rate in rates:
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
                raise DataError(f"with_missing: rate {rate!r}; expected a number in [0, 1]")

    def apply(self, batch: Batch, modalities: Modalities) -> Batch:
        """The batch with fewer places observed.

        What was missing stays so, and a row keeps one place at least.
        """
        if batch.schema is not None:
            raise DataError(
                "with_missing: these rows were conformed to a model; expected them as they were "
                "before"
            )
        seen = []
        rates = []
        for name in modalities:
            places, values = self._places(batch, modalities, name)
            seen.append(places)
            rates.append(self._rates(batch, name, values))
        everything = np.concatenate(seen, 1)
        rows, columns = everything.shape
        blocks = row_uniforms(self.seed, math.ceil(rows / self.block), columns)
        uniforms = np.repeat(blocks, self.block, axis=0)[:rows]
        kept = _kept(everything, uniforms, np.concatenate(rates, 1))
        ends = np.cumsum([places.shape[1] for places in seen])
        parts = dict(zip(modalities, np.split(kept, ends[:-1], axis=1), strict=True))
        mask = torch.from_numpy(np.stack([part.any(1) for part in parts.values()], 1))
        elements = batch.elements
        if self.of == "elements":
            elements = {}
            for name in [name for name in parts if name in batch.data]:
                shape = (rows, *element_shape(modalities[name]))
                elements[name] = torch.from_numpy(parts[name]).reshape(shape)
        return attrs.evolve(batch, mask=mask, elements=elements, order=tuple(modalities))

    def _places(self, batch: Batch, modalities: Modalities, name: str) -> tuple[Bools, Array]:
        """Observed places of a modality, (b, n), one per row or its elements, and their values."""
        seen = _seen(batch, modalities, name)
        values = _values(batch, name, seen)
        if self.of == "elements":
            return seen, values
        count = seen.sum(1, keepdims=True)
        means = np.nansum(values, 1, keepdims=True) / np.maximum(count, 1)
        return count > 0, np.where(count > 0, means, np.nan)

    def _rates(self, batch: Batch, name: str, values: Array) -> Array:
        """The rate of each place of a modality, whose values (b, n) are NaN where missing."""
        if self.by == "label":
            labels = batch.extra.get("label")
            if labels is None:
                raise DataError(
                    "with_missing: by='label', but there are no labels; give label= to the dataset"
                )
            rates = _by_label(np.asarray(labels), self.rate)
            return np.broadcast_to(rates[:, None], values.shape)
        rate = self.rate.get(name, 0.0) if isinstance(self.rate, Mapping) else self.rate
        if self.by == "value":
            return _tilted(rate, _ranks(values))
        return np.full(values.shape, float(rate))


def _tilted(rate: float, rank: Array) -> Array:
    """Probabilities of mean `rate` that grow with a rank in (0, 1), as steeply as they can."""
    return 2 * rate * rank if rate <= 0.5 else 1 - 2 * (1 - rate) * (1 - rank)


def _ranks(values: Array) -> Array:
    """Ranks over the rows that are not NaN, in (0, 1); NaN sorts last."""
    count = np.maximum((~np.isnan(values)).sum(0), 1)
    places = values.argsort(0, kind="stable").argsort(0)
    return cast(Array, np.minimum((places + 0.5) / count, 1.0))


def _by_label(labels: np.ndarray, rate: Rate) -> Array:
    """The rate of each row, (b,): given by label, or growing over the sorted labels."""
    shown = labels.astype(str) if labels.dtype == object else labels
    kinds, code = np.unique(shown, return_inverse=True)
    if not isinstance(rate, Mapping):
        return _tilted(rate, (code + 0.5) / len(kinds))
    known = {str(label): float(value) for label, value in rate.items()}
    for kind in kinds:
        if str(kind) not in known:
            raise DataError(
                f"with_missing: no rate for label {kind.item()!r}; {suggest(str(kind), known)}; "
                "give one"
            )
    return np.array([known[str(kind)] for kind in kinds])[code]


def element_shape(modality: Modality) -> tuple[int, ...]:
    """The shape of what is observed of a row: classes are observed together."""
    classes = getattr(modality.likelihood, "class_axis", False)
    return modality.shape[:-1] if classes and not modality.transform else modality.raw_shape


def _seen(batch: Batch, modalities: Modalities, name: str) -> Bools:
    """What is observed of a modality, (b, n)."""
    shape = (len(batch), math.prod(element_shape(modalities[name])))
    if name not in batch.data:
        return np.zeros(shape, dtype=bool)
    seen = presence(batch.data[name]).reshape(*shape, -1).all(-1)
    if batch.elements is not None and name in batch.elements:
        seen = seen & batch.elements[name].reshape(shape)
    if batch.mask is not None:
        order = batch.order or tuple(modalities)
        seen = seen & batch.mask[:, [order.index(name)]]
    return seen.cpu().numpy()


def _values(batch: Batch, name: str, seen: Bools) -> Array:
    """Values (b, n), NaN where missing; the number of its class where there are classes."""
    if name not in batch.data:
        return np.full(seen.shape, np.nan)
    classes = batch.data[name].double().reshape(*seen.shape, -1)
    values = classes.argmax(-1) if classes.shape[-1] > 1 else classes[..., 0]
    return np.where(seen, values.double().cpu().numpy(), np.nan)


def raw_values(batch: Batch, name: str, modalities: Modalities) -> Tensor:
    """A modality's values (b, *shape) as floats, NaN where missing.

    Raises:
        DataError: there are none.
    """
    values = seen_values(batch, name, modalities)
    if values is None:
        raise DataError(
            f"data[{name!r}]: nothing is observed; expected one row at least; leave the modality "
            "out"
        )
    return values


def seen_values(batch: Batch, name: str, modalities: Modalities) -> Tensor | None:
    """A modality's values (b, *shape) as floats, NaN where missing; None: nothing is observed."""
    seen = _seen(batch, modalities, name)
    if not seen.any():
        return None
    x = batch.data[name]
    places = torch.from_numpy(seen).reshape(len(x), *element_shape(modalities[name]))
    x = x.reshape(-1, 1) if x.ndim < places.ndim else x
    return torch.where(
        widened(places, x.shape), x if x.is_floating_point() else x.double(), torch.nan
    )
