"""The table of parts, made from the registry."""

from __future__ import annotations

import json
import os
from itertools import groupby
from typing import Any

from mvkit.registry.part_records import part_records
from mvkit_docs.public_objects import public_objects

INTRODUCTION = """# Parts

Any part goes with any other of the kinds beside it; what cannot work is refused, with a reason,
when the model is made ([which combinations](models.md#which-combinations-work)). A part is named
by a string, `prior="mog"`, by a dict, `prior={"name": "mog", "components": 20}`, or by its class.
`mvkit list --json` prints this table as data, with the parts of the packages that are installed;
here are those of mvkit itself.

"""


def parts_page() -> str:
    """The page: a table for each kind, with what each part does, its options and its source."""
    pages = {each.part: each.name for each in public_objects() if each.part}
    page = INTRODUCTION
    for kind, records in groupby(built_in_records(), key=lambda record: record["kind"]):
        page += f"## {kind}\n\n"
        for record in records:
            page += _entry(record, pages)
    return page


def built_in_records() -> list[dict[str, Any]]:
    """The records of mvkit's own parts."""
    before = os.environ.get("MVKIT_PLUGINS")
    os.environ["MVKIT_PLUGINS"] = ""
    try:
        return [each for each in part_records() if each["package"] == "mvkit"]
    finally:
        os.environ.pop("MVKIT_PLUGINS")
        if before is not None:
            os.environ["MVKIT_PLUGINS"] = before


def _entry(record: dict[str, Any], pages: dict[str, str]) -> str:
    name = record["name"]
    page = pages[f'{record["kind"]} "{name}"']
    options = [_option(option) for option in record["options"]]
    entry = f"[`{name}`](api/{page}.rst)\n: {record['summary']}\n"
    if options:
        entry += f"\n  Options: {', '.join(options)}\n"
    if record["reference"]:
        entry += f"\n  {_linked(record['reference'])}\n"
    return entry + "\n"


def _option(option: dict[str, Any]) -> str:
    if "default" not in option:
        return f"`{option['name']}`"
    default = option["default"]
    if isinstance(default, dict) and "name" in default:
        default = default["name"]
    return f"`{option['name']} = {json.dumps(default, ensure_ascii=False)}`"


def _linked(reference: str) -> str:
    """A reference whose addresses are links."""
    words = []
    for word in reference.split():
        address = word.rstrip(".,;")
        is_address = address.startswith("http")
        words.append(f"<{address}>{word[len(address) :]}" if is_address else word)
    return " ".join(words)
