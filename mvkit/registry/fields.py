"""Fields that many specs have: `samples: int = count(1)`."""

from __future__ import annotations

from typing import Any

from mvkit.registry.spec import field, flag, integer, number, one_of


def count(default: int, low: int = 1) -> Any:
    """A field: a whole number of at least `low`."""
    return field(default=default, check=integer(low))


def optional_count(default: int | None = None) -> Any:
    """A field: a whole number of at least 1, or None for no limit."""
    return field(default=default, check=one_of(None, other=integer(1)))


def factor(default: float = 1.0) -> Any:
    """A field: a number of at least 0."""
    return field(default=default, check=number(0.0))


def switch(default: bool) -> Any:
    """A field: True or False."""
    return field(default=default, check=flag)


def choice(default: object, *values: object) -> Any:
    """A field: one of `values`, or the default."""
    values = values if default in values else (default, *values)
    return field(default=default, check=one_of(*values))
