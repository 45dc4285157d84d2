"""Covariates of a batch: from words, indices and numbers to checked tensors.

Axes: b rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvkit.core.covariates import Covariate, Level
from mvkit.core.raw_values import id_called, is_missing, row_called
from mvkit.errors import DataError, ShapeError, suggest


def conform_covariates(
    covariates: Mapping[str, Covariate], extra: Mapping[str, Any], b: int
) -> dict[str, Tensor]:
    """Values of every covariate, {name: (b,)}: indices of levels, -1 where missing; numbers in
    float64, NaN where missing.

    Raises:
        DataError: a covariate that rows lack and must have, an unknown level, a number that is not
            finite.
        ShapeError: another length, or values of another kind.
    """
    values = {}
    for name, covariate in covariates.items():
        values[name] = conform_covariate(name, covariate, extra.get(name), b, extra.get("id"))
    return values


def conform_covariate(
    name: str, covariate: Covariate, raw: Any, b: int, ids: Sequence[object] | None = None
) -> Tensor:
    """The values of one covariate, (b,).

    Args:
        name: of the covariate.
        covariate: what it can be.
        raw: one value for each row, or None where no row has any.
        b: how many rows there are.
        ids: what messages call the rows; None: their numbers.
    """
    if raw is None:
        if covariate.missing == "error":
            raise DataError(
                f"covariate {name!r}: the rows have none; expected one for each row: "
                f"Batch(…, covariates={{{name!r}: …}}), or Covariate(missing='average')"
            )
        return torch.full((b,), -1) if covariate.levels else torch.full((b,), torch.nan).double()
    values = plain_values(f"covariate {name!r}", raw, b)
    if covariate.levels:
        tensor, missing = _level_indices(name, covariate, values, ids)
    else:
        tensor, missing = _numbers(name, values, ids)
    if covariate.missing == "error" and missing.any():
        row = int(missing.argmax())
        raise DataError(
            f"covariate {name!r}: row {row} has none{id_called(row, ids)}; expected one for each "
            "row; leave the row out, or take Covariate(missing='average')"
        )
    return tensor


def plain_values(what: str, raw: Any, b: int) -> np.ndarray[Any, Any]:
    """One value for each row as an array (b,), of numbers or of objects; `what`: for messages."""
    if isinstance(raw, Tensor):
        raw = raw.detach().cpu().numpy()
    if hasattr(raw, "to_numpy") and not isinstance(raw, np.ndarray):  # pandas and polars
        # whole numbers with gaps stay whole numbers
        whole = getattr(getattr(raw, "dtype", None), "kind", "") in "iu"
        raw = np.asarray(
            raw.astype(object) if whole and hasattr(raw, "astype") else raw.to_numpy()
        )
    values = np.asarray(raw) if isinstance(raw, np.ndarray) else _array(list(raw))
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (b,):
        raise ShapeError(
            f"{what}: values of shape {values.shape} for {b} rows; expected one for "
            f"each row, {(b,)}"
        )
    return values


def numbers_of(what: str, raw: Any, b: int, ids: Sequence[object] | None = None) -> Tensor:
    """One number for each row in float64, (b,), NaN where missing.

    Args:
        what: what they are, for messages.
        raw: the numbers.
        b: how many rows there are.
        ids: what messages call the rows; None: their numbers.

    Raises:
        ShapeError: another length, or no numbers.
        DataError: a number that is not finite.
    """
    numbers, _ = _as_numbers(what, plain_values(what, raw, b), "expected numbers", ids)
    return numbers


def _array(items: list[Any]) -> np.ndarray[Any, Any]:
    numeric = all(isinstance(item, int | float | np.number) for item in items)
    return np.asarray(items) if numeric else np.asarray(items, dtype=object)


def _level_indices(
    name: str, covariate: Covariate, values: np.ndarray[Any, Any], ids: Sequence[object] | None
) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """Indices of levels, and where they are missing; of words, of levels, or indices already."""
    known: dict[Level, int] = {level: i for i, level in enumerate(covariate.levels)}
    words = isinstance(covariate.levels[0], str)
    if values.dtype.kind in "iufb" and words:
        return _as_indices(name, covariate, values, ids)
    unique, inverse = _unique(name, values)
    codes = np.full(len(unique), -1)
    for i, value in enumerate(unique):
        if is_missing(value):
            continue
        if isinstance(value, type(covariate.levels[0])) and not isinstance(value, bool):
            codes[i] = known.get(value, -1)
        if codes[i] < 0:
            row = int((inverse == i).argmax())
            of = "" if ids is None else f" of {row_called(row, ids)}"
            raise _of_no_level(f"{value!r}{of}", name, covariate, value)
    indices = codes[inverse]
    return torch.from_numpy(indices), indices < 0


def _unique(name: str, values: np.ndarray[Any, Any]) -> tuple[list[Any], np.ndarray[Any, Any]]:
    """The different values, and which of them each row has."""
    if values.dtype.kind != "O":
        unique, inverse = np.unique(values, return_inverse=True)
        return unique.tolist(), inverse
    places: dict[Any, int] = {}
    inverse = np.empty(len(values), dtype=np.int64)
    for i, value in enumerate(values.tolist()):
        if isinstance(value, Hashable):
            key = None if is_missing(value) else (type(value), value)
        else:
            raise DataError(
                f"covariate {name!r}: row {i} is {value!r}; expected a word or a whole number"
            )
        inverse[i] = places.setdefault(key, len(places))
    return [None if key is None else key[1] for key in places], inverse


def _of_no_level(called: str, name: str, covariate: Covariate, value: object) -> DataError:
    """The error of a value that is no level; `called`: what messages call it."""
    kind = type(covariate.levels[0])
    if isinstance(value, kind) and not isinstance(value, bool):
        hint = suggest(str(value), [str(level) for level in covariate.levels])
    else:
        words = "words" if kind is str else "whole numbers"
        hint = f"they are {words}, such as {covariate.levels[0]!r}"
    return DataError(
        f"covariate {name!r}: {called} is none of its {len(covariate.levels)} levels; {hint}; "
        "model.add_level adds one"
    )


def _as_indices(
    name: str, covariate: Covariate, values: np.ndarray[Any, Any], ids: Sequence[object] | None
) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """Numbers that are given where the levels are words: their indices."""
    if values.dtype.kind == "b":
        raise ShapeError(
            f"covariate {name!r}: got flags; expected its levels, such as "
            f"{covariate.levels[0]!r}, or their indices"
        )
    missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), dtype=bool)
    indices = np.where(missing, 0, values)
    last = len(covariate.levels) - 1
    bad = (indices != np.round(indices)) | (indices < 0) | (indices > last)
    if bad.any():
        row = int(bad.argmax())
        called = row_called(row, ids)
        raise DataError(
            f"covariate {name!r}: {called} is {values[row].item()}; expected an index from 0 to "
            f"{last}, or a level, such as {covariate.levels[0]!r}"
        )
    return torch.from_numpy(np.where(missing, -1, indices).astype(np.int64)), missing


def _numbers(
    name: str, values: np.ndarray[Any, Any], ids: Sequence[object] | None
) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """Numbers of a covariate in float64, and where they are missing."""
    expected = "expected numbers, since it was declared without levels: Covariate(levels=…)"
    return _as_numbers(f"covariate {name!r}", values, expected, ids)


def _as_numbers(
    what: str, values: np.ndarray[Any, Any], expected: str, ids: Sequence[object] | None
) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """Numbers in float64, and where they are missing."""
    if values.dtype.kind == "O":
        values = np.array([np.nan if is_missing(value) else value for value in values.tolist()])
    if values.dtype.kind not in "iufb":
        raise ShapeError(f"{what}: {values.tolist()[0]!r} is no number; {expected}")
    numbers = values.astype(np.float64)
    infinite = np.isinf(numbers)
    if infinite.any():
        row = int(infinite.argmax())
        called = row_called(row, ids)
        raise DataError(f"{what}: {called} is {numbers[row]}; expected finite numbers")
    return torch.from_numpy(numbers), np.isnan(numbers)
