"""What a column of a table holds: numbers, counts, yes or no, categories, days; and its values as
numbers and back.

Axes: b rows.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from mvkit.data.tables import is_number, numbers_of, texts_of
from mvkit.errors import DataError, check_option, suggest

if TYPE_CHECKING:
    from pandas import Series

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

KINDS = ("number", "positive", "count", "bits", "category", "ordered", "date")
# of columns that no model sees: their gaps are filled with the only value there is, or left
UNMODELLED = ("constant", "empty", "text")
NUMERIC = ("number", "positive", "count", "date")
MOST_WORDS = 1000  # more different words are no categories
FEW_WORDS = 20  # as many may be different in every row
DAY = 86_400_000_000_000  # nanoseconds
_ISO_DAY = re.compile(r"\d{4}-[01]\d-[0-3]\d")


@attrs.frozen
class Column:
    """What one column holds.

    Args:
        name: what it is called, as text.
        kind: one of `KINDS`, or of `UNMODELLED`.
        levels: of categories, their texts; of ordered ones in their order.
        low, high: the smallest and the largest number that was observed.
        whole: whether all numbers were whole, whole days of dates.
    """

    name: str
    kind: str
    levels: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False

    @property
    def numeric(self) -> bool:
        """Whether it holds numbers, which have a distance."""
        return self.kind in NUMERIC

    def bounded(self, values: Array) -> Array:
        """Numbers (b,) as the column may hold them: whole where all are, within those observed.

        Numbers of levels are whole, and bits 0 or 1.
        """
        if self.levels:
            return values.clip(0, len(self.levels) - 1).round()
        if self.kind == "bits":
            return (values > 0.5).astype(np.float64)
        kept = values.clip(self.low, self.high)
        return kept.round() if self.whole else kept


def column_of(column: Series, kind: str | None = None, where: str = "") -> Column:
    """What a column holds, by its dtype and its observed values.

    * `bits`: of dtype bool, or nothing but 0 and 1.
    * `category`: text, or a dtype of categories; `ordered`, if that dtype says so.
    * `date`: days and times, and text such as 2024-03-01.
    * `count`: whole numbers of at least 0; `positive`: numbers above 0; `number`: all others.
    * `constant`: one value only; `empty`: none; `text`: more than 20 words, more than half of them
      different, or more than 1,000 in all. No model sees these.

    Args:
        column: of a table.
        kind: what it is taken for instead.
        where: how messages call it.

    Raises:
        DataError: values that are of no kind, or not of the given one.
        RequestError: a kind that there is not.
    """
    name = str(column.name)
    where = where or f"column {name!r}"
    if kind is not None:
        check_option(f"{where}: kind", kind, *KINDS, *UNMODELLED)
    kind = kind or _kind_of(column, where)
    if kind in UNMODELLED:
        return Column(name, kind)
    if kind in ("category", "ordered"):
        return Column(name, kind, _levels_of(column))
    values = values_of(column, Column(name, kind), where)
    known = values[~np.isnan(values)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
    _check_range(kind, low, high, where)
    whole = bool((known == known.round()).all())
    return Column(name, kind, (), float(low), float(high), whole)


def _check_range(kind: str, low: float, high: float, where: str) -> None:
    """Raises DataError where numbers are outside what a kind allows."""
    wrong = {"bits": low < 0 or high > 1, "count": low < 0, "positive": low <= 0}
    if wrong.get(kind, False):
        value = low if kind == "positive" or low < 0 else high
        raise DataError(
            f"{where}: it holds {value:g}, which is not of the kind {kind!r}; expected "
            f"{'0 and 1' if kind == 'bits' else 'numbers of at least 0, or above it'}; give "
            "another kind, such as 'number'"
        )


def _kind_of(column: Series, where: str) -> str:
    """The kind of a column by its dtype and its observed values; see `column_of`."""
    from pandas import CategoricalDtype
    from pandas.api.types import is_datetime64_any_dtype

    known = column.dropna()
    if not len(known):
        return "empty"
    if known.nunique() == 1:
        return "constant"
    if isinstance(column.dtype, CategoricalDtype):
        return "ordered" if column.dtype.ordered else "category"
    if is_datetime64_any_dtype(column.dtype):
        return "date"
    values = known.astype(object).tolist()
    if all(is_number(value) for value in values):
        return _kind_of_numbers(numbers_of(known.to_frame())[:, 0], where)
    if all(_is_day(value) for value in values):
        return "date"
    return _kind_of_words([str(value) for value in values])


def _kind_of_numbers(known: Array, where: str) -> str:
    """The kind of observed numbers (n,)."""
    if np.isinf(known).any():
        raise DataError(
            f"{where}: it holds infinite numbers; expected finite ones; correct them, or make "
            "them NaN"
        )
    if ((known == 0) | (known == 1)).all():
        return "bits"
    if (known >= 0).all() and (known == known.round()).all():
        return "count"
    return "positive" if (known > 0).all() else "number"


def _kind_of_words(words: list[str]) -> str:
    """`category`, or `text` where there are too many different words."""
    different = len(set(words))
    scattered = different > FEW_WORDS and 2 * different > len(words)
    return "text" if scattered or different > MOST_WORDS else "category"


def _is_day(value: object) -> bool:
    """Whether a value is a day: of Python's, or text such as 2024-03-01."""
    from datetime import date

    return isinstance(value, date) or (
        isinstance(value, str) and _ISO_DAY.fullmatch(value) is not None
    )


def _levels_of(column: Series) -> tuple[str, ...]:
    """The texts of the categories: in the order of their dtype, or else of their values."""
    from pandas import CategoricalDtype

    texts = texts_of(column)
    present = {text for text in texts if text is not None}
    if isinstance(column.dtype, CategoricalDtype):
        ordered = [str(category) for category in column.cat.categories]
        return tuple(text for text in ordered if text in present)
    known = column.dropna().unique().tolist()
    if all(is_number(value) for value in known):
        return tuple(map(str, sorted(known)))
    return tuple(sorted(present))


def values_of(column: Series, kind: Column, where: str) -> Array:
    """The values of a column as numbers (b,), NaN in gaps: of categories the numbers of their
    levels, of dates days since 1970.

    Raises:
        DataError: a value that is no number, or a category that was not there before, with its
            row.
    """
    if kind.levels:
        return _numbers_of_levels(column, kind, where)
    if kind.kind == "date":
        return _days(column, where)
    for row, value in column.dropna().items():
        if not is_number(value):
            raise DataError(
                f"{where}, row {row!r}: {value!r} is no number; expected numbers; correct it, or "
                f"give kinds={{{kind.name!r}: 'category'}}"
            )
    return numbers_of(column.to_frame())[:, 0].astype(np.float64)


def _numbers_of_levels(column: Series, kind: Column, where: str) -> Array:
    places = {text: i for i, text in enumerate(kind.levels)}
    texts = texts_of(column)
    for row, text in zip(column.index, texts, strict=True):
        if text is not None and text not in places:
            raise DataError(
                f"{where}, row {row!r}: {text!r} was not among the categories of training; "
                f"{suggest(text, kind.levels)}"
            )
    return np.array([np.nan if text is None else places[text] for text in texts])


def _days(column: Series, where: str) -> Array:
    """Days since 1970, (b,), with times of the day as fractions."""
    from pandas import to_datetime

    try:
        times = to_datetime(column, utc=True, format="ISO8601")
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{where}: it holds something that is no day: {error}; expected days such as "
            "2024-03-01; correct it, or give another kind"
        ) from None
    days = times.dt.as_unit("ns").astype("int64").to_numpy() / DAY
    return np.where(times.isna().to_numpy(), np.nan, days)


def with_days(column: Series, days: Array, changed: Bools) -> Series:
    """A column of dates with new ones, days since 1970 (b,), where it changed (b,) bool."""
    from pandas import Series, to_datetime
    from pandas.api.types import is_datetime64_any_dtype

    times = to_datetime(Series(days * DAY, column.index).round(), unit="ns", utc=True)
    if is_datetime64_any_dtype(column.dtype):
        zone = getattr(column.dtype, "tz", None)
        local = times.dt.tz_convert(zone) if zone else times.dt.tz_localize(None)
        return column.where(~changed, local.astype(column.dtype))
    texts = any(isinstance(value, str) for value in column.dropna())
    filled: list[Any] = column.astype(object).tolist()
    for row in changed.nonzero()[0].tolist():
        day = times.iloc[row].date()
        filled[row] = day.isoformat() if texts else day
    return Series(filled, column.index, dtype=column.dtype, name=column.name)
