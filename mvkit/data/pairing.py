"""Rows of different datasets paired by their label."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.data.dataset import MultimodalDataset
from mvkit.data.tables import objects
from mvkit.errors import DataError


def pair_by_label(
    datasets: Sequence[MultimodalDataset], *, times: int = 1, seed: int = 0
) -> MultimodalDataset:
    """One dataset of rows of several, drawn at random among those of the same label; a function of the seed.

    Each row of the first dataset stands `times` times, each time with other partners; the rows of the others are used
    as evenly as can be.

    Args:
        datasets: with labels, and modalities of different names.
        times: how often a row of the first is paired.
        seed: of the pairing.

    Raises:
        DataError: no labels, a label that another dataset lacks, or a modality that two have.

    Example:
        >>> import numpy as np
        >>> from mvkit import MultimodalDataset
        >>> a = MultimodalDataset.from_arrays({"a": np.array([[1.0], [2.0]])}, label=[1, 2])
        >>> b = MultimodalDataset.from_arrays({"b": np.array([[2.5], [1.5]])}, label=[2, 1])
        >>> pair_by_label([a, b]).batch.data["b"].tolist()
        [[1.5], [2.5]]
    """
    modalities = {name: m for data in datasets for name, m in data.modalities.items()}
    if len(modalities) < sum(len(data.modalities) for data in datasets):
        raise DataError(
            "pair_by_label: two datasets have a modality of the same name; expected different ones; rename"
        )
    labels = [_labels(data, i) for i, data in enumerate(datasets)]
    wanted = np.tile(labels[0], times)
    first = torch.arange(len(labels[0])).repeat(times)
    parts = [datasets[0].take(first)]
    for i, other in enumerate(datasets[1:], 1):
        parts.append(other.take(_partners(wanted, labels[i], i, seed)))
    batches = [
        part.with_missing(0.0).batch for part in parts
    ]  # with masks, whatever says what is missing
    mask = torch.cat([batch.mask for batch in batches if batch.mask is not None], 1)
    elements = {name: x for batch in batches for name, x in (batch.elements or {}).items()}
    extra = {"label": batches[0].extra["label"]}
    if all("id" in batch.extra for batch in batches):
        extra["id"] = objects(list(zip(*(batch.extra["id"] for batch in batches), strict=True)))
    values = {name: x for batch in batches for name, x in batch.data.items()}
    columns = {name: x for batch in batches for name, x in batch.columns.items()}
    joined = Batch(values, mask, elements or None, extra, order=tuple(modalities), columns=columns)
    return MultimodalDataset(joined, modalities)


def _labels(data: MultimodalDataset, i: int) -> np.ndarray:
    if data.labels is None:
        raise DataError(
            f"pair_by_label: dataset {i} has no labels; expected one for each row; give label= to it"
        )
    return np.asarray(data.labels)


def _partners(wanted: np.ndarray, labels: np.ndarray, i: int, seed: int) -> Tensor:
    """Rows of the labels wanted, drawn without replacement until all are used, then anew."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + i) % 2**63)
    chosen = torch.empty(len(wanted), dtype=torch.long)
    for label in np.unique(wanted):
        places, pool = (
            np.flatnonzero(wanted == label),
            torch.from_numpy(np.flatnonzero(labels == label)),
        )
        if not len(pool):
            raise DataError(
                f"pair_by_label: dataset {i} has no row of label {label.item()!r}; expected one at least; leave those "
                "rows out of the first"
            )
        rounds = math.ceil(len(places) / len(pool))
        order = torch.cat([torch.randperm(len(pool), generator=generator) for _ in range(rounds)])
        chosen[torch.from_numpy(places)] = pool[order[: len(places)]]
    return chosen
