"""Specs: what a part is, as a frozen attrs class that round-trips through JSON.

A part is named by a string, an object or a dict, and the three compare equal once converted:
`"mog"`, `MoG()`, `{"name": "mog"}`. Converters sit on the fields, so a spec is checked when it is made.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar, dataclass_transform

import attrs
from torch import nn

from mvkit.errors import SpecError, suggest
from mvkit.registry import plugins

T = TypeVar("T")


Check = Callable[[Any], str | None]


def field(
    *, default: Any = attrs.NOTHING, check: Check | None = None, kw_only: bool = False
) -> Any:
    """A plain field: bool, int, float, str, None, tuples, string-keyed dicts, specs.

    Args:
        default: value when the user gives none.
        check: returns what was expected if a value is not acceptable, else None.
        kw_only: in a positional spec, whether the field takes no position.
    """

    def convert(value: Any, attribute: attrs.Attribute[Any]) -> Any:
        try:
            value = _frozen(value)
        except SpecError as error:
            raise error.within(attribute.name) from None
        expected = check(value) if check else None
        if expected:
            raise SpecError(f"got {value!r}; expected {expected}", attribute.name)
        return value

    return _field(convert, default, kw_only)


def part(
    kind: str,
    *,
    default: Any = attrs.NOTHING,
    module: bool = False,
    optional: bool = False,
    kw_only: bool = False,
) -> Any:
    """A field that holds a part of `kind`; with `module`, an `nn.Module` will do too."""

    def convert(value: Any, attribute: attrs.Attribute[Any]) -> Any:
        if value is None and optional:
            return None
        try:
            return as_part(kind, value, module=module)
        except SpecError as error:
            raise error.within(attribute.name) from None

    return _field(convert, default, kw_only)


def parts(
    kind: str, *, default: Any = attrs.NOTHING, module: bool = False, kw_only: bool = False
) -> Any:
    """A field that holds a tuple of parts of `kind`, or a dict of them if it is given one."""

    def convert(value: Any, attribute: attrs.Attribute[Any]) -> Any:
        if not isinstance(value, Mapping | list | tuple):
            raise SpecError(f"got {value!r}; expected a list or a dict of {kind}s", attribute.name)
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        made = {}
        for key, item in items:
            try:
                made[key] = as_part(kind, item, module=module)
            except SpecError as error:
                raise error.within(f"{attribute.name}.{key}") from None
        return made if isinstance(value, Mapping) else tuple(made.values())

    return _field(convert, default, kw_only)


def _field(
    convert: Callable[[Any, attrs.Attribute[Any]], Any], default: Any, kw_only: bool
) -> Any:
    if isinstance(default, dict):
        default = attrs.Factory(default.copy)
    converter: Any = attrs.Converter(convert, takes_field=True)
    return attrs.field(default=default, converter=converter, kw_only=kw_only)


def _frozen(value: Any) -> Any:
    """The value with lists as tuples and paths as strings, or an error if JSON could not hold it."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, bool | int | float) and isinstance(value, Integral | Real):
        value = int(value) if isinstance(value, Integral) else float(value)  # numpy's
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"got {value!r}; expected a finite number")
    if value is None or isinstance(value, bool | int | float | str) or is_spec(value):
        return value
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _frozen(item) for key, item in value.items()}
    raise SpecError(
        f"got {value!r} ({type(value).__name__}); expected a number, string, bool, None, tuple, "
        "string-keyed dict or spec, so that the model can be saved"
    )


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(field, part, parts)
)
def spec(cls: type[T]) -> type[T]:
    """Class decorator for a part's options: frozen, keyword-only, compared by value.

    Fields are made by `field`, `part` and `parts`; a bare annotated default is a `field` too.

    Example:
        >>> from mvkit import spec
        >>> @spec
        ... class Shrink:
        ...     rate: float = 0.5
        >>> Shrink(rate=0.1)
        Shrink(rate=0.1)
    """
    return _define(cls, kw_only=True)


@dataclass_transform(frozen_default=True, field_specifiers=(field, part, parts))
def positional_spec(cls: type[T]) -> type[T]:
    """A spec whose first fields may be given by position (`Modality`, `Stage`, ramps)."""
    return _define(cls, kw_only=False)


def _define(cls: type[T], *, kw_only: bool) -> type[T]:
    for name in inspect.get_annotations(cls):
        value = cls.__dict__.get(name, attrs.NOTHING)
        if not type(value).__module__.startswith("attr"):
            setattr(cls, name, field(default=value))
    made: Any = attrs.frozen(kw_only=kw_only, slots=False)(cls)
    initialise = made.__init__
    options = {attribute.name for attribute in attrs.fields(made)}

    @functools.wraps(initialise)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        unknown = next((name for name in kwargs if name not in options), None)
        if unknown:
            raise SpecError(
                f"unknown option of {made.__name__}; {suggest(unknown, options)}", unknown
            )
        try:
            initialise(self, *args, **kwargs)
        except TypeError as error:  # a missing or surplus argument; the reason is Python's own
            raise SpecError(f"{made.__name__}: {error}") from None

    made.__init__ = checked
    return made  # type: ignore[no-any-return]


def is_spec(value: Any) -> bool:
    """Whether `value` is an instance of a class made by `@spec`."""
    return attrs.has(type(value))


def as_part(kind: str, value: Any, *, module: bool = False) -> Any:
    """The spec that a name, a dict or an object means.

    Raises:
        UnknownComponent: no part of that kind has that name.
        SpecError: an unknown option, a bad value, or an object of another kind.
    """
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, Mapping):
        options = dict(value)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise SpecError(f"got {dict(value)!r}; expected a 'name' that says which {kind}")
        return _make(kind, name, options)
    if module and isinstance(value, nn.Module):
        return value
    if is_spec(value) and plugins.name_of(kind, type(value)):
        return value
    also = " or an nn.Module" if module else ""
    raise SpecError(
        f"got {value!r}, which is no registered {kind}; expected a name, a dict with 'name', a spec{also}; "
        f"registered: {', '.join(plugins.available(kind))} (a class of your own: mvkit.plugins.declare)"
    )


def _make(kind: str, name: str, options: dict[str, Any]) -> Any:
    cls = plugins.lookup(kind, name)
    known = {attribute.name for attribute in attrs.fields(cls)}
    for option in options:
        if option not in known:
            raise SpecError(f"unknown option of {kind} {name!r}; {suggest(option, known)}", option)
    with plugins.error_context(cls, "when it was made"):
        return cls(**options)


def to_dict(value: Any) -> Any:
    """A spec as plain JSON data, all defaults written out; modules become `{"external": class}`."""
    if isinstance(value, nn.Module):
        return {"external": type(value).__name__}
    if is_spec(value):
        name = plugins.name_of(None, type(value))
        data = {a.name: to_dict(getattr(value, a.name)) for a in attrs.fields(type(value))}
        return {"name": name, **data} if name else data
    if isinstance(value, tuple):
        return [to_dict(item) for item in value]
    if isinstance(value, dict):
        return {key: to_dict(item) for key, item in value.items()}
    return value


def integer(low: int = 0) -> Check:
    """A check: an int of at least `low`."""
    return lambda v: None if type(v) is int and v >= low else f"an integer of at least {low}"


def number(low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf) -> Check:
    """A check: a number in [low, high] and greater than `above`."""
    bounds = [f"at least {low}"] * (low > -math.inf) + [f"at most {high}"] * (high < math.inf)
    text = " ".join(
        ["a number", " and ".join(bounds + [f"greater than {above}"] * (above > -math.inf))]
    )

    def check(value: Any) -> str | None:
        real = isinstance(value, int | float) and not isinstance(value, bool)
        return None if real and low <= value <= high and value > above else text.strip()

    return check


def one_of(*values: Any, other: Check | None = None) -> Check:
    """A check: one of `values`, or whatever `other` accepts."""
    text = " or ".join(map(repr, values))

    def check(value: Any) -> str | None:
        if any(value is v or (type(value) is type(v) and value == v) for v in values):
            return None
        problem = other(value) if other else ""
        return None if problem is None else f"{text} or {problem}".removesuffix(" or ")

    return check


def flag(value: Any) -> str | None:
    """A check: True or False."""
    return None if isinstance(value, bool) else "True or False"


def factors(value: Any) -> str | None:
    """A check: a dict of non-negative numbers."""
    positive = number(0.0)
    fine = isinstance(value, dict) and all(positive(v) is None for v in value.values())
    return None if fine else "a dict from modality to a number of at least 0"


def numbers(value: Any) -> str | None:
    """A check: a tuple of numbers."""
    fine = isinstance(value, tuple) and all(number()(v) is None for v in value)
    return None if fine else "a list of numbers"


def names(value: Any) -> str | None:
    """A check: a tuple of strings."""
    fine = isinstance(value, tuple) and all(isinstance(v, str) for v in value)
    return None if fine else "a list of strings"
