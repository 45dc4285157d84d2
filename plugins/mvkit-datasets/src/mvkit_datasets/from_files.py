"""Datasets in files that the user has: where they lie, what they hold, how their rows are split and paired.

Nothing is downloaded by itself. Every draw is a hash of (seed, row), so that a dataset is the same wherever it is read.
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
from torch import Tensor

from mvkit.core.modality import Modality
from mvkit.data.datasets.catalogue import Splits, _masked, _rate
from mvkit.data.missing import uniforms
from mvkit.errors import DataError
from mvkit.registry import plugins
from mvkit.registry.spec import field, integer, one_of, spec

Array = NDArray[Any]


_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


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
        self, file: str, reader: Callable[[Path], Array], shape: tuple[int, ...] | None = None
    ) -> Array:
        """What `reader` makes of a file.

        Raises:
            DataError: there is no such file, it cannot be read, or it does not hold `shape`.
        """
        path = self.path / file
        remedy = f"these files are {self.origin}; put them there, or give the folder that has them as path="
        if not path.is_file():
            raise DataError(f"{path}: no such file; {remedy}")
        try:
            array = reader(path)
        except DataError:  # the reader says what to do
            raise
        except _UNREADABLE as error:
            raise DataError(
                f"{path}: cannot be read ({type(error).__name__}: {error}); {remedy}"
            ) from None
        if shape is not None and array.shape != shape:
            raise DataError(
                f"{path}: holds values of shape {array.shape}; expected {shape}; {remedy}"
            )
        return array


@attrs.frozen(eq=False)
class Contents:
    """What a dataset's files hold.

    Args:
        modalities: what the data are.
        data: by split, values (b, *shape) by modality.
        extra: by split, what else is known of the rows.
        notes: what else is known of the dataset.
    """

    modalities: dict[str, Modality]
    data: dict[str, dict[str, Tensor]]
    extra: dict[str, dict[str, Tensor]]
    notes: dict[str, Any] = attrs.field(factory=dict)


@spec
class FromFiles(ABC):
    """A dataset in a folder of the user's. To write one, give `origin` and `read`.

    Args:
        path: the folder with the files.
        missing: share of modalities missing at random in train and valid, one at least kept a row.
        missing_test: likewise in test.
        seed: of the missingness and whatever else is drawn, a function of (seed, row).
    """

    origin = ""  # where the files come from, for messages

    path: str | None = field(
        default=None, check=one_of(None, other=lambda v: None if isinstance(v, str) else "a path")
    )
    missing: float = field(default=0.0, check=_rate)
    missing_test: float = field(default=0.0, check=_rate)
    seed: int = field(default=0, check=integer())

    @abstractmethod
    def read(self, path: Path) -> Contents:
        """The contents of the files in a folder: splits `train`, `valid` and `test`."""

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: no path, or a file that is absent or holds something else; it says where the files come from.
        """
        name = plugins.name_of("dataset", type(self))
        get = f"the files are {self.origin}; get them and give their folder as path="
        if self.path is None:
            raise DataError(
                f"load_dataset({name!r}): no path, and nothing is downloaded by itself; {get}"
            )
        path = Path(self.path).expanduser()
        if not path.is_dir():
            raise DataError(f"load_dataset({name!r}): path={self.path!r} is no folder; {get}")
        made = self.read(path)
        rates = {"train": self.missing, "valid": self.missing, "test": self.missing_test}
        splits = {
            split: _masked(
                made.data[split], made.modalities, rate, 3 * self.seed + i, **made.extra[split]
            )
            for i, (split, rate) in enumerate(rates.items())
        }
        return Splits(made.modalities, **splits, notes=made.notes)


def stream(seed: int, split: int, rows: int, columns: int) -> NDArray[np.float64]:
    """Uniforms (rows, columns) for the making of a split; those of its missingness are others."""
    return uniforms(2**40 + 3 * seed + split, rows, columns)


def stratified(
    label: NDArray[np.int64], shares: Mapping[str, float]
) -> dict[str, NDArray[np.int64]]:
    """Row numbers of each split, shuffled, every class cut by the same shares; always the same ones.

    Example:
        >>> parts = stratified(np.repeat([0, 1], 10), {"train": 0.8, "test": 0.2})
        >>> len(parts["train"]), sorted((parts["test"] // 10).tolist())
        (16, [0, 0, 1, 1])
    """
    # one column says which split, another in which order; by the same one, small classes would come first
    which_split, which_place = uniforms(0, len(label), 2).T
    place = (_ranks(label, which_split) + 0.5) / np.bincount(label)[label]
    which = np.searchsorted(np.cumsum(list(shares.values()))[:-1], place)
    order = np.argsort(which_place)
    return {name: order[which[order] == i] for i, name in enumerate(shares)}


def paired(
    label: NDArray[np.int64], items: NDArray[np.int64], uniform: NDArray[np.float64]
) -> NDArray[np.int64]:
    """For each row (b,) an item of its class, at random, all items of a class equally often, give or take one.

    Args:
        label: classes of the rows, (b,).
        items: classes of the items, (n,); each class of the rows has one at least.
        uniform: what decides, (b,).
    """
    count = np.bincount(items, minlength=label.max() + 1)
    nth = np.cumsum(count) - count
    members = np.argsort(items, kind="stable")
    chosen: NDArray[np.int64] = members[nth[label] + _ranks(label, uniform) % count[label]]
    return chosen


def _ranks(label: NDArray[np.int64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """The place of each row among those of its class, by `uniform`: 0, 1, …"""
    order = np.lexsort((uniform, label))
    count = np.bincount(label)
    rank = np.empty(len(label), dtype=np.int64)
    rank[order] = np.arange(len(label)) - (np.cumsum(count) - count)[label[order]]
    return rank


@attrs.frozen(eq=False)
class Items:
    """Real things of ten classes, for use alone or paired with others.

    Args:
        values: (n, *shape), in the units of the file.
        label: class of each, (n,).
        number: its place in the source, (n,).
    """

    values: Tensor
    label: NDArray[np.int64]
    number: NDArray[np.int64]

    @classmethod
    def split(cls, values: Array, label: Array, splits: Mapping[str, Array]) -> dict[str, Items]:
        """Items by split, given the numbers of each."""
        return {
            name: cls(torch.from_numpy(values[index]), label[index].astype(np.int64), index)
            for name, index in splits.items()
        }

    def extra(self) -> dict[str, Tensor]:
        """`label` and `id` of the rows."""
        return {"label": torch.from_numpy(self.label), "id": torch.from_numpy(self.number)}
