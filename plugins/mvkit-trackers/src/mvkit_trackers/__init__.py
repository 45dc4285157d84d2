"""Trackers for mvkit: the events of a run in TensorBoard, W&B or MLflow.

This module is imported when plugins are discovered, so it imports none of the three.
"""

from __future__ import annotations

import os
import warnings

from mvkit.errors import SpecError, suggest
from mvkit.registry.component import hookimpl
from mvkit.training.events import Event, RunStarted
from mvkit_trackers.trackers import MLflow, TensorBoard, Tracker, WandB

__all__ = ["MLflow", "TensorBoard", "Tracker", "WandB", "asked"]

KNOWN: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


class FromEnvironment:
    """The trackers that `MVKIT_TRACKERS` names: `tensorboard,mlflow`; unset or empty: none.

    It is read when a run starts. A tracker that raises is reported once and disabled for the rest
    of the run.
    """

    def __init__(self) -> None:
        self.active: dict[str, Tracker] = {}

    @hookimpl
    def mvkit_event(self, event: Event) -> None:
        """Passes an event on to each tracker."""
        if isinstance(event, RunStarted):
            self.active = {name: KNOWN[name]() for name in _names()}
        for name, tracker in tuple(self.active.items()):
            try:
                tracker(event)
            except Exception as error:
                del self.active[name]
                reason = f"{type(error).__name__}: {error}"
                warnings.warn(
                    f"MVKIT_TRACKERS: {name} raised {reason}; "
                    "it is disabled for the rest of this run",
                    stacklevel=2,
                )


def _names() -> list[str]:
    listed = os.environ.get("MVKIT_TRACKERS", "").split(",")
    names = [name.strip() for name in listed if name.strip()]
    for name in names:
        if name not in KNOWN:
            raise SpecError(f"no tracker {name!r}; {suggest(name, KNOWN)}", "MVKIT_TRACKERS")
    return names


asked = FromEnvironment()
