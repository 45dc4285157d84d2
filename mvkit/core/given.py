"""What is given of the rows of a batch beside their modalities: covariates, exposures, weights.

Axes: b rows, m modalities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mvkit.core.covariate_values import conform_covariates, numbers_of
from mvkit.core.likelihood import TOTAL
from mvkit.core.validation import Schema
from mvkit.errors import DataError

ROW_WEIGHT = "row_weight"  # in `Batch.extra`
Extra = Mapping[str, Any]


def conform_given(
    schema: Schema, data: Mapping[str, Tensor], mask: Tensor, extra: Extra
) -> dict[str, Any]:
    """Checked values for the fields `covariates`, `exposure` and `row_weight` of a batch.

    Args:
        schema: what the model expects.
        data: conformed values, {name: (b, *shape)}, zeros where unobserved.
        mask: which modalities are observed, (b, m) bool.
        extra: what else is known of the rows.

    Raises:
        DataError: a covariate or an exposure that rows lack, or values that cannot be.
    """
    given: dict[str, Any] = {}
    device = mask.device
    b = len(mask)
    if schema.covariates:
        values = conform_covariates(schema.covariates, extra, b)
        given["covariates"] = {name: value.to(device) for name, value in values.items()}
    if schema.exposures:
        given["exposure"] = {}
        for i, name in enumerate(schema.names):
            if name in schema.exposures:
                exposure = _exposure(schema, name, data[name], mask[:, i], extra)
                given["exposure"][name] = exposure.to(device, schema.dtype)
    if ROW_WEIGHT in extra:
        weight = numbers_of(ROW_WEIGHT, extra[ROW_WEIGHT], b)
        _check(ROW_WEIGHT, weight, torch.ones(b, dtype=torch.bool))
        given["row_weight"] = weight.to(device, schema.dtype)
    return given


def _exposure(schema: Schema, name: str, x: Tensor, observed: Tensor, extra: Extra) -> Tensor:
    """The exposure of each row, (b,); NaN where the modality is not observed and none is known."""
    source = schema.exposures[name]
    if source == TOTAL:
        return torch.where(observed, x.flatten(1).sum(1), torch.nan)
    if source not in extra:
        if not observed.any():
            return x.new_full((len(x),), torch.nan)
        raise DataError(
            f"exposure {source!r} of {name!r}: the rows have none; expected a number for each "
            f"row: Batch(…, covariates={{{source!r}: …}})"
        )
    exposure = numbers_of(source, extra[source], len(x))
    _check(source, exposure, observed.cpu())
    return exposure


def _check(name: str, values: Tensor, needed: Tensor) -> None:
    """Raises DataError for values that are negative or infinite, or missing where needed."""
    bad = torch.where(values.isnan(), needed, (values < 0) | values.isinf())
    if bad.any():
        row = int(bad.nonzero()[0])
        raise DataError(
            f"{name}: row {row} is {values[row].item()}; expected a finite number of at least 0"
        )
