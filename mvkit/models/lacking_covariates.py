"""Likelihoods of rows that lack a covariate: approximate, and given only where a call says so.

Axes: b rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.raw_values import row_called
from mvkit.errors import RequestError, check_option


def lacks_covariates(rows: Batch) -> Tensor:
    """Which rows of a conformed batch lack a covariate, (b,) bool."""
    lacking = torch.zeros_like(rows.observed[:, 0])
    for name in rows.covariates:
        lacking = lacking | _gaps(rows, name)
    return lacking


def check_covariates(rows: Batch, missing: str, where: str) -> None:
    """Raises RequestError for a row that lacks a covariate, unless `missing` is `average`.

    Args:
        rows: a conformed batch.
        missing: `error` or `average`.
        where: the method that was called.
    """
    check_option(f"{where}: missing", missing, "error", "average")
    if missing == "average":
        return
    for name in rows.covariates:
        gaps = _gaps(rows, name)
        if gaps.any():
            row = row_called(int(gaps.nonzero()[0]), rows.extra.get("id"))
            raise RequestError(
                f"{where}: {row} lacks the covariate {name!r} ({int(gaps.sum()):,} rows do), "
                "so that its likelihood would be one at the average of training, which is an "
                "approximation; expected all covariates; fill them in, or take it by "
                "missing='average'"
            )


def _gaps(rows: Batch, name: str) -> Tensor:
    """Rows without one covariate, (b,) bool: levels below 0, numbers that are NaN."""
    values = rows.covariates[name]
    return torch.isnan(values) if values.is_floating_point() else values < 0
