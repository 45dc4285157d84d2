"""Component: how a package declares a part."""

from __future__ import annotations

import attrs
import pluggy

API = 1
KINDS = [
    "aggregator",
    "prior",
    "objective",
    "family",
    "likelihood",
    "network",
    "schedule",
    "ramp",
    "optimizer",
    "sampler",
    "metric",
    "dataset",
    "transform",
    "recipe",
]

hookspec = pluggy.HookspecMarker("mvkit")
hookimpl = pluggy.HookimplMarker("mvkit")


@attrs.frozen
class Component:
    """A part that a package offers.

    Args:
        kind: one of `mvkit.plugins.KINDS`.
        name: `[a-z][a-z0-9_]*`; others may write it qualified, `package/name`.
        target: `"package.module:Class"`, imported when someone first asks for it.
        summary: a few words for listings.
        api: the version of the abstract class of that kind it was written for.
    """

    kind: str
    name: str
    target: str
    summary: str = ""
    api: int = API
