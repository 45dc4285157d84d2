"""Datasets in files that the user has: where the files are, what they hold, how rows are split.

Nothing is downloaded. Every draw is a hash of (seed, row), so that a dataset is the same wherever
it is read.
"""

from __future__ import annotations

import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from mvkit import Batch, DataError, Modality, MultimodalDataset
from mvkit.core.modality import PartLike
from mvkit.core.noise import row_uniforms
from mvkit.data.datasets import Splits, share
from mvkit.registry import field, one_of, plugins, spec
from mvkit.registry.fields import count

Array = NDArray[Any]
Rows = NDArray[np.int64]
Uniforms = NDArray[np.float64]
UNREADABLE = (OSError, ValueError, EOFError, LookupError, zipfile.BadZipFile, zlib.error)
path_or_none = one_of(None, other=lambda value: None if isinstance(value, str) else "a path")


@attrs.frozen
class Folder:
    """A folder with files of one origin.

    Args:
        path: where it is.
        origin: where such files come from, for messages.
    """

    path: Path
    origin: str

    def read(
        self, file: str, reader: Callable[[Path], Array], shape: tuple[int, ...] = ()
    ) -> Array:
        """The array that `reader` makes of a file; `shape` is the one expected, () any.

        Raises:
            DataError: there is no such file, it cannot be read, or its array has another shape.
        """
        path = self.path / file
        remedy = (
            f"these files are {self.origin}; put them there, or give the folder that has them "
            "as path="
        )
        if not path.is_file():
            raise DataError(f"{path}: no such file; {remedy}")
        try:
            array = reader(path)
        except UNREADABLE as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{path}: cannot be read ({reason}); {remedy}") from None
        if shape and array.shape != shape:
            raise DataError(
                f"{path}: holds values of shape {array.shape}; expected {shape}; {remedy}"
            )
        return array


@spec
class FromFiles(ABC):
    """A dataset in a folder of the user's. To write one, define `origin` and `read`.

    Args:
        path: the folder with the files.
        missing: share of modalities missing at random in train and valid; every row keeps one.
        missing_test: likewise in test.
        seed: of the missingness and whatever else is drawn, a function of (seed, row).
    """

    origin = ""  # where the files come from, for messages

    path: str | None = field(default=None, check=path_or_none)
    missing: float = field(default=0.0, check=share)
    missing_test: float = field(default=0.0, check=share)
    seed: int = count(0, low=0)

    @abstractmethod
    def read(self, path: Path) -> Splits:
        """The splits of the files in a folder, nothing hidden."""

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: no path, or a file that is absent or holds something else; the message says
                where the files come from.
        """
        name = str(plugins.name_of("dataset", type(self))).rpartition("/")[2]
        remedy = f"the files are {self.origin}; get them and give their folder as path="
        if self.path is None:
            raise DataError(
                f"load_dataset({name!r}): no path, and nothing is downloaded by itself; {remedy}"
            )
        path = Path(self.path).expanduser()
        if not path.is_dir():
            raise DataError(f"load_dataset({name!r}): path={self.path!r} is no folder; {remedy}")
        return self.read(path).with_missing(self.missing, self.missing_test, seed=self.seed)


def split_rows(
    arrays: Mapping[str, Array],
    likelihood: PartLike,
    label: Array,
    parts: Mapping[str, Rows],
    *,
    rows_per_file: int | None = None,
    with_label: bool = False,
) -> Splits:
    """Splits of arrays (n, *shape); bytes become numbers in [0, 1].

    Args:
        arrays: values by modality.
        likelihood: of all of them.
        label: class of each row, (n,), for `extra["label"]`.
        parts: by split, its rows.
        rows_per_file: after how many rows `extra["id"]` starts again from 0; None: never.
        with_label: whether the class, one of ten, is also a modality.
    """
    modalities = {name: Modality(x.shape[1:], likelihood) for name, x in arrays.items()}
    if with_label:
        modalities["label"] = Modality((10,), "categorical")
    splits = {}
    for split, rows in parts.items():
        classes = torch.from_numpy(label[rows]).long()
        number = torch.from_numpy(rows % (rows_per_file or len(label)))
        data = {}
        for name, array in arrays.items():
            values = torch.from_numpy(array[rows]).float()
            data[name] = values.div_(255) if array.dtype == np.uint8 else values
        if with_label:
            data["label"] = classes
        batch = Batch(data, extra={"label": classes, "id": number})
        splits[split] = MultimodalDataset(batch, modalities)
    return Splits(modalities, **splits)


def stratified(label: Array, shares: Mapping[str, float]) -> dict[str, Rows]:
    """Row numbers of each split, shuffled, every class cut by the same shares; always the same.

    Example:
        >>> parts = stratified(np.repeat([0, 1], 10), {"train": 0.8, "test": 0.2})
        >>> len(parts["train"]), sorted((parts["test"] // 10).tolist())
        (16, [0, 0, 1, 1])
    """
    # one column decides the split, another the order: by the same one, small classes come first
    for_split, for_order = row_uniforms(0, len(label), 2).T
    place = (_ranks(label, for_split) + 0.5) / np.bincount(label)[label]
    ends = np.cumsum(list(shares.values()))
    split = np.searchsorted(ends[:-1], place)
    order = np.argsort(for_order)
    return {name: order[split[order] == i] for i, name in enumerate(shares)}


def paired(label: Rows, items: Rows, uniform: Uniforms) -> Rows:
    """For each row a random item of its class, (b,); the counts of a class's items differ by at
    most one.

    Args:
        label: classes of the rows, (b,).
        items: classes of the items, (n,); every class of the rows occurs.
        uniform: uniforms that decide, (b,).
    """
    by_class = np.argsort(items, kind="stable")
    first = np.searchsorted(items[by_class], label)
    count = np.bincount(items)[label]
    return by_class[first + _ranks(label, uniform) % count]


def _ranks(label: Array, uniform: Uniforms) -> Rows:
    """The place of each row among those of its class, in the order of `uniform`: 0, 1, …"""
    place = np.argsort(np.lexsort((uniform, label)))
    return place - np.searchsorted(np.sort(label), label)
