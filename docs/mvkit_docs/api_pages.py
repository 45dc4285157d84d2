"""The pages of the API: one for each public object, and one for each group of them."""

from __future__ import annotations

import inspect
from itertools import groupby
from pathlib import Path

from mvkit.registry.component import KINDS
from mvkit_docs.docstrings import as_rst
from mvkit_docs.files import write_if_changed
from mvkit_docs.public_objects import TITLES, PublicObject, page_examples, public_objects

MODULES = {  # whose functions are listed on one page each
    "mvkit.core.bounds": "Bounds",
    "mvkit.core.noise": "Noise",
}
INTRODUCTION = """
Every object that users import has a page, made from its docstring. Axes in all of them: s samples,
j drawn components, k posterior components, b rows of the batch, m modalities, d shared latent, p
private latent, c prior components.
"""


def write_api(folder: Path) -> list[str]:
    """Writes all pages into a folder; returns their names."""
    objects = public_objects()
    examples = page_examples()
    written = {}
    for each in objects:
        written[each.name] = _object_page(each, examples.get(each.name, ""))
    for module, title in MODULES.items():
        written[module] = _module_page(module, title)
    groups = [*TITLES, *KINDS]
    by_group = sorted(objects, key=lambda each: groups.index(each.group))
    names = []
    for group, members in groupby(by_group, key=lambda each: each.group):
        names.append(f"group-{group}")
        written[names[-1]] = _group_page(group, list(members))
    written["index"] = _index(names)
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.rst"):
        if stale.stem not in written:
            stale.unlink()
    for name, text in written.items():
        write_if_changed(folder / f"{name}.rst", text)
    return list(written)


def title(text: str, line: str = "=") -> str:
    """A heading."""
    return f"{text}\n{line * len(text)}\n\n"


def _object_page(each: PublicObject, example: str) -> str:
    page = title(each.own_name)
    if each.part:
        kind, _, name = each.part.partition(" ")
        page += f"The {kind} ``{name}``, one of :doc:`the parts </parts>`.\n\n"
    module, _, name = each.name.rpartition(".")
    if each.is_class:
        page += f".. autoclass:: {module}.{name}\n   :members:\n   :inherited-members: "
        page += "Module, Exception, ABC, Protocol, object\n   :show-inheritance:\n"
    else:
        page += f".. autofunction:: {module}.{name}\n"
    if example:
        page += f"\n.. rubric:: Example\n\n{example}\n"
    return page


def _module_page(module: str, heading: str) -> str:
    return title(heading) + f".. automodule:: {module}\n   :members:\n"


def _group_page(group: str, members: list[PublicObject]) -> str:
    heading = TITLES.get(group, f"{group.capitalize().replace('_', ' ')}s")
    heading = {"recipe": "Recipes", "family": "Families", "missingness": "Missingness"}.get(
        group, heading
    )
    page = title(heading) + ".. list-table::\n   :widths: 30 70\n\n"
    for each in members:
        label = f"{each.own_name} <{each.name}>"
        name = f" ({each.part.split()[1]})" if each.part and each.is_class else ""
        page += f"   * - :doc:`{label}`{name}\n     - {as_rst(each.summary)}\n"
    names = [each.name for each in members]
    if group == "core":
        names += list(MODULES)
    page += "\n.. toctree::\n   :hidden:\n\n"
    return page + "".join(f"   {name}\n" for name in names)


def _index(names: list[str]) -> str:
    page = title("API") + inspect.cleandoc(INTRODUCTION) + "\n\n.. toctree::\n   :maxdepth: 1\n\n"
    return page + "".join(f"   {name}\n" for name in names)
