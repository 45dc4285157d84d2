"""Trackers for mvkit: what a run tells, in TensorBoard, W&B or MLflow. Imported at discovery, so it stays light."""

from __future__ import annotations

import os
import warnings

from mvkit.errors import SpecError, suggest
from mvkit.registry.component import hookimpl
from mvkit.training.events import Event, RunStarted
from mvkit_trackers.trackers import MLflow, TensorBoard, Tracker, WandB

__all__ = ["MLflow", "TensorBoard", "Tracker", "WandB", "asked"]

KNOWN: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


class ConditioningSets:
    """The trackers that `MVKIT_TRACKERS` names, a list such as `tensorboard,mlflow`; unset or empty: none.

    It is read when a run starts. A tracker that raises is reported once and then left out for the rest of the run.
    """

    def __init__(self) -> None:
        self.active: dict[str, Tracker] = {}

    @hookimpl
    def mvkit_event(self, event: Event) -> None:
        """Passes an event on."""
        if isinstance(event, RunStarted):
            self.active = {name: KNOWN[name]() for name in _names()}
        for name, tracker in tuple(self.active.items()):
            try:
                tracker(event)
            except Exception as error:
                del self.active[name]
                warnings.warn(
                    f"MVKIT_TRACKERS: {name} raised {type(error).__name__}: {error}; it logs no more of this run",
                    stacklevel=2,
                )


def _names() -> list[str]:
    names = [
        name.strip() for name in os.environ.get("MVKIT_TRACKERS", "").split(",") if name.strip()
    ]
    for name in names:
        if name not in KNOWN:
            raise SpecError(f"no tracker {name!r}; {suggest(name, KNOWN)}", "MVKIT_TRACKERS")
    return names


asked = ConditioningSets()
