"""A new package with one part: `mvkit new-plugin NAME --kind aggregator`."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.resources import files
from pathlib import Path

from mvkit._version import __version__
from mvkit.errors import SpecError, suggest, within
from mvkit.registry import plugins
from mvkit.registry.component import FUNCTION

TEMPLATES = files("mvkit.apps") / "templates"
FILES = {  # of the package, and their templates; words between @ are filled in, in names too
    "pyproject.toml": "pyproject.txt",
    "README.md": "readme.txt",
    ".github/workflows/tests.yml": "ci.txt",
    "src/@package@/__init__.py": "declare.txt",
    "src/@package@/@part@.py": "parts/@kind@.txt",
    "tests/test_@part@.py": "test.txt",
}
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def kinds() -> list[str]:
    """The kinds of parts that there is a template of."""
    return sorted(file.name.removesuffix(".txt") for file in (TEMPLATES / "parts").iterdir())


def new_plugin(name: str, kind: str, folder: Path) -> Path:
    """Writes a package that passes its own tests once it is installed.

    It has a source file, a test, a README, a pyproject and a CI workflow.

    Args:
        name: of the distribution, such as `mvkit-sharp`; the part is called by what follows
            `mvkit-`.
        kind: of the part; see `kinds`.
        folder: where the package's own folder is created.

    Returns:
        The package's folder.

    Raises:
        SpecError: a name that cannot be used or is taken, a kind without template, a folder that
            exists already.
    """
    root = folder / name
    with within("new-plugin"):
        if kind not in kinds():
            raise SpecError(f"no template of kind {kind!r}; {suggest(kind, kinds())}")
        part = _part_name(name, kind)
        if root.exists():
            raise SpecError(f"{root} is there already; choose another name, or remove it")
    words = {"name": name, "kind": kind, "part": part, "mvkit": __version__}
    words["package"] = name.replace("-", "_")
    words["Class"] = "".join(word.capitalize() for word in part.split("_"))
    if kind == FUNCTION:
        words["Class"] = part
    for path, template in FILES.items():
        source = TEMPLATES / _filled(template, words)
        file = root / _filled(path, words)
        file.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text(encoding="utf-8")
        file.write_text(_filled(text, words), encoding="utf-8")
    return root


def _filled(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def _part_name(name: str, kind: str) -> str:
    """The part's name, from a checked name of the package."""
    if not NAME.fullmatch(name):
        raise SpecError(
            f"got the name {name!r}; expected a-z, 0-9 and single hyphens, a letter first: "
            "mvkit-sharp"
        )
    package = name.replace("-", "_")
    part = package.removeprefix("mvkit_")
    taken = package in sys.stdlib_module_names or name in ("mvkit", "local", "torch")
    if taken or keyword.iskeyword(package):
        raise SpecError(
            f"the name {name!r} is taken by Python or a library; take another: mvkit-{part}"
        )
    if keyword.iskeyword(part) or not part[0].isalpha():
        raise SpecError(
            f"{part!r} cannot name a part and its module; take another name than {name!r}"
        )
    if plugins.registry().is_built_in(kind, part):
        raise SpecError(f"{kind} {part!r} is built in; take another name than {name!r}")
    return part
