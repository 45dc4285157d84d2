"""Run: what the stages of a training run share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import attrs
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.data.pipeline import Pipeline
from mvkit.errors import RequestError
from mvkit.models.multimodal import MultimodalModel
from mvkit.registry.spec import to_dict
from mvkit.training.distributed import ProcessGroup
from mvkit.training.events import Listeners
from mvkit.training.history import History
from mvkit.training.run_folder import Folder, State
from mvkit.training.stages import Stage


@attrs.frozen
class Options:
    """How a run goes, beside its stages; `fit` says what each means."""

    batch_size: int
    lr: float
    seed: int
    on_nonfinite: str
    precision: str
    save_every: float


@attrs.define(eq=False)
class Run:
    """A run on its way: what its stages share."""

    model: MultimodalModel
    plan: list[Stage]
    loader: Pipeline
    valid: Pipeline | None
    options: Options
    ranks: ProcessGroup
    folder: Folder | None
    listeners: Listeners
    bar: Any
    history: History = attrs.field(factory=History)
    step: int = 0
    saved: float = attrs.field(factory=time.monotonic)

    def finish(self) -> None:
        if self.folder is not None and self.ranks.first:
            self.folder.save(self.model, self.state(len(self.plan), {}, {}), self.step)
            self.folder.finish(self.model)

    def resumed(self, resume: str) -> State | None:
        """The state to go on from, checked against this run."""
        if self.folder is None:
            return None
        state = self.ranks.agreed(self.folder.newest() if self.ranks.first else None)
        where = self.folder.path
        if state is None and resume == "must":
            raise RequestError(
                f"fit: no good checkpoint in {where}; expected one to go on from; take resume='auto'"
            )
        if state is None:
            return None
        if resume == "never":
            raise RequestError(
                f"fit: {where} holds a run already; take another folder, or resume='auto' to go on"
            )
        now = self.begun_with()
        for key, value in state.numbers["begun_with"].items():
            if value != now[key]:
                raise RequestError(
                    f"fit: the run in {where} was begun with another {key}: {_difference(value, now[key])}"
                )
        return state

    def begun_with(self) -> dict[str, Any]:
        """What must be the same for a run to go on, as plain JSON data."""
        options = {
            name: getattr(self.options, name) for name in ("batch_size", "lr", "seed", "precision")
        }
        return {
            **options,
            "model": self.model.header(),
            "stages": [to_dict(stage) for stage in self.plan],
        }

    def state(self, stage: int, place: dict[str, Any], tensors: dict[str, Tensor]) -> State:
        """The state of the run, with what a stage adds."""
        rows = [
            list(row.items()) for row in self.history.rows
        ]  # the file sorts keys, and columns have an order
        numbers = {"stage": stage, "step": self.step, "history": rows, "place": place}
        return State({**numbers, "begun_with": self.begun_with()}, tensors)

    def batches(self, loader: Pipeline, epoch: int, start: int) -> Iterator[Any]:
        """The batches of an epoch (counted over all stages) from one of them on."""
        loader.load_state_dict({"epoch": epoch, "batch": start})
        return iter(loader)

    def rows_of(self, place: int) -> Tensor | None:
        """The rows in the data of a batch of this epoch, if they lie in memory and in this process."""
        if self.ranks.count > 1 or not isinstance(self.loader.rows, Batch):
            return None
        return self.loader.indices()[place]

    def due(self) -> bool:
        """Whether the first process's clock asks for a checkpoint."""
        late = time.monotonic() - self.saved >= self.options.save_every
        return self.folder is not None and self.ranks.first and late


def _difference(then: Any, now: Any) -> str:
    """Where two plain values differ first."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            if then.get(key) != now.get(key):
                return f"{key}: {_difference(then.get(key), now.get(key))}"
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for i, (one, other) in enumerate(zip(then, now, strict=True)):
            if one != other:
                return f"{i}: {_difference(one, other)}"
    return f"{then!r}, got {now!r}; take the same, or another folder"
