"""From what users give a batch to tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mvkit.core.raw_values import as_tensor, is_plain
from mvkit.errors import ShapeError


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
