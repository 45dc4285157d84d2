"""Component: how a package declares a part."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs
import pluggy

from mvkit.errors import suggest
from mvkit.registry.discovery import origin

API = 1
KINDS = [
    "aggregator",
    "prior",
    "objective",
    "family",
    "likelihood",
    "missingness",
    "network",
    "schedule",
    "ramp",
    "optimizer",
    "sampler",
    "refiner",
    "metric",
    "dataset",
    "transform",
    "recipe",
]
FUNCTION = "recipe"  # the kind whose parts are functions, not specs
NAME = re.compile(r"[a-z][a-z0-9_]*")
TARGET = re.compile(r"[\w.]+:\w+")

hookspec = pluggy.HookspecMarker("mvkit")
hookimpl = pluggy.HookimplMarker("mvkit")


@attrs.frozen
class Component:
    """A part that a package offers.

    Args:
        kind: one of `mvkit.registry.KINDS`.
        name: `[a-z][a-z0-9_]*`; others may write it qualified, `package/name`.
        target: `"package.module:Class"`, imported when someone first asks for it; of a recipe,
            `"package.module:function"`. The class or the function itself will do too.
        summary: a few words for listings.
        api: the version of the abstract class of that kind it was written for.

    Example:
        >>> from mvkit.registry import Component
        >>> part = Component("prior", "heavy", "mvkit_sharp.heavy:Heavy", "Student's t")
        >>> part.kind, part.path
        ('prior', 'mvkit_sharp.heavy:Heavy')
    """

    kind: str
    name: str
    target: str | Callable[..., Any]
    summary: str = ""
    api: int = API

    @property
    def path(self) -> str:
        """The target in words, `package.module:Class`."""
        return self.target if isinstance(self.target, str) else path_of(self.target)


@attrs.frozen
class Entry:
    """A component with the package it came from."""

    component: Component
    package: str
    version: str
    entry_point: str = ""

    @property
    def qualified(self) -> str:
        """`package/name`."""
        return f"{self.package}/{self.component.name}"

    @property
    def public(self) -> str:
        """The name that files carry: bare for built-ins, else qualified."""
        return self.component.name if self.package == "mvkit" else self.qualified

    def __str__(self) -> str:
        source = origin(self.package, self.version, self.entry_point)
        return f"{self.component.kind} {self.public!r} ({source})"


def path_of(part: Any) -> str:
    """`package.module:Class` of a class, or of a function."""
    name = getattr(part, "__qualname__", type(part).__qualname__)
    return f"{part.__module__}:{name}"


def wrong_in(declared: object) -> str | None:
    """What is wrong with something that a package declares; None if it can be taken."""
    if not isinstance(declared, Component):
        return f"declared {declared!r}; expected a Component"
    for option in ("kind", "name", "target", "summary"):
        value = getattr(declared, option)
        if not isinstance(value, str) and not (option == "target" and callable(value)):
            return f"declared {declared!r}; expected a string as its {option}"
    if declared.kind not in KINDS:
        options = suggest(declared.kind, KINDS)
        return f"unknown kind {declared.kind!r} of {declared.name!r}; {options}"
    return _wrong_in_texts(declared)


def _wrong_in_texts(declared: Component) -> str | None:
    part = f"{declared.kind} {declared.name!r}"
    if not NAME.fullmatch(declared.name):
        return f"{part}: a name is made of a-z, 0-9 and _, a letter first"
    if isinstance(declared.target, str) and not TARGET.fullmatch(declared.target):
        return f"{part}: target {declared.target!r}; expected 'package.module:Class'"
    if type(declared.api) is not int or declared.api < 1:
        return f"{part}: api {declared.api!r}; expected a whole number from 1 on"
    if declared.api > API:
        return f"{part} needs component API {declared.api}, not {API}; upgrade mvkit"
    return None
