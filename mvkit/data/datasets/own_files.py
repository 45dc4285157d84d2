"""The dataset of a user's own files: `load_dataset("files", …)`, and `[data]` of a run file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mvkit.data.dataset import MultimodalDataset
from mvkit.data.datasets.catalogue import SPLITS, Splits
from mvkit.data.files import read_files
from mvkit.data.table_layout import TableLayout, layout_of, observing
from mvkit.errors import DataError, suggest
from mvkit.registry.fields import count, switch
from mvkit.registry.spec import field, spec

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    Frames = dict[str, DataFrame]


ROUNDING = 1e-6  # of shares that add up to 1


def _paths(value: object) -> str | None:
    """A check: paths by name."""
    fine = isinstance(value, Mapping) and value and all(map(_is_text, [*value, *value.values()]))
    return None if fine else "a table of paths by name, such as {labs = 'labs.csv'}"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _text_or_none(value: object) -> str | None:
    return None if value is None or _is_text(value) else "the name of a column"


def _kinds(value: object) -> str | None:
    """A check: kinds of columns by file and name."""
    tables = value.values() if isinstance(value, Mapping) else [None]
    for table in tables:
        if not isinstance(table, Mapping) or not all(map(_is_text, table.values())):
            return "a table of kinds by column for each file"
    return None


def _table(value: object) -> str | None:
    return None if isinstance(value, Mapping) else "a table by modality"


def _names(value: object) -> str | None:
    fine = isinstance(value, tuple) and all(map(_is_text, value))
    return None if fine else "a list of names of columns"


def _shares(value: object) -> str | None:
    """A check: shares of the rows of each split."""
    shares = value if isinstance(value, tuple) else ()
    numbers = [share for share in shares if isinstance(share, int | float) and 0 < share < 1]
    if len(numbers) == len(shares) == len(SPLITS) and abs(sum(numbers) - 1) < ROUNDING:
        return None
    return "three shares above 0 that add up to 1: train, valid and test"


@spec
class OwnFiles:
    """Rows of CSV, TSV or Parquet files, one table each, aligned by their ids.

    Columns are shared out among modalities by what they hold (see
    `mvkit.data.table_layout.TableLayout`); with several files the names of modalities begin with
    that of the file. Numbers are standardised by the training rows. Rows that hold nothing are
    left out.

    Args:
        files: paths by name.
        id: the column of ids; needed with several files.
        encoding: of text files.
        label: a column of labels, which is never modelled.
        covariates: columns that models may be conditioned on, which are not modelled either.
        row_weight: the column of how much each row counts.
        kinds: of columns that are something else than they look like, by file and column; see
            `mvkit.data.column_kinds.column_of`.
        by_kind: share out columns by kind; False: each file is one modality, of numbers or of
            categories, as `MultimodalDataset.from_files` takes it.
        modalities: where `by_kind` is False, what modalities are; see `from_files`.
        transforms: by modality, instead of `standardise` of numbers; see `fit_transforms`.
        splits: shares of the rows for train, valid and test.
        split_by: a column that says `train`, `valid` or `test` of each row instead.
        seed: of the splits.

    Example:
        >>> import mvkit, pandas, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "labs.csv"
        >>> table = pandas.DataFrame({"crp": [0.5, 2.5] * 20, "site": ["A", "B"] * 20})
        >>> table.to_csv(path, index=False)
        >>> data = mvkit.load_dataset("files", files={"labs": str(path)})
        >>> list(data.modalities), len(data.train)
        (['numbers', 'site'], 32)
    """

    files: Mapping[str, str] = field(check=_paths)
    id: str | None = field(default=None, check=_text_or_none)
    encoding: str = "utf-8"
    label: str | None = field(default=None, check=_text_or_none)
    covariates: tuple[str, ...] = field(default=(), check=_names)
    row_weight: str | None = field(default=None, check=_text_or_none)
    kinds: Mapping[str, Any] = field(default={}, check=_kinds)
    by_kind: bool = switch(True)
    modalities: Mapping[str, Any] = field(default={}, check=_table)
    transforms: Mapping[str, Any] = field(default={}, check=_table)
    splits: tuple[float, ...] = field(default=(0.8, 0.1, 0.1), check=_shares)
    split_by: str | None = field(default=None, check=_text_or_none)
    seed: int = count(0, low=0)

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: as `MultimodalDataset.from_files`; a column that no file has; a split
                without rows.
        """
        data, places = self._rows()
        parts = self._parts(data, places)
        numbers = dict(self.transforms)
        for name in self._numbers() if self.by_kind else ():
            numbers.setdefault(name, "standardise")
        train = parts["train"].fit_transforms(numbers)
        valid, test = (self._like(parts[split], train) for split in SPLITS[1:])
        return Splits(train.modalities, train, valid, test)

    def layouts(self) -> dict[str, TableLayout]:
        """How the columns of each file are shared out, where it is by kind."""
        frames = self._frames()
        self._pop(frames, self._columns_beside())
        return self._layouts(frames)

    def _frames(self) -> Frames:
        return read_files(
            {name: os.fspath(path) for name, path in self.files.items()}, self.id, self.encoding
        )

    def _columns_beside(self) -> tuple[str, ...]:
        """Columns that are not modelled."""
        given = (self.label, self.row_weight, self.split_by)
        return (*[name for name in given if name is not None], *self.covariates)

    def _layouts(self, frames: Frames) -> dict[str, TableLayout]:
        for name in self.kinds:
            if name not in self.files:
                raise DataError(f"kinds: no file {name!r}; {suggest(name, self.files)}")
        layouts = {}
        for name, frame in frames.items():
            prefix = name if len(self.files) > 1 else ""
            where = f"files[{name!r}]"
            layouts[name] = layout_of(frame, kinds=self.kinds.get(name), name=prefix, where=where)
        return layouts

    def _numbers(self) -> list[str]:
        """Modalities of numbers."""
        names = []
        for layout in self.layouts().values():
            for group, columns in layout.groups.items():
                if layout.column(columns[0]).numeric:
                    names.append(group)
        return names

    def _pop(self, frames: Frames, names: Sequence[str]) -> dict[str, Series]:
        """Takes columns out of every table that has them; the first that has one tells it.

        Raises:
            DataError: no table has it.
        """
        columns: dict[str, Series] = {}
        for name in names:
            for table, frame in list(frames.items()):
                if name in frame.columns:
                    columns.setdefault(name, frame[name])
                    frames[table] = frame.drop(columns=name)
            if name not in columns:
                every = [str(column) for frame in frames.values() for column in frame.columns]
                raise DataError(f"files: none has a column {name!r}; {suggest(name, every)}")
        for table, frame in list(frames.items()):
            if not len(frame.columns):
                del frames[table]
        return columns

    def _rows(self) -> tuple[MultimodalDataset, Mapping[object, object]]:
        """All rows, and the split of each id where a column says it."""
        from pandas import DataFrame

        frames = self._frames()
        columns = self._pop(frames, self._columns_beside())
        options: dict[str, Any] = {"modalities": self.modalities}
        tables: Frames = frames
        if self.by_kind:
            tables = {}
            options["modalities"] = {}
            for name, layout in self._layouts(frames).items():
                tables |= layout.split(frames[name])
                options["modalities"] |= layout.modalities()
        if self.label is not None:
            options["label"] = columns[self.label].dropna().to_dict()
        if self.row_weight is not None:
            options["row_weight"] = columns[self.row_weight].to_dict()
        if self.covariates:
            options["covariates"] = DataFrame({name: columns[name] for name in self.covariates})
        places = {} if self.split_by is None else columns[self.split_by].dropna().to_dict()
        data = MultimodalDataset.from_tables(tables, **options)
        return data.take(observing(data.batch)), places

    def _parts(
        self, data: MultimodalDataset, places: Mapping[object, object]
    ) -> dict[str, MultimodalDataset]:
        """The splits by name."""
        if self.split_by is None:
            parts = dict(zip(SPLITS, data.split(*self.splits, seed=self.seed), strict=True))
        else:
            said = {id: str(places.get(id, "")) for id in data.ids.tolist()}
            for id, split in said.items():
                if split not in SPLITS:
                    raise DataError(
                        f"split_by={self.split_by!r}: it says {split!r} of row {id!r}; expected "
                        "train, valid or test; correct it"
                    )
            splits = np.array(list(said.values()))
            parts = {split: data.take(splits == split) for split in SPLITS}
        for split, part in parts.items():
            if not len(part):
                raise DataError(
                    f"files: no row is left for {split!r} of {len(data)}; expected one at least; "
                    "give more rows, or other splits"
                )
        return parts

    @staticmethod
    def _like(part: MultimodalDataset, train: MultimodalDataset) -> MultimodalDataset:
        """Rows with the modalities of training."""
        return MultimodalDataset(part.batch, train.modalities, levels=part.levels)
