"""Registered parts as plain records, for programs that read `mvkit list --json` and for pages."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import attrs

from mvkit.errors import MvkitError, UnknownComponent, suggest
from mvkit.registry import plugins
from mvkit.registry.component import FUNCTION, KINDS, Entry
from mvkit.registry.spec import to_dict

REFERENCE = re.compile(r"^References?: (.+?)(?:\n\s*\n|\Z)", re.DOTALL | re.MULTILINE)


def part_records(kind: str | None = None) -> list[dict[str, Any]]:
    """Every registered part as JSON data, by kind and name.

    Args:
        kind: one kind only; None: all of them.

    Returns:
        Of each part `kind`, `name` (as files carry it), `package`, `version`, `summary`,
        `target`, `options` (each with `name`, and `default` unless it is required),
        `reference`, and `problem`: why the part cannot be imported, or None.

    Raises:
        UnknownComponent: no such kind.

    Example:
        >>> from mvkit.registry.part_records import part_records
        >>> part_records("ramp")[0]["name"]
        'cosine'
    """
    if kind is not None and kind not in KINDS:
        raise UnknownComponent(f"unknown kind {kind!r}; {suggest(kind, KINDS)}")
    known = plugins.registry()
    known.scan()
    records: list[dict[str, Any]] = []
    for each in KINDS if kind is None else [kind]:
        entries = sorted(known.of_kind(each), key=lambda entry: (entry.public, entry.version))
        records.extend(_record(entry) for entry in entries)
    return records


def _record(entry: Entry) -> dict[str, Any]:
    """What is known of one part; of one that cannot be imported, why."""
    component = entry.component
    record: dict[str, Any] = {
        "kind": component.kind,
        "name": entry.public,
        "package": entry.package,
        "version": entry.version,
        "summary": component.summary,
        "target": component.path,
        "options": [],
        "reference": "",
        "problem": None,
    }
    try:
        part = plugins.registry().load(entry)
    except MvkitError as error:
        return record | {"problem": str(error)}
    record["options"] = function_options(part) if component.kind == FUNCTION else options_of(part)
    record["reference"] = reference_of(part)
    return record


def options_of(cls: type) -> list[dict[str, Any]]:
    """Name and default of each option of a spec; no default where one must be given."""
    options: list[dict[str, Any]] = []
    for field in attrs.fields(cls):
        option: dict[str, Any] = {"name": field.name}
        default: Any = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = default.factory()
        if default is not attrs.NOTHING:
            option["default"] = _plain(default)
        options.append(option)
    return options


def function_options(function: Any) -> list[dict[str, Any]]:
    """Name and default of each argument of a recipe; no default where one must be given."""
    options: list[dict[str, Any]] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        option: dict[str, Any] = {"name": parameter.name}
        if parameter.default is not parameter.empty:
            option["default"] = _plain(parameter.default)
        options.append(option)
    return options


def reference_of(part: Any) -> str:
    """The paper that a docstring names, on one line; empty if it names none."""
    match = REFERENCE.search(inspect.getdoc(part) or "")
    return " ".join(match[1].split()) if match else ""


def _plain(value: object) -> Any:
    """A default as JSON data; of what JSON cannot hold, how Python writes it."""
    plain = to_dict(value)
    try:
        return json.loads(json.dumps(plain, allow_nan=False))
    except (TypeError, ValueError):
        return repr(value)
