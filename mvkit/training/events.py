"""Events: what a run tells whoever listens, installed packages (hook `mvkit_event`) and the user's own callables."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs

from mvkit.registry import plugins


@attrs.frozen(eq=False)
class Event:
    """Something that happened in a run; told by the first process only."""


@attrs.frozen(eq=False)
class RunStarted(Event):
    """A run begins or goes on.

    Args:
        folder: where it keeps its files; None if it keeps none.
        model: the model's header, plain JSON data.
        options: `fit`'s options and stages, plain JSON data.
        step: batches done before.
    """

    folder: Path | None
    model: dict[str, Any]
    options: dict[str, Any]
    step: int


@attrs.frozen(eq=False)
class StageStarted(Event):
    """Stage `index` (from 0) begins or goes on; `stage` is the `mvkit.Stage`."""

    index: int
    stage: Any


@attrs.frozen(eq=False)
class EpochFinished(Event):
    """A row of the history: stage, epoch, metrics, `valid/…` metrics; `step` batches were done by then."""

    row: dict[str, float]
    step: int


@attrs.frozen(eq=False)
class CheckpointSaved(Event):
    """The state of the run after `step` batches is safe at `path`."""

    path: Path
    step: int


@attrs.frozen(eq=False)
class NonFinite(Event):
    """A loss or gradient was no number; `report` says where."""

    report: str


@attrs.frozen(eq=False)
class RunFinished(Event):
    """The run ended: all stages done, or with `error`, its message; `history` has the rows so far."""

    history: Any
    error: str | None = None


Listener = Callable[[Event], Any]


class Listeners:
    """Tells events to everybody.

    A package whose hook raises is reported once and then left out for the rest of the run: a logger must not end a
    training. What the user's own callables raise ends it, so that they can stop or prune.

    Args:
        own: the user's callables.
    """

    def __init__(self, own: Iterable[Listener] = ()) -> None:
        self.own = tuple(own)
        known = plugins.registry()
        known.scan()
        self.hooks: dict[str, Any] = {}
        every = known.manager.get_plugins()
        for plugin in every:
            others = [other for other in every if other is not plugin]
            hook = known.manager.subset_hook_caller("mvkit_event", remove_plugins=others)
            if hook.get_hookimpls():
                self.hooks[known.manager.get_name(plugin) or repr(plugin)] = hook

    @classmethod
    def nobody(cls) -> Listeners:
        """For processes other than the first."""
        made = cls.__new__(cls)
        made.own, made.hooks = (), {}
        return made

    def tell(self, event: Event) -> None:
        """Tells an event to the packages first, then to the user's callables."""
        for package, hook in tuple(self.hooks.items()):
            try:
                hook(event=event)
            except (Exception, SystemExit) as error:
                del self.hooks[package]
                warnings.warn(
                    f"{package}: its mvkit_event raised {type(error).__name__}: {error}; it hears no more of this run",
                    stacklevel=2,
                )
        for listener in self.own:
            listener(event)
