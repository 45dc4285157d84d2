"""Which rows make up which batch of an epoch: pure functions of (seed, epoch), masks and labels.

Axes: b rows, n batches, m modalities.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mvkit.core import noise
from mvkit.core.noise import Generator


def order(rows: int, *, shuffle: bool, seed: int, epoch: int) -> Tensor:
    """Indices of the rows in an epoch, (b,): a pure function of its arguments."""
    if not shuffle:
        return torch.arange(rows)
    return noise.permutation(rows, noise.seeded(noise.seed_of_epoch(seed, epoch)))


def windowed(shards: list[int], *, window: int, seed: int, epoch: int) -> Tensor:
    """Indices of the rows, (b,): shards in random order, rows shuffled within windows of shards.

    Args:
        shards: rows of each shard, in order.
        window: shards per window.
        seed: of the order.
        epoch: likewise.
    """
    generator = noise.seeded(noise.seed_of_epoch(seed, epoch))
    rows = torch.arange(sum(shards)).split(shards)
    parts = []
    for turns in noise.permutation(len(shards), generator).split(window):
        index = torch.cat([rows[i] for i in turns])
        parts.append(index[noise.permutation(len(index), generator)])
    return torch.cat(parts)


def by_pattern(chosen: Tensor, mask: Tensor, size: int, generator: Generator) -> list[Tensor]:
    """Batches whose rows observe the same modalities; every row once.

    Args:
        chosen: indices of the rows in their order, (b,).
        mask: what each row of the data observes, (b, m).
        size: rows per batch; the last of each pattern may have fewer.
        generator: randomness of the order of the batches; None: pattern by pattern.
    """
    _, pattern, counts = torch.unique(mask[chosen], dim=0, return_inverse=True, return_counts=True)
    by_pattern = chosen[torch.argsort(pattern, stable=True)]
    batches = []
    for rows in by_pattern.split(counts.tolist()):
        batches.extend(rows.split(size))
    if generator is None:
        return batches
    return [batches[i] for i in noise.permutation(len(batches), generator)]


def balanced(chosen: Tensor, labels: object, size: int) -> list[Tensor]:
    """Batches that hold every label equally often, to within one row.

    An epoch has as many rows as there are: rows of rare labels are repeated, some of frequent ones
    wait for another epoch.

    Args:
        chosen: indices of the rows in their order, (b,).
        labels: a label for each row of the data, (b,): numbers or strings.
        size: rows per batch.
    """
    rows = chosen.numpy()
    kinds, kind = np.unique(np.asarray(labels)[rows], return_inverse=True)
    epoch = np.empty_like(rows)
    for k in range(len(kinds)):  # position t of the epoch takes a row of label t mod C
        places = epoch[k :: len(kinds)]
        places[:] = np.resize(rows[kind == k], len(places))
    return list(torch.from_numpy(epoch).split(size))
