"""Which rows stand in which batch of an epoch: pure functions of (seed, epoch) and of what rows say of themselves.

Axes: b rows, n batches, m modalities.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, epoch: int) -> torch.Generator:
    """Randomness that is a function of (seed, epoch)."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)


def order(rows: int, *, shuffle: bool, seed: int, epoch: int) -> Tensor:
    """Indices of the rows in an epoch, (b,): a pure function of its arguments."""
    return (
        torch.randperm(rows, generator=generator(seed, epoch)) if shuffle else torch.arange(rows)
    )


def windowed(shards: list[int], *, window: int, seed: int, epoch: int) -> Tensor:
    """Indices of the rows, (b,): shards in random order, rows shuffled within each window of so many shards.

    Args:
        shards: rows of each shard, in order.
        window: shards in a window.
        seed: of the order.
        epoch: likewise.
    """
    random = generator(seed, epoch)
    ends = np.cumsum(shards)
    turns = torch.randperm(len(shards), generator=random).tolist()
    parts = []
    for start in range(0, len(turns), window):
        index = torch.cat(
            [torch.arange(ends[i] - shards[i], ends[i]) for i in turns[start : start + window]]
        )
        parts.append(index[torch.randperm(len(index), generator=random)])
    return torch.cat(parts)


def by_pattern(
    chosen: Tensor, mask: Tensor, size: int, random: torch.Generator | None
) -> list[Tensor]:
    """Batches whose rows observe the same modalities; every row once.

    Args:
        chosen: indices of the rows in their order, (b,).
        mask: what each row observes, (b, m).
        size: rows a batch; the last of each pattern may have fewer.
        random: of the order of the batches; None: pattern by pattern.
    """
    key = torch.unique(mask, dim=0, return_inverse=True)[1][chosen]
    sizes = [
        part
        for n in torch.bincount(key).tolist()
        for part in [size] * (n // size) + [n % size]
        if part
    ]
    batches = chosen[torch.argsort(key, stable=True)].split(sizes)
    turns = (
        torch.arange(len(batches))
        if random is None
        else torch.randperm(len(batches), generator=random)
    )
    return [batches[i] for i in turns.tolist()]


def balanced(chosen: Tensor, labels: Any, size: int) -> list[Tensor]:
    """Batches that hold every label equally often, to one row.

    As many rows as there are: those of rare labels come again, some of frequent ones wait for another epoch.

    Args:
        chosen: indices of the rows in their order, (b,).
        labels: a label for each row, (b,): numbers or strings.
        size: rows a batch.
    """
    kinds, key = np.unique(np.asarray(labels), return_inverse=True)
    found, c = np.empty(len(chosen), dtype=np.int64), len(kinds)
    for kind in range(c):  # position t of the epoch takes a row of label t mod c
        rows = chosen.numpy()[key[chosen.numpy()] == kind]
        wanted = len(found[kind::c])
        found[kind::c] = np.tile(rows, math.ceil(wanted / len(rows)))[:wanted]
    return list(torch.from_numpy(found).split(size))
