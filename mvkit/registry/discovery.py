"""Which installed packages offer something: their entry points, and what kept one from offering it."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator

import attrs

from mvkit.errors import PluginError

GROUP = "mvkit"


SLOW = 1.0  # seconds that a module of declarations may take to import


OWN = ("mvkit", "local")  # what built-in parts and parts of a session are filed under


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
    named = f"{package} {version}".strip()
    return f"{named}, entry point {entry_point!r}" if entry_point else named


def packages() -> Iterator[tuple[str, str, importlib.metadata.EntryPoint] | Problem]:
    """Distribution, version and entry point of each that `MVKIT_PLUGINS` lets in, first on the path first.

    Distributions are read one by one: the list that `importlib.metadata.entry_points` makes fails as a whole when the
    file of any one of them cannot be parsed.
    """
    wanted = os.environ.get("MVKIT_PLUGINS")
    allowed = None if wanted is None else {name.strip() for name in wanted.split(",")}
    seen = set()
    for distribution in importlib.metadata.distributions() if allowed != {""} else ():
        package = version = ""
        try:
            if f"[{GROUP}]" not in (distribution.read_text("entry_points.txt") or ""):
                continue
            package, version = str(distribution.metadata["Name"]), str(distribution.version)
            if package in seen or (allowed is not None and package not in allowed):
                continue
            seen.add(package)
            found = [
                entry_point
                for entry_point in distribution.entry_points
                if entry_point.group == GROUP
            ]
        except Exception as error:
            where = package or str(distribution.locate_file(""))
            reason = f"its metadata cannot be read: {type(error).__name__}: {error}; reinstall it"
            yield Problem(where, reason, version=version)
            continue
        for entry_point in found:
            yield package, version, entry_point


def raise_if_strict(problems: list[Problem]) -> None:
    """With `MVKIT_PLUGINS_STRICT=1`, raises PluginError if there are problems."""
    if problems and os.environ.get("MVKIT_PLUGINS_STRICT") == "1":
        listed = "; ".join(map(str, problems))
        raise PluginError(
            f"plugins: {listed}; mend or uninstall them, or unset MVKIT_PLUGINS_STRICT to leave them out"
        )
