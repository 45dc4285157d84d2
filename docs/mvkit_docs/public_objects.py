"""Every public object of mvkit, once, under the name that users import it by.

Run as a program it says how many have an example that runs, and which have none.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

import mvkit
import mvkit.core
import mvkit.evaluation.metric
import mvkit.parts
import mvkit.plots
import mvkit.recipes
import mvkit.registry
import mvkit.testing
import mvkit.training.events
from mvkit.registry import plugins
from mvkit.registry.component import FUNCTION, KINDS

EXAMPLES = Path(__file__).parent.parent / "examples"
METRIC_NAMES = ("Score", "mean", "EvaluationContext")
TITLES = {
    "model": "Models, data and training",
    "errors": "Errors",
    "plots": "Pictures",
    "helpers": "For parts of your own",
    "core": "The mathematics",
    "registry": "Registry",
    "events": "Events of a run",
    "testing": "Testing",
}


@attrs.frozen
class PublicObject:
    """A class or function that users import.

    Args:
        name: the path it is imported by, such as `mvkit.parts.MoG`.
        value: the object.
        group: the page that lists it: a kind of parts, or a key of `TITLES`.
        part: kind and registered name of a part, such as `prior "mog"`; empty for others.
    """

    name: str
    value: Any
    group: str
    part: str = ""

    @property
    def own_name(self) -> str:
        """The name without the path."""
        return self.name.rpartition(".")[2]

    @property
    def summary(self) -> str:
        """The first sentence of its docstring."""
        text = (inspect.getdoc(self.value) or "").partition("\n\n")[0]
        return " ".join(text.split())

    @property
    def is_class(self) -> bool:
        """Whether it is a class, not a function."""
        return inspect.isclass(self.value)

    def own_examples(self) -> int:
        """How many statements the examples in its docstring have."""
        return len(doctest.DocTestParser().get_examples(self.value.__doc__ or ""))


def public_objects() -> list[PublicObject]:
    """All of them; parts under their kinds, recipes among these."""
    objects: dict[int, PublicObject] = {}
    for each in _candidates():
        objects.setdefault(id(each.value), each)
    return list(objects.values())


def _candidates() -> Iterator[PublicObject]:
    parts = _registered()
    for name in mvkit.__all__:
        value = getattr(mvkit, name)
        if inspect.ismodule(value):
            continue
        group, label = parts.get(id(value), ("errors" if _is_error(value) else "model", ""))
        yield PublicObject(f"mvkit.{name}", value, group, label)
    yield from _of_module(mvkit.recipes, "recipe", _recipes(), parts)
    yield from _of_module(mvkit.parts, "helpers", dir(mvkit.parts), parts)
    yield from _of_module(mvkit.plots, "plots", _drawing(), parts)
    yield from _of_module(mvkit.testing, "testing", mvkit.testing.__all__, parts)
    yield from _of_module(mvkit.registry, "registry", _exports("mvkit.registry"), parts)
    yield from _of_module(mvkit.core, "core", _exports("mvkit.core"), parts)
    yield from _of_module(mvkit.evaluation.metric, "helpers", METRIC_NAMES, parts)
    events = mvkit.training.events
    yield from _of_module(events, "events", _event_names(), parts)


def _of_module(
    module: Any, group: str, names: Any, parts: dict[int, tuple[str, str]]
) -> Iterator[PublicObject]:
    for name in sorted(names):
        value = getattr(module, name)
        is_object = inspect.isclass(value) or inspect.isfunction(value)
        if name.startswith("_") or not is_object or not value.__module__.startswith("mvkit"):
            continue
        if name == "mvkit_components":  # a hook, which packages write, and nobody calls
            continue
        kind, label = parts.get(id(value), (group, ""))
        yield PublicObject(f"{module.__name__}.{name}", value, kind, label)


def _registered() -> dict[int, tuple[str, str]]:
    """Kind, and kind with name, of each built-in part, by identity."""
    known = plugins.registry()
    parts = {}
    for kind in KINDS:
        for entry in known.of_kind(kind):
            if entry.package == "mvkit":
                label = f'{kind} "{entry.component.name}"'
                parts[id(plugins.lookup(kind, entry.component.name))] = (kind, label)
    return parts


def _recipes() -> list[str]:
    known = plugins.registry().of_kind(FUNCTION)
    return ["get", *(each.component.name for each in known if each.package == "mvkit")]


def _drawing() -> list[str]:
    """The functions of `mvkit.plots` that draw: those that take axes or a figure."""
    names = []
    for name, value in vars(mvkit.plots).items():
        if inspect.isfunction(value) and {"ax", "figure"} & set(
            inspect.signature(value).parameters
        ):
            names.append(name)
    helpers = {"grid", "axes_of", "draw_points", "draw_sensitivity", "show"}
    return [name for name in names if name not in helpers]


def _exports(module: str) -> list[str]:
    """The names that a module exports by `import x as x`."""
    source = inspect.getsource(importlib.import_module(module))
    return re.findall(r"import (\w+) as \1$", source, re.MULTILINE)


def _event_names() -> list[str]:
    events = mvkit.training.events
    own = vars(events).items()
    return [
        name
        for name, value in own
        if inspect.isclass(value)
        and value.__module__ == events.__name__
        and (issubclass(value, events.Event) or name == "StopTraining")
    ]


def _is_error(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Exception)


def page_examples() -> dict[str, str]:
    """Examples by the object's name that stand on its page alone, from docs/examples.

    Some modules are as long as modules of mvkit may be; examples of what they offer stand there.
    """
    examples: dict[str, str] = {}
    for path in sorted(EXAMPLES.glob("*.md")):
        sections = re.findall(
            r"^## (\S+)\n+```pycon\n(.*?)```", path.read_text(), re.DOTALL | re.MULTILINE
        )
        examples |= dict(sections)
    return examples


def without_example() -> list[str]:
    """Names of the objects that have no example."""
    on_pages = page_examples()
    return [
        each.name
        for each in public_objects()
        if not each.own_examples() and each.name not in on_pages
    ]


def main() -> int:
    """Prints how many have one, and who has none; 1 if they are more than one in twenty."""
    objects = public_objects()
    lacking = without_example()
    share = 1 - len(lacking) / len(objects)
    print(
        f"{len(objects) - len(lacking)} of {len(objects)} public objects have an example", end=""
    )
    print(f" that runs: {share:.1%}")
    if lacking:
        print("without:", " ".join(lacking))
    return int(share < 0.95)


if __name__ == "__main__":
    sys.exit(main())
