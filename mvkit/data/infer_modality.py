"""What values from outside are: their gaps, and the modality that they are taken for.

Axes: b rows, m modalities, k features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.modality import Modality, PartLike, Sizes
from mvkit.core.raw_values import Columns, as_tensor, signed, widened
from mvkit.data.align import Table, check_values, presence
from mvkit.data.transforms import OneHot
from mvkit.errors import DataError, ShapeError
from mvkit.parts.likelihoods import Bernoulli, Categorical, Normal

Given = Modality | PartLike | None  # a modality, its options or its likelihood; None: as inferred


def is_categorical(given: Given) -> bool:
    """Whether a modality, its options or its likelihood were given as categorical."""
    likelihood: object = given
    if isinstance(given, Modality):
        likelihood = given.likelihood
    elif isinstance(given, Mapping):
        likelihood = given.get("likelihood")
    return likelihood == "categorical" or isinstance(likelihood, Categorical)


def masks_of(missing: object, rows: Mapping[str, Table]) -> Mapping[str, object]:
    """What `missing` (see `from_arrays`) says is observed, by modality; `nan` says nothing."""
    if isinstance(missing, Mapping):
        return missing
    if isinstance(missing, str):
        if missing not in ("nan", "none"):
            raise DataError(
                f"missing: got {missing!r}; expected 'nan', 'none' or what is observed, as bool"
            )
        if missing == "none":
            for name, table in rows.items():
                _check_nan(name, table, True, "nothing is missing (missing='none')")
        return {}
    mask = as_tensor(missing, "missing")
    for table in rows.values():
        shape = (len(table.values), len(rows))
        if mask.shape != shape:
            raise ShapeError(
                f"missing: shape {tuple(mask.shape)}; expected {shape}, a column for each modality"
            )
    return dict(zip(rows, mask.unbind(1), strict=True))


def with_gaps(name: str, table: Table, mask: object) -> Table:
    """The table with gaps where a mask is False: NaN in floats, `seen` for other values."""
    x = table.values
    seen = as_tensor(mask, f"missing[{name!r}]")
    if seen.dtype != torch.bool or seen.shape not in (x.shape[:1], x.shape):
        raise ShapeError(
            f"missing[{name!r}]: {seen.dtype} of shape {tuple(seen.shape)}; expected torch.bool, "
            f"True where observed, of shape {tuple(x.shape[:1])} or {tuple(x.shape)}"
        )
    places = widened(seen, x.shape)
    _check_nan(name, table, places, "the mask says it is observed")
    if x.is_floating_point():
        return attrs.evolve(table, values=torch.where(places, x, torch.nan))
    return attrs.evolve(table, seen=seen)


def _check_nan(name: str, table: Table, seen: Tensor | bool, why: str) -> None:
    """Raises DataError for NaN where values should be there."""
    fault = f"NaN, but {why}; fill it in, or correct what is missing"
    names = table.columns.names if table.columns else ()
    bad = ~presence(table.values) & seen
    check_values(bad, f"data[{name!r}]", fault, names, ids=table.ids)


def inferred(name: str, table: Table, given: Given) -> tuple[Modality, Tensor]:
    """What a modality is, and its values with an axis of features at least."""
    x = table.values
    columns = table.columns
    if isinstance(given, Modality):
        return _with_features(given, table), signed(x)
    if not x.numel():
        lack = "row" if not len(x) else f"number in rows of shape {tuple(x.shape[1:])}"
        raise DataError(
            f"data[{name!r}]: it is empty; expected one {lack} at least; leave the modality out"
        )
    options = _options(x, given)
    categorical = is_categorical(options["likelihood"])
    if categorical and _number_classes(x):
        return Modality(**{"shape": (len(x.unique()),), **options}), signed(x)
    if x.ndim == 1:
        x = rearrange(x, "b -> b 1")
    options.setdefault("shape", tuple(x.shape[1:]))
    if columns:
        options.setdefault("features", columns.names)
    if categorical or (columns and columns.words):
        return _categories(x, columns, options)
    modality = Modality(**options)
    # only some likelihoods take integers, tables are full of them
    if not x.is_floating_point() and not modality.likelihood.build(Sizes.alone(modality)).integers:
        # large ones, such as dates, need float64
        x = x.float() if x.element_size() <= 2 else x.double()
    return modality, signed(x)


def _with_features(given: Modality, table: Table) -> Modality:
    """The modality with the names of the table's columns, if they fit and it has none."""
    fits = given.raw_shape == table.values.shape[1:]
    if table.columns and fits and not given.features:
        given = attrs.evolve(given, features=table.columns.names)  # type: ignore[misc]
    return given


def _options(x: Tensor, given: PartLike | None) -> dict[str, Any]:
    """The options of a modality, with a likelihood."""
    if isinstance(given, Mapping) and "likelihood" in given:
        return dict(given)
    if given is not None and not isinstance(given, Mapping):
        return {"likelihood": given}
    likelihood: object = Normal(scale="trained")
    if x.ndim <= 2:  # features of a table may be on any scales; pixels share one
        likelihood = Normal(scale="trained", by="feature", outputs="standardised")
    seen = presence(x)
    if _number_classes(x):
        likelihood = Categorical()
    elif ((x == 0) | (x == 1) | ~seen).all() and seen.any():
        likelihood = Bernoulli()
    return {"likelihood": likelihood, **(given or {})}


def _number_classes(x: Tensor) -> bool:
    """Whether values are whole numbers (b,) that use each of 0 … C-1."""
    if x.ndim > 1 or x.is_floating_point() or x.dtype == torch.bool:
        return False
    values: list[int] = x.unique().tolist()
    return values == list(range(len(values)))


def _categories(
    x: Tensor, columns: Columns | None, options: dict[str, Any]
) -> tuple[Modality, Tensor]:
    """A modality of categories: words, numbers, or classes on the last axis already."""
    words = columns.words if columns else None
    x = x.double()
    if not words and x.shape[-1] > 1:
        seen = presence(x).all(-1, keepdim=True)
        if not (Categorical().out_of_support(x) & seen).any():
            return Modality(**{**options, "features": ()}), x.to(torch.get_default_dtype())
    step = OneHot(categories=words) if words else OneHot().fit(x, (), "categories")
    shape = (*x.shape[1:], len(step.categories))
    fixed = {"shape": shape, "likelihood": Categorical(), "transform": (step,)}
    return Modality(**{**options, **fixed}), x
