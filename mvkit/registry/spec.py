"""Specs: the options of a part, as a frozen class that round-trips through JSON.

A part is named by a string, an object or a dict, and the three compare equal once converted:
`"mog"`, `MoG()`, `{"name": "mog"}`. Converters sit on the fields, so a spec is checked when it is
made.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, TypeGuard, TypeVar, dataclass_transform

import attrs
from torch import nn

from mvkit.errors import SpecError, suggest, within
from mvkit.registry import plugins
from mvkit.registry.loading import bases_of

T = TypeVar("T")
Check = Callable[[object], str | None]


QUIET = "quiet"  # in a field's metadata


def field(
    *,
    default: object = attrs.NOTHING,
    check: Check | None = None,
    kw_only: bool = False,
    quiet: bool = False,
) -> Any:
    """A plain field: bool, int, float, str, None, tuples, string-keyed dicts, specs.

    Args:
        default: value when the user gives none.
        check: returns what was expected if a value is not acceptable, else None.
        kw_only: in a positional spec, whether the field takes no position.
        quiet: whether files leave it out at its default, so that those of models without it are
            what they were before there was such a field.

    Example:
        >>> from mvkit.registry import field, integer, spec
        >>> @spec
        ... class Shift:
        ...     steps: int = field(default=1, check=integer(1))
        >>> Shift(steps=3)
        Shift(steps=3)
    """

    def convert(value: object) -> object:
        value = _frozen(value)
        expected = check(value) if check else None
        if expected:
            raise SpecError(f"got {value!r}; expected {expected}")
        return value

    return _field(convert, default, kw_only, quiet)


def part(
    kind: str,
    *,
    default: object = attrs.NOTHING,
    module: bool = False,
    optional: bool = False,
    kw_only: bool = False,
    quiet: bool = False,
) -> Any:
    """A field that holds a part of `kind`; with `module`, an `nn.Module` will do too."""

    def convert(value: object) -> object:
        if value is None and optional:
            return None
        return as_part(kind, value, module=module)

    return _field(convert, default, kw_only, quiet)


def parts(
    kind: str, *, default: object = attrs.NOTHING, module: bool = False, kw_only: bool = False
) -> Any:
    """A field that holds a tuple of parts of `kind`, or a dict of them if it is given one."""

    def convert_item(key: object, item: object) -> object:
        with within(str(key)):
            return as_part(kind, item, module=module)

    def convert(value: object) -> object:
        if isinstance(value, Mapping):
            return {key: convert_item(key, item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return tuple(convert_item(i, item) for i, item in enumerate(value))
        raise SpecError(f"got {value!r}; expected a list or a dict of {kind}s")

    return _field(convert, default, kw_only)


def converted(convert: Callable[[object], object], *, default: object) -> Any:
    """A quiet keyword field that a function makes from whatever it is given.

    Args:
        convert: returns a spec, or None; raises SpecError.
        default: value when the user gives none.
    """
    return _field(convert, default, kw_only=True, quiet=True)


def _field(
    convert: Callable[[object], object], default: object, kw_only: bool, quiet: bool = False
) -> Any:
    def located(value: object, attribute: attrs.Attribute[object]) -> object:
        with within(attribute.name):
            return convert(value)

    if isinstance(default, dict):
        default = attrs.Factory(default.copy)
    converter = attrs.Converter(located, takes_field=True)
    return attrs.field(
        default=default, converter=converter, kw_only=kw_only, metadata={QUIET: quiet}
    )


def _frozen(value: object) -> object:
    """The value with lists as tuples and paths as strings.

    Raises:
        SpecError: a value that JSON could not hold.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, int | float) and isinstance(value, Real):  # numpy's
        value = int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"got {value!r}; expected a finite number")
    if value is None or isinstance(value, int | float | str) or is_spec(value):
        return value
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _frozen(item) for key, item in value.items()}
    raise SpecError(
        f"got {value!r} ({type(value).__name__}); expected a number, string, bool, None, tuple, "
        "string-keyed dict or spec, so that the model can be saved"
    )


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(field, part, parts, converted)
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


@dataclass_transform(frozen_default=True, field_specifiers=(field, part, parts, converted))
def positional_spec(cls: type[T]) -> type[T]:
    """A spec whose first fields may be given by position (`Modality`, `Stage`, ramps)."""
    return _define(cls, kw_only=False)


def _define(cls: type[T], *, kw_only: bool) -> type[T]:
    if issubclass(cls, nn.Module):
        raise SpecError(
            f"{cls.__name__}: a spec is frozen and holds options, an nn.Module holds parameters; "
            "expected two classes: a spec that inherits neither, whose build(sizes) returns the "
            f"module, and the module, class {cls.__name__}Module(nn.Module, {bases_of(cls)})"
        )
    for name in inspect.get_annotations(cls):
        default = cls.__dict__.get(name, attrs.NOTHING)
        if not type(default).__module__.startswith("attr"):
            setattr(cls, name, field(default=default))
    frozen = attrs.frozen(kw_only=kw_only, slots=False)(cls)
    initialise = frozen.__init__

    @functools.wraps(initialise)
    def checked(self: T, *args: object, **options: object) -> None:
        _check_options(frozen, options, frozen.__name__)
        try:
            initialise(self, *args, **options)
        except TypeError as error:  # a missing or surplus argument; the reason is Python's own
            raise SpecError(f"{frozen.__name__}: {error}") from None

    frozen.__init__ = checked  # type: ignore[assignment, method-assign]
    return frozen


def _check_options(cls: type, options: Iterable[str], part: str) -> None:
    known = {attribute.name for attribute in attrs.fields(cls)}
    for option in options:
        if option not in known:
            raise SpecError(f"unknown option of {part}; {suggest(option, known)}", option)


def is_spec(value: object) -> TypeGuard[attrs.AttrsInstance]:
    """Whether `value` is an instance of a class made by `@spec`."""
    return attrs.has(type(value))


def as_part(kind: str, value: object, *, module: bool = False) -> Any:
    """The spec that a name, a dict or an object means.

    Raises:
        UnknownComponent: no part of that kind has that name.
        SpecError: an unknown option, a bad value, or an object of another kind.
    """
    if isinstance(value, str):
        return _from_options(kind, {"name": value})
    if isinstance(value, Mapping):
        return _from_options(kind, dict(value))
    if module and isinstance(value, nn.Module):
        return value
    if is_spec(value) and plugins.name_of(kind, type(value)):
        return value
    also = " or an nn.Module" if module else ""
    registered = ", ".join(plugins.available(kind))
    raise SpecError(
        f"got {value!r}, which is no registered {kind}; expected a name, a dict with 'name', "
        f"a spec{also}; registered: {registered} (a class of your own: mvkit.plugins.declare)"
    )


def _from_options(kind: str, options: dict[str, Any]) -> object:
    name = options.get("name")
    if not isinstance(name, str):
        raise SpecError(f"got {options!r}; expected a 'name' that says which {kind}")
    del options["name"]
    cls = plugins.lookup(kind, name)
    _check_options(cls, options, f"{kind} {name!r}")
    with plugins.error_context(cls, "when it was made"):
        return cls(**options)


def to_dict(value: object) -> Any:
    """A spec as plain JSON data, with all defaults; modules become `{"external": class}`."""
    if isinstance(value, nn.Module):
        return {"external": type(value).__name__}
    if is_spec(value):
        cls = type(value)
        options = {}
        for field in attrs.fields(cls):
            option = to_dict(getattr(value, field.name))
            if not (field.metadata.get(QUIET) and option == _default(field)):
                options[field.name] = option
        name = plugins.name_of(None, cls)
        return {"name": name, **options} if name else options
    if isinstance(value, tuple):
        return [to_dict(item) for item in value]
    if isinstance(value, dict):
        return {key: to_dict(item) for key, item in value.items()}
    return value


def _default(field: attrs.Attribute[Any]) -> object:
    """The default of a field, as plain data."""
    default: Any = field.default
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        default = default.factory()
    return to_dict(default)


def integer(low: int = 0) -> Check:
    """A check: an int of at least `low`."""
    return lambda v: None if type(v) is int and v >= low else f"an integer of at least {low}"


def number(low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf) -> Check:
    """A check: a number in [low, high] and greater than `above`."""
    bounds = []
    if low > -math.inf:
        bounds.append(f"at least {low}")
    if high < math.inf:
        bounds.append(f"at most {high}")
    if above > -math.inf:
        bounds.append(f"greater than {above}")
    text = f"a number {' and '.join(bounds)}".strip()

    def check(value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return text
        return None if low <= value <= high and value > above else text

    return check


def one_of(*values: object, other: Check | None = None) -> Check:
    """A check: one of `values`, or whatever `other` accepts."""
    text = " or ".join(map(repr, values))

    def check(value: object) -> str | None:
        for choice in values:
            if value is choice or (type(value) is type(choice) and value == choice):
                return None
        if other is None:
            return text
        expected = other(value)
        return None if expected is None else f"{text} or {expected}"

    return check


def flag(value: object) -> str | None:
    """A check: True or False."""
    return None if isinstance(value, bool) else "True or False"


def factors(value: object) -> str | None:
    """A check: a dict of non-negative numbers."""
    positive = number(0.0)
    fine = isinstance(value, dict) and all(positive(v) is None for v in value.values())
    return None if fine else "a dict from modality to a number of at least 0"


def numbers(value: object) -> str | None:
    """A check: a tuple of numbers."""
    fine = isinstance(value, tuple) and all(number()(v) is None for v in value)
    return None if fine else "a list of numbers"


def name(value: object) -> str | None:
    """A check: a string that is not empty."""
    return None if isinstance(value, str) and value else "a name"


def names(value: object) -> str | None:
    """A check: a tuple of strings."""
    fine = isinstance(value, tuple) and all(isinstance(v, str) for v in value)
    return None if fine else "a list of strings"
