"""A new package with one part: `mvkit new-plugin NAME --kind aggregator`."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.resources import files
from pathlib import Path

import mvkit
from mvkit.errors import SpecError, suggest
from mvkit.registry import plugins

TEMPLATES = files("mvkit.apps") / "templates"


def kinds() -> list[str]:
    """The kinds of parts that there is a template of."""
    return sorted(file.name.removesuffix(".txt") for file in (TEMPLATES / "parts").iterdir())


def new_plugin(name: str, kind: str, folder: Path) -> Path:
    """Writes a package that passes its own tests once it is installed: source, test, README, pyproject and CI.

    Args:
        name: of the distribution, such as `mvkit-sharp`; the part is called by what follows `mvkit-`.
        kind: of the part; see `kinds`.
        folder: where the package's own folder goes.

    Returns:
        The package's folder.

    Raises:
        SpecError: a name that cannot be or is taken, a kind without template, a folder that is there already.
    """
    if kind not in kinds():
        raise SpecError(f"new-plugin: no template of kind {kind!r}; {suggest(kind, kinds())}")
    part = _part(name, kind)
    package, root = name.replace("-", "_"), folder / name
    if root.exists():
        raise SpecError(f"new-plugin: {root} is there already; choose another name, or remove it")
    words = {
        "name": name,
        "package": package,
        "part": part,
        "kind": kind,
        "mvkit": mvkit.__version__,
    }
    words["Class"] = "".join(word.capitalize() for word in part.split("_"))
    for path, template in {
        "pyproject.toml": "pyproject.txt",
        "README.md": "readme.txt",
        ".github/workflows/tests.yml": "ci.txt",
        f"src/{package}/__init__.py": "declare.txt",
        f"src/{package}/{part}.py": f"parts/{kind}.txt",
        f"tests/test_{part}.py": "test.txt",
    }.items():
        text = TEMPLATES.joinpath(*template.split("/")).read_text(encoding="utf-8")
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        filled = re.sub("@(" + "|".join(words) + ")@", lambda found: words[found[1]], text)
        (root / path).write_text(filled, encoding="utf-8")
    return root


def _part(name: str, kind: str) -> str:
    """The part's name, from a checked name of the package."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise SpecError(
            f"new-plugin: got the name {name!r}; expected a-z, 0-9 and single hyphens, a letter first: mvkit-sharp"
        )
    part, package = name.removeprefix("mvkit-").replace("-", "_"), name.replace("-", "_")
    if (
        package in sys.stdlib_module_names
        or keyword.iskeyword(package)
        or name in ("mvkit", "local", "torch")
    ):
        raise SpecError(
            f"new-plugin: the name {name!r} is taken by Python or a library; take another: mvkit-{part}"
        )
    if keyword.iskeyword(part) or not part[0].isalpha():
        raise SpecError(
            f"new-plugin: {part!r} cannot name a part and its module; take another name than {name!r}"
        )
    if any(
        e.component.name == part and e.package == "mvkit"
        for e in plugins.registry().find(kind, part)
    ):
        raise SpecError(
            f"new-plugin: {kind} {part!r} is built in; take another name than {name!r}"
        )
    return part
