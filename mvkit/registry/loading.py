"""From declarations to classes, and from specs to live parts: what cannot be is told in words."""

from __future__ import annotations

import importlib
from typing import Any

import attrs

from mvkit.errors import SpecError
from mvkit.registry.component import FUNCTION, Entry

# what live parts inherit, by kind
BASES = {
    "aggregator": "mvkit.Aggregator",
    "prior": "mvkit.Prior",
    "objective": "mvkit.Objective",
    "family": "mvkit.Family",
    "likelihood": "mvkit.Likelihood",
    "network": "mvkit.Network",
    "sampler": "mvkit.Sampler",
    "refiner": "mvkit.Refiner",
    "metric": "mvkit.Metric",
    "ramp": "mvkit.parts.Ramp",
    "schedule": "mvkit.parts.Schedule",
    "transform": "mvkit.parts.Transform",
}
# methods that mvkit calls on specs of kinds that are their own live parts
METHODS = {
    "network": ("encoder", "decoder"),
    "metric": ("score", "summary", "rows", "incompatibility"),
    "ramp": ("at", "last"),
    "schedule": ("stages",),
    "transform": ("forward", "inverse", "fit", "before", "out_of_support"),
    "optimizer": ("optimizer",),
    "dataset": ("load",),
}


def part_of(entry: Entry) -> Any:
    """The class that an entry names; of a recipe, the function.

    Raises:
        SpecError: it cannot be imported, or cannot be a part of its kind.
    """
    part = _imported(entry)
    kind = entry.component.kind
    is_class = isinstance(part, type)
    if kind == FUNCTION:
        if is_class or not callable(part):
            raise SpecError(f"{entry}: {entry.component.path!r} is no function, but {part!r}")
        return part
    if not is_class or not attrs.has(part):
        raise SpecError(
            f"{entry}: {entry.component.path!r} is no class made by @mvkit.spec, but {part!r}"
        )
    for method in METHODS.get(kind, ()):
        if not callable(getattr(part, method, None)):
            raise SpecError(f"{entry}: {part.__name__} has no method {method}; {_advice(kind)}")
    return part


def _imported(entry: Entry) -> Any:
    target = entry.component.target
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit and CancelledError too
        raise SpecError(
            f"{entry} could not be imported from {target!r}: {type(error).__name__}: {error}; "
            "install what it lacks, or reinstall or update that package"
        ) from error


def _advice(kind: str) -> str:
    if kind in BASES:
        return f"expected a {kind}; let it inherit {BASES[kind]}, and write what is abstract"
    return f"expected a {kind}; write it"


def live_part(part: Any, kind: str, classes: tuple[type, ...], sizes: object) -> Any:
    """What the spec of a part builds.

    Raises:
        AttributeError: the spec has no `build`.
        TypeError: it returned something else than one of the classes of its kind.
    """
    if not callable(getattr(part, "build", None)):
        raise AttributeError(
            f"{type(part).__name__} has no build(sizes); expected one that returns the live part: "
            f"a module of your own, or the spec itself if it inherits {BASES[kind]}"
        )
    live = part.build(sizes)
    if not isinstance(live, classes):
        names = " or ".join(cls.__name__ for cls in classes)
        raise TypeError(
            f"build returned {live!r}; expected a {names}; let {type(live).__name__} inherit "
            f"{BASES[kind]}, beside nn.Module if it has parameters"
        )
    return live


def bases_of(cls: type) -> str:
    """The abstract classes of mvkit that a class inherits, for messages."""
    known = {path.rpartition(".")[2]: path for path in BASES.values()}
    inherited = [known[base.__name__] for base in cls.__mro__ if base.__name__ in known]
    return ", ".join(inherited) or "mvkit.Aggregator or whatever its kind is"
