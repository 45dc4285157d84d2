"""Options of `mvkit impute` as they are typed, and what `mvkit.impute` takes."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvkit.errors import RequestError, within
from mvkit.registry.spec import as_part

DRAWS = 5  # tables filled at random, where nobody says how many


def kinds_of(texts: Sequence[str], named: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Kinds of columns by file, of texts such as `grade=ordered` or `labs.grade=ordered`."""
    kinds: dict[str, dict[str, str]] = {}
    for text in texts:
        column, equals, kind = text.rpartition("=")
        file, dot, rest = column.partition(".")
        if not equals or not column:
            raise RequestError(
                f"--kind {text}: expected COLUMN=KIND, such as --kind grade=ordered; of several "
                "files FILE.COLUMN=KIND"
            )
        if dot and file in named:
            column = rest
        elif len(named) == 1:
            file = next(iter(named))
        else:
            raise RequestError(
                f"--kind {text}: of which file? expected FILE.COLUMN=KIND, FILE being one of "
                f"{', '.join(named)}"
            )
        kinds.setdefault(file, {})[column] = kind
    return kinds


def choices_of(changes: Sequence[str]) -> dict[str, object]:
    """Choices of texts such as `epochs=20`."""
    choices: dict[str, object] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        try:
            choices[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            equals = ""
        if not equals:
            raise RequestError(f"--set {change}: expected CHOICE=VALUE, such as --set epochs=20")
    return choices


def uncertainty_of(
    *,
    draws: str | None,
    m: str | None,
    refit: bool,
    intervals: str | None,
    missingness: str | None,
) -> dict[str, Any]:
    """The options `draws`, `m`, `refit`, `intervals` and `missingness` of `mvkit.impute`.

    Args:
        draws: how many tables are filled at random; None: five, or none beside `m`.
        m: how many times the tables are completed; None: not at all.
        refit: whether each time a model is trained.
        intervals: the share that intervals are to hold, such as "0.9".
        missingness: the name of a part, or TOML such as `{name = "self", sign = "high"}`.

    Raises:
        RequestError: a text that cannot be read, or options that exclude each other.
    """
    options: dict[str, Any] = {"draws": DRAWS if m is None else 0, "refit": refit}
    if draws is not None:
        options["draws"] = _whole_number("--draws", draws, 0)
    if m is not None:
        options["m"] = _whole_number("--m", m, 2)
        if draws is not None:
            raise RequestError(
                f"--draws {draws}: beside --m {m}; expected one of them; leave --draws out, the "
                f"{m} completed tables are draws"
            )
    elif not refit:
        raise RequestError(
            "--no-refit: without --m no model is trained again; expected both; give --m 20 too, "
            "or leave --no-refit out"
        )
    if intervals is not None:
        options["intervals"] = _share("--intervals", intervals)
    if missingness is not None:
        options["missingness"] = _missingness(missingness)
    return options


def _whole_number(option: str, text: str, low: int) -> int:
    """The number that a text spells, at least `low`."""
    if not text.isdecimal() or int(text) < low:
        raise RequestError(
            f"{option} {text}: expected a whole number of at least {low}, such as {option} 20"
        )
    return int(text)


def _share(option: str, text: str) -> float:
    """The number between 0 and 1 that a text spells."""
    with contextlib.suppress(ValueError):
        share = float(text)
        if 0 < share < 1:
            return share
    raise RequestError(
        f"{option} {text}: expected a share between 0 and 1, such as {option} 0.9 for intervals "
        "that hold 90 % of the values"
    )


def _missingness(text: str) -> str | dict[str, Any]:
    """A part of the kind missingness, by its name or with options, which is tried."""
    part: str | dict[str, Any] = text
    if text.lstrip().startswith("{"):
        try:
            part = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            raise RequestError(
                f"--missingness {text}: cannot be read; expected a name, or options such as "
                """--missingness '{name = "self", sign = "high"}'"""
            ) from None
    with within("--missingness"):
        as_part("missingness", part)
    return part
