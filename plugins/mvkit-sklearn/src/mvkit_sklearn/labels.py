"""What classifiers and regressors are told of labels that are missing.

Axes: b rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.utils import _safe_indexing, assert_all_finite, check_consistent_length, column_or_1d

from mvkit import DataError


def read_labels(y: Any, unlabelled: Any, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (b,), and which of them are known, (b,) bool.

    Args:
        y: one label for each row.
        unlabelled: what stands where a label is missing, NaN included; None: nothing does.
        rows: how many rows there are, b.

    Raises:
        ValueError: no labels, another number of them, none that is known, or NaN and infinity
            among those that are.
    """
    if y is None:
        raise DataError(
            "y: requires y to be passed, but the target y is None; expected one label per row"
        )
    labels = column_or_1d(y, warn=True)
    check_consistent_length(np.empty(rows), labels)
    known = ~_equal(labels, unlabelled)
    if not known.any():
        raise DataError(f"y: every label is {unlabelled!r}, which is missing; expected some known")
    assert_all_finite(labels[known], input_name="y")
    return labels, known


def _equal(labels: np.ndarray, value: Any) -> np.ndarray:
    """Where labels are a value; NaN is NaN."""
    if value is None:
        return np.zeros(len(labels), dtype=bool)
    if _is_nan(value):
        return np.array([_is_nan(label) for label in labels.tolist()], dtype=bool)
    return np.asarray(labels == value, dtype=bool)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def known_rows(X: Any, y: Any, weight: Any, unlabelled: Any) -> tuple[Any, Any, Any]:
    """Rows, labels and weights of the rows whose label is known."""
    if unlabelled is None:
        return X, y, weight
    labels = column_or_1d(y)
    _, known = read_labels(labels, unlabelled, len(labels))
    kept = np.flatnonzero(known)
    weight = None if weight is None else _safe_indexing(weight, kept)
    return _safe_indexing(X, kept), _safe_indexing(y, kept), weight
