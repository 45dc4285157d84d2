"""Rows of different datasets paired by their label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.covariate_values import plain_values
from mvkit.core.covariates import Level
from mvkit.core.modality import Modality
from mvkit.core.raw_values import Columns, is_missing
from mvkit.data.align import objects
from mvkit.data.dataset import MultimodalDataset
from mvkit.errors import DataError


def pair_by_label(
    datasets: Sequence[MultimodalDataset], *, times: int = 1, seed: int = 0
) -> MultimodalDataset:
    """One dataset of rows of several, drawn at random among those of the same label.

    A function of the seed. Each row of the first dataset occurs `times` times, each time with
    other partners; the rows of the others are used as evenly as can be.

    Covariates, exposures, weights and whatever else is in `extra` come along. What several
    datasets have must be the same in both rows of a pair, or missing in one of them.

    Args:
        datasets: with labels, and modalities of different names.
        times: how often a row of the first is paired.
        seed: of the pairing.

    Raises:
        DataError: no labels, a label that another dataset lacks, or a modality that two have; a
            covariate, an exposure or a weight that differs between the rows of a pair.

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
    batch = _side_by_side(paired, tuple(modalities))
    return MultimodalDataset(batch, modalities, levels=_levels(datasets))


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
    extra = {"label": batches[0].extra["label"], **_given(batches)}
    if all("id" in batch.extra for batch in batches):
        ids = [batch.extra["id"] for batch in batches]
        extra["id"] = objects(list(zip(*ids, strict=True)))
    return Batch(data, mask, elements or None, extra, order=names, columns=columns)


def _given(batches: Sequence[Batch]) -> dict[str, Any]:
    """What is known of pairs beside labels and ids: covariates, exposures, weights and others."""
    given: dict[str, Any] = {}
    owners: dict[str, int] = {}
    for i, batch in enumerate(batches):
        for name, values in batch.extra.items():
            if name in ("label", "id"):
                continue
            if name in given:
                values = _agreed(name, given[name], values, (owners[name], i))
            given[name] = values
            owners.setdefault(name, i)
    return given


def _agreed(name: str, first: Any, other: Any, owners: tuple[int, int]) -> Any:
    """What two datasets say of pairs, (b,); missing where it is missing in both.

    Raises:
        DataError: a pair of which they say different things.
    """
    ours = plain_values(name, first, len(first)).tolist()
    theirs = plain_values(name, other, len(other)).tolist()
    values = []
    for pair, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if is_missing(a) or is_missing(b):
            values.append(b if is_missing(a) else a)
            continue
        if a != b:
            raise DataError(
                f"pair_by_label: datasets {owners[0]} and {owners[1]} both have {name!r}, which "
                f"is {a!r} and {b!r} in pair {pair}; expected one value for each pair; rename it "
                "in one of them, or leave it out there"
            )
        values.append(a)
    if isinstance(first, Tensor) and isinstance(other, Tensor):
        return torch.tensor(values, dtype=torch.promote_types(first.dtype, other.dtype))
    return objects(values)


def _levels(datasets: Sequence[MultimodalDataset]) -> dict[str, tuple[Level, ...]]:
    """The levels of the covariates of several datasets: those of the first, then others."""
    levels: dict[str, tuple[Level, ...]] = {}
    for data in datasets:
        for name, known in data.levels.items():
            levels[name] = tuple(dict.fromkeys([*levels.get(name, ()), *known]))
    return levels


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
