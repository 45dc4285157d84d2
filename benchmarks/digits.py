"""Data to learn from: polydigits as it is, flattened and with other crops; real tables.

data = splits("crops", seed=1, rows=4000)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

import mvkit
from mvkit import Modality
from mvkit.data.datasets import catalogue
from mvkit.data.datasets.polydigits import make
from mvkit.parts import Normal

TABLES = ("mfeat", "rosmap")
VARIANTS = ("polydigits", "flat", "crops", *TABLES, "mfeat, standardised")
# other parts of the photographs, other flips, other ways to blend than `make.LOOKS`
LOOKS = (
    ("flower.jpg", 0.25, 0.75, 0, "bright"),
    ("china.jpg", 0.0, 0.5, 1, "difference"),
    ("flower.jpg", 0.5, 1.0, None, "dark"),
    ("china.jpg", 0.5, 1.0, 0, "bright"),
    ("flower.jpg", 0.0, 0.5, 1, "difference"),
)


def splits(variant: str, folder: Path, *, seed: int, rows: int | None) -> catalogue.Splits:
    """Splits of a variant.

    Args:
        variant: one of `VARIANTS`.
        folder: where the folders `mfeat` and `rosmap` are.
        seed: of the crops.
        rows: of train, at most; None: all.
    """
    table = variant.partition(",")[0]
    if table in TABLES:
        data = mvkit.load_dataset(table, path=str(folder / table))
    elif variant == "crops":
        data = _crops(seed)
    else:
        data = mvkit.load_dataset("polydigits")
    if variant == "flat":
        data = _flattened(data)
    if variant.endswith("standardised"):
        data = _standardised(data)
    if rows is None:
        return data
    return _splits(
        data.modalities, {**_batches(data), "train": data.train.batch.take(slice(rows))}
    )


def _batches(data: catalogue.Splits) -> dict[str, mvkit.Batch]:
    return {split: getattr(data, split).batch for split in catalogue.SPLITS}


def _splits(
    modalities: dict[str, Modality], batches: Mapping[str, mvkit.Batch]
) -> catalogue.Splits:
    """Splits of batches, without schemas of other modalities."""
    datasets = {}
    for split, batch in batches.items():
        plain = mvkit.Batch(dict(batch.data), extra=dict(batch.extra))
        datasets[split] = mvkit.MultimodalDataset(plain, modalities)
    return catalogue.Splits(modalities, **datasets)


def _flattened(data: catalogue.Splits) -> catalogue.Splits:
    """The pictures as vectors of 64."""
    modalities = {}
    for name, modality in data.modalities.items():
        modalities[name] = Modality((64,), modality.likelihood)
    batches = {}
    for split, batch in _batches(data).items():
        vectors = {name: x.flatten(1) for name, x in batch.data.items()}
        batches[split] = mvkit.Batch(vectors, extra=dict(batch.extra))
    return _splits(modalities, batches)


def _standardised(data: catalogue.Splits) -> catalogue.Splits:
    """Every feature by the mean and the deviation of its train rows."""
    train = data.train.batch.data
    mean = {name: x.mean(0) for name, x in train.items()}
    deviation = {name: x.std(0).clamp(min=1e-6) for name, x in train.items()}
    batches = {}
    for split, batch in _batches(data).items():
        values = {name: (x - mean[name]) / deviation[name] for name, x in batch.data.items()}
        batches[split] = mvkit.Batch(values, extra=dict(batch.extra))
    return _splits(data.modalities, batches)


def _crops(seed: int) -> catalogue.Splits:
    """Vectors of 64 as in polydigits, from other parts of the photographs, by another seed."""
    from sklearn.datasets import load_digits

    source = load_digits()
    random = np.random.default_rng(seed)
    pools = make.split(random, source.target)
    modalities = {f"m{m}": Modality((64,), Normal(scale=0.25)) for m in range(len(LOOKS))}
    batches = {}
    for split, rows in make.ROWS.items():
        labels = random.permutation(np.arange(rows) % 10)
        data: dict[str, Tensor] = {}
        for name, look in zip(modalities, LOOKS, strict=True):
            chosen = [random.choice(pools[split][label]) for label in labels]
            pictures = _pictures(random, look, source.images[chosen] / 16)
            data[name] = torch.from_numpy(pictures).float().flatten(1)
        batches[split] = mvkit.Batch(data, extra={"label": torch.from_numpy(labels).long()})
    return _splits(modalities, batches)


def _pictures(
    random: np.random.Generator, look: tuple[str, float, float, int | None, str], digits: make.Grey
) -> make.Grey:
    """Digits over random crops of one part of one photograph, (b, 8, 8)."""
    photograph, start, stop, flip, how = look
    windows = sliding_window_view(make.background(photograph, start, stop, flip), (8, 8))
    top = random.integers(0, windows.shape[0], len(digits))
    left = random.integers(0, windows.shape[1], len(digits))
    return make.blend(how, windows[top, left], digits)
