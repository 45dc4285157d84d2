"""The values of one modality, as they come from outside: types, names, shapes, gaps, supports.

Axes: b rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional

from mvkit.core.likelihood import Likelihood
from mvkit.core.modality import Modality
from mvkit.errors import DataError, ShapeError


def as_tensor(value: Any, where: str) -> Tensor:
    """A tensor from a tensor or an array; other things are refused with `where` in the message."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise ShapeError(
                f"{where}: got a sparse tensor; expected a dense one; give .to_dense()"
            )
        return value
    kind, library = type(value).__name__, type(value).__module__.partition(".")[0]
    if library in ("pandas", "polars"):
        raise ShapeError(
            f"{where}: got a {kind}, whose rows nobody aligned; use MultimodalDataset.from_tables, or align and give "
            ".to_numpy()"
        )
    if library == "scipy":
        raise ShapeError(f"{where}: got a sparse {kind}; expected a dense array; give .toarray()")
    if isinstance(value, np.ma.MaskedArray):
        value = np.where(np.ma.getmaskarray(value), np.nan, np.ma.getdata(value))
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{where}: {error}; expected an array of numbers") from None
    if array.dtype.kind not in "biuf":
        raise ShapeError(
            f"{where}: got values of type {array.dtype}; expected numbers; convert them first"
        )
    # torch can neither hold a read-only array nor a byte order that is not the machine's
    array = np.require(array, array.dtype.newbyteorder("="), "W")
    return torch.from_numpy(np.ascontiguousarray(array))


def _in_order(shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, tuple[int, ...]]]:
    return list(shapes.items())  # columns of masks follow the order


def _likelihoods(live: dict[str, Likelihood]) -> list[str]:
    return [repr(one) for one in live.values()]


@attrs.frozen
class Columns:
    """What the columns of a table are called, and the words that its numbers stand for.

    Args:
        names: names of the columns, in order.
        words: the words that values number, if the table held text.
    """

    names: tuple[str, ...]
    words: tuple[str, ...] | None = None

    def arrange(self, x: Tensor, wanted: tuple[str, ...], where: str) -> Tensor:
        """The columns of x (b, k, ...) in the order of training.

        Raises:
            ShapeError: names that are missing, or that training did not have.
        """
        if not wanted or self.names == wanted:
            return x
        lacking, surplus = (
            sorted(set(wanted) - set(self.names)),
            sorted(set(self.names) - set(wanted)),
        )
        if lacking or surplus:
            found = [
                f"{what} {_few(which)}"
                for what, which in (("lack", lacking), ("add", surplus))
                if which
            ]
            raise ShapeError(
                f"{where}: its columns {' and '.join(found)}; expected the {len(wanted)} columns of training, in any "
                "order; rename, add or drop columns"
            )
        place = {name: i for i, name in enumerate(self.names)}
        return x.index_select(1, torch.tensor([place[name] for name in wanted], device=x.device))

    def re_encoded(
        self,
        x: Tensor,
        steps: tuple[Any, ...],
        seen: Tensor,
        names: tuple[str, ...],
        source: Source,
    ) -> Tensor:
        """Words, in columns called `names`, numbered as in training; NaN where not seen.

        Raises:
            DataError: text that the modality does not expect, or a word that training did not have.
        """
        if not self.words:  # numbers, or text of which nothing is there
            return x
        known = steps[0].words if steps else ()
        number = {word: i for i, word in enumerate(known)}
        x = torch.where(seen, x, 0.0)
        found = torch.tensor([number.get(word, -1) for word in self.words], device=x.device)[
            x.long()
        ]
        strange = seen & (found < 0)
        if strange.any():
            row, column, *_ = strange.nonzero()[0].tolist()
            expected = (
                f"one of the categories of training, {_few(known)}; relabel it"
                if known
                else "numbers; convert it"
            )
            word = self.words[int(x[row, column])]
            at = f"{source.where}: {source.row(strange)}, column {names[column]!r}"
            raise DataError(f"{at}: {word!r} is text; expected {expected}")
        return torch.where(seen, found.to(x.dtype), torch.nan)


def _few(names: Sequence[str]) -> str:
    """The first names of a list that may be long."""
    return ", ".join(map(repr, names[:5])) + (
        f" and {len(names) - 5} more" if len(names) > 5 else ""
    )


@attrs.frozen
class Schema:
    """What a model expects of a batch.

    Args:
        shapes: shape of a row of each modality, in the model's order.
        likelihoods: the live likelihoods, likewise.
        dtype: the floating-point type of the model.
        features: names of the features of each modality, where they are known.
        transforms: the fitted transforms of each modality, from its raw values on, where it has any.
    """

    shapes: dict[str, tuple[int, ...]] = attrs.field(eq=_in_order)
    likelihoods: dict[str, Likelihood] = attrs.field(eq=_likelihoods)
    dtype: torch.dtype
    features: dict[str, tuple[str, ...]] = attrs.field(factory=dict)
    transforms: dict[str, tuple[Any, ...]] = attrs.field(factory=dict)

    @classmethod
    def of(
        cls, modalities: Mapping[str, Modality], decoders: nn.ModuleDict, dtype: torch.dtype
    ) -> Schema:
        """The schema of a model's modalities, whose likelihoods its decoders hold."""
        shapes = {}
        likelihoods = {}
        features = {}
        transforms = {}
        for name, modality in modalities.items():
            shapes[name] = modality.shape
            likelihoods[name] = decoders[name].likelihood
            features[name] = modality.features
            transforms[name] = modality.transform
        return cls(shapes, likelihoods, dtype, features, transforms)  # type: ignore[arg-type]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the modalities in order."""
        return tuple(self.shapes)


@attrs.frozen(eq=False)
class Source:
    """What a batch says of one modality; see `mvkit.core.batch.Batch`."""

    name: str
    x: Tensor | None
    column: Tensor | None
    elements: Tensor | None
    columns: Columns | None
    ids: Any = None
    done: tuple[Any, ...] = ()

    def row(self, flags: Tensor) -> str:
        """How messages call the first row where `flags` (b, ...) hold."""
        number = int(flags.nonzero()[0, 0])
        if self.ids is None:
            return f"row {number}"
        own = self.ids[number]
        return f"row {number} (id {own.item() if isinstance(own, Tensor | np.generic) else own!r})"

    @property
    def where(self) -> str:
        """How messages call it."""
        return f"batch.data[{self.name!r}]"


def conform_values(schema: Schema, source: Source, b: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Values without fillers, observed rows (b,), and observed elements or None where all are."""
    name, x, column, where = source.name, source.x, source.column, source.where
    shape, likelihood, steps = (
        schema.shapes[name],
        schema.likelihoods[name],
        schema.transforms.get(name, ()),
    )
    if x is None:
        if column is not None and column.any():
            raise DataError(
                f"{where}: the mask says {source.row(column)} is observed, but there are no data; add them"
            )
        observed = torch.zeros(
            b, dtype=torch.bool, device=column.device if column is not None else None
        )
        return (
            torch.zeros((), dtype=schema.dtype, device=observed.device).expand(b, *shape),
            observed,
            None,
        )
    if source.done and source.done != steps:
        raise DataError(
            f"{where}: another model took it through {source.done}; expected values in the user's units; give rows as "
            "they were before `conform`"
        )
    steps = () if source.done else steps
    x, given = _arranged(schema, source, x)
    x = _raw(x, shape, steps, where) if steps else _typed(x, schema, name, where)
    as_is = given is None and not steps and not (source.columns and source.columns.words)
    found = (
        _masked(x, column)
        if as_is and _plain(x, likelihood)
        else _examined(schema, source, x, given, steps)
    )
    odd = likelihood.sanity_warning(found[0])
    if odd:
        warnings.warn(f"{where}: {odd}", stacklevel=2)
    return found


def _plain(x: Tensor, likelihood: Likelihood) -> bool:
    """Whether there is neither a gap nor a value to refuse; where any finite number will do, found in one pass.

    A sum is finite only if all its terms are; one that overflows sends its values the long way.
    """
    if not torch.isfinite(x.sum()):
        return False
    return (
        type(likelihood).out_of_support is Likelihood.out_of_support
        or not likelihood.out_of_support(x).any()
    )


def _masked(x: Tensor, column: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `conform_values`, of values without a gap but those that the mask makes."""
    if column is None:
        return x, torch.ones(len(x), dtype=torch.bool, device=x.device), None
    observed = column.to(x.device)
    return torch.where(_expand(observed, x), x, 0.0), observed, None


def _examined(
    schema: Schema, source: Source, x: Tensor, given: Tensor | None, steps: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `conform_values`, every value looked at, and taken through the transforms."""
    likelihood, column, where = schema.likelihoods[source.name], source.column, source.where
    missing = torch.isnan(x)
    if likelihood.class_axis and not steps:
        _refuse(
            missing.any(-1) & ~missing.all(-1),
            column,
            x,
            source,
            "is NaN for some classes only",
            "all or none",
        )
        missing = missing.all(-1)
    column = None if column is None else column.to(x.device)
    present = _elements(missing, column, given, source)
    observed = reduce(present, "b ... -> b", "max") if column is None else column
    seen = present & _expand(observed, present)
    bare = observed & ~reduce(seen, "b ... -> b", "max")
    if bare.any():
        raise DataError(
            f"{where}: the mask says {source.row(bare)} is observed, but none of its elements; correct one"
        )
    names = schema.features.get(source.name) or (source.columns.names if source.columns else ())
    x = source.columns.re_encoded(x, steps, seen, names, source) if source.columns else x
    for step in steps:
        _refuse(
            step.out_of_support(x) & seen,
            None,
            x,
            source,
            f"cannot be taken by {step!r}",
            step.support,
            names,
        )
        x = step.forward(torch.where(seen, x, 0.0))
    x = x.to(schema.dtype)
    full = rearrange(seen, "... -> ... 1") if likelihood.class_axis else seen
    _refuse(
        likelihood.out_of_support(x) & full,
        None,
        x,
        source,
        "cannot be taken",
        likelihood.support,
        names,
    )
    present = seen | ~_expand(observed, present)
    return torch.where(full, x, 0.0), observed, None if bool(present.all()) else present


def _arranged(schema: Schema, source: Source, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Values and elements with their columns in the order of training."""
    wanted = schema.features.get(source.name, ())
    if source.columns is None:
        return x, source.elements
    given = source.elements
    arranged = None if given is None else source.columns.arrange(given, wanted, source.where)
    return source.columns.arrange(x, wanted, source.where), arranged


def _raw(x: Tensor, shape: tuple[int, ...], steps: tuple[Any, ...], where: str) -> Tensor:
    """Values in the user's units, as precise floats of the shape that the first transform takes."""
    for step in reversed(steps):
        shape = step.before(shape)
    if x.dtype.is_complex:
        raise ShapeError(f"{where}: dtype {x.dtype}; expected real numbers; give them apart")
    # large integers, such as dates, are exact in float64 only
    return _shaped(x if x.dtype == torch.float32 else x.double(), shape, where)


def _elements(
    missing: Tensor, column: Tensor | None, given: Tensor | None, source: Source
) -> Tensor:
    """Which elements are present, shaped like `missing`."""
    name, where = source.name, source.where
    if column is not None:
        lost = column & reduce(missing, "b ... -> b", "min")
        if lost.any():
            raise DataError(
                f"{where}: the mask says {source.row(lost)} is observed, but it is all NaN; correct the mask, or leave "
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
        row = source.row(contradicted)
        raise DataError(
            f"batch.elements[{name!r}]: {row} is NaN where elements say observed; correct one of them"
        )
    return given


def _expand(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (like.ndim - 1)).expand(like.shape)


def _typed(x: Tensor, schema: Schema, name: str, where: str) -> Tensor:
    """Values of the model's dtype and the modality's shape."""
    shape, likelihood = schema.shapes[name], schema.likelihoods[name]
    if x.dtype.is_complex or not (x.dtype.is_floating_point or likelihood.integers):
        advice = "give floats" if not x.dtype.is_complex else "give real numbers"
        raise ShapeError(
            f"{where}: dtype {x.dtype}; expected floats for this likelihood; {advice}, such as x.float()"
        )
    if likelihood.class_axis and not x.dtype.is_floating_point and x.shape[1:] == shape[:-1]:
        wrong = (x < 0) | (x >= shape[-1])
        # fillers may be anything: out of range becomes NaN, and is refused later where it is observed
        hot = functional.one_hot(torch.where(wrong, 0, x).long(), shape[-1]).to(schema.dtype)
        return torch.where(rearrange(wrong, "... -> ... 1"), torch.inf, hot)
    return _shaped(x, shape, where).to(schema.dtype)


def _shaped(x: Tensor, shape: tuple[int, ...], where: str) -> Tensor:
    if x.ndim == 1 and shape == (1,):
        x = rearrange(x, "b -> b 1")
    if tuple(x.shape[1:]) != shape:
        hint = (
            "; channels come first"
            if sorted(x.shape[1:]) == sorted(shape) and len(shape) > 1
            else ""
        )
        raise ShapeError(
            f"{where}: rows of shape {tuple(x.shape[1:])}; expected {shape}{hint}; reshape them"
        )
    return x


def _refuse(
    bad: Tensor,
    column: Tensor | None,
    x: Tensor,
    source: Source,
    what: str,
    support: str,
    names: tuple[str, ...] = (),
) -> None:
    if column is not None:
        bad = bad & _expand(column.to(bad.device), bad)
    if bad.any():
        place = bad.nonzero()[0].tolist()
        value: Any = x[tuple(place)].tolist()
        if support.startswith("classes") and value == torch.inf:
            value, support = "a class index out of range", f"indices from 0 to {x.shape[-1] - 1}"
        at = f"column {names[place[1]]!r}" if names else f"element {tuple(place[1:])}"
        raise DataError(
            f"{source.where}: {source.row(bad)}, {at}: {value} {what}; expected {support}"
        )
