"""Tables that are written a block of rows at a time, as AnnData's h5ad.

Axes: n rows, f columns of numbers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from mvkit.errors import RequestError

CHUNK = 2**18  # numbers of a chunk of the file, about
ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
WORDS = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
TABLE = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
MAPPING = {"encoding-type": "dict", "encoding-version": "0.1.0"}
ROOT = {"encoding-type": "anndata", "encoding-version": "0.1.0"}


class H5adFile:
    """Numbers of rows as `X` (n, f), their ids as the index of `obs`, columns of words in `obs`.

    It is the layout that AnnData's documentation describes ("On-disk format", version 0.1.0), so
    that `anndata.read_h5ad` reads it, also with `backed="r"`. Rows without ids are called `0`,
    `1`, ….

    Args:
        path: of the file.

    Raises:
        RequestError: h5py is not installed.
        OSError: when it cannot be written.

    Example:
        >>> import pandas, tempfile
        >>> from mvkit.data.h5ad_file import H5adFile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = H5adFile(f"{folder}/z.h5ad")
        ...     file.write(pandas.DataFrame({"id": ["p", "q"], "z0": [0.5, 1.5]}))
        ...     file.close()
        >>> file.rows
        2
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import h5py
        except ModuleNotFoundError as error:
            raise RequestError(
                "into=: files of AnnData (.h5ad) need h5py, which is not installed; pip install "
                "h5py, or write .parquet or .csv"
            ) from error

        self.rows = 0
        self._words_type = h5py.string_dtype()
        self._file: Any = h5py.File(path, "w")
        self._file.attrs.update(ROOT)
        for name in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
            self._file.create_group(name).attrs.update(MAPPING)

    def write(self, frame: Any) -> None:
        """Adds rows, the column `id` of which, if there is one, has their ids."""
        ids = range(self.rows, self.rows + len(frame))
        if "id" in frame:
            ids = frame["id"]
            frame = frame.drop(columns="id")
        numbers = frame.select_dtypes("number")
        words = frame.select_dtypes(exclude="number")
        if self.rows == 0:
            self._begin(numbers, list(words))
        self._add("X", numbers.to_numpy())
        self._add("obs/_index", self._text(ids))
        for name in words:
            self._add(f"obs/{name}", self._text(words[name]))
        self.rows += len(frame)

    def close(self) -> None:
        """Nothing is added any more."""
        self._file.close()

    def _begin(self, numbers: Any, words: list[str]) -> None:
        """Arrays that grow, and the names of the columns."""
        self._growing("X", (numbers.shape[1],), numbers.to_numpy().dtype, ARRAY)
        columns: dict[str, list[str]] = {"obs": words, "var": []}
        for table, names in columns.items():
            group = self._file.create_group(table)
            group.attrs.update(TABLE)
            group.attrs["column-order"] = self._text(names)
        self._growing("obs/_index", (), self._words_type, WORDS)
        for name in words:
            self._growing(f"obs/{name}", (), self._words_type, WORDS)
        features = self._file.create_dataset("var/_index", data=self._text(numbers.columns))
        features.attrs.update(WORDS)

    def _growing(self, name: str, row: tuple[int, ...], dtype: Any, said: dict[str, str]) -> None:
        chunk = max(1, CHUNK // max(1, math.prod(row)))
        array = self._file.create_dataset(
            name, (0, *row), dtype, maxshape=(None, *row), chunks=(chunk, *row)
        )
        array.attrs.update(said)

    def _add(self, name: str, values: np.ndarray) -> None:
        array = self._file[name]
        array.resize(self.rows + len(values), axis=0)
        array[self.rows :] = values

    def _text(self, values: Any) -> np.ndarray:
        return np.array([str(value) for value in values], dtype=self._words_type)
