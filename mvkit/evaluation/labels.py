"""Labels of rows, numbers or words, as class indices."""

from __future__ import annotations

import math
from numbers import Real

import attrs
import numpy as np
import torch
from torch import Tensor

from mvkit.core.raw_values import is_missing

NONE = -1  # the index of a row without a label

Words = tuple[str, ...]


@attrs.frozen
class Classes:
    """The classes that labels name.

    Labels are class indices, which stay as they are, unless some are negative or words: the index
    of a class is then its place among all of them, in sorted order.

    Args:
        values: the classes in order; empty where labels are indices.
    """

    values: tuple[int, ...] = ()

    @classmethod
    def of(cls, *labels: Tensor) -> Classes:
        """The classes of whole numbers; NaN is none."""
        values: set[int] = set()
        for numbers in labels:
            known = numbers[~numbers.isnan()] if numbers.is_floating_point() else numbers
            values.update(known.unique().long().tolist())
        if not values or min(values) >= 0:
            return cls()
        return cls(tuple(sorted(values)))

    def indices(self, labels: Tensor) -> Tensor:
        """Class indices of labels (b,), -1 where there is none."""
        unlabelled = torch.isnan(labels)
        numbers = torch.where(unlabelled, 0, labels).long()
        if self.values:
            ordered = torch.tensor(self.values)
            places = torch.searchsorted(ordered, numbers).clamp(max=len(ordered) - 1)
            unlabelled = unlabelled | (ordered[places] != numbers)
            numbers = places
        return torch.where(unlabelled, NONE, numbers)


def words_of(*labels: object) -> Words | None:
    """The words among labels in sorted order; None if all of them are numbers."""
    words: set[str] = set()
    textual = False
    for values in labels:
        flat = np.asarray(values).reshape(-1).tolist()
        known = [value for value in flat if not is_missing(value)]
        textual = textual or not all(isinstance(value, Real | np.bool_) for value in known)
        words.update(map(str, known))
    return tuple(sorted(words)) if textual else None


def as_numbers(labels: object, words: Words | None) -> Tensor:
    """Labels as numbers: words by their place among `words`; NaN where there is none."""
    array = np.asarray(labels)
    if words is None and array.dtype.kind in "biuf":
        return torch.as_tensor(array)
    places = {word: i for i, word in enumerate(words or ())}
    numbers: list[float] = []
    for value in array.reshape(-1).tolist():
        if is_missing(value):
            numbers.append(math.nan)
        else:
            numbers.append(float(value) if words is None else places[str(value)])
    tensor = torch.tensor(numbers, dtype=torch.float64).reshape(array.shape)
    complete = not bool(tensor.isnan().any())
    return tensor.long() if words is not None and complete else tensor
