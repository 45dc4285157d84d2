"""Batches of partially observed rows, and the one place where data from outside are checked.

Axes: b rows, n of these rows, m modalities. A `Batch` is what users make; `conform` turns it into
one that a model can use without looking at values again: unobserved entries become zeros.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import attrs
import torch
from attrs.converters import optional
from torch import Tensor

from mvkit.core.batch_fields import (
    as_data,
    as_elements,
    as_mask,
    check_names,
    length_of,
    mask_columns,
)
from mvkit.core.given import conform_given, with_given
from mvkit.core.likelihood import TOTAL
from mvkit.core.raw_values import Columns, Source, widened
from mvkit.core.row_picks import RowIndices, RowPick, indices_of, pick, row_index
from mvkit.core.validation import Schema, conform_indices, conform_values, one_hot
from mvkit.errors import DataError


@attrs.frozen(eq=False)
class Batch:
    """Rows of data with gaps.

    Args:
        data: modality to values (b, *shape), in any order; an absent modality is unobserved.
            Unobserved entries may hold anything, NaN included; they change no number.
        mask: what is observed, (b, m) bool in the model's order. None: a row of a modality that is
            all NaN is unobserved, single NaNs become `elements`.
        elements: which single values are observed, {name: (b, *shape) bool}; for `categorical`
            without the class axis.
        extra: anything else about the rows (labels, ids, covariates): length b each.
        order: names of the columns of `mask`; None: the model's.
        covariates: what models may be conditioned on, {name: one value for each row}: words or
            numbers, None or NaN where missing. It is kept among `extra`, where models look for
            their covariates by name; of a conformed batch, the checked values (b,).
        row_weight: how much each row counts in objectives, (b,), at least 0; kept in
            `extra["row_weight"]`.
        columns: names of the columns of modalities that came from tables: the model puts them in
            the order of its training.
        schema: set by `conform`: what the batch was conformed to.
        observed_rows: set by `conform`: for each modality, indices of the rows that observe it;
            None: every row.
        complete_rows: set by `conform`: indices of the rows that observe every modality; likewise.
        may_lack: set by `dense`: modalities that some of its rows may lack; None: it is not dense.
        first_empty_row: set by `conform`: the first row that observes nothing, if there is one.
        exposure: set by `conform`: of the modalities that have one, {name: (b,)}, NaN where
            unknown.
        hidden: set by `hide`: the modalities that it hid, for which nothing is decoded.
        classes: set by `conform(compact=True)`: how many classes there are, of modalities whose
            values are class indices still.

    Example:
        >>> import torch
        >>> import mvkit
        >>> batch = mvkit.Batch({"a": torch.tensor([[1.0, 2.0], [float("nan"), float("nan")]])})
        >>> len(batch)
        2
    """

    data: dict[str, Tensor] = attrs.field(converter=as_data)
    mask: Tensor | None = attrs.field(default=None, converter=optional(as_mask))
    elements: dict[str, Tensor] | None = attrs.field(default=None, converter=optional(as_elements))
    extra: dict[str, Any] = attrs.field(factory=dict)
    order: tuple[str, ...] | None = attrs.field(default=None, kw_only=True, repr=False)
    covariates: dict[str, Any] = attrs.field(factory=dict, kw_only=True)
    row_weight: Any = attrs.field(default=None, kw_only=True)
    columns: dict[str, Columns] = attrs.field(factory=dict, kw_only=True, repr=False)
    schema: Schema | None = attrs.field(default=None, kw_only=True, repr=False)
    observed_rows: tuple[Tensor | None, ...] = attrs.field(default=(), kw_only=True, repr=False)
    _complete_rows: Tensor | None = attrs.field(default=None, kw_only=True, repr=False)
    may_lack: frozenset[str] | None = attrs.field(default=None, kw_only=True, repr=False)
    first_empty_row: int | None = attrs.field(default=None, kw_only=True, repr=False)
    exposure: dict[str, Tensor] = attrs.field(factory=dict, kw_only=True, repr=False)
    hidden: frozenset[str] = attrs.field(default=frozenset(), kw_only=True, repr=False)
    classes: dict[str, int] = attrs.field(factory=dict, kw_only=True, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.schema is not None or (not self.covariates and self.row_weight is None):
            return
        extra = with_given(self.extra, self.covariates, self.row_weight)
        for field, value in {"extra": extra, "covariates": {}, "row_weight": None}.items():
            object.__setattr__(self, field, value)

    def __len__(self) -> int:
        if self.mask is not None and self.mask.ndim:
            return len(self.mask)
        return next((len(value) for value in self.data.values() if value.ndim), 0)

    @cached_property
    def observed(self) -> Tensor:
        """The mask (b, m) of a conformed batch."""
        if self.mask is None:
            raise DataError("batch: not conformed to a model yet; use model.conform(batch)")
        return self.mask

    @property
    def complete(self) -> bool:
        """Whether every row observes every modality, known without looking at the device."""
        return self._complete_rows is None if self.may_lack is None else not self.may_lack

    def seen_by_all(self, name: str) -> bool:
        """Whether every row observes a modality, known without looking at the device; of a
        `narrowed` batch, whether every row did.
        """
        if self.may_lack is not None:
            return name not in self.may_lack
        return self.observed_rows[list(self.data).index(name)] is None

    @property
    def complete_rows(self) -> Tensor | None:
        """Indices of the rows that observe every modality, (n,); None: all.

        Raises:
            DataError: the batch is dense, so that only its mask tells.
        """
        if self.may_lack:
            raise DataError(
                "batch: it is dense, and which of its rows are complete is known to the device "
                "alone; expected a batch with indices of rows; use batch.observed.all(1)"
            )
        return self._complete_rows

    def dense(self, may_lack: Iterable[str] = ()) -> Batch:
        """This conformed batch, computed in all rows, of which the mask says what counts.

        Elsewhere the rows that observe a modality are gathered, and their number differs between
        batches. Dense ones have the shapes of the batch alone, so that no step waits for a device,
        and one graph serves all. Losses and gradients are the same to rounding. Batch norm is
        refused for a modality that rows may lack, since it would see rows that are not there;
        Dropout draws for more rows, and so draws something else.

        Args:
            may_lack: modalities to be taken for ones that some row may lack, beside those that
                rows of this batch do lack: with those of a whole dataset, all its batches take the
                same steps.

        Example:
            >>> import mvkit, torch
            >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
            >>> mask = torch.tensor([[True, True], [True, False]])
            >>> rows = mvkit.Batch({"a": torch.zeros(2, 3), "b": torch.zeros(2, 2)}, mask)
            >>> batch = model.conform(rows).dense()
            >>> batch.may_lack, batch.observed_rows, batch.complete
            (frozenset({'b'}), (None, None), False)
        """
        if self.schema is None:
            raise DataError("batch: not conformed to a model yet; use model.conform(batch)")
        lacking = {name for name in self.data if not self.seen_by_all(name)}
        rows = (None,) * len(self.data)
        may_lack = frozenset(lacking.union(may_lack))
        return attrs.evolve(self, observed_rows=rows, complete_rows=None, may_lack=may_lack)

    def narrowed(self, mask: Tensor, **changes: Any) -> Batch:
        """A conformed batch of whose modalities a mask (b, m) leaves fewer to each row.

        Nothing waits for the device: no row counts as complete, and rows that observed a modality
        before are computed still.
        """
        changes |= {"complete_rows": self.no_rows, "first_empty_row": None}
        may_lack = None if self.may_lack is None else frozenset(self.data)
        return attrs.evolve(self, mask=mask, may_lack=may_lack, **changes)

    def computed(self) -> dict[str, Tensor | None]:
        """Modalities that are computed, with indices of the rows that observe them (None: all).

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

    def inputs(
        self,
        name: str,
        index: Tensor | None = None,
        *,
        indicator: bool = False,
        log1p: bool = False,
    ) -> Tensor:
        """What an encoder sees of a modality at rows `index`, (n, *shape), zeros where unobserved.

        With `indicator`, (n, 2 C, ...): first the values, then ones where they are observed. With
        `log1p`, the values are log(1 + x).
        """
        x = self.data[name]
        elements = (self.elements or {}).get(name)
        if index is not None:
            x = x.index_select(0, index)
            elements = None if elements is None else elements.index_select(0, index)
        if log1p:
            x = x.log1p()
        if not indicator:
            return x
        if elements is None:
            return torch.cat([x, torch.ones_like(x)], 1)
        # classes are observed together
        return torch.cat([x, widened(elements, x.shape).to(x.dtype)], 1)

    def present(self, name: str) -> Tensor:
        """Which values of a modality a conformed batch observes, (b, *shape) bool."""
        shape = self.data[name].shape
        rows = widened(self.observed[:, list(self.data).index(name)], shape)
        if self.elements is None or name not in self.elements:
            return rows
        return rows & widened(self.elements[name], shape)

    def take(self, index: RowPick) -> Batch:
        """The rows at `index`, as numpy picks them: positions (n,), negative ones from the end;
        flags (b,); a slice; or ids, if the rows have some.

        Raises:
            RequestError: positions beyond the rows, or no whole numbers; ids that no row has.
            ShapeError: flags for another number of rows.
        """
        if not (isinstance(index, Tensor) and index.dtype == torch.long):
            return self._rows(row_index(index, len(self), self.extra.get("id")))
        try:  # positions from within the package are right
            return self._rows(index)
        except (IndexError, RuntimeError):
            return self._rows(row_index(index, length_of(self.data, self.extra)))

    def _rows(self, index: Tensor | slice) -> Batch:
        mask = None if self.mask is None else pick(self.mask, index)
        indices: RowIndices = {}
        if self.may_lack is not None:
            indices = {"first_empty_row": None}
        elif self.schema is not None and mask is not None:
            indices = indices_of(mask)
        data = {name: pick(value, index) for name, value in self.data.items()}
        extra = {name: pick(value, index) for name, value in self.extra.items()}
        elements = self.elements
        if elements is not None:
            elements = {name: pick(value, index) for name, value in elements.items()}
        given: dict[str, Any] = {}
        for field in ("covariates", "exposure"):
            values = getattr(self, field)
            given[field] = {name: pick(value, index) for name, value in values.items()}
        if self.row_weight is not None:
            given["row_weight"] = pick(self.row_weight, index)
        changed = {"data": data, "mask": mask, "elements": elements, "extra": extra, **given}
        return attrs.evolve(self, **changed, **indices)

    def hide(self, keep: Iterable[str]) -> Batch:
        """A conformed batch with only the modalities in `keep` left observed."""
        if self.schema is None:
            raise DataError("batch: not conformed to a model yet; use model.conform(batch)")
        names = self.schema.names
        hidden = self.hidden | set(names).difference(keep)
        if hidden == self.hidden:
            return self
        mask = self.observed.clone()
        rows = list(self.observed_rows)
        dense = self.may_lack is not None
        for i, name in enumerate(names):
            if name in hidden:
                mask[:, i] = False
                rows[i] = None if dense else self.no_rows
        totals = [name for name in hidden if self.schema.exposures.get(name) == TOTAL]
        exposure = {name: x for name, x in self.exposure.items() if name not in totals}
        return attrs.evolve(
            self,
            mask=mask,
            exposure=exposure,
            observed_rows=tuple(rows),
            complete_rows=self.no_rows,
            may_lack=self.may_lack | hidden if self.may_lack is not None else None,
            first_empty_row=None,
            hidden=hidden,
        )

    def keeping(self, mask: Tensor) -> Batch:
        """A conformed batch with only what a mask (b, m) keeps of each row; waits for the device,
        which tells the indices of rows, unless the batch is dense.
        """
        if self.may_lack is not None:
            return self.narrowed(mask)
        return attrs.evolve(self, mask=mask, **indices_of(mask))

    def expanded(self) -> Batch:
        """The batch with its class indices one-hot, as models take it."""
        if not self.classes or self.schema is None:
            return self
        data = dict(self.data)
        for name, number in self.classes.items():
            data[name] = one_hot(data[name], number, self.schema.dtype)
        return attrs.evolve(self, data=data, classes={})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        if all(value.device == torch.device(device) for value in self.data.values()):
            return self
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with a function applied to every tensor in it."""

        def apply(value: object) -> Any:
            if isinstance(value, dict):
                return {name: apply(item) for name, item in value.items()}
            if isinstance(value, tuple):
                return tuple(apply(item) for item in value)
            return function(value) if isinstance(value, Tensor) else value

        fields = ["data", "mask", "elements", "extra", "observed_rows"]
        fields += ["covariates", "exposure", "row_weight"]
        changed = {name: apply(getattr(self, name)) for name in fields}
        return attrs.evolve(self, complete_rows=apply(self._complete_rows), **changed)


def conform(batch: Batch, schema: Schema, *, compact: bool = False) -> Batch:
    """The batch as a model with this schema uses it; errors name modality, row and remedy.

    Casts to the model's dtype, derives mask and elements and checks them against the data, sets
    unobserved entries to zero, makes class indices one-hot, and notes which rows observe each
    modality. A batch that was conformed to the same schema before is returned as it is. Looks at
    values, so it waits for the device: call it where the data are, before they are moved
    (`mvkit.fit` does).

    Args:
        batch: rows from outside.
        schema: the model's.
        compact: leave class indices what they are, which takes as many times less memory as there
            are classes; `expanded` makes the rows of it that a model is given one-hot.

    Raises:
        ShapeError: unknown modality, wrong shape or dtype, lengths that differ.
        DataError: no rows; a mask that contradicts the data; values that a likelihood cannot take.
    """
    if batch.schema is schema or batch.schema == schema:
        return batch if compact else batch.expanded()
    batch = batch.expanded()
    check_names(batch.data, batch.elements or {}, schema.names)
    b = length_of(batch.data, batch.extra)
    columns = {}
    if batch.mask is not None:
        order = batch.order if batch.schema is None else batch.schema.names
        columns = mask_columns(batch.mask, order or schema.names, schema.names, b)
    device = next(iter(batch.data.values())).device
    data = {}
    elements = {}
    observed = []
    classes = {}
    for name in schema.names:
        source = _source(batch, name, columns.get(name))
        indices = conform_indices(schema, source) if compact else None
        if indices is not None:
            data[name], rows = indices
            classes[name] = schema.shapes[name][-1]
        else:
            data[name], rows, present = conform_values(schema, source, b)
            _warn_if_odd(name, schema, data[name])
            if present is not None:
                elements[name] = present
        observed.append(rows.to(device))
    mask = torch.stack(observed, dim=1)
    given = conform_given(schema, data, mask, batch.extra)
    fixed = {"schema": schema, "classes": classes, **given, **indices_of(mask)}
    return Batch(data, mask, elements or None, batch.extra, **fixed)


def _warn_if_odd(name: str, schema: Schema, x: Tensor) -> None:
    warning = schema.likelihoods[name].sanity_warning(x)
    if warning:
        warnings.warn(f"batch.data[{name!r}]: {warning}", stacklevel=3)


def _source(batch: Batch, name: str, observed: Tensor | None) -> Source:
    """What a batch holds of a modality; if conformed, in the units and columns of its model."""
    x = batch.data.get(name)
    elements = (batch.elements or {}).get(name)
    ids = batch.extra.get("id")
    if batch.schema is None:
        return Source(name, x, observed, elements, batch.columns.get(name), ids)
    features = batch.schema.features.get(name)
    columns = Columns(features) if features else None
    done = batch.schema.transforms.get(name, ())
    return Source(name, x, observed, elements, columns, ids, done)
