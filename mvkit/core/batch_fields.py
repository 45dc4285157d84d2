"""From what users give a batch to tensors, whose names and lengths fit.

Axes: b rows, m modalities.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from mvkit.core.raw_values import as_tensor, is_plain, values_in
from mvkit.errors import DataError, ShapeError, suggest


def _tensors(values: Mapping[str, object], where: str) -> dict[str, Tensor]:
    if not isinstance(values, Mapping):
        raise ShapeError(
            f"batch: got {type(values).__name__}; expected a mapping from modality to tensor"
        )
    tensors = {}
    for name, value in values.items():
        if type(value) is not Tensor or not is_plain(value):
            value = as_tensor(value, f"{where}[{name!r}]")
        tensors[name] = value
    return tensors


def as_data(values: Mapping[str, object]) -> dict[str, Tensor]:
    """The values of a batch as tensors."""
    return _tensors(values, "batch.data")


def as_elements(values: Mapping[str, object]) -> dict[str, Tensor]:
    """The flags of its observed elements as tensors."""
    return _tensors(values, "batch.elements")


def as_mask(value: object) -> Tensor:
    """The mask of a batch as a tensor."""
    if type(value) is Tensor and is_plain(value):
        return value
    return as_tensor(value, "batch.mask")


def check_names(
    data: Mapping[str, Tensor], elements: Mapping[str, Tensor], known: Collection[str]
) -> None:
    """Raises ShapeError for modalities that a model does not know, and flags without data."""
    for name in data:
        if name not in known:
            raise ShapeError(f"batch.data: unknown modality {name!r}; {suggest(str(name), known)}")
    for name in elements:
        if name not in data:
            raise ShapeError(f"batch.elements: no data for {name!r}; {suggest(str(name), data)}")


def length_of(data: Mapping[str, Tensor], extra: Mapping[str, object]) -> int:
    """The number of rows, which must be the same everywhere.

    Raises:
        ShapeError: lengths that differ.
        DataError: no rows.
    """
    lengths = {name: len(value) if value.ndim else 0 for name, value in data.items()}
    if not any(lengths.values()):
        raise DataError("batch: it is empty; expected one row of one modality at least")
    first, b = next(iter(lengths.items()))
    for name, length in lengths.items():
        if length != b:
            raise ShapeError(
                f"batch.data[{name!r}]: {length} rows, but {first!r} has {b}; expected as many in "
                "every modality; give NaN rows or a mask for rows that a modality lacks"
            )
    for name, value in extra.items():
        length = values_in(value, f"batch.extra[{name!r}]")
        if length != b:
            raise ShapeError(
                f"batch.extra[{name!r}]: {length} values for {b} rows; expected one for each"
            )
    return b


def mask_columns(
    mask: Tensor, order: tuple[str, ...], names: tuple[str, ...], b: int
) -> dict[str, Tensor]:
    """Which rows a mask says observe each modality, {name: (b,) bool}.

    Args:
        mask: of the rows, (b, m).
        order: names of its columns.
        names: all modalities; those without a column are unobserved.
        b: rows there are.

    Raises:
        ShapeError: another dtype, or another shape.
    """
    if mask.dtype != torch.bool:
        raise ShapeError(
            f"batch.mask: dtype {mask.dtype}; expected torch.bool, True where observed; use "
            "mask.bool()"
        )
    if mask.shape != (b, len(order)):
        raise ShapeError(
            f"batch.mask: shape {tuple(mask.shape)}; expected {(b, len(order))}, columns "
            f"{', '.join(order)}"
        )
    unlisted = dict.fromkeys(names, mask.new_zeros(b))
    return unlisted | dict(zip(order, mask.unbind(1), strict=True))
