"""Files read as tables or arrays; what cannot be read is an error that names file and modality.

Text files must say what they mean: names in the first row, as many fields in every row, one
encoding. Nothing is shifted, renamed or guessed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvkit.data.row_columns import COVARIATES
from mvkit.data.tables import frame_of, only_counts_rows
from mvkit.errors import DataError, MvkitError, RequestError

if TYPE_CHECKING:
    from pandas import DataFrame, Series

FilePath = str | os.PathLike[str]
Files = Mapping[str, FilePath]

SEPARATORS = {".csv": ",", ".tsv": "\t", ".parquet": None}
# what pandas takes for a gap, but for the word None, which is a category where others are words
GAPS = (
    *("", "NA", "N/A", "n/a", "<NA>", "#NA", "#N/A", "#N/A N/A", "NULL", "null"),
    *("NaN", "nan", "-NaN", "-nan", "-1.#IND", "1.#IND", "-1.#QNAN", "1.#QNAN"),
)
BITS = {"true": True, "false": False}
_SURPLUS = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")


def read_files(files: Files, id: str | None, encoding: str = "utf-8") -> dict[str, DataFrame]:
    """DataFrames from one CSV, TSV or Parquet file per modality, indexed by the column `id`.

    Raises:
        DataError: an unknown kind of file, one that cannot be read, a text file that does not say
            what it means, or several files without ids.
        OSError: no such file, or one that may not be read.
    """
    frames = {}
    for name, path in files.items():
        suffixes = [suffix for suffix in Path(path).suffixes if suffix in SEPARATORS]
        if not suffixes:
            raise DataError(
                f"files[{name!r}]: got {str(path)!r}; expected a file ending in "
                f"{', '.join(SEPARATORS)}"
            )
        where = f"files[{name!r}] ({str(path)!r})"
        separator = SEPARATORS[suffixes[-1]]
        if separator is None:
            frame = _read_parquet(path, where)
        else:
            frame = _read_text(path, separator, id, encoding, where)
        frames[name] = frame_of(name, frame, id, where=where)
        if id is None and len(files) > 1 and only_counts_rows(frames[name]):
            raise DataError(
                f"files[{name!r}]: several files, and no ids to align them by; give id='column'"
            )
    return frames


def with_file_of_covariates(files: Files, covariates: Any) -> tuple[Files, Any]:
    """The files, with one of covariates among them if `covariates` is a path; else they stay.

    Returns:
        The files, and the covariates if they are given otherwise.

    Raises:
        DataError: a modality that is called as that file is.
    """
    path = isinstance(covariates, os.PathLike)
    if isinstance(covariates, str):  # the name of a column has no such ending
        path = any(suffix in SEPARATORS for suffix in Path(covariates).suffixes)
    if not path:
        return files, () if covariates is None else covariates
    if COVARIATES in files:
        raise DataError(
            f"files: a modality is called {COVARIATES!r}, as the file of covariates is; expected "
            "another name; rename it"
        )
    return {**files, COVARIATES: covariates}, None


@contextlib.contextmanager
def readable(where: str, remedy: str) -> Iterator[None]:
    """Inside, what a library raises for a file that it cannot read is a DataError.

    Errors of mvkit, of the system (no such file) and of packages that are absent stay.
    """
    try:
        yield
    except (MvkitError, ImportError):
        raise
    except Exception as error:
        absent = isinstance(error, FileNotFoundError)
        if absent or (isinstance(error, OSError) and error.errno is not None):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        if "pickle" in reason:  # numpy's advice would run code that is in the file
            reason = "it is no archive, or holds pickled objects, which are never loaded"
        raise DataError(f"{where}: cannot be read: {reason}; {remedy}") from None


def _read_parquet(path: FilePath, where: str) -> DataFrame:
    from pandas import read_parquet

    with readable(where, "expected a Parquet file; take another copy, or write it again"):
        return read_parquet(path)


def _read_text(
    path: FilePath, separator: str, id: str | None, encoding: str, where: str
) -> DataFrame:
    """A table of text; its ids stay text, so that 007 is not 7 and NA is a name."""
    from pandas import read_csv

    options: dict[str, Any] = {"sep": separator, "encoding": encoding, "keep_default_na": False}
    with _readable_text(where, encoding):
        # a first row of data with too many fields is an error only where no row is the header
        top = read_csv(path, header=None, nrows=2, dtype=str, **options)
        header = [str(name) for name in top.iloc[0]]
        names = _names(header, where)
        if id is None:
            _check_header(header, where)
        frame = read_csv(
            path,
            header=0,
            names=names,
            index_col=False,
            dtype={id: str} if id in names else None,
            na_values={name: list(GAPS) for name in names if name != id},
            low_memory=False,  # one type per column, not one per part of a column
            **options,
        )
    for number, name in enumerate(names):
        if not header[number] and name != id:
            frame = _without_unnamed(frame, name, number, where)
    for name in frame.columns:
        if name == id:
            frame[id] = frame[id].mask(frame[id].str.strip() == "")
        elif frame[name].dtype.kind not in "biuf":
            frame[name] = _without_none(frame[name])
    return frame


@contextlib.contextmanager
def _readable_text(where: str, encoding: str) -> Iterator[None]:
    """As `readable`, with what to do about a row, an encoding, or nothing at all."""
    from pandas.errors import EmptyDataError, ParserError

    with readable(where, "expected a text file; take another copy, or write it again"):
        try:
            yield
        except UnicodeError as error:
            raise DataError(
                f"{where}: it is not text in {encoding!r} ({error}); expected one encoding; give "
                "encoding='latin-1', or whatever it was written in"
            ) from None
        except LookupError as error:
            if "encoding" not in str(error):
                raise
            raise RequestError(
                f"encoding={encoding!r}; expected a name that Python knows, such as 'utf-8', "
                "'latin-1' or 'utf-16'"
            ) from None
        except EmptyDataError:
            raise DataError(
                f"{where}: it is empty; expected names of columns in the first row; leave the "
                "modality out"
            ) from None
        except ParserError as error:
            surplus = _SURPLUS.search(str(error))
            if surplus is None:
                raise
            raise _surplus_field(where, *surplus.groups()) from None


def _surplus_field(where: str, expected: str, line: str, number: str) -> DataError:
    return DataError(
        f"{where}: line {line} has {number} fields, the header has {expected}; expected as many "
        "in every row; take away what is too much, such as a comma at the end of the row, or put "
        "quotes around text that holds one"
    )


def _names(header: Sequence[str], where: str) -> list[str]:
    """Names of columns as pandas calls them, where a column without one gets its number.

    Raises:
        DataError: two columns of one name, or bytes that are no text.
    """
    seen = set()
    names = []
    for number, name in enumerate(header):
        if "\0" in name:
            raise DataError(
                f"{where}: the first row holds bytes of zero; expected text; give its encoding, "
                "such as encoding='utf-16'"
            )
        if name and name in seen:
            raise DataError(
                f"{where}: two columns are called {name!r}; expected names that differ; rename one"
            )
        seen.add(name)
        names.append(name or f"Unnamed: {number}")
    return names


def _check_header(header: Sequence[str], where: str) -> None:
    """Raises DataError for a first row of numbers that are no names, such as 0, 1, 2 are."""
    try:
        numbers = [float(name) for name in header]
    except ValueError:
        return
    counted = numbers == list(range(len(numbers)))
    # wavelengths and years are names, too
    ordered = len(numbers) > 2 and all(a < b for a, b in itertools.pairwise(numbers))
    if not (counted or ordered):
        raise DataError(
            f"{where}: the first row holds numbers, {', '.join(header[:3])}; expected names of "
            "columns; add a row of names, or read it with pandas.read_csv(header=None) and give "
            "from_tables"
        )


def _without_unnamed(frame: DataFrame, name: str, number: int, where: str) -> DataFrame:
    """The table without a column that has no name: the numbers of rows, or nothing at all.

    Raises:
        DataError: it holds something else.
    """
    values = frame[name]
    if not values.isna().all():
        counts_rows = values.dtype.kind in "iu" and (values == np.arange(len(values))).all()
        if number or not counts_rows:
            raise DataError(
                f"{where}: column {number} has no name; expected one for each; name it (if it "
                "holds ids, give that name as id=), or drop it"
            )
    return frame.drop(columns=name)


def _without_none(column: Series) -> Series:
    """A column in which the word None is a gap, if all else are numbers or bits.

    Among other words it is a word.
    """
    from pandas import to_numeric

    none = column == "None"
    if not none.any():
        return column
    rest = column.mask(none)
    bits = rest.str.lower().map(BITS)
    if bits.notna().equals(rest.notna()):
        return bits
    try:
        return to_numeric(rest)
    except (ValueError, TypeError):
        return column


def read_npz(file: FilePath) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, by name.

    Raises:
        DataError: no such archive, one that is damaged, or arrays of Python objects.
        OSError: no such file, or one that may not be read.
    """
    where = f"from_npz ({str(file)!r})"
    with open(file, "rb") as opened:  # numpy leaves a damaged archive open
        with readable(where, "expected an archive of numpy.savez; write it again"):
            archive = np.load(opened, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise DataError(
                f"{where}: it holds one array; expected one per modality; write "
                "numpy.savez(file, name=array), or give from_arrays"
            )
        arrays = {}
        for name in archive.files:
            remedy = "expected an array of numbers or text; write it again with numpy.savez"
            with readable(f"{where}: array {name!r}", remedy):
                arrays[name] = archive[name]
        return arrays
