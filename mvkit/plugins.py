"""Which parts there are: declarations by built-ins and installed packages, loaded on first use.

A package declares its parts in a module named by an entry point of the group `mvkit`::

    @hookimpl
    def mvkit_components():
        return [Component("prior", "nsf", "mvkit_flowprior.nsf:NSF", "neural spline flow")]

Built-ins come through the same hook. Other packages are asked only when a name is not built in, or when
names are listed; a broken one becomes a `Problem`, never a crash. `MVKIT_PLUGINS` unset means all packages,
empty none, `a,b` only these.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib
import importlib.metadata
import os
import re
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import pluggy

from mvkit.errors import AmbiguousComponent, SpecError, UnknownComponent, suggest

API = 1
KINDS = [
    "aggregator",
    "prior",
    "objective",
    "family",
    "likelihood",
    "network",
    "schedule",
    "ramp",
    "optimizer",
    "sampler",
    "metric",
    "dataset",
    "transform",
    "recipe",
]

hookspec = pluggy.HookspecMarker("mvkit")
hookimpl = pluggy.HookimplMarker("mvkit")


@attrs.frozen
class Component:
    """A part that a package offers.

    Args:
        kind: one of `mvkit.plugins.KINDS`.
        name: `[a-z][a-z0-9_]*`; others may write it qualified, `package/name`.
        target: `"package.module:Class"`, imported when someone first asks for it.
        summary: a few words for listings.
        api: the version of the abstract class of that kind it was written for.
    """

    kind: str
    name: str
    target: str
    summary: str = ""
    api: int = API


@attrs.frozen
class Problem:
    """Something that kept a package, or one part of it, from being offered."""

    package: str
    reason: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.package}: {self.reason}"


@attrs.frozen
class Entry:
    """A component with the package it came from."""

    component: Component
    package: str
    version: str

    @property
    def qualified(self) -> str:
        """`package/name`."""
        return f"{self.package}/{self.component.name}"

    @property
    def public(self) -> str:
        """The name that files carry: bare for built-ins, else qualified."""
        return self.component.name if self.package == "mvkit" else self.qualified


class Hooks:
    """The hooks that a package may implement."""

    @hookspec
    def mvkit_components(self) -> Iterable[Component]:
        """Declare components. Called at discovery, so import nothing heavy."""
        raise NotImplementedError


class Registry:
    """Entries by kind and name, and the problems met while collecting them."""

    def __init__(self) -> None:
        from mvkit import builtins

        self.manager = pluggy.PluginManager("mvkit")
        self.manager.add_hookspecs(Hooks)
        self.entries: list[Entry] = []
        self.problems: list[Problem] = []
        self.loaded: dict[type, Entry] = {}
        self.scanned = False
        self.register(builtins, "mvkit", "")

    def register(self, plugin: Any, package: str, version: str) -> None:
        """Take a plugin's components; raises what the plugin raises."""
        self.manager.register(plugin, name=package)
        self.manager.check_pending()  # a misspelt hook name
        others = [other for other in self.manager.get_plugins() if other is not plugin]
        caller = self.manager.subset_hook_caller("mvkit_components", remove_plugins=others)
        for component in [one for declared in caller() for one in declared]:
            reason = _refusal(component)
            if reason:
                self.problems.append(Problem(package, reason))
            else:
                self.entries.append(Entry(component, package, version))

    def scan(self) -> None:
        """Ask the installed packages, once."""
        if self.scanned:
            return
        self.scanned = True
        for package, version, entry_point in _entry_points():
            try:
                self.register(entry_point.load(), package, version)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # SystemExit too: no plugin may stop the host
                self.manager.unregister(name=package) if self.manager.has_plugin(package) else None
                reason = f"entry point {entry_point.value!r} failed: {type(error).__name__}: {error}"
                self.problems.append(Problem(f"{package} {version}", reason, traceback.format_exc()))

    def find(self, kind: str, name: str) -> list[Entry]:
        """Entries that a bare or qualified name means; built-ins first and alone."""
        own = [e for e in self._of(kind) if e.package == "mvkit" and name in (e.component.name, e.qualified)]
        if own:
            return own
        self.scan()
        return [e for e in self._of(kind) if name in (e.component.name, e.qualified)]

    def _of(self, kind: str) -> Iterator[Entry]:
        return (entry for entry in self.entries if entry.component.kind == kind)

    def load(self, entry: Entry) -> type:
        """The class that an entry names."""
        module, _, attribute = entry.component.target.partition(":")
        try:
            cls = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise SpecError(
                f"{entry.component.kind} {entry.public!r} could not be imported from {entry.component.target!r} "
                f"({entry.package} {entry.version}): {type(error).__name__}: {error}; reinstall or update that package"
            ) from error
        if not isinstance(cls, type) or not attrs.has(cls):
            raise SpecError(f"{entry.component.target!r} ({entry.package}) is no class made by @mvkit.spec")
        self.loaded[cls] = entry
        return cls


def _refusal(component: Any) -> str | None:
    if not isinstance(component, Component):
        return f"declared {component!r}; expected a Component"
    if component.kind not in KINDS:
        return f"unknown kind {component.kind!r} of {component.name!r}; {suggest(component.kind, KINDS)}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", component.name):
        return f"{component.kind} {component.name!r}: a name is made of a-z, 0-9 and _, a letter first"
    if component.api > API:
        return f"{component.kind} {component.name!r} needs component API {component.api}, not {API}; upgrade mvkit"
    return None


def _entry_points() -> Iterator[tuple[str, str, importlib.metadata.EntryPoint]]:
    wanted = os.environ.get("MVKIT_PLUGINS")
    allowed = None if wanted is None else {name.strip() for name in wanted.split(",")}
    for entry_point in importlib.metadata.entry_points(group="mvkit"):
        distribution = entry_point.dist
        package, version = (distribution.name, distribution.version) if distribution else (entry_point.name, "")
        if allowed is None or package in allowed:
            yield package, version, entry_point


@functools.cache
def registry() -> Registry:
    """The registry of this process; `registry.cache_clear()` starts afresh."""
    return Registry()


def declare(*components: Component) -> None:
    """Register parts of this session, for prototypes that are not a package yet.

    Example:
        >>> import mvkit
        >>> mvkit.plugins.declare(Component("ramp", "instant", "mvkit.stages:Linear"))
        >>> mvkit.available("ramp", "inst*")
        ['instant']
        >>> mvkit.plugins.registry.cache_clear()
    """
    for component in components:
        reason = _refusal(component)
        own = [entry for entry in registry().find(component.kind, component.name) if entry.package == "mvkit"]
        if reason or own:
            raise SpecError(reason or f"{component.kind} {component.name!r} is built in; take another name")
        entries = registry().entries
        same = [e for e in entries if e.package == "local" and e.component.name == component.name]
        for entry in same:  # a cell that runs again
            entries.remove(entry)
        entries.append(Entry(component, "local", ""))


def lookup(kind: str, name: str) -> type:
    """The class registered under a bare or qualified name.

    Raises:
        UnknownComponent: with the nearest name and the problems met on the way.
        AmbiguousComponent: when several packages offer the bare name.
    """
    found = registry().find(kind, name)
    if len(found) == 1:
        return registry().load(found[0])
    if found:
        offers = ", ".join(repr(entry.qualified) for entry in found)
        raise AmbiguousComponent(f"several packages offer {kind} {name!r}; name one of {offers}")
    problems = "".join(f"; note that {problem}" for problem in registry().problems)
    package = _package_of(kind, name)
    remedy = f"it comes with another package: pip install {package}" if package else suggest(name, available(kind))
    raise UnknownComponent(f"unknown {kind} {name!r}; {remedy}{problems}")


def _package_of(kind: str, name: str) -> str | None:
    """The package that offers a part which no installed one does, if mvkit knows it."""
    from mvkit.builtins import ELSEWHERE

    for package, parts in ELSEWHERE.items():
        if name in (offer for bare in parts.get(kind, ()) for offer in (bare, f"{package}/{bare}")):
            return package
    return None


def entry_of(cls: type) -> Entry | None:
    """The entry whose target is `cls`, if it is registered."""
    known = registry()
    if cls not in known.loaded:
        target = f"{cls.__module__}:{cls.__qualname__}"
        matches = [entry for entry in known.entries if entry.component.target == target]
        if not matches and not cls.__module__.startswith("mvkit."):
            known.scan()
            root = cls.__module__.partition(".")[0]
            near = [entry for entry in known.entries if entry.component.target.startswith(root)]
            matches = [entry for entry in near if known.load(entry) is cls]
        if matches:
            known.loaded[cls] = matches[0]
    return known.loaded.get(cls)


def name_of(kind: str | None, cls: type) -> str | None:
    """The registered name of a class, None if it is not registered (under `kind`, if given)."""
    entry = entry_of(cls)
    if entry is None or kind not in (None, entry.component.kind):
        return None
    return entry.public


def available(kind: str, pattern: str = "*") -> list[str]:
    """Every registered name of a kind, wildcards allowed.

    Example:
        >>> import mvkit
        >>> mvkit.available("aggregator", "*poe")
        ['gpoe', 'mopoe', 'poe', 'top_down_poe']
    """
    if kind not in KINDS:
        raise UnknownComponent(f"unknown kind {kind!r}; {suggest(kind, KINDS)}")
    registry().scan()
    entries = [entry for entry in registry().entries if entry.component.kind == kind]
    bare = [entry.component.name for entry in entries]
    shown = {e.component.name if bare.count(e.component.name) == 1 else e.public for e in entries}
    return sorted(name for name in shown if fnmatch.fnmatchcase(name, pattern))


def problems() -> list[Problem]:
    """What went wrong while asking installed packages for their parts."""
    registry().scan()
    return list(registry().problems)
