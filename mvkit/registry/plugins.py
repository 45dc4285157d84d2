"""Which parts there are: declarations by built-ins and installed packages, loaded on first use.

A package declares its parts in a module named by an entry point of the group `mvkit`::

    @hookimpl
    def mvkit_components():
        return [Component("prior", "nsf", "mvkit_flowprior.nsf:NSF", "neural spline flow")]

Built-ins come through the same hook. Other packages are asked only when a name is not built in, or
when names are listed; a broken one becomes a `Problem`, never a crash. `MVKIT_PLUGINS` unset means
all packages, empty none, `a,b` only these; with `MVKIT_PLUGINS_STRICT=1` problems are raised.
Guide: docs/plugins.md.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import importlib
import itertools
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

import attrs
import pluggy

from mvkit.errors import AmbiguousComponent, MvkitError, SpecError, UnknownComponent, suggest
from mvkit.registry import builtin_parts, discovery
from mvkit.registry.builtin_parts import EXTERNAL_PARTS
from mvkit.registry.component import FUNCTION, KINDS, Component, hookspec, wrong_in
from mvkit.registry.component import hookimpl as hookimpl  # noqa: PLC0414
from mvkit.registry.discovery import Problem, origin

MOST = 1000  # components of a package: a hook may be a generator that never ends


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


class Hooks:
    """The hooks that a package may implement."""

    @hookspec
    def mvkit_components(self) -> Iterable[Component]:
        """Declares components. Called at discovery, so import nothing heavy."""
        raise NotImplementedError

    @hookspec
    def mvkit_event(self, event: object) -> None:
        """Is called with every event of a run; `mvkit.training.events` lists them.

        If it raises, that is reported once, and it is disabled for the rest of the run.
        """


class Registry:
    """Entries by kind and name, and the problems met while collecting them."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("mvkit")
        self.manager.add_hookspecs(Hooks)
        self.entries: list[Entry] = []
        self.problems: list[Problem] = []
        self.loaded: dict[Any, Entry] = {}  # by class, or function of a recipe
        self.scanned = False
        self.register(builtin_parts, "mvkit", "")

    def register(self, plugin: object, package: str, version: str, entry_point: str = "") -> None:
        """Takes a plugin's components; raises what the plugin raises."""
        declared = self._declared_by(plugin, origin(package, version, entry_point))
        for component in declared:
            entry = Entry(component, package, version, entry_point)
            reason = wrong_in(component)
            if reason is None and self._offers(component.kind, entry.qualified):
                named = f"{component.kind} {component.name!r}"
                reason = f"declared {named} twice; the first is taken; rename the other"
            if reason:
                self.problems.append(Problem(package, reason, "", version, entry_point))
            else:
                self.entries.append(entry)

    def _declared_by(self, plugin: object, name: str) -> list[Component]:
        try:
            self.manager.register(plugin, name=name)
            self.manager.check_pending()  # a misspelt hook name
            if not self.manager.get_hookcallers(plugin):
                hooks = "mvkit_components or mvkit_event"
                raise MvkitError(f"it implements no hook; decorate {hooks} with @hookimpl")
            others = [other for other in self.manager.get_plugins() if other is not plugin]
            caller = self.manager.subset_hook_caller("mvkit_components", remove_plugins=others)
            declared = itertools.chain.from_iterable(caller())
            components = list(itertools.islice(declared, MOST + 1))
            if len(components) > MOST:
                raise MvkitError(
                    f"mvkit_components declares more than {MOST:,} components; expected a list "
                    "that ends; declare each once"
                )
            return components
        except BaseException:
            if self.manager.get_plugin(name) is plugin:
                self.manager.unregister(plugin)
            raise

    def scan(self) -> None:
        """Asks the installed packages, once; all of them, before anything is raised."""
        if self.scanned:
            return
        self.scanned = True
        for package in discovery.packages():
            if isinstance(package, Problem):
                self.problems.append(package)
            else:
                self._ask(*package)
        discovery.raise_if_strict(self.problems)

    def _ask(self, package: str, version: str, entry_point: EntryPoint) -> None:
        """Takes what an entry point declares; whatever goes wrong becomes a problem."""
        line = f"{entry_point.name} = {entry_point.value}"
        problem = functools.partial(Problem, package, version=version, entry_point=line)
        start = time.perf_counter()
        try:
            if discovery.is_own(package):
                raise MvkitError(f"the name {package!r} is taken; rename the package")
            self.register(entry_point.load(), package, version, line)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: no plugin may stop the host
            reason = f"failed: {type(error).__name__}: {' '.join(str(error).split())}"
            self.problems.append(problem(reason, traceback.format_exc()))
        seconds = time.perf_counter() - start
        if seconds > discovery.SLOW:
            advice = "import what is heavy in the modules of the parts"
            self.problems.append(problem(f"took {seconds:.1f} s to import; {advice}"))

    def find(self, kind: str, name: str) -> list[Entry]:
        """Entries that a bare or qualified name means; built-ins first and alone."""
        built_in = [entry for entry in self._offers(kind, name) if entry.package == "mvkit"]
        if built_in:
            return built_in
        self.scan()
        return self._offers(kind, name)

    def is_built_in(self, kind: str, name: str) -> bool:
        """Whether mvkit itself offers a part of that name."""
        return any(entry.package == "mvkit" for entry in self.find(kind, name))

    def of_kind(self, kind: str) -> list[Entry]:
        """Entries of one kind."""
        return [entry for entry in self.entries if entry.component.kind == kind]

    def _offers(self, kind: str, name: str) -> list[Entry]:
        entries = self.of_kind(kind)
        return [entry for entry in entries if name in (entry.component.name, entry.qualified)]

    def load(self, entry: Entry) -> Any:
        """The class that an entry names; of a recipe, the function."""
        target = entry.component.target
        module, _, name = target.partition(":")
        try:
            part = getattr(importlib.import_module(module), name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit and CancelledError too
            raise SpecError(
                f"{entry} could not be imported from {target!r}: {type(error).__name__}: {error}; "
                "install what it lacks, or reinstall or update that package"
            ) from error
        is_class = isinstance(part, type)
        if entry.component.kind == FUNCTION:
            if is_class or not callable(part):
                raise SpecError(f"{entry}: {target!r} is no function, but {part!r}")
        elif not is_class or not attrs.has(part):
            raise SpecError(f"{entry}: {target!r} is no class made by @mvkit.spec, but {part!r}")
        self.loaded[part] = entry
        return part


@functools.cache
def registry() -> Registry:
    """The registry of this process; `registry.cache_clear()` starts afresh."""
    return Registry()


def declare(*components: Component) -> None:
    """Registers parts of this session, for prototypes that are not a package yet.

    Example:
        >>> import mvkit
        >>> mvkit.plugins.declare(Component("ramp", "instant", "mvkit.training.annealing:Linear"))
        >>> mvkit.available("ramp", "inst*")
        ['instant']
        >>> mvkit.plugins.registry.cache_clear()
    """
    known = registry()
    for component in components:
        reason = wrong_in(component)
        if reason:
            raise SpecError(reason)
        kind = component.kind
        name = component.name
        if known.is_built_in(kind, name):
            raise SpecError(f"{kind} {name!r} is built in; take another name")
        for entry in known.of_kind(kind):
            if entry.qualified == f"local/{name}":  # a cell that runs again
                known.entries.remove(entry)
        known.entries.append(Entry(component, "local", ""))


def lookup(kind: str, name: str) -> Any:
    """The class registered under a bare or qualified name; of a recipe, the function.

    Raises:
        UnknownComponent: with the nearest name and the problems met on the way.
        AmbiguousComponent: when several packages offer the bare name.
    """
    known = registry()
    entries = known.find(kind, name)
    if len(entries) == 1:
        return known.load(entries[0])
    if entries:
        offers = ", ".join(repr(entry.qualified) for entry in entries)
        raise AmbiguousComponent(f"several packages offer {kind} {name!r}; name one of {offers}")
    raise UnknownComponent(f"unknown {kind} {name!r}; {remedy(kind, name)}")


def remedy(kind: str, name: str) -> str:
    """The end of a message about a name that nobody offers, with the problems of packages."""
    problems = "".join(f"; note that {problem}" for problem in registry().problems)
    advice = _package_to_install(kind, name) or suggest(name, available(kind))
    return f"{advice}{problems}"


def _package_to_install(kind: str, name: str) -> str | None:
    for package, parts in EXTERNAL_PARTS.items():
        if name.removeprefix(f"{package}/") in parts.get(kind, ()):
            return f"it comes with another package: pip install {package}"
    return None


def find_entry(cls: Any) -> Entry | None:
    """The entry whose target is a class, or function of a recipe, if it is registered."""
    known = registry()
    if cls in known.loaded:
        return known.loaded[cls]
    module = cls.__module__
    for entry in known.entries:
        if entry.component.target == f"{module}:{cls.__qualname__}":
            known.loaded[cls] = entry
            return entry
    if module.startswith("mvkit."):
        return None
    known.scan()
    root = module.partition(".")[0]
    for entry in known.entries:
        if entry.component.target.startswith(root):
            with contextlib.suppress(SpecError):  # another part of the package may be broken
                known.load(entry)
    return known.loaded.get(cls)


def package_of(cls: type) -> str | None:
    """The package, with its version, whose code a class is in; None if it offers no parts."""
    root = cls.__module__.partition(".")[0]
    if root == "mvkit":
        return None
    known = registry()
    known.scan()
    for entry in known.entries:
        if entry.component.target.partition(":")[0].partition(".")[0] == root:
            return origin(entry.package, entry.version, entry.entry_point)
    return None


@contextlib.contextmanager
def error_context(cls: Any, what: str) -> Iterator[None]:
    """Inside, an error of a part `cls` that a package brought names that part and its package.

    Raises:
        SpecError: for any exception but those of mvkit, and Ctrl-C, of a part that is not built
            in.
    """
    try:
        yield
    except (MvkitError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # SystemExit and CancelledError too
        entry = find_entry(cls)
        if entry is None or entry.package == "mvkit":
            raise
        reason = f"{entry} failed {what}: {type(error).__name__}: {error}; update that package"
        raise SpecError(reason) from error


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
    known = registry()
    known.scan()
    entries = known.of_kind(kind)
    offers = Counter(entry.component.name for entry in entries)
    names = set()
    for entry in entries:
        bare = entry.component.name
        names.add(bare if offers[bare] == 1 else entry.public)
    return sorted(name for name in names if fnmatch.fnmatchcase(name, pattern))


def problems() -> list[Problem]:
    """What went wrong while asking installed packages for their parts."""
    known = registry()
    known.scan()
    return list(known.problems)
