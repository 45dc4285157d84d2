"""Batches of partially observed rows, and the one place where data from outside are checked.

Axes: b rows, m modalities. A `Batch` is what users make; `conform` turns it into one that a model can use
without looking at values again: unobserved places hold zeros, whatever they held before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any

import attrs
import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional

from mvkit.errors import DataError, NothingObserved, ShapeError, suggest
from mvkit.likelihoods import Likelihood


def as_tensor(value: Any, where: str) -> Tensor:
    """A tensor from a tensor or an array; other things are refused with `where` in the message."""
    if isinstance(value, Tensor):
        return value
    if type(value).__module__.partition(".")[0] in ("pandas", "polars"):
        raise ShapeError(
            f"{where}: got a {type(value).__name__}, whose rows nobody aligned; align, then give .to_numpy()"
        )
    if isinstance(value, np.ma.MaskedArray):
        value = np.where(np.ma.getmaskarray(value), np.nan, np.ma.getdata(value))
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{where}: {error}; expected an array of numbers") from None
    if array.dtype.kind not in "biuf":
        raise ShapeError(f"{where}: got values of type {array.dtype}; expected numbers; convert them first")
    # torch can neither hold a read-only array nor a byte order that is not the machine's
    array = np.array(array, dtype=array.dtype.newbyteorder("="), copy=not array.flags.writeable or None)
    return torch.from_numpy(np.ascontiguousarray(array))


def _tensors(value: Mapping[str, Any] | None) -> dict[str, Tensor] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ShapeError(f"batch: got {type(value).__name__}; expected a mapping from modality to tensor")
    return {name: as_tensor(item, f"batch.data[{name!r}]") for name, item in value.items()}


def _data(value: Mapping[str, Any]) -> dict[str, Tensor]:
    return _tensors(value) or {}


def _mask(value: Any) -> Tensor | None:
    return None if value is None else as_tensor(value, "batch.mask")


def _in_order(shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, tuple[int, ...]]]:
    return list(shapes.items())  # columns of masks follow the order


def _likelihoods(live: dict[str, Likelihood]) -> list[str]:
    return [repr(one) for one in live.values()]


@attrs.frozen
class Layout:
    """What a model expects of a batch.

    Args:
        shapes: shape of a row of each modality, in the model's order.
        likelihoods: the live likelihoods, likewise.
        dtype: the floating-point type of the model.
    """

    shapes: dict[str, tuple[int, ...]] = attrs.field(eq=_in_order)
    likelihoods: dict[str, Likelihood] = attrs.field(eq=_likelihoods)
    dtype: torch.dtype

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the modalities in order."""
        return tuple(self.shapes)


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
        layout, rows, whole, nothing: set by `conform`: what the batch was conformed to, indices of the rows that
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
    layout: Layout | None = attrs.field(default=None, kw_only=True, repr=False)
    rows: tuple[Tensor | None, ...] = attrs.field(default=(), kw_only=True, repr=False)
    whole: Tensor | None = attrs.field(default=None, kw_only=True, repr=False)
    nothing: int | None = attrs.field(default=None, kw_only=True, repr=False)
    hidden: frozenset[str] = attrs.field(default=frozenset(), kw_only=True, repr=False)

    def __len__(self) -> int:
        if self.mask is not None:
            return len(self.mask)
        return next((len(value) for value in self.data.values()), 0)

    @property
    def observed(self) -> Tensor:
        """The mask (b, m) of a conformed batch."""
        if self.mask is None:
            raise DataError("batch: not conformed to a model yet; use mvkit.batch.conform")
        return self.mask

    @property
    def complete(self) -> bool:
        """Whether every row observes every modality, known without looking at the device."""
        return all(index is None for index in self.rows)

    @property
    def no_rows(self) -> Tensor:
        """An index of no rows, on the batch's device."""
        return torch.empty(0, dtype=torch.long, device=self.observed.device)

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
            elements=None if self.elements is None else {n: pick(v) for n, v in self.elements.items()},
            extra={name: _pick(value, index) for name, value in self.extra.items()},
            **({} if self.layout is None or mask is None else indices_of(mask)),
        )

    def hide(self, keep: Iterable[str]) -> Batch:
        """A conformed batch with only the modalities in `keep` left observed."""
        if self.layout is None:
            raise DataError("batch: not conformed to a model yet; use mvkit.batch.conform")
        kept = set(keep)
        flags = [name in kept for name in self.layout.names]
        if all(flags):
            return self
        mask = self.observed.clone()
        for i, flag in enumerate(flags):
            if not flag:
                mask[:, i] = False
        none = self.no_rows
        rows = tuple(index if flag else none for index, flag in zip(self.rows, flags, strict=True))
        hidden = self.hidden | {name for name, flag in zip(self.layout.names, flags, strict=True) if not flag}
        return attrs.evolve(self, mask=mask, rows=rows, whole=none, nothing=None, hidden=hidden)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        same = all(value.device == torch.device(device) for value in self.data.values())
        return self if same else self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with a function applied to every tensor in it."""

        def apply(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: apply(item) for name, item in value.items()}
            if isinstance(value, tuple):
                return tuple(apply(item) for item in value)
            return function(value) if isinstance(value, Tensor) else value

        changed = ("data", "mask", "elements", "extra", "rows", "whole")
        return attrs.evolve(self, **{name: apply(getattr(self, name)) for name in changed})


def _pick(value: Any, index: Tensor | slice) -> Any:
    if isinstance(index, slice) or isinstance(value, Tensor):
        return value[index]
    if isinstance(value, np.ndarray):
        return value[index.numpy()]
    return [value[i] for i in index.tolist()]


def conform(batch: Batch, layout: Layout) -> Batch:
    """The batch as a model with this layout uses it; errors name modality, row and remedy.

    Cast to the model's dtype, mask and elements derived and checked against the data, unobserved places set
    to zero, class indices made one-hot, indices of the observed rows of each modality noted. A batch that was
    conformed to the same layout before is returned as it is. Looks at values, so it waits for the device: do
    it where the data lie, before they are moved (`mvkit.fit` does).

    Raises:
        ShapeError: unknown modality, wrong shape or dtype, lengths that differ.
        DataError: no rows; a mask that disagrees with the data; values that the likelihood cannot take.
    """
    if batch.layout is layout or batch.layout == layout:
        return batch
    for name in batch.data:
        if name not in layout.shapes:
            raise ShapeError(f"batch.data: unknown modality {name!r}; {suggest(str(name), layout.names)}")
    for name in batch.elements or {}:
        if name not in batch.data:
            raise ShapeError(f"batch.elements: no data for {name!r}; {suggest(str(name), batch.data)}")
    b = _length(batch)
    for name, value in batch.extra.items():
        if isinstance(value, Sized) and len(value) != b:
            raise ShapeError(f"batch.extra[{name!r}]: {len(value)} values for {b} rows; expected one for each")
    mask = batch.mask
    if mask is not None and batch.layout is not None:  # columns in another model's order
        old = batch.layout.names
        lacking = torch.zeros_like(mask[:, 0])
        mask = torch.stack([mask[:, old.index(n)] if n in old else lacking for n in layout.names], dim=1)
    mask = _checked_mask(mask, b, layout.names)
    data: dict[str, Tensor] = {}
    elements: dict[str, Tensor] = {}
    columns = []
    device = next(iter(batch.data.values())).device
    for i, name in enumerate(layout.names):
        given = None if batch.elements is None else batch.elements.get(name)
        column = None if mask is None else mask[:, i]
        data[name], observed, present = _conform_modality(layout, name, batch.data.get(name), column, given, b)
        columns.append(observed.to(device))
        if present is not None:
            elements[name] = present
    mask = torch.stack(columns, dim=1)
    return Batch(data, mask, elements or None, batch.extra, layout=layout, **indices_of(mask))


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
    return {"rows": rows, "whole": whole, "nothing": empty if empty < b else None}


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


def _checked_mask(mask: Tensor | None, b: int, names: tuple[str, ...]) -> Tensor | None:
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        raise ShapeError(f"batch.mask: dtype {mask.dtype}; expected torch.bool, True where observed; use mask.bool()")
    if mask.shape != (b, len(names)):
        raise ShapeError(
            f"batch.mask: shape {tuple(mask.shape)}; expected {(b, len(names))}, columns {', '.join(names)}"
        )
    return mask


def _conform_modality(
    layout: Layout, name: str, x: Tensor | None, column: Tensor | None, given: Tensor | None, b: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Values without fillers, observed rows (b,), and observed elements or None where all are."""
    shape, likelihood = layout.shapes[name], layout.likelihoods[name]
    where = f"batch.data[{name!r}]"
    if x is None:
        if column is not None and column.any():
            raise DataError(f"{where}: the mask says row {_first(column)} is observed, but there are no data; add them")
        observed = torch.zeros(b, dtype=torch.bool, device=column.device if column is not None else None)
        return torch.zeros((), dtype=layout.dtype, device=observed.device).expand(b, *shape), observed, None
    x = _typed(x, layout, name, where)
    missing = torch.isnan(x)
    if likelihood.class_axis:
        _refuse(missing.any(-1) & ~missing.all(-1), column, x, where, "is NaN for some classes only", "all or none")
        missing = missing.all(-1)
    column = None if column is None else column.to(x.device)
    present = _elements(missing, column, given, name, where)
    observed = reduce(present, "b ... -> b", "max") if column is None else column
    seen = present & _expand(observed, present)
    bare = observed & ~reduce(seen, "b ... -> b", "max")
    if bare.any():
        raise DataError(f"{where}: the mask says row {_first(bare)} is observed, but none of its elements; correct one")
    full = rearrange(seen, "... -> ... 1") if likelihood.class_axis else seen
    _refuse(likelihood.outside(x) & full, None, x, where, "cannot be taken", likelihood.support)
    present = seen | ~_expand(observed, present)
    x = torch.where(full, x, 0.0)
    odd = likelihood.suspicion(x)
    if odd:
        warnings.warn(f"{where}: {odd}", stacklevel=2)
    return x, observed, None if bool(present.all()) else present


def _elements(missing: Tensor, column: Tensor | None, given: Tensor | None, name: str, where: str) -> Tensor:
    """Which elements are present, shaped like `missing`."""
    if column is not None:
        lost = column & reduce(missing, "b ... -> b", "min")
        if lost.any():
            raise DataError(
                f"{where}: the mask says row {_first(lost)} is observed, but it is all NaN; correct the mask, or leave "
                "it out and let NaN say what is missing"
            )
    if given is None:
        return ~missing
    if given.dtype != torch.bool or given.shape != missing.shape:
        raise ShapeError(
            f"batch.elements[{name!r}]: {given.dtype} of shape {tuple(given.shape)}; expected torch.bool of shape "
            f"{tuple(missing.shape)}"
        )
    given = given.to(missing.device)
    contradicted = given & missing & (_expand(column, missing) if column is not None else given)
    if contradicted.any():
        row = _first(reduce(contradicted, "b ... -> b", "max"))
        raise DataError(f"batch.elements[{name!r}]: row {row} is NaN where elements say observed; correct one of them")
    return given


def _expand(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (like.ndim - 1)).expand(like.shape)


def _typed(x: Tensor, layout: Layout, name: str, where: str) -> Tensor:
    """Values of the model's dtype and the modality's shape."""
    shape, likelihood = layout.shapes[name], layout.likelihoods[name]
    if x.dtype.is_complex or not (x.dtype.is_floating_point or likelihood.integers):
        advice = "give floats" if not x.dtype.is_complex else "give real numbers"
        raise ShapeError(f"{where}: dtype {x.dtype}; expected floats for this likelihood; {advice}, such as x.float()")
    if likelihood.class_axis and not x.dtype.is_floating_point and x.shape[1:] == shape[:-1]:
        wrong = (x < 0) | (x >= shape[-1])
        # fillers may be anything: out of range becomes NaN, and is refused later where it is observed
        hot = functional.one_hot(torch.where(wrong, 0, x).long(), shape[-1]).to(layout.dtype)
        return torch.where(rearrange(wrong, "... -> ... 1"), torch.inf, hot)
    if x.ndim == 1 and shape == (1,):
        x = rearrange(x, "b -> b 1")
    if tuple(x.shape[1:]) != shape:
        hint = "; channels come first" if sorted(x.shape[1:]) == sorted(shape) and len(shape) > 1 else ""
        raise ShapeError(f"{where}: rows of shape {tuple(x.shape[1:])}; expected {shape}{hint}; reshape them")
    return x.to(layout.dtype)


def _refuse(bad: Tensor, column: Tensor | None, x: Tensor, where: str, what: str, support: str) -> None:
    if column is not None:
        bad = bad & _expand(column.to(bad.device), bad)
    if bad.any():
        place = bad.nonzero()[0].tolist()
        value: Any = x[tuple(place)].tolist()
        if support.startswith("classes") and value == torch.inf:
            value, support = "a class index out of range", f"indices from 0 to {x.shape[-1] - 1}"
        raise DataError(f"{where}: row {place[0]}, element {tuple(place[1:])}: {value} {what}; expected {support}")


def _first(flags: Tensor) -> int:
    return int(flags.nonzero()[0])


def refuse_empty(batch: Batch) -> None:
    """Raises DataError if a row of a conformed batch observes nothing."""
    if batch.nothing is not None:
        raise NothingObserved(batch.nothing)
    if batch.hidden and not batch.observed.any(1).all():
        raise NothingObserved(_first(~batch.observed.any(1)))
