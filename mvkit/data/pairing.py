"""Rows of different datasets paired by their label."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.modality import Modality
from mvkit.core.raw_values import Columns
from mvkit.data.align import objects
from mvkit.data.dataset import MultimodalDataset
from mvkit.errors import DataError


def pair_by_label(
    datasets: Sequence[MultimodalDataset], *, times: int = 1, seed: int = 0
) -> MultimodalDataset:
    """One dataset of rows of several, drawn at random among those of the same label.

    A function of the seed. Each row of the first dataset occurs `times` times, each time with
    other partners; the rows of the others are used as evenly as can be.

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
    modalities: dict[str, Modality] = {}
    for data in datasets:
        if modalities.keys() & data.modalities.keys():
            raise DataError(
                "pair_by_label: two datasets have a modality of the same name; expected "
                "different ones; rename"
            )
        modalities |= data.modalities
    labels = [_labels(data, i) for i, data in enumerate(datasets)]
    wanted = np.tile(labels[0], times)
    paired = [datasets[0].take(torch.arange(len(labels[0])).repeat(times))]
    for i in range(1, len(datasets)):
        paired.append(datasets[i].take(_partners(wanted, labels[i], i, seed)))
    return MultimodalDataset(_side_by_side(paired, tuple(modalities)), modalities)


def _side_by_side(datasets: Sequence[MultimodalDataset], names: tuple[str, ...]) -> Batch:
    """The rows of several datasets of as many rows as one batch."""
    batches = [data.with_missing(0.0).batch for data in datasets]  # all gaps in masks
    data: dict[str, Tensor] = {}
    elements: dict[str, Tensor] = {}
    columns: dict[str, Columns] = {}
    for batch in batches:
        data |= batch.data
        elements |= batch.elements or {}
        columns |= batch.columns
    mask = torch.cat([batch.observed for batch in batches], 1)
    extra = {"label": batches[0].extra["label"]}
    if all("id" in batch.extra for batch in batches):
        ids = [batch.extra["id"] for batch in batches]
        extra["id"] = objects(list(zip(*ids, strict=True)))
    return Batch(data, mask, elements or None, extra, order=names, columns=columns)


def _labels(data: MultimodalDataset, i: int) -> np.ndarray:
    if data.labels is None:
        raise DataError(
            f"pair_by_label: dataset {i} has no labels; expected one for each row; give label= "
            "to it"
        )
    return np.asarray(data.labels)


def _partners(wanted: np.ndarray, labels: np.ndarray, i: int, seed: int) -> Tensor:
    """Rows of the labels wanted, drawn without replacement until all are used, then anew."""
    generator = noise.seeded(noise.seed_of_epoch(seed, i))
    partners = np.empty(len(wanted), dtype=np.int64)
    for label in np.unique(wanted):
        places = np.flatnonzero(wanted == label)
        pool = np.flatnonzero(labels == label)
        if not len(pool):
            raise DataError(
                f"pair_by_label: dataset {i} has no row of label {label.item()!r}; expected one "
                "at least; leave those rows out of the first"
            )
        rounds = math.ceil(len(places) / len(pool))
        turns = [noise.permutation(len(pool), generator) for _ in range(rounds)]
        partners[places] = pool[torch.cat(turns)[: len(places)]]
    return torch.from_numpy(partners)
