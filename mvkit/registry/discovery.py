"""Entry points of the installed packages, and the problems that kept one from being used."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint, distributions

import attrs

from mvkit.errors import PluginError

GROUP = "mvkit"
SLOW = 1.0  # seconds that a module of declarations may take to import
OWN = ("mvkit", "local")  # package names of built-in parts and of parts declared in a session


@attrs.frozen
class Problem:
    """Something that kept a package, or one part of it, from being offered."""

    package: str
    reason: str
    traceback: str = ""
    version: str = ""
    entry_point: str = ""

    def __str__(self) -> str:
        return f"{origin(self.package, self.version, self.entry_point)}: {self.reason}"


def origin(package: str, version: str, entry_point: str) -> str:
    """How messages name where something came from: distribution, version, entry point."""
    distribution = f"{package} {version}".strip()
    return f"{distribution}, entry point {entry_point!r}" if entry_point else distribution


def packages() -> Iterator[tuple[str, str, EntryPoint] | Problem]:
    """Distribution, version and entry point of each that `MVKIT_PLUGINS` lets in, in path order.

    Distributions are read one by one: the list that `importlib.metadata.entry_points` makes fails
    as a whole when the file of any one of them cannot be parsed.
    """
    wanted = os.environ.get("MVKIT_PLUGINS")
    allowed = None if wanted is None else {name.strip() for name in wanted.split(",")}
    if allowed == {""}:
        return
    seen: set[str] = set()
    for distribution in distributions():
        package = version = ""
        try:
            text = distribution.read_text("entry_points.txt") or ""
            if f"[{GROUP}]" not in text:
                continue
            package = str(distribution.metadata["Name"])
            version = str(distribution.version)
            if package in seen or (allowed is not None and package not in allowed):
                continue
            seen.add(package)
            entry_points = distribution.entry_points.select(group=GROUP)
        except Exception as error:
            where = package or str(distribution.locate_file(""))
            reason = f"its metadata cannot be read: {type(error).__name__}: {error}; reinstall it"
            yield Problem(where, reason, version=version)
            continue
        for entry_point in entry_points:
            yield package, version, entry_point


def is_own(package: str) -> bool:
    """Whether a package has a name of mvkit's own, which pip takes for the same as `MVKit`."""
    return re.sub(r"[-_.]+", "-", package).lower() in OWN


def raise_if_strict(problems: list[Problem]) -> None:
    """With `MVKIT_PLUGINS_STRICT=1`, raises PluginError if there are problems."""
    if problems and os.environ.get("MVKIT_PLUGINS_STRICT") == "1":
        reasons = "; ".join(map(str, problems))
        raise PluginError(
            f"plugins: {reasons}; mend or uninstall them, "
            "or unset MVKIT_PLUGINS_STRICT to leave them out"
        )
