"""What a model expects of a batch, and checks of the values of one modality against it.

Axes: b rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import attrs
import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from mvkit.core.covariates import Covariate
from mvkit.core.likelihood import Likelihood
from mvkit.core.modality import Modality
from mvkit.core.raw_values import SIGNED, Names, Shape, Source, Step, signed
from mvkit.errors import DataError, ShapeError

Conformed = tuple[Tensor, Tensor, Tensor | None]  # values, observed rows, observed elements


def _in_order(shapes: dict[str, Shape]) -> list[tuple[str, Shape]]:
    return list(shapes.items())  # columns of masks follow the order


def _likelihoods(live: dict[str, Likelihood]) -> list[str]:
    return [repr(likelihood) for likelihood in live.values()]


@attrs.frozen
class Schema:
    """What a model expects of a batch.

    Args:
        shapes: shape of a row of each modality, in the model's order.
        likelihoods: the live likelihoods, likewise.
        dtype: the floating-point type of the model.
        features: names of the features of each modality, where they are known.
        transforms: the fitted transforms of each modality, first to last, where it has any.
        covariates: what the model is conditioned on.
        exposures: of the modalities that have one: a covariate's name, or `total`.
    """

    shapes: dict[str, Shape] = attrs.field(eq=_in_order)
    likelihoods: dict[str, Likelihood] = attrs.field(eq=_likelihoods)
    dtype: torch.dtype
    features: dict[str, Names] = attrs.field(factory=dict)
    transforms: dict[str, tuple[Step, ...]] = attrs.field(factory=dict)
    covariates: dict[str, Covariate] = attrs.field(factory=dict)
    exposures: dict[str, str] = attrs.field(factory=dict)

    @classmethod
    def of(
        cls,
        modalities: Mapping[str, Modality],
        decoders: nn.ModuleDict,
        dtype: torch.dtype,
        covariates: Mapping[str, Covariate] | None = None,
    ) -> Schema:
        """The schema of a model's modalities, whose likelihoods its decoders hold."""
        schema = cls({}, {}, dtype, covariates=dict(covariates or {}))
        for name, modality in modalities.items():
            schema.shapes[name] = modality.shape
            schema.likelihoods[name] = decoders[name].likelihood  # type: ignore[assignment]
            schema.features[name] = modality.features
            schema.transforms[name] = modality.transform
            if modality.exposure is not None:
                schema.exposures[name] = modality.exposure
        return schema

    @cached_property
    def names(self) -> Names:
        """Names of the modalities in order."""
        return tuple(self.shapes)


def conform_values(schema: Schema, source: Source, b: int) -> Conformed:
    """Values without fillers, observed rows (b,), and observed elements or None where all are.

    Raises:
        ShapeError: a wrong shape or dtype, columns that training did not have.
        DataError: gaps that contradict each other, values that the likelihood cannot take.
    """
    x = source.x
    if x is None:
        return _absent(schema, source, b)
    likelihood = schema.likelihoods[source.name]
    steps = _steps(schema, source)
    elements = source.elements
    if source.columns is not None:
        wanted = schema.features.get(source.name, ())
        x = source.columns.arrange(x, wanted, source.where)
        if elements is not None:
            elements = source.columns.arrange(elements, wanted, source.where)
    no_class = None
    if steps:
        x = _raw(x, schema, source, steps)
    else:
        x, no_class = _typed(x, schema, source)
    text = source.columns is not None and source.columns.words
    if elements is None and no_class is None and not (steps or text) and _plain(x, likelihood):
        return _masked(x, source.observed)
    if not steps:
        _check_range(schema, source)
    return _examined(schema, source, x, elements, steps, no_class)


def _check_range(schema: Schema, source: Source) -> None:
    """Raises DataError for finite values that the model's dtype cannot hold, which become inf."""
    x = source.x
    if x is None or not x.is_floating_point():
        return
    limit = torch.finfo(schema.dtype).max
    bad = torch.isfinite(x) & (x.abs() > limit)
    if source.observed is not None:
        bad = bad & _expand(source.observed.to(x.device), bad)
    if source.elements is not None and source.elements.shape == x.shape:
        bad = bad & source.elements.to(x.device)
    kind = str(schema.dtype).removeprefix("torch.")
    fault = f"is more than {kind} holds, {limit:.2g}; expected smaller numbers; scale the data"
    _refuse(bad, x, source, fault, source.columns.names if source.columns else ())


def _steps(schema: Schema, source: Source) -> tuple[Step, ...]:
    """The transforms that are still to be applied: all or none."""
    steps = schema.transforms.get(source.name, ())
    if not source.done:
        return steps
    if source.done != steps:
        raise DataError(
            f"{source.where}: another model took it through {source.done}; expected values in the "
            "user's units; give rows as they were before `conform`"
        )
    return ()


def _absent(schema: Schema, source: Source, b: int) -> Conformed:
    """As `conform_values`, of a modality without values."""
    observed = source.observed
    if observed is None:
        observed = torch.zeros(b, dtype=torch.bool)
    if observed.any():
        raise DataError(
            f"{source.where}: the mask says {source.row(observed)} is observed, but there are no "
            "data; add them"
        )
    zero = torch.zeros((), dtype=schema.dtype, device=observed.device)
    return zero.expand(b, *schema.shapes[source.name]), observed, None


def _plain(x: Tensor, likelihood: Likelihood) -> bool:
    """Whether there is neither a gap nor a value to refuse.

    One pass suffices where any finite number will do: a sum is finite only if all its terms are.
    One that overflows sends its values the long way.
    """
    if not torch.isfinite(x.sum()):
        return False
    any_number = type(likelihood).out_of_support is Likelihood.out_of_support
    # as bytes, which are looked through many times faster than flags
    return any_number or not likelihood.out_of_support(x).bool().view(torch.uint8).any()


def _masked(x: Tensor, observed: Tensor | None) -> Conformed:
    """As `conform_values`, of values without a gap but those that the mask makes."""
    if observed is None:
        return x, torch.ones(len(x), dtype=torch.bool, device=x.device), None
    observed = observed.to(x.device)
    return torch.where(_expand(observed, x), x, 0.0), observed, None


def _examined(
    schema: Schema,
    source: Source,
    x: Tensor,
    elements: Tensor | None,
    steps: tuple[Step, ...],
    no_class: Tensor | None,
) -> Conformed:
    """As `conform_values`, every value looked at, and taken through the transforms."""
    likelihood = schema.likelihoods[source.name]
    mask = None if source.observed is None else source.observed.to(x.device)
    missing = torch.isnan(x)
    if likelihood.class_axis and not steps:
        partly = missing.any(-1) & ~missing.all(-1)
        if mask is not None:
            partly = partly & _expand(mask, partly)
        _refuse(partly, x, source, "is NaN for some classes only; expected all or none")
        missing = missing.all(-1)
    present = _present(missing, mask, elements, source)
    observed = reduce(present, "b ... -> b", "max") if mask is None else mask
    seen = present & _expand(observed, present)
    bare = observed & ~reduce(seen, "b ... -> b", "max")
    if bare.any():
        raise DataError(
            f"{source.where}: the mask says {source.row(bare)} is observed, but none of its "
            "elements; correct one"
        )
    names = schema.features.get(source.name, ())
    if source.columns is not None:
        names = names or source.columns.names
        x = source.columns.re_encoded(x, steps, seen, names, source)
    for step in steps:
        fault = f"cannot be taken by {step!r}; expected {step.support}"
        _refuse(step.out_of_support(x) & seen, x, source, fault, names)
        x = step.forward(torch.where(seen, x, 0.0))
    x = x.to(schema.dtype)
    full = rearrange(seen, "... -> ... 1") if likelihood.class_axis else seen
    if no_class is not None:
        fault = f"cannot be taken; expected indices from 0 to {x.shape[-1] - 1}"
        _refuse(no_class & full, None, source, f"a class index out of range {fault}", names)
    fault = f"cannot be taken; expected {likelihood.support}"
    # NaN where unobserved: some likelihoods take values together or not at all
    outside = likelihood.out_of_support(torch.where(full, x, torch.nan)) & full
    _refuse(outside, x, source, fault, names)
    present = seen | ~_expand(observed, present)
    return torch.where(full, x, 0.0), observed, None if bool(present.all()) else present


def _raw(x: Tensor, schema: Schema, source: Source, steps: tuple[Step, ...]) -> Tensor:
    """Values in the user's units, as precise floats in the shape of the first transform."""
    shape = schema.shapes[source.name]
    for step in reversed(steps):
        shape = step.before(shape)
    if x.dtype.is_complex:
        raise ShapeError(
            f"{source.where}: dtype {x.dtype}; expected real numbers; give them apart"
        )
    # large integers, such as dates, are exact in float64 only
    return _shaped(x if x.dtype == torch.float32 else x.double(), shape, source)


def _present(
    missing: Tensor, mask: Tensor | None, elements: Tensor | None, source: Source
) -> Tensor:
    """Which elements are present, shaped like `missing`."""
    if mask is not None:
        lost = mask & reduce(missing, "b ... -> b", "min")
        if lost.any():
            raise DataError(
                f"{source.where}: the mask says {source.row(lost)} is observed, but it is all "
                "NaN; correct the mask, or leave it out and let NaN say what is missing"
            )
    if elements is None:
        return ~missing
    where = f"batch.elements[{source.name!r}]"
    if elements.dtype != torch.bool or elements.shape != missing.shape:
        raise ShapeError(
            f"{where}: {elements.dtype} of shape {tuple(elements.shape)}; expected torch.bool of "
            f"shape {tuple(missing.shape)}"
        )
    elements = elements.to(missing.device)
    contradicted = elements & missing
    if mask is not None:
        contradicted = contradicted & _expand(mask, missing)
    if contradicted.any():
        raise DataError(
            f"{where}: {source.row(contradicted)} is NaN where elements say observed; correct one "
            "of them"
        )
    return elements


def _expand(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (like.ndim - 1)).expand(like.shape)


def _typed(x: Tensor, schema: Schema, source: Source) -> tuple[Tensor, Tensor | None]:
    """Values of the model's dtype and the modality's shape, and which are no class.

    The flags (b, ..., 1) are those of class indices out of range, None if there are none. What is
    not observed may hold any index, so whoever knows what is observed refuses the others.
    """
    if x.dtype in SIGNED:
        x = signed(x)
    shape = schema.shapes[source.name]
    likelihood = schema.likelihoods[source.name]
    floats = x.dtype.is_floating_point
    if x.dtype.is_complex or not (floats or likelihood.integers):
        advice = "give real numbers" if x.dtype.is_complex else "give floats"
        raise ShapeError(
            f"{source.where}: dtype {x.dtype}; expected floats for this likelihood; {advice}, "
            "such as x.float()"
        )
    if floats or not likelihood.class_axis or x.shape[1:] != shape[:-1]:
        return _shaped(x, shape, source).to(schema.dtype), None
    no_class = (x < 0) | (x >= shape[-1])
    classes = one_hot(torch.where(no_class, -1, x), shape[-1], schema.dtype)
    return classes, rearrange(no_class, "... -> ... 1") if no_class.any() else None


def one_hot(indices: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Class indices (b, ...) as (b, ..., classes) zeros and ones; only zeros where one is -1."""
    places = rearrange(indices.long(), "... -> ... 1")
    zeros = torch.zeros(*indices.shape, classes, dtype=dtype, device=indices.device)
    return zeros.scatter_(-1, places.clamp(min=0), (places >= 0).to(dtype))


def conform_indices(schema: Schema, source: Source) -> tuple[Tensor, Tensor] | None:
    """Class indices (b, ...), -1 where unobserved, and observed rows (b,), as they may be stored.

    One-hot (see `one_hot`), they are what `conform_values` returns. None: they are no class
    indices, or single ones of them are missing.

    Raises:
        DataError: an index of no class.
    """
    x = source.x
    likelihood = schema.likelihoods[source.name]
    shape = schema.shapes[source.name]
    if x is None or source.elements is not None or not likelihood.class_axis:
        return None
    words = source.columns is not None and source.columns.words
    floats = x.dtype.is_floating_point or x.dtype.is_complex
    if floats or words or _steps(schema, source) or x.shape[1:] != shape[:-1]:
        return None
    if x.dtype in SIGNED:
        x = signed(x)
    observed = source.observed
    if observed is None:
        observed = torch.ones(len(x), dtype=torch.bool)
    observed = observed.to(x.device)
    seen = _expand(observed, x)
    no_class = seen & ((x < 0) | (x >= shape[-1]))
    names = schema.features.get(source.name, ())
    if source.columns is not None:
        names = names or source.columns.names
    _refuse_indices(rearrange(no_class, "... -> ... 1"), shape[-1], source, names)
    return torch.where(seen, x, -1).long(), observed


def _shaped(x: Tensor, shape: Shape, source: Source) -> Tensor:
    if x.ndim == 1 and shape == (1,):
        x = rearrange(x, "b -> b 1")
    own = tuple(x.shape[1:])
    if own != shape:
        permuted = len(shape) > 1 and sorted(own) == sorted(shape)
        hint = "; channels come first" if permuted else ""
        raise ShapeError(
            f"{source.where}: rows of shape {own}; expected {shape}{hint}; reshape them"
        )
    return x


def _refuse(bad: Tensor, x: Tensor | None, source: Source, fault: str, names: Names = ()) -> None:
    """Raises DataError at the first `bad` element, if there is any; x: quote its value."""
    if not bad.any():
        return
    row, *place = bad.nonzero()[0].tolist()
    at = f"column {names[place[0]]!r}" if names else f"element {tuple(place)}"
    value = "" if x is None else f"{x[(row, *place)].tolist()} "
    raise DataError(f"{source.where}: {source.row(bad)}, {at}: {value}{fault}")


def _refuse_indices(bad: Tensor, classes: int, source: Source, names: Names) -> None:
    fault = f"cannot be taken; expected indices from 0 to {classes - 1}"
    _refuse(bad, None, source, f"a class index out of range {fault}", names)
