"""Covariates and exposures that a caller states for rows that are generated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.covariate_values import conform_covariate, numbers_of
from mvkit.core.covariates import Covariate
from mvkit.core.row_context import RowContext
from mvkit.core.validation import Schema
from mvkit.errors import MvkitError, RequestError, suggest

Stated = Mapping[str, object] | None


class StatesRows(Protocol):
    """A model whose callers may state covariates and exposures of rows."""

    def row_context(
        self,
        where: str,
        covariates: Stated,
        exposure: Stated,
        shape: tuple[int, ...] | None,
        *,
        partly: bool = False,
    ) -> RowContext:
        """What a caller states of rows; see `asked_row_context`."""
        ...


def asked_row_context(
    schema: Schema,
    like: Tensor,
    where: str,
    covariates: Stated,
    exposure: Stated,
    shape: tuple[int, ...] | None,
    *,
    partly: bool = False,
) -> RowContext:
    """What a caller states of rows, checked.

    Args:
        schema: the model's.
        like: a tensor of the model's dtype and device.
        where: the method that was called.
        covariates: {name: value}.
        exposure: by modality, {name: value}.
        shape: of the latents: values may then have it too; None: values for all rows alike.
        partly: whether covariates that rows must have may be left unstated, as where there are
            rows, which is where `shape` is None.

    Raises:
        RequestError: a name that nobody has, a value that cannot be, or one that is missing.
    """
    stated = dict(covariates or {})
    for name in stated:
        if name not in schema.covariates:
            raise RequestError(
                f"{where}: no covariate {name!r} in the model; {suggest(name, schema.covariates)}"
            )
    known = {}
    for name, covariate in schema.covariates.items():
        if name in stated:
            values, own = _flat(stated[name], shape, where, name)
            known[name] = _covariate(where, name, covariate, values).reshape(own)
        elif shape is not None and not partly:
            known[name] = _unstated(schema, where, name)
    exposures = {}
    for name, value in (exposure or {}).items():
        exposures[name] = _exposure(schema, where, name, value, shape).to(like)
    known = {name: value.to(like.device) for name, value in known.items()}
    return RowContext(known, exposures)


def _covariate(where: str, name: str, covariate: Covariate, values: list[Any]) -> Tensor:
    try:
        return conform_covariate(name, covariate, values, len(values))
    except MvkitError as error:
        raise RequestError(f"{where}: {error}") from None


def _unstated(schema: Schema, where: str, name: str) -> Tensor:
    """The value of a covariate that was not stated: a missing one, if rows may lack it."""
    covariate = schema.covariates[name]
    if covariate.missing == "error":
        listed = ", ".join(f"{key!r}: …" for key in schema.covariates)
        raise RequestError(
            f"{where}: the model is conditioned on {name!r}; expected a value of it: "
            f"covariates={{{listed}}}"
        )
    return conform_covariate(name, covariate, None, 1)[0]


def _exposure(
    schema: Schema, where: str, name: str, value: object, shape: tuple[int, ...] | None
) -> Tensor:
    if name not in schema.exposures:
        raise RequestError(
            f"{where}: modality {name!r} has no exposure; {suggest(name, schema.exposures)}"
        )
    values, own = _flat(value, shape, where, name)
    what = f"{where}: exposure of {name!r}"
    try:
        exposure = numbers_of(what, values, len(values))
    except MvkitError as error:
        raise RequestError(str(error)) from None
    limits = torch.finfo(schema.dtype)
    fine = (exposure == 0) | ((exposure >= limits.tiny) & (exposure <= limits.max))
    if not bool(fine.all()):
        raise RequestError(f"{what}: expected numbers of at least 0, of a size that floats hold")
    return exposure.reshape(own)


def stated_covariates(rows: Batch, row: int = 0) -> dict[str, object]:
    """The covariates of a row as callers state them, {name: value}; None where it lacks one.

    Args:
        rows: conformed.
        row: which of them.
    """
    stated: dict[str, object] = {}
    covariates = {} if rows.schema is None else rows.schema.covariates
    for name, covariate in covariates.items():
        value = rows.covariates[name][row].item()
        if covariate.levels:
            stated[name] = None if value < 0 else covariate.levels[int(value)]
        else:
            stated[name] = None if math.isnan(value) else value
    return stated


def _flat(
    value: Any, shape: tuple[int, ...] | None, where: str, name: str
) -> tuple[list[Any], tuple[int, ...]]:
    """One value as a list of one, or those of all rows as a list, and the shape that they have."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    single = value is None or isinstance(value, str | bytes) or np.ndim(value) == 0
    if single:
        return [value.item() if isinstance(value, np.ndarray | np.generic) else value], ()
    own = np.shape(value)
    if shape is None or own != shape:
        allowed = "one value for all rows" if shape is None else f"one value, or {shape} of them"
        raise RequestError(f"{where}: {name!r} has values of shape {own}; expected {allowed}")
    return np.asarray(value).reshape(-1).tolist(), own
