"""Files of models whose packages have other versions by now."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from typing import Any

from mvkit.errors import CheckpointError
from mvkit.registry import plugins

Header = dict[str, Any]  # plain JSON data

PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!_-]*")


def _changes(header: Header) -> Iterator[tuple[str, str, str]]:
    """Packages of a file with another version here: name, version then, version now."""
    packages = header.get("packages", {})
    if not isinstance(packages, dict):
        return
    here = {entry.package: entry.version for entry in plugins.registry().entries}
    for package, version in packages.items():
        if package in here and isinstance(version, str) and here[package] != version:
            yield package, version, here[package]


def _numbers(version: str) -> list[int]:
    """The numbers of a version, in the order in which versions are compared."""
    return [int(digits) for digits in re.findall(r"\d+", version)]


def _is_newer(version: str, other: str) -> bool:
    return _numbers(version) > _numbers(other)


def migrated(header: Header, where: str) -> Header:
    """The header of a file after the `mvkit_migrate` of packages that it has older versions of.

    Raises:
        CheckpointError: a package's hook raises, or returns something else than a header.
    """
    if header.get("packages"):
        plugins.registry().scan()
    model = header["model"]
    for package, then, now in _changes(header):
        if _is_newer(then, now):
            continue
        what = f"{where}: mvkit_migrate of {package} {now}"
        try:
            model = plugins.registry().migrated(package, copy.deepcopy(model), then)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too
            raise CheckpointError(
                f"{what} failed for a model of version {then}: {type(error).__name__}: {error}; "
                f"update {package}, or {_install(package, then)}"
            ) from error
        if not isinstance(model, dict):
            raise CheckpointError(
                f"{what} returned {model!r}; expected the header of a model; update {package}"
            )
    return {**header, "model": model}


def _install(package: str, version: str) -> str:
    """The command that installs a version; nobody shall run what no package can be called."""
    requirement = f"{package}=={version}"
    if PACKAGE.fullmatch(requirement) is None:
        return f"install version {version!r}"
    return f"pip install {requirement}"


def changed_packages(header: Header) -> str:
    """The end of a message about a file that cannot be loaded; empty if versions are the same."""
    notes = []
    for package, then, now in _changes(header):
        note = f"; saved with {package} {then!r}, and {now!r} is installed: "
        if _is_newer(then, now):
            note += f"update {package}, or {_install(package, then)}"
        else:
            note += f"{_install(package, then)}, or ask its authors for a mvkit_migrate"
        notes.append(note)
    return "".join(notes)


def warn_of_other_options(header: Header, rebuilt: Header, where: str) -> None:
    """Warns where parts of a package have other options than its version then gave them.

    Args:
        header: of the file, after `migrated`.
        rebuilt: of the model that was built from it.
        where: the file.
    """
    for package, then, now in _changes(header):
        before = list(_parts_of(package, header["model"]))
        after = list(_parts_of(package, rebuilt))
        for old, new in zip(before, after, strict=False):
            names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            if names:
                warnings.warn(
                    f"{where}: {old['name']!r} was saved with {package} {then} and is now that of "
                    f"{now}, with other options: {', '.join(names)}; see whether the model still "
                    f"does what it did, or {_install(package, then)}",
                    stacklevel=4,
                )


def _parts_of(package: str, value: Any) -> Iterator[Header]:
    """The parts of a package in a header, in its order."""
    if isinstance(value, dict):
        if str(value.get("name")).startswith(f"{package}/"):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _parts_of(package, item)
