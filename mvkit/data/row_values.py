"""What is known of rows (ids, labels) as JSON and back: days, tuples and bytes keep their type.

What JSON lacks is an object of one key, `mvkit:<type>`. Nothing else is ever built from a file.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from mvkit.data.align import library
from mvkit.errors import DataError

TAG = "mvkit:"


def _timedelta(value: datetime.timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _timedelta64(value: np.timedelta64) -> list[object]:
    return [int(value.astype(np.int64)), np.datetime_data(value.dtype)[0]]


def _complex(value: complex) -> list[float]:
    return [value.real, value.imag]


# how a type is written, and read again; a name is for good, since files hold it
WRITERS: dict[str, tuple[type, Callable[[Any], object]]] = {
    "datetime": (datetime.datetime, datetime.datetime.isoformat),
    "date": (datetime.date, datetime.date.isoformat),
    "time": (datetime.time, datetime.time.isoformat),
    "timedelta": (datetime.timedelta, _timedelta),
    "bytes": (bytes, bytes.hex),
    "decimal": (Decimal, str),
    "fraction": (Fraction, str),
    "complex": (complex, _complex),
    "uuid": (uuid.UUID, str),
    "timedelta64": (np.timedelta64, _timedelta64),
    "datetime64": (np.datetime64, str),
}
READERS: dict[str, Callable[[Any], object]] = {
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "timedelta": lambda parts: datetime.timedelta(*parts),
    "bytes": bytes.fromhex,
    "decimal": Decimal,
    "fraction": Fraction,
    "complex": lambda parts: complex(*parts),
    "uuid": uuid.UUID,
    "timedelta64": lambda parts: np.timedelta64(*parts),
    "datetime64": np.datetime64,
}


def to_json(values: Sequence[object], name: str) -> list[object]:
    """Values of the rows as what JSON holds; `name` is what they are called.

    Raises:
        DataError: a value of a type that is not known here.
    """
    encoded = []
    for row, value in enumerate(values):
        try:
            encoded.append(_encoded(value))
        except TypeError:
            raise DataError(
                f"save: extra[{name!r}], row {row}: {value!r} is a {type(value).__name__}; "
                "expected text, numbers, days, bytes or tuples of them; convert it, such as with "
                "str"
            ) from None
    return encoded


def _encoded(value: object) -> object:
    if isinstance(value, np.generic) and not isinstance(value, np.datetime64 | np.timedelta64):
        value = value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, tuple | frozenset | list):
        parts = [_encoded(part) for part in value]
        if isinstance(value, list):
            return parts
        return {f"{TAG}tuple" if isinstance(value, tuple) else f"{TAG}frozenset": parts}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _encoded(part) for key, part in value.items()}
    return _encoded_pandas(value) if library(value) == "pandas" else _tagged(value)


def _tagged(value: object) -> object:
    for name, (kind, write) in WRITERS.items():
        if isinstance(value, kind):
            return {f"{TAG}{name}": write(value)}
    raise TypeError


def _encoded_pandas(value: Any) -> object:
    """A Timestamp, Timedelta, Period or Interval, or None for what is missing."""
    name = type(value).__name__
    if name in ("NaTType", "NAType"):
        return None
    if name == "Timestamp":
        return {f"{TAG}Timestamp": value.isoformat()}
    if name == "Timedelta":
        return {f"{TAG}Timedelta": value.isoformat()}
    if name == "Period":
        return {f"{TAG}Period": [str(value), value.freqstr]}
    if name == "Interval":
        ends = [_encoded(value.left), _encoded(value.right)]
        return {f"{TAG}Interval": [*ends, value.closed]}
    raise TypeError


def from_json(value: Any) -> Any:
    """What `to_json` wrote, as it was.

    Raises:
        ValueError, TypeError, KeyError, ArithmeticError: text that nothing was written as.
    """
    if isinstance(value, list):
        return [from_json(part) for part in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not next(iter(value)).startswith(TAG):
        return {key: from_json(part) for key, part in value.items()}
    ((key, content),) = value.items()
    name = key.removeprefix(TAG)
    if name == "tuple":
        return tuple(from_json(content))
    if name == "frozenset":
        return frozenset(from_json(content))
    if name in ("Timestamp", "Timedelta", "Period", "Interval"):
        return _decoded_pandas(name, content)
    return READERS[name](content)


def _decoded_pandas(name: str, content: Any) -> object:
    import pandas

    if name == "Interval":
        left, right, closed = content
        return pandas.Interval(from_json(left), from_json(right), closed)
    if name == "Period":
        text, frequency = content
        return pandas.Period(text, frequency)
    return pandas.Timestamp(content) if name == "Timestamp" else pandas.Timedelta(content)
