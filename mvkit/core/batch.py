"""Batches of partially observed rows, and the one place where data from outside are checked.

Axes: b rows, m modalities. A `Batch` is what users make; `conform` turns it into one that a model can use
without looking at values again: unobserved places hold zeros, whatever they held before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from functools import cached_property
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from mvkit.core.validation import Columns, Schema, Source, as_tensor, conform_values
from mvkit.errors import DataError, NothingObserved, ShapeError, suggest


def _tensors(value: Mapping[str, Any] | None) -> dict[str, Tensor] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ShapeError(
            f"batch: got {type(value).__name__}; expected a mapping from modality to tensor"
        )
    return {k: v if _plain(v) else as_tensor(v, f"batch.data[{k!r}]") for k, v in value.items()}


def _plain(value: Any) -> bool:
    return type(value) is Tensor and value.layout is torch.strided


def _data(value: Mapping[str, Any]) -> dict[str, Tensor]:
    return _tensors(value) or {}


def _mask(value: Any) -> Tensor | None:
    return value if value is None or _plain(value) else as_tensor(value, "batch.mask")


@attrs.frozen(eq=False)
class Batch:
    """Rows of data with gaps.

    Args:
        data: modality to values (b, *shape), in any order; an absent modality is unobserved. Whatever stands
            in an unobserved place, NaN included, changes no number.
        mask: what is observed, (b, m) bool in the model's order. None: a row of a modality that is all NaN is
            unobserved, single NaNs become `elements`.
        elements: which single values are observed, {name: (b, *shape) bool}; for `categorical` without the
            class axis.
        extra: anything else about the rows (labels, ids): length b each, never modelled.
        order: names of the columns of `mask`; None: the model's.
        columns: what the columns of modalities that came from tables are called: the model puts them in the order that
            it was trained on.
        schema, observed_rows, complete_rows, first_empty_row: set by `conform`: what the batch was conformed to, indices of the rows that
            observe each modality, of those that observe all (None: every row), the first that observes nothing; by
            `hide`: what it hid, for which nothing is decoded.

    Example:
        >>> import torch
        >>> import mvkit
        >>> batch = mvkit.Batch({"a": torch.tensor([[1.0, 2.0], [float("nan"), float("nan")]])})
        >>> len(batch)
        2
    """

    data: dict[str, Tensor] = attrs.field(converter=_data)
    mask: Tensor | None = attrs.field(default=None, converter=_mask)
    elements: dict[str, Tensor] | None = attrs.field(default=None, converter=_tensors)
    extra: dict[str, Any] = attrs.field(factory=dict)
    order: tuple[str, ...] | None = attrs.field(default=None, kw_only=True, repr=False)
    columns: dict[str, Columns] = attrs.field(factory=dict, kw_only=True, repr=False)
    schema: Schema | None = attrs.field(default=None, kw_only=True, repr=False)
    observed_rows: tuple[Tensor | None, ...] = attrs.field(default=(), kw_only=True, repr=False)
    complete_rows: Tensor | None = attrs.field(default=None, kw_only=True, repr=False)
    first_empty_row: int | None = attrs.field(default=None, kw_only=True, repr=False)
    hidden: frozenset[str] = attrs.field(default=frozenset(), kw_only=True, repr=False)

    def __len__(self) -> int:
        if self.mask is not None:
            return len(self.mask)
        return next((len(value) for value in self.data.values()), 0)

    @cached_property
    def observed(self) -> Tensor:
        """The mask (b, m) of a conformed batch."""
        if self.mask is None:
            raise DataError("batch: not conformed to a model yet; use mvkit.core.batch.conform")
        return self.mask

    @property
    def complete(self) -> bool:
        """Whether every row observes every modality, known without looking at the device."""
        return all(index is None for index in self.observed_rows)

    def computed(self) -> dict[str, Tensor | None]:
        """Modalities for which something is computed, with indices of the rows that observe them (None: all).

        Left out are hidden ones and, without gradients, those that no row observes.
        """
        computed = {}
        for name, rows in zip(self.data, self.observed_rows, strict=True):
            empty = rows is not None and not len(rows)
            if name not in self.hidden and (not empty or torch.is_grad_enabled()):
                computed[name] = rows
        return computed

    @property
    def no_rows(self) -> Tensor:
        """An index of no rows, on the batch's device."""
        return torch.empty(0, dtype=torch.long, device=self.observed.device)

    def inputs(self, name: str, index: Tensor | None = None, *, indicator: bool = False) -> Tensor:
        """What an encoder sees of a modality at rows `index`, (n, *shape): zeros where elements are missing.

        With `indicator`, (n, 2 C, ...): first the values, then ones where they are observed.
        """
        x = self.data[name]
        rows = x if index is None else x.index_select(0, index)
        if not indicator:
            return rows
        seen = (self.elements or {}).get(name)
        if seen is None:
            return torch.cat([rows, torch.ones_like(rows)], 1)
        seen = seen if index is None else seen.index_select(0, index)
        seen = seen.reshape(
            *seen.shape, *[1] * (rows.ndim - seen.ndim)
        )  # classes are observed together
        return torch.cat([rows, seen.expand_as(rows).to(rows.dtype)], 1)

    def take(self, index: Tensor | slice | Sequence[int]) -> Batch:
        """The rows at `index` (n,), gathered in one go a tensor."""
        if not isinstance(index, slice | Tensor):
            index = torch.as_tensor(index)
        if isinstance(index, Tensor) and index.dtype == torch.bool:
            index = index.nonzero()[:, 0]

        def pick(tensor: Tensor) -> Tensor:
            return tensor[index] if isinstance(index, slice) else tensor.index_select(0, index)

        mask = None if self.mask is None else pick(self.mask)
        return attrs.evolve(
            self,
            data={name: pick(value) for name, value in self.data.items()},
            mask=mask,
            elements=None
            if self.elements is None
            else {n: pick(v) for n, v in self.elements.items()},
            extra={name: _pick(value, index) for name, value in self.extra.items()},
            **({} if self.schema is None or mask is None else indices_of(mask)),
        )

    def hide(self, keep: Iterable[str]) -> Batch:
        """A conformed batch with only the modalities in `keep` left observed."""
        if self.schema is None:
            raise DataError("batch: not conformed to a model yet; use mvkit.core.batch.conform")
        kept = set(keep)
        flags = [name in kept or name in self.hidden for name in self.schema.names]
        if all(flags):
            return self
        mask = self.observed.clone()
        for i, flag in enumerate(flags):
            if not flag:
                mask[:, i] = False
        none = self.no_rows
        rows = tuple(
            index if flag else none for index, flag in zip(self.observed_rows, flags, strict=True)
        )
        hidden = self.hidden | {
            name for name, flag in zip(self.schema.names, flags, strict=True) if not flag
        }
        return attrs.evolve(
            self,
            mask=mask,
            observed_rows=rows,
            complete_rows=none,
            first_empty_row=None,
            hidden=hidden,
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        same = all(value.device == torch.device(device) for value in self.data.values())
        return (
            self if same else self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with a function applied to every tensor in it."""

        def apply(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: apply(item) for name, item in value.items()}
            if isinstance(value, tuple):
                return tuple(apply(item) for item in value)
            return function(value) if isinstance(value, Tensor) else value

        changed = ("data", "mask", "elements", "extra", "observed_rows", "complete_rows")
        return attrs.evolve(self, **{name: apply(getattr(self, name)) for name in changed})


def _pick(value: Any, index: Tensor | slice) -> Any:
    if isinstance(index, slice) or isinstance(value, Tensor):
        return value[index]
    if isinstance(value, np.ndarray):
        return value[index.numpy()]
    return [value[i] for i in index.tolist()]


def conform(batch: Batch, schema: Schema) -> Batch:
    """The batch as a model with this schema uses it; errors name modality, row and remedy.

    Cast to the model's dtype, mask and elements derived and checked against the data, unobserved places set
    to zero, class indices made one-hot, indices of the observed rows of each modality noted. A batch that was
    conformed to the same schema before is returned as it is. Looks at values, so it waits for the device: do
    it where the data lie, before they are moved (`mvkit.fit` does).

    Raises:
        ShapeError: unknown modality, wrong shape or dtype, lengths that differ.
        DataError: no rows; a mask that disagrees with the data; values that the likelihood cannot take.
    """
    if batch.schema is schema or batch.schema == schema:
        return batch
    for name in batch.data:
        if name not in schema.shapes:
            raise ShapeError(
                f"batch.data: unknown modality {name!r}; {suggest(str(name), schema.names)}"
            )
    for name in batch.elements or {}:
        if name not in batch.data:
            raise ShapeError(
                f"batch.elements: no data for {name!r}; {suggest(str(name), batch.data)}"
            )
    b = _length(batch)
    for name, value in batch.extra.items():
        if isinstance(value, Sized) and len(value) != b:
            raise ShapeError(
                f"batch.extra[{name!r}]: {len(value)} values for {b} rows; expected one for each"
            )
    mask = batch.mask
    old = batch.order if batch.schema is None else batch.schema.names
    if mask is not None and old is not None:  # columns in an order of its own
        _check_mask(mask, b, old)
        lacking = torch.zeros_like(mask[:, 0])
        mask = torch.stack(
            [mask[:, old.index(n)] if n in old else lacking for n in schema.names], dim=1
        )
    if mask is not None:
        _check_mask(mask, b, schema.names)
    data: dict[str, Tensor] = {}
    elements: dict[str, Tensor] = {}
    columns = []
    device = next(iter(batch.data.values())).device
    for i, name in enumerate(schema.names):
        given = None if batch.elements is None else batch.elements.get(name)
        column = None if mask is None else mask[:, i]
        source = _source(batch, name, column, given)
        data[name], observed, present = conform_values(schema, source, b)
        columns.append(observed.to(device))
        if present is not None:
            elements[name] = present
    mask = torch.stack(columns, dim=1)
    return Batch(data, mask, elements or None, batch.extra, schema=schema, **indices_of(mask))


def _source(batch: Batch, name: str, column: Tensor | None, given: Tensor | None) -> Source:
    """What a batch says of a modality; conformed ones are in the units and the order of columns of their model."""
    columns, done = batch.columns.get(name), ()
    if batch.schema is not None:
        features, done = batch.schema.features.get(name), batch.schema.transforms.get(name, ())
        columns = Columns(features) if features else None
    return Source(name, batch.data.get(name), column, given, columns, batch.extra.get("id"), done)


def indices_of(mask: Tensor) -> dict[str, Any]:
    """Which rows observe each modality and which all, and the first that observes nothing."""
    array = mask.cpu().numpy()  # a handful of tiny steps, which numpy takes faster
    counts, b = array.sum(0), len(array)

    def where(flags: Any) -> Tensor:
        return torch.from_numpy(np.flatnonzero(flags)).to(mask.device)

    rows = tuple(None if count == b else where(array[:, i]) for i, count in enumerate(counts))
    each = array.sum(1)
    empty = b if each.all() else int(each.argmin())
    complete = bool((counts == b).all())
    whole = None if complete else where(each == array.shape[1])
    return {
        "observed_rows": rows,
        "complete_rows": whole,
        "first_empty_row": empty if empty < b else None,
    }


def _length(batch: Batch) -> int:
    lengths = {name: len(value) if value.ndim else 0 for name, value in batch.data.items()}
    if not lengths or not max(lengths.values()):
        raise DataError("batch: it is empty; expected one row of one modality at least")
    b = next(iter(lengths.values()))
    for name, length in lengths.items():
        if length != b:
            raise ShapeError(
                f"batch.data[{name!r}]: {length} rows, but {next(iter(lengths))!r} has {b}; expected as many in every "
                "modality; give NaN rows or a mask for rows that a modality lacks"
            )
    return b


def _check_mask(mask: Tensor, b: int, names: tuple[str, ...]) -> None:
    if mask.dtype != torch.bool:
        raise ShapeError(
            f"batch.mask: dtype {mask.dtype}; expected torch.bool, True where observed; use mask.bool()"
        )
    if mask.shape != (b, len(names)):
        raise ShapeError(
            f"batch.mask: shape {tuple(mask.shape)}; expected {(b, len(names))}, columns {', '.join(names)}"
        )


def check_not_empty(batch: Batch) -> None:
    """Raises DataError if a row of a conformed batch observes nothing."""
    if batch.first_empty_row is not None:
        raise NothingObserved(batch.first_empty_row)
    if batch.hidden and not batch.observed.any(1).all():
        raise NothingObserved(int((~batch.observed.any(1)).nonzero()[0]))
