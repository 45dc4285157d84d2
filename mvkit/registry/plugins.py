"""Which parts there are: declarations by built-ins and installed packages, loaded on first use.

A package declares its parts in a module named by an entry point of the group `mvkit`::

    @hookimpl
    def mvkit_components():
        return [Component("prior", "nsf", "mvkit_flowprior.nsf:NSF", "neural spline flow")]

Built-ins come through the same hook. Other packages are asked only when a name is not built in, or when
names are listed; a broken one becomes a `Problem`, never a crash. `MVKIT_PLUGINS` unset means all packages,
empty none, `a,b` only these; with `MVKIT_PLUGINS_STRICT=1` problems are raised. Guide: docs/plugins.md.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import importlib
import re
import time
import traceback
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

import attrs
import pluggy

from mvkit.errors import AmbiguousComponent, MvkitError, SpecError, UnknownComponent, suggest
from mvkit.registry import builtin_parts, discovery
from mvkit.registry.builtin_parts import EXTERNAL_PARTS
from mvkit.registry.component import API, KINDS, Component, hookspec
from mvkit.registry.component import hookimpl as hookimpl
from mvkit.registry.discovery import Problem, origin


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
        return f"{self.component.kind} {self.public!r} ({origin(self.package, self.version, self.entry_point)})"


class Hooks:
    """The hooks that a package may implement."""

    @hookspec
    def mvkit_components(self) -> Iterable[Component]:
        """Declare components. Called at discovery, so import nothing heavy."""
        raise NotImplementedError

    @hookspec
    def mvkit_event(self, event: object) -> None:
        """Hear of a run: `mvkit.training.events` has the kinds. What it raises is reported once, then it hears no more."""


class Registry:
    """Entries by kind and name, and the problems met while collecting them."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("mvkit")
        self.manager.add_hookspecs(Hooks)
        self.entries: list[Entry] = []
        self.problems: list[Problem] = []
        self.loaded: dict[type, Entry] = {}
        self.scanned = False
        self.register(builtin_parts, "mvkit", "")

    def register(self, plugin: Any, package: str, version: str, entry_point: str = "") -> None:
        """Take a plugin's components; raises what the plugin raises."""
        name = origin(package, version, entry_point)
        try:
            self.manager.register(plugin, name=name)
            self.manager.check_pending()  # a misspelt hook name
            if not self.manager.get_hookcallers(plugin):
                raise MvkitError(
                    "it implements no hook; decorate mvkit_components or mvkit_event with @hookimpl"
                )
            others = [other for other in self.manager.get_plugins() if other is not plugin]
            caller = self.manager.subset_hook_caller("mvkit_components", remove_plugins=others)
            declared = [component for components in caller() for component in components]
        except BaseException:
            if self.manager.get_plugin(name) is plugin:
                self.manager.unregister(plugin)
            raise
        for component in declared:
            reason = _refusal(component)
            entry = Entry(component, package, version, entry_point)
            if not reason and any(
                e.qualified == entry.qualified for e in self._of(component.kind)
            ):
                reason = f"declared {component.kind} {component.name!r} twice; the first is taken; rename the other"
            if reason:
                self.problems.append(Problem(package, reason, "", version, entry_point))
            else:
                self.entries.append(entry)

    def scan(self) -> None:
        """Ask the installed packages, once; all of them, before anything is raised."""
        if self.scanned:
            return
        self.scanned = True
        for found in discovery.packages():
            if isinstance(found, Problem):
                self.problems.append(found)
            else:
                self._ask(*found)
        discovery.raise_if_strict(self.problems)

    def _ask(self, package: str, version: str, entry_point: EntryPoint) -> None:
        """Take what an entry point declares; whatever goes wrong becomes a problem."""
        named = f"{entry_point.name} = {entry_point.value}"
        start = time.perf_counter()
        try:
            if package in discovery.OWN:
                raise MvkitError(f"the name {package!r} is taken; rename the package")
            self.register(entry_point.load(), package, version, named)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: no plugin may stop the host
            reason = f"failed: {type(error).__name__}: {' '.join(str(error).split())}"
            self.problems.append(Problem(package, reason, traceback.format_exc(), version, named))
        seconds = time.perf_counter() - start
        if seconds > discovery.SLOW:
            reason = (
                f"took {seconds:.1f} s to import; import what is heavy in the modules of the parts"
            )
            self.problems.append(Problem(package, reason, "", version, named))

    def find(self, kind: str, name: str) -> list[Entry]:
        """Entries that a bare or qualified name means; built-ins first and alone."""
        own = [
            e
            for e in self._of(kind)
            if e.package == "mvkit" and name in (e.component.name, e.qualified)
        ]
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
        except (Exception, SystemExit) as error:
            raise SpecError(
                f"{entry} could not be imported from {entry.component.target!r}: {type(error).__name__}: {error}; "
                "install what it lacks, or reinstall or update that package"
            ) from error
        if not isinstance(cls, type) or not attrs.has(cls):
            raise SpecError(
                f"{entry}: {entry.component.target!r} is no class made by @mvkit.spec, but {cls!r}"
            )
        self.loaded[cls] = entry
        return cls


def _refusal(component: Any) -> str | None:
    if not isinstance(component, Component):
        return f"declared {component!r}; expected a Component"
    texts = {name: getattr(component, name) for name in ("kind", "name", "target", "summary")}
    wrong = next((name for name, text in texts.items() if not isinstance(text, str)), None)
    if wrong:
        return f"declared {component!r}; expected a string as its {wrong}"
    if component.kind not in KINDS:
        return f"unknown kind {component.kind!r} of {component.name!r}; {suggest(component.kind, KINDS)}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", component.name):
        return f"{component.kind} {component.name!r}: a name is made of a-z, 0-9 and _, a letter first"
    if not re.fullmatch(r"[\w.]+:\w+", component.target):
        return f"{component.kind} {component.name!r}: target {component.target!r}; expected 'package.module:Class'"
    if type(component.api) is not int or component.api < 1:
        return f"{component.kind} {component.name!r}: api {component.api!r}; expected a whole number from 1 on"
    if component.api > API:
        return f"{component.kind} {component.name!r} needs component API {component.api}, not {API}; upgrade mvkit"
    return None


@functools.cache
def registry() -> Registry:
    """The registry of this process; `registry.cache_clear()` starts afresh."""
    return Registry()


def declare(*components: Component) -> None:
    """Register parts of this session, for prototypes that are not a package yet.

    Example:
        >>> import mvkit
        >>> mvkit.plugins.declare(Component("ramp", "instant", "mvkit.training.annealing:Linear"))
        >>> mvkit.available("ramp", "inst*")
        ['instant']
        >>> mvkit.plugins.registry.cache_clear()
    """
    for component in components:
        reason = _refusal(component)
        own = [
            entry
            for entry in registry().find(component.kind, component.name)
            if entry.package == "mvkit"
        ]
        if reason or own:
            raise SpecError(
                reason or f"{component.kind} {component.name!r} is built in; take another name"
            )
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
    remedy = (
        f"it comes with another package: pip install {package}"
        if package
        else suggest(name, available(kind))
    )
    raise UnknownComponent(f"unknown {kind} {name!r}; {remedy}{problems}")


def _package_of(kind: str, name: str) -> str | None:
    """The package that offers a part which no installed one does, if mvkit knows it."""
    for package, parts in EXTERNAL_PARTS.items():
        if name in (
            offer for bare in parts.get(kind, ()) for offer in (bare, f"{package}/{bare}")
        ):
            return package
    return None


def find_entry(cls: type) -> Entry | None:
    """The entry whose target is `cls`, if it is registered."""
    known = registry()
    if cls not in known.loaded:
        target = f"{cls.__module__}:{cls.__qualname__}"
        matches = [entry for entry in known.entries if entry.component.target == target]
        if not matches and not cls.__module__.startswith("mvkit."):
            known.scan()
            root = cls.__module__.partition(".")[0]
            near = [entry for entry in known.entries if entry.component.target.startswith(root)]
            for entry in near:
                with contextlib.suppress(
                    SpecError
                ):  # a broken part of the package is no matter of this one's
                    known.load(entry)
            matches = [entry for entry in near if known.loaded.get(cls) == entry]
        if matches:
            known.loaded[cls] = matches[0]
    return known.loaded.get(cls)


@contextlib.contextmanager
def error_context(cls: type, what: str) -> Iterator[None]:
    """Inside, an error that is none of mvkit's names the part `cls` and its package, if a package brought it.

    Raises:
        SpecError: for any other exception, `SystemExit` included, of a part that is not built in.
    """
    try:
        yield
    except MvkitError:
        raise
    except (Exception, SystemExit) as error:
        entry = find_entry(cls)
        if entry is None or entry.package == "mvkit":
            raise
        raise SpecError(
            f"{entry} failed {what}: {type(error).__name__}: {error}; update that package"
        ) from error


def name_of(kind: str | None, cls: type) -> str | None:
    """The registered name of a class, None if it is not registered (under `kind`, if given)."""
    entry = find_entry(cls)
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
