"""Single cells and bulk omics for mvkit. Imported at discovery, so it stays light."""

from mvkit.registry import Component, hookimpl


@hookimpl
def mvkit_components() -> list[Component]:
    """The parts of this package."""
    return []
