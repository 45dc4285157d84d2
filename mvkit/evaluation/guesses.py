"""Errors of values that are said of a column, and the guess that they are compared with.

Axes: n cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WRONG, DISTANCE, SQUARE = "share wrong", "mean distance", "root mean square"


def best_guess(measure: str, known: NDArray[Any]) -> NDArray[Any]:
    """The one value with the least error over known cells (n,): mean, median or most frequent."""
    if measure == WRONG:
        values, counts = np.unique(known, return_counts=True)
        return np.asarray(values[counts.argmax()])
    centre = np.median(known) if measure == DISTANCE else known.mean()
    return np.asarray(centre)


def error_of(measure: str, truth: NDArray[Any], said: NDArray[Any]) -> float:
    """The error of what is said of cells with the values `truth` (n,), by a measure."""
    if measure == WRONG:
        return float((truth != said).mean())
    distance = np.abs(truth - said)
    if measure == DISTANCE:
        return float(distance.mean())
    return float(np.sqrt(np.square(distance).mean()))
