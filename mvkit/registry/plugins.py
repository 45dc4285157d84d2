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
import itertools
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import EntryPoint
from typing import Any, overload

import pluggy

from mvkit.errors import AmbiguousComponent, MvkitError, SpecError, UnknownComponent, suggest
from mvkit.registry import builtin_parts, discovery
from mvkit.registry.builtin_parts import EXTERNAL_PARTS
from mvkit.registry.component import KINDS, Component, Entry, hookspec, path_of, wrong_in
from mvkit.registry.component import hookimpl as hookimpl  # noqa: PLC0414
from mvkit.registry.discovery import Problem, origin
from mvkit.registry.loading import part_of

MOST = 1000  # components of a package: a hook may be a generator that never ends


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

    @hookspec
    def mvkit_migrate(self, header: dict[str, Any], version: str) -> dict[str, Any] | None:
        """The header of a model that an older version of the package saved, as today's parts are.

        Called when a file is loaded. None: nothing is to be changed.
        """


class Registry:
    """Entries by kind and name, and the problems met while collecting them."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("mvkit")
        self.manager.add_hookspecs(Hooks)
        self.entries: list[Entry] = []
        self.problems: list[Problem] = []
        self.loaded: dict[Any, dict[str, Entry]] = {}  # by class, or function, and by kind
        self.scanned = False
        self.modules: dict[str, list[object]] = {}  # that declare, by package
        self.register(builtin_parts, "mvkit", "")

    def register(self, plugin: object, package: str, version: str, entry_point: str = "") -> None:
        """Takes a plugin's components; raises what the plugin raises."""
        declared = self._declared_by(plugin, origin(package, version, entry_point))
        self.modules.setdefault(package, []).append(plugin)
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
            declared = itertools.chain.from_iterable(self._caller("mvkit_components", plugin)())
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

    def _caller(self, hook: str, plugin: object) -> pluggy.HookCaller:
        """A hook of one plugin alone."""
        others = [other for other in self.manager.get_plugins() if other is not plugin]
        return self.manager.subset_hook_caller(hook, remove_plugins=others)

    def migrated(self, package: str, header: dict[str, Any], version: str) -> dict[str, Any]:
        """A header by the hooks of a package; raises what they raise."""
        for plugin in self.modules.get(package, ()):
            for changed in self._caller("mvkit_migrate", plugin)(header=header, version=version):
                header = changed
        return header

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
        """The class that an entry names; of a recipe, the function.

        Raises:
            SpecError: it cannot be imported, or cannot be a part of its kind.
        """
        part = part_of(entry)
        self.remember(part, entry)
        return part

    def remember(self, part: Any, entry: Entry) -> None:
        """Notes which entry a class, or function, is the target of; it may be so in two kinds."""
        entries = self.loaded.setdefault(part, {})
        entries.pop(entry.component.kind, None)
        entries[entry.component.kind] = entry  # the last one is the last remembered


@functools.cache
def registry() -> Registry:
    """The registry of this process; `registry.cache_clear()` starts afresh."""
    return Registry()


@overload
def declare(*components: Component) -> None: ...
@overload
def declare(kind: str, name: str, part: Callable[..., Any], /) -> None: ...
def declare(*declared: Any) -> None:
    """Registers parts of this session, for prototypes that are not a package yet.

    Args:
        declared: a kind, a name, and a class made by `@mvkit.spec` (of the kind `recipe`, a
            function); or components.

    Raises:
        SpecError: a name that is built in, or what cannot be a part of its kind.

    Example:
        >>> import mvkit
        >>> from mvkit.parts import LinearRamp
        >>> mvkit.plugins.declare("ramp", "instant", LinearRamp)
        >>> mvkit.available("ramp", "inst*")
        ['instant']
        >>> mvkit.plugins.registry.cache_clear()
    """
    if len(declared) == 3 and not isinstance(declared[0], Component):
        declared = (Component(*declared),)
    for component in declared:
        _declare(component)


def _declare(component: Component) -> None:
    reason = wrong_in(component)
    if reason:
        raise SpecError(reason)
    known = registry()
    kind = component.kind
    name = component.name
    if known.is_built_in(kind, name):
        raise SpecError(f"{kind} {name!r} is built in; take another name")
    entry = Entry(component, "local", "")
    if not isinstance(component.target, str):
        _check_names_of(component, known)
        known.load(entry)
    for before in known.of_kind(kind):
        if before.qualified == entry.qualified:  # a cell that runs again
            known.entries.remove(before)
    known.entries.append(entry)


def _check_names_of(component: Component, known: Registry) -> None:
    """Raises SpecError for a class that has another name as a part of another kind.

    Files say the name alone, not the kind.
    """
    for kind, entry in known.loaded.get(component.target, {}).items():
        if kind != component.kind and entry.qualified != f"local/{component.name}":
            raise SpecError(
                f"{component.path} is {entry} already; take that name for the {component.kind} "
                "too, or inherit a class from it and declare that"
            )


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


def find_entry(cls: Any, kind: str | None = None) -> Entry | None:
    """The entry whose target is a class, or function of a recipe, if it is registered.

    Args:
        cls: the class.
        kind: of the part, where the class may be one of several; None: the last that was loaded.
    """
    known = registry()
    if not _is_known(cls, kind):
        _recognise(cls)
    entries = known.loaded.get(cls, {})
    if kind is not None:
        return entries.get(kind)
    return next(reversed(entries.values()), None)


def _is_known(cls: Any, kind: str | None) -> bool:
    entries = registry().loaded.get(cls, {})
    return bool(entries) if kind is None else kind in entries


def _recognise(cls: Any) -> None:
    """Looks for the entries of a class that was not loaded by its name."""
    known = registry()
    path = path_of(cls)
    for entry in reversed(known.entries):  # of several names in a kind, the first one stays
        if entry.component.path == path:
            known.remember(cls, entry)
    if cls in known.loaded or path.startswith("mvkit."):
        return
    known.scan()
    root = path.partition(":")[0].partition(".")[0]
    for entry in known.entries:
        if entry.component.path.startswith(root):
            with contextlib.suppress(SpecError):  # another part of the package may be broken
                known.load(entry)


def package_of(cls: type) -> str | None:
    """The package, with its version, whose code a class is in; None if it offers no parts."""
    root = cls.__module__.partition(".")[0]
    if root == "mvkit":
        return None
    known = registry()
    known.scan()
    for entry in known.entries:
        if entry.component.path.partition(":")[0].partition(".")[0] == root:
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
        advice = "mend it" if entry.package == "local" else "update that package"
        reason = f"{entry} failed {what}: {type(error).__name__}: {error}; {advice}"
        raise SpecError(reason) from error


def name_of(kind: str | None, cls: type) -> str | None:
    """The registered name of a class, None if it is not registered (under `kind`, if given)."""
    entry = find_entry(cls, kind)
    return None if entry is None else entry.public


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
