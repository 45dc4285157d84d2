"""Columns of objects that are numbers, such as those of decimals, with new numbers in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Context, Decimal
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from mvkit.data.tables import numbers_of

if TYPE_CHECKING:
    from pandas import Series

DIGITS = Context(prec=400)  # more than a float has


def with_objects(old: Series, values: np.ndarray, changed: np.ndarray) -> Series:
    """A column of objects, or of decimals, with new values (b,) where it changed, (b,) bool.

    New values are of the type of the others: whole numbers, decimals with as many digits behind
    the point, or else floats. The dtype stays, unless it cannot hold them, or the others are bits
    or there are none: it is float64 then, of bits the probabilities.
    """
    from pandas import Series

    column = old.astype(object).tolist()
    known = old.dropna().tolist()
    if all(isinstance(value, bool | np.bool_) for value in known):
        numbers = np.where(changed, values, numbers_of(old.to_frame())[:, 0])
        return Series(numbers, old.index, name=old.name)
    number = _number_of(known)
    for row in changed.nonzero()[0].tolist():
        value = float(values[row])
        column[row] = None if math.isnan(value) else number(value)
    try:
        return Series(column, old.index, dtype=old.dtype, name=old.name)
    except (ValueError, TypeError, ArithmeticError):  # decimals of a few digits only
        return Series(column, old.index, dtype=np.float64, name=old.name)


def _number_of(others: Sequence[Any]) -> Callable[[float], object]:
    """What makes a number of the type that others have in common."""
    if all(isinstance(value, Integral) for value in others):
        return round
    if not all(isinstance(value, Decimal | Integral) for value in others):
        return float
    exponents = [0]
    for value in others:
        if isinstance(value, Decimal):
            exponents.append(int(value.as_tuple().exponent))
    step = Decimal(1).scaleb(min(exponents))
    return lambda value: Decimal(value).quantize(step, context=DIGITS)
