"""How `mvkit.recipes` finds the recipes that packages offer, beside its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mvkit.errors import AmbiguousComponent, UnknownComponent
from mvkit.registry import plugins
from mvkit.registry.component import FUNCTION

MODULE = "mvkit.recipes"


def get(name: str) -> Callable[..., Any]:
    """The recipe with a bare or qualified name, built in or from a package.

    Raises:
        UnknownComponent: nobody offers it; with the nearest name.
        AmbiguousComponent: several packages offer it; with their qualified names.
        SpecError: it cannot be imported, or is no function.

    Example:
        >>> import mvkit
        >>> mvkit.recipes.get("mopoe") is mvkit.recipes.mopoe
        True
    """
    recipe: Callable[..., Any] = plugins.lookup(FUNCTION, name)
    return recipe


def attribute(name: str) -> Callable[..., Any]:
    """A package's recipe as an attribute of `mvkit.recipes`.

    Raises:
        AttributeError: nobody offers it, or several packages do.
        SpecError: it cannot be imported, or is no function.
    """
    if name.startswith("_"):  # asked for by Python itself; no reason to look for packages
        raise AttributeError(f"module {MODULE!r} has no attribute {name!r}")
    try:
        return get(name)
    except UnknownComponent as error:
        raise AttributeError(f"{MODULE}: {error}") from None
    except AmbiguousComponent as error:
        raise AttributeError(f"{MODULE}: {error}, with {MODULE}.get('package/{name}')") from None


def listing() -> list[str]:
    """The attributes that `dir(mvkit.recipes)` lists: recipes, and `get`."""
    bare = [name for name in plugins.available(FUNCTION) if "/" not in name]
    return sorted([*bare, "get"])
