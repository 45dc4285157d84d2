"""Sets of classes that a missing value may be, in the user's own words.

Axes: b rows, c classes; places are the shape of a modality without its axis of classes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import compress
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.data.write_tables import words_of
from mvkit.models.ensemble import Ensemble
from mvkit.models.multimodal import MultimodalModel

if TYPE_CHECKING:
    from pandas import DataFrame


def sets_of(
    model: MultimodalModel | Ensemble, name: str, sets: Tensor, known: Batch, gap: Tensor | None
) -> Tensor:
    """Sets of a modality's classes, (b, *places, c) bool, where observed cells are their class.

    Args:
        model: the model.
        name: the modality.
        sets: of all cells, (b, *places, c) bool.
        known: the conformed rows, on the CPU.
        gap: which cells are missing, (b, *places) bool; None: all.
    """
    if gap is None:
        return sets
    x = known.data[name]
    if not model.schema.likelihoods[name].class_axis:  # bits
        x = torch.stack([1 - x, x], -1)
    gap = gap.reshape(sets.shape[:-1])
    return torch.where(rearrange(gap, "... -> ... 1"), sets, x > 0.5)


def table_of_sets(
    model: MultimodalModel | Ensemble, name: str, sets: Tensor, ids: Sequence[Hashable]
) -> DataFrame:
    """Sets (b, k, c) as a pandas table of tuples of classes, a row for each id."""
    from pandas import DataFrame, Index

    modality = model.modalities[name]
    labels = class_labels(model, name)
    columns = {}
    flat = sets.flatten(1, -2) if sets.ndim > 2 else rearrange(sets, "b c -> b 1 c")
    titles = modality.features or range(flat.shape[1])
    for i, title in enumerate(titles):
        columns[title] = [tuple(compress(labels, flags)) for flags in flat[:, i].tolist()]
    return DataFrame(columns, index=Index(list(ids), tupleize_cols=False))


def class_labels(model: MultimodalModel | Ensemble, name: str) -> list[object]:
    """What the classes of a modality are called in the user's data: words, or numbers."""
    modality = model.modalities[name]
    if not model.schema.likelihoods[name].class_axis:
        return [0, 1]
    count = modality.shape[-1]
    if not modality.transform:
        return list(range(count))
    words = words_of(modality)
    values = modality.restore(torch.eye(count)).flatten().tolist()
    return [words[int(value)] for value in values] if words else values
