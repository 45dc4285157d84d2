"""What is given of the rows of a batch beside their modalities: covariates, exposures, weights.

Axes: b rows, m modalities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mvkit.core.covariate_values import conform_covariates, numbers_of
from mvkit.core.likelihood import TOTAL
from mvkit.core.raw_values import row_called
from mvkit.core.validation import Schema
from mvkit.errors import DataError

ROW_WEIGHT = "row_weight"  # in `Batch.extra`
Extra = Mapping[str, Any]
Ids = Sequence[object] | None


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
        ids = extra.get("id")
        weight = numbers_of(ROW_WEIGHT, extra[ROW_WEIGHT], b, ids)
        _check(ROW_WEIGHT, weight, torch.ones(b, dtype=torch.bool), schema.dtype, ids)
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
    ids = extra.get("id")
    exposure = numbers_of(source, extra[source], len(x), ids)
    _check(source, exposure, observed.cpu(), schema.dtype, ids)
    if schema.likelihoods[name].integers:
        check_exposed(f"exposure {source!r} of {name!r}", exposure, x, ids)
    return exposure


def with_given(extra: Extra, covariates: Extra, row_weight: object) -> dict[str, Any]:
    """What else is known of rows, with their covariates and weights, (b,); None: no weights.

    Raises:
        DataError: a name that both have.
    """
    given = dict(covariates)
    if row_weight is not None:
        given[ROW_WEIGHT] = row_weight
    for name in given:
        if name in extra:
            raise DataError(
                f"batch.covariates[{name!r}]: extra has {name!r} too; expected one of them; "
                "rename one"
            )
    return {**extra, **given}


def check_exposed(where: str, exposure: Tensor, x: Tensor, ids: Ids) -> None:
    """Raises DataError for rows of exposure 0 (b,) in which something was counted, (b, *shape)."""
    counted = (x > 0).flatten(1).any(1).cpu()
    bad = counted & (exposure.cpu() == 0)
    if bad.any():
        row = row_called(int(bad.nonzero()[0]), ids)
        raise DataError(
            f"{where}: {row} is 0, but something was counted in it; expected a number "
            "above 0; correct one of them"
        )


def _check(name: str, values: Tensor, needed: Tensor, dtype: torch.dtype, ids: Ids) -> None:
    """Raises DataError for values that are negative or infinite, or missing where needed, or that
    the model's dtype cannot hold.
    """
    bad = torch.where(values.isnan(), needed, (values < 0) | values.isinf())
    if bad.any():
        row = int(bad.nonzero()[0])
        raise DataError(
            f"{name}: {row_called(row, ids)} is {values[row].item()}; expected a finite number "
            "of at least 0"
        )
    limits = torch.finfo(dtype)
    lost = values > limits.max
    if name != ROW_WEIGHT:  # weights may well be next to nothing
        lost = lost | ((values > 0) & (values < limits.tiny))
    if lost.any():
        row = int(lost.nonzero()[0])
        kind = str(dtype).removeprefix("torch.")
        raise DataError(
            f"{name}: {row_called(row, ids)} is {values[row].item():.2g}; expected 0, or a number "
            f"from {limits.tiny:.2g} to {limits.max:.2g}, which {kind} holds; scale them"
        )
