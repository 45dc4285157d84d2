"""Events: what a run sends to packages (hook `mvkit_event`) and to callables of the user."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from inspect import isroutine
from pathlib import Path

import attrs
from pluggy import HookCaller

from mvkit.errors import RequestError, suggest
from mvkit.registry import plugins
from mvkit.training.history import History
from mvkit.training.stages import Stage


@attrs.frozen(eq=False)
class Event:
    """Something that happened in a run; sent by the first process only.

    Everyone who hears of it gets a copy: what a listener does to a row or a history reaches
    neither the run nor the others.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.training.events import EpochFinished
        >>> losses = []
        >>> def listen(event):
        ...     if isinstance(event, EpochFinished):
        ...         losses.append(event.row["loss"])
        >>> model = mvkit.Model({"a": (3,)}, latent_dim=2, seed=0)
        >>> rows = {"a": torch.randn(40, 3)}
        >>> _ = mvkit.fit(model, rows, epochs=2, listeners=[listen], progress=False)
        >>> len(losses)
        2
    """

    def copied(self) -> Event:
        """The event with copies of everything in it that can be changed."""
        copies = {}
        for name in attrs.fields_dict(type(self)):
            value = getattr(self, name)
            if isinstance(value, dict | History):
                copies[name] = copy.deepcopy(value)
        return attrs.evolve(self, **copies) if copies else self


@attrs.frozen(eq=False)
class RunStarted(Event):
    """A run begins or resumes.

    Args:
        folder: where it keeps its files; None if it keeps none.
        model: the model's header, plain JSON data.
        options: `fit`'s options and stages, plain JSON data.
        step: batches done before.

    Example:
        >>> from mvkit.training.events import RunStarted
        >>> RunStarted(folder=None, model={}, options={"epochs": 5}, step=0).options["epochs"]
        5
    """

    folder: Path | None
    model: dict[str, object]
    options: dict[str, object]
    step: int


@attrs.frozen(eq=False)
class StageStarted(Event):
    """Stage `index` (from 0) begins or resumes; `stage` is the `mvkit.Stage`.

    Example:
        >>> import mvkit
        >>> from mvkit.training.events import StageStarted
        >>> StageStarted(0, mvkit.Stage(epochs=5)).stage.epochs
        5
    """

    index: int
    stage: Stage


@attrs.frozen(eq=False)
class EpochFinished(Event):
    """An epoch ended after `step` batches; `row` is its row of the history.

    Its columns are the stage, the epoch, metrics and `valid/…` metrics.

    Example:
        >>> from mvkit.training.events import EpochFinished
        >>> EpochFinished({"epoch": 1, "loss": 2.5}, step=10).row["loss"]
        2.5
    """

    row: dict[str, float]
    step: int

    def value(self, metric: str, where: str) -> float:
        """The number of a metric in this epoch's row; `where` begins the message if it has none.

        Raises:
            RequestError: a metric that is not in the row.

        Example:
            >>> EpochFinished({"epoch": 1, "loss": 2.5}, step=10).value("loss", "search")
            2.5
        """
        if metric not in self.row:
            raise RequestError(
                f"{where}: metric={metric!r} is not in the history; {suggest(metric, self.row)}"
            )
        return self.row[metric]


@attrs.frozen(eq=False)
class CheckpointSaved(Event):
    """The state of the run after `step` batches is safe at `path`.

    Example:
        >>> from pathlib import Path
        >>> from mvkit.training.events import CheckpointSaved
        >>> CheckpointSaved(Path("run") / "1.safetensors", step=10).path.name
        '1.safetensors'
    """

    path: Path
    step: int


@attrs.frozen(eq=False)
class NonFinite(Event):
    """A loss or gradient was not finite; `report` says where.

    Example:
        >>> from mvkit.training.events import NonFinite
        >>> NonFinite("stage 0, epoch 1, batch 3").report
        'stage 0, epoch 1, batch 3'
    """

    report: str


@attrs.frozen(eq=False)
class RunFinished(Event):
    """The run ended: all stages are done, or `error` says why not; `history` is that so far.

    Example:
        >>> import mvkit
        >>> from mvkit.training.events import RunFinished
        >>> RunFinished(mvkit.History([{"loss": 2.5}])).history["loss"]
        [2.5]
    """

    history: History
    error: str | None = None


class StopTraining(Exception):
    """Raised by a listener to end the run on purpose, after the step.

    `fit` then records the epoch, keeps the best weights and returns the history, as if its stages
    had ended there. Called again on the same folder, it resumes.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.training.events import EpochFinished, StopTraining
        >>> def stop(event):
        ...     if isinstance(event, EpochFinished):
        ...         raise StopTraining
        >>> model = mvkit.Model({"a": (3,)}, latent_dim=2, seed=0)
        >>> rows = {"a": torch.randn(40, 3)}
        >>> len(mvkit.fit(model, rows, epochs=9, listeners=[stop], progress=False).rows)
        1
    """


Listener = Callable[[Event], object]
_busy: ContextVar[frozenset[str]] = ContextVar("mvkit_busy", default=frozenset())  # packages


class Listeners:
    """Delivers events to plugins and callables.

    A package whose hook raises is reported once and disabled for the rest of the run: a logger
    must not end a training. Of a run that a hook itself starts, its package is not told. What the
    user's own callables raise ends it, so that they can stop or prune; `StopTraining` ends it in
    good order.

    Args:
        own: the user's callables.
        hooks: the hook of each package, by the package's name; None: those of installed packages.

    Attributes:
        stopped: whether one of the user's callables raised `StopTraining`.
    """

    def __init__(
        self, own: Iterable[Listener] = (), hooks: Mapping[str, HookCaller] | None = None
    ) -> None:
        self.own = tuple(own)
        self.stopped = False
        self.hooks = dict(event_hooks() if hooks is None else hooks)

    @property
    def classes(self) -> list[str]:
        """Names of the classes of the user's callables; functions have none of their own."""
        kinds = [type(listener) for listener in self.own if not isroutine(listener)]
        return [kind.__qualname__ for kind in kinds]

    def tell(self, event: Event) -> None:
        """Delivers an event, to the packages first, then to the user's callables."""
        busy = _busy.get()
        for package, hook in tuple(self.hooks.items()):
            if package in busy:  # it trains in its hook, and would hear of that, and train again
                continue
            token = _busy.set(busy | {package})
            try:
                hook(event=event.copied())
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # SystemExit and CancelledError too
                del self.hooks[package]
                reason = f"{type(error).__name__}: {error}"
                warnings.warn(
                    f"{package}: its mvkit_event raised {reason}; "
                    "it is disabled for the rest of this run",
                    stacklevel=2,
                )
            finally:
                _busy.reset(token)
        for listener in self.own:
            try:
                listener(event.copied())
            except StopTraining:
                self.stopped = True


def event_hooks() -> dict[str, HookCaller]:
    """The hook `mvkit_event` of each installed package that implements it, by package."""
    known = plugins.registry()
    known.scan()
    manager = known.manager
    hooks = {}
    for implementation in manager.hook.mvkit_event.get_hookimpls():
        others = manager.get_plugins() - {implementation.plugin}
        hook = manager.subset_hook_caller("mvkit_event", others)
        hooks[implementation.plugin_name] = hook
    return hooks
