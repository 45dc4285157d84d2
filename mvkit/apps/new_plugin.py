"""A new package with one part: `mvkit new-plugin NAME --kind aggregator`."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.resources import files
from pathlib import Path

from mvkit._version import __version__
from mvkit.apps import second_part
from mvkit.errors import SpecError, suggest, within
from mvkit.registry import component, plugins
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
PART_FILES = {path: text for path, text in FILES.items() if "@part@" in path}
COMPONENT = 'Component("@kind@", "@part@", "@package@.@part@:@Class@", "@kind@ of @name@")'
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
        _check_kind(kind)
        part = _part_name(name, kind)
        if root.exists():
            raise SpecError(
                f"{root} is there already; choose another name, or remove it; to write a second "
                "part into it, say what it is called: --add PART"
            )
    for path, text in _texts(root, name, kind, part, FILES).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def add_part(name: str, kind: str, part: str, folder: Path) -> Path:
    """Writes a further part into an existing package: source, test and declaration.

    Args:
        name: of the distribution.
        kind: of the part; see `kinds`.
        part: its name.
        folder: where the package's own folder is, or that folder.

    Returns:
        The package's folder.

    Raises:
        SpecError: no such package, a kind without template, a name that cannot be used or is
            taken, or declarations that nobody but their author can extend; nothing is written.
    """
    with within("new-plugin"):
        _check_kind(kind)
        _check_package(name)
        root = second_part.package_folder(name, folder)
        _check_part(part, kind, "--add")
    files = _texts(root, name, kind, part, PART_FILES)
    declared = second_part.declarations(root, name)
    words = _words(name, kind, part)
    second_part.write_part(root, files, declared, _filled(COMPONENT, words))
    return root


def _words(name: str, kind: str, part: str) -> dict[str, str]:
    words = {"name": name, "kind": kind, "part": part, "mvkit": __version__}
    words["package"] = name.replace("-", "_")
    words["Class"] = "".join(word.capitalize() for word in part.split("_"))
    if kind == FUNCTION:
        words["Class"] = part
    return words


def _texts(root: Path, name: str, kind: str, part: str, files: dict[str, str]) -> dict[Path, str]:
    """What is written where."""
    words = _words(name, kind, part)
    texts = {}
    for path, template in files.items():
        source = TEMPLATES / _filled(template, words)
        texts[root / _filled(path, words)] = _filled(source.read_text(encoding="utf-8"), words)
    return texts


def _filled(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def _check_kind(kind: str) -> None:
    if kind not in kinds():
        raise SpecError(f"no template of kind {kind!r}; {suggest(kind, kinds())}")


def _check_package(name: str) -> None:
    """Raises SpecError unless a distribution and its module can be called so."""
    if not NAME.fullmatch(name):
        raise SpecError(
            f"got the name {name!r}; expected a-z, 0-9 and single hyphens, a letter first: "
            "mvkit-sharp"
        )
    package = name.replace("-", "_")
    taken = package in sys.stdlib_module_names or name in ("mvkit", "local", "torch")
    if taken or keyword.iskeyword(package):
        part = package.removeprefix("mvkit_")
        raise SpecError(
            f"the name {name!r} is taken by Python or a library; take another: mvkit-{part}"
        )


def _part_name(name: str, kind: str) -> str:
    """The part's name, from a checked name of the package."""
    _check_package(name)
    part = name.replace("-", "_").removeprefix("mvkit_")
    _check_part(part, kind, name)
    return part


def _check_part(part: str, kind: str, source: str) -> None:
    """Raises SpecError unless a part and its module can be called so."""
    if keyword.iskeyword(part) or not component.NAME.fullmatch(part):
        raise SpecError(
            f"{part!r} cannot name a part and its module; take another name than {source!r}"
        )
    if plugins.registry().is_built_in(kind, part):
        raise SpecError(f"{kind} {part!r} is built in; take another name than {source!r}")
