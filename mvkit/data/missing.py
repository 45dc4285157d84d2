"""Simulated missingness: a pure function of (seed, row, place), whatever the batches or workers.

Axes: b rows, m modalities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.modality import Modality
from mvkit.errors import DataError, suggest

Array = NDArray[np.float64]


Bools = NDArray[np.bool_]


def uniforms(seed: int, rows: int, columns: int, *, start: int = 0) -> Array:
    """Uniforms (rows, columns) in [0, 1), each a hash of (seed, row, start + column): the splitmix64 finaliser."""
    row = np.arange(rows, dtype=np.uint64)[:, None]
    column = np.arange(start, start + columns, dtype=np.uint64)[None, :]
    with np.errstate(over="ignore"):
        state = np.uint64(seed % 2**63) * np.uint64(0x9E3779B97F4A7C15) + row * np.uint64(
            0xD1B54A32D192ED03
        )
        state = state + (column + np.uint64(1)) * np.uint64(0x8CB92BA72F3D8DD7)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) / 2.0**53


def at_random(rows: int, modalities: int, rate: float, seed: int) -> Bools:
    """A mask (b, m), True where observed: each place missing with probability `rate`, one at least kept a row."""
    return _kept(np.ones((rows, modalities), dtype=bool), uniforms(seed, rows, modalities), rate)


def _kept(seen: Bools, uniform: Array, rate: float | Array) -> Bools:
    """What stays of the places seen (b, n): those whose uniform is at least the rate, or else the largest one."""
    kept = seen & (uniform >= rate)
    lost = seen.any(1) & ~kept.any(1)
    kept[lost, np.where(seen[lost], uniform[lost], -1.0).argmax(1)] = True
    return kept


@attrs.frozen
class Simulation:
    """What to hide of a dataset; see `MultimodalDataset.with_missing`."""

    rate: Any
    of: str
    by: str | None
    block: int
    seed: int

    def __attrs_post_init__(self) -> None:
        for name, known in (("of", ("modalities", "elements")), ("by", (None, "label", "value"))):
            if getattr(self, name) not in known:
                raise DataError(
                    f"with_missing: {name}={getattr(self, name)!r}; expected one of {known}"
                )
        rates = self.rate.values() if isinstance(self.rate, Mapping) else [self.rate]
        for rate in rates:
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
                raise DataError(f"with_missing: rate {rate!r}; expected a number in [0, 1]")
        if self.block < 1:
            raise DataError(
                f"with_missing: block={self.block}; expected a number of rows, 1 at least"
            )

    def apply(self, batch: Batch, modalities: Mapping[str, Modality]) -> Batch:
        """The batch with fewer places observed; what was missing stays so, and a row keeps one place at least."""
        if batch.schema is not None:
            raise DataError(
                "with_missing: these rows were conformed to a model; expected them as they were before"
            )
        seen = [
            _seen(batch, modality, name, i)
            for i, (name, modality) in enumerate(modalities.items())
        ]
        whole = np.stack([one.any(1) for one in seen], 1)
        order = tuple(modalities)
        if self.of == "modalities":
            rates = np.stack(
                [
                    self._rates(batch, name, _means(batch, name, seen[i]))
                    for i, name in enumerate(order)
                ],
                1,
            )
            kept = _kept(whole, self._uniforms(*whole.shape), rates)
            return attrs.evolve(batch, mask=torch.from_numpy(kept), order=order)
        every = np.concatenate(seen, 1)
        wide = [
            self._rates(batch, name, _flat(batch, name, one))
            for name, one in zip(order, seen, strict=True)
        ]
        kept = _kept(every, self._uniforms(*every.shape), np.concatenate(wide, 1))
        parts = np.split(kept, np.cumsum([one.shape[1] for one in seen])[:-1], axis=1)
        mask = np.stack([part.any(1) for part in parts], 1)
        elements = {
            name: torch.from_numpy(part).reshape(len(batch), *_element_shape(modalities[name]))
            for name, part in zip(order, parts, strict=True)
            if name in batch.data
        }
        return attrs.evolve(batch, mask=torch.from_numpy(mask), elements=elements, order=order)

    def _uniforms(self, rows: int, columns: int) -> Array:
        """Uniforms (b, n), the same for all rows of a block."""
        return np.repeat(
            uniforms(self.seed, math.ceil(rows / self.block), columns), self.block, axis=0
        )[:rows]

    def _rates(self, batch: Batch, name: str, values: Array) -> Array:
        """The rate of each place of a modality, whose values (b, n) or (b,) are NaN where missing."""
        if self.by == "label":
            labels = batch.extra.get("label")
            if labels is None:
                raise DataError(
                    "with_missing: by='label', but there are no labels; give label= to the dataset"
                )
            rates = _by_label(np.asarray(labels), self.rate)
            return rates.reshape(-1, *[1] * (values.ndim - 1)) + np.zeros_like(values)
        rate = self.rate
        if isinstance(rate, Mapping):
            rate = rate.get(name, 0.0)
        return (
            _tilted(rate, _ranks(values))
            if self.by == "value"
            else np.full(values.shape, float(rate))
        )


def _tilted(rate: float, rank: Array) -> Array:
    """Probabilities of mean `rate` that grow with a rank in (0, 1), as steeply as they can."""
    return 2 * rate * rank if rate <= 0.5 else 1 - 2 * (1 - rate) * (1 - rank)


def _ranks(values: Array) -> Array:
    """ProcessGroup over the rows that are not NaN, in (0, 1); NaN sorts last."""
    count = np.maximum((~np.isnan(values)).sum(0), 1)
    ranks: Array = np.minimum((values.argsort(0, kind="stable").argsort(0) + 0.5) / count, 1.0)
    return ranks


def _by_label(labels: NDArray[Any], rate: Any) -> Array:
    """The rate of each row, (b,): given by label, or growing over the sorted labels."""
    shown = labels.astype(str) if labels.dtype == object else labels
    kinds, code = np.unique(shown, return_inverse=True)
    if not isinstance(rate, Mapping):
        return _tilted(rate, (code + 0.5) / len(kinds))
    known = {str(label): float(value) for label, value in rate.items()}
    for kind in kinds:
        if str(kind) not in known:
            raise DataError(
                f"with_missing: no rate for label {kind.item()!r}; {suggest(str(kind), known)}; give one"
            )
    return np.array([known[str(kind)] for kind in kinds])[code]


def _element_shape(modality: Modality) -> tuple[int, ...]:
    """The shape of what is observed of a row: classes are observed together."""
    plain = not modality.transform and getattr(modality.likelihood, "class_axis", False)
    return modality.shape[:-1] if plain else modality.raw_shape


def _seen(batch: Batch, modality: Modality, name: str, i: int) -> Bools:
    """What is observed of a modality, (b, n)."""
    x, shape = batch.data.get(name), _element_shape(modality)
    if x is None:
        return np.zeros((len(batch), math.prod(shape)), dtype=bool)
    seen = ~torch.isnan(x) if x.is_floating_point() else torch.ones_like(x, dtype=torch.bool)
    seen = seen.reshape(len(x), math.prod(shape), -1).all(-1)
    if batch.elements is not None and name in batch.elements:
        seen = seen & batch.elements[name].reshape(seen.shape)
    if batch.mask is not None:
        column = i if batch.order is None else batch.order.index(name)
        seen = seen & batch.mask[:, [column]]
    return seen.cpu().numpy()


def raw_values(batch: Batch, name: str, modalities: Mapping[str, Modality]) -> Tensor:
    """A modality's values (b, *shape) as floats, NaN where missing.

    Raises:
        DataError: there are none.
    """
    x, seen = (
        batch.data.get(name),
        _seen(batch, modalities[name], name, list(modalities).index(name)),
    )
    if x is None or not seen.any():
        raise DataError(
            f"data[{name!r}]: nothing is observed; expected one row at least; leave the modality out"
        )
    wide = torch.from_numpy(seen).reshape(len(x), *_element_shape(modalities[name]))
    x = x.reshape(-1, 1) if x.ndim < wide.ndim else x
    wide = wide.reshape(*wide.shape, *[1] * (x.ndim - wide.ndim))
    return torch.where(wide, x if x.is_floating_point() else x.double(), torch.nan)


def _flat(batch: Batch, name: str, seen: Bools) -> Array:
    """Values (b, n), NaN where missing; the number of its class where there are classes."""
    x: Tensor | None = batch.data.get(name)
    if x is None:
        return np.full(seen.shape, np.nan)
    wide = x.double().reshape(*seen.shape, -1)
    values = wide.argmax(-1).double() if wide.shape[-1] > 1 else wide[..., 0]
    return np.where(seen, values.cpu().numpy(), np.nan)


def _means(batch: Batch, name: str, seen: Bools) -> Array:
    """The mean value of each row, (b,), NaN where nothing is observed."""
    values = np.where(seen, _flat(batch, name, seen), 0.0)
    return np.where(seen.any(1), values.sum(1) / np.maximum(seen.sum(1), 1), np.nan)
