"""Cells of a conformed batch: the elements of its modalities, all classes of one together.

Axes: b rows, m modalities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.raw_values import widened


def cells_of(batch: Batch, name: str) -> Tensor:
    """Which cells of a modality a conformed batch observes, (b, *shape) without a class axis."""
    present = batch.present(name)
    classes = batch.schema is not None and batch.schema.likelihoods[name].class_axis
    return present[..., 0] if classes and name not in batch.classes else present


def flat_cells(cells: Tensor) -> Tensor:
    """Cells or values (b, …) as (b, n), also where a row is one cell, or there is no row."""
    return cells.reshape(len(cells), math.prod(cells.shape[1:]))


def explained_share(x: Tensor, said: Tensor, present: Tensor) -> float:
    """How much less the squared error of values is than that of the mean over rows.

    Args:
        x: the values, (b, *shape).
        said: of them, (b, *shape).
        present: which values there are, (b, *shape) bool.

    Returns:
        1 if what is said is right, 0 if it is as good as the mean; NaN where nothing varies.
    """
    x = x.double()
    mean = torch.where(present, x, 0.0).sum(0) / present.sum(0).clamp(min=1)
    error = float(torch.where(present, x - said, 0.0).square().sum())
    spread = float(torch.where(present, x - mean, 0.0).square().sum())
    return 1 - error / spread if spread > 0 else math.nan


def only_cells(batch: Batch, cells: Mapping[str, Tensor]) -> Batch:
    """A conformed batch of which only these cells are observed.

    Indices of rows stay, so that nothing waits for the device: rows without such cells are zeros,
    and the mask leaves them out.

    Args:
        batch: the rows.
        cells: what is observed, {modality: (b, *shape) bool}.
    """
    data = {}
    observed = []
    for name, x in batch.data.items():
        data[name] = torch.where(widened(cells[name], x.shape), x, 0.0)
        observed.append(flat_cells(cells[name]).any(1))
    mask = rearrange(observed, "m b -> b m")
    return batch.narrowed(mask, data=data, elements=dict(cells))
