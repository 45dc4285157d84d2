"""CSV files larger than memory, read a part of their rows at a time.

Axes: b rows of a part, k columns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from mvkit.core.batch import Batch
from mvkit.core.raw_values import Columns
from mvkit.data.files import GAPS, SEPARATORS, readable
from mvkit.errors import DataError, RequestError, check_whole_number, suggest


@attrs.frozen(eq=False)
class CsvParts:
    r"""Batches of the rows of a CSV or TSV file, one in memory at a time; each pass begins anew.

    For what takes an iterable of batches: `save_shards`, which makes rows of it that come in any
    order, `fit_in_passes` and `Pipeline(Loaded(…))`. Needs pandas, of the extra `mvkit[tables]`.

    Args:
        file: .csv or .tsv, also compressed, with names of columns in the first row.
        columns: by modality, the columns that are its features; empty fields and NA are gaps.
        extra: columns for `Batch.extra`: labels, covariates, weights; words, or numbers.
        id: the column of ids, which are text.
        rows: of a part.

    Raises:
        DataError: no such column; text among numbers, with its row.
        RequestError: a file that ends otherwise.
        OSError: no such file.

    Example:
        >>> import pathlib, tempfile
        >>> from mvkit.data.csv_parts import CsvParts
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "rows.csv")
        ...     _ = file.write_text("x,y,site\n1,2,A\n3,,B\n5,6,A\n")
        ...     parts = CsvParts(file, {"a": ["x", "y"]}, extra=["site"], rows=2)
        ...     [(batch.data["a"].tolist(), batch.extra["site"]) for batch in parts]
        [([[1.0, 2.0], [3.0, nan]], ['A', 'B']), ([[5.0, 6.0]], ['A'])]
    """

    file: str | os.PathLike[str]
    columns: Mapping[str, Sequence[str]]
    extra: Sequence[str] = attrs.field(default=(), kw_only=True)
    id: str | None = attrs.field(default=None, kw_only=True)
    rows: int = attrs.field(default=2**16, kw_only=True)

    def __iter__(self) -> Iterator[Batch]:
        from pandas import read_csv

        check_whole_number("CsvParts: rows", self.rows, 1)
        wanted = [name for names in self.columns.values() for name in names]
        wanted += [*self.extra, *([] if self.id is None else [self.id])]
        where = str(self.file)
        options: dict[str, Any] = {"sep": self._separator(), "keep_default_na": False}
        options["na_values"] = {name: list(GAPS) for name in wanted if name != self.id}
        with readable(where, "expected a text file of columns; write it again"):
            known = read_csv(self.file, nrows=0, sep=options["sep"]).columns
            for name in wanted:
                if name not in known:
                    raise DataError(f"{where}: no column {name!r}; {suggest(name, list(known))}")
            words = {} if self.id is None else {self.id: str}
            options |= {"usecols": wanted, "dtype": words, "low_memory": False}
            start = 0
            with read_csv(self.file, chunksize=self.rows, **options) as parts:
                for frame in parts:
                    yield self._batch(frame, start)
                    start += len(frame)

    def _separator(self) -> str:
        suffixes = [suffix for suffix in Path(self.file).suffixes if suffix in SEPARATORS]
        separator = SEPARATORS[suffixes[-1]] if suffixes else None
        if separator is None:
            raise RequestError(
                f"CsvParts: got {str(self.file)!r}; expected a file ending in .csv or .tsv; for "
                ".parquet take mvkit.data.stored_chunks.ParquetChunks"
            )
        return separator

    def _batch(self, frame: Any, start: int) -> Batch:
        data = {}
        columns = {}
        for name, features in self.columns.items():
            values = [self._numbers(frame[feature], feature, start) for feature in features]
            data[name] = torch.from_numpy(np.stack(values, 1))
            columns[name] = Columns(tuple(features))
        extra: dict[str, Any] = {}
        for name in self.extra:
            values = frame[name].to_numpy()
            extra[name] = torch.tensor(values) if values.dtype.kind in "iufb" else values.tolist()
        if self.id is not None:
            extra["id"] = frame[self.id].tolist()
        return Batch(data, extra=extra, columns=columns)

    def _numbers(self, column: Any, name: str, start: int) -> np.ndarray:
        """A column of numbers, (b,), NaN where missing."""
        from pandas import to_numeric

        numbers = to_numeric(column, errors="coerce")
        strange = (numbers.isna() & column.notna()).to_numpy().nonzero()[0]
        if len(strange):
            row = int(strange[0])
            raise DataError(
                f"{self.file}: column {name!r}, row {start + row}: {column.iloc[row]!r} is no "
                "number; expected numbers; correct it, or give the column as extra="
            )
        values: np.ndarray = numbers.to_numpy(dtype=float)
        return values
