"""Run: what the stages of a training run share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import attrs
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.data.pipeline import Pipeline
from mvkit.errors import RequestError
from mvkit.models.multimodal import MultimodalModel
from mvkit.registry.spec import to_dict
from mvkit.training.distributed import ProcessGroup
from mvkit.training.events import Listeners, RunStarted
from mvkit.training.history import History
from mvkit.training.nonfinite import OnNonFinite
from mvkit.training.run_folder import Folder, Json, State, encoded
from mvkit.training.stages import Stage

if TYPE_CHECKING:
    from tqdm import tqdm

Precision = Literal["float32", "bf16"]
Resume = Literal["auto", "must", "never"]


@attrs.frozen
class Options:
    """Options of a run, beside its stages; `fit` documents each."""

    batch_size: int
    lr: float
    seed: int
    on_nonfinite: OnNonFinite
    precision: Precision
    save_every: float


@attrs.define(eq=False)
class Run:
    """A run in progress: what its stages share.

    Args:
        model: the model to train.
        plan: all stages.
        loader: batches to train on.
        valid: batches to validate on, if any.
        options: options of the run.
        group: the processes of the run.
        folder: where it keeps its files, if anywhere.
        listeners: who hears of events.
        bar: the progress bar.
        history: one row per epoch so far.
        step: batches done before the current epoch.
        encoded_rows: the rows of the history as checkpoints hold them, each encoded once.
        saved: when the last checkpoint was written, in seconds of the monotonic clock.
    """

    model: MultimodalModel
    plan: list[Stage]
    loader: Pipeline
    valid: Pipeline | None
    options: Options
    group: ProcessGroup
    folder: Folder | None
    listeners: Listeners
    bar: tqdm[None]
    history: History = attrs.field(factory=History)
    step: int = 0
    encoded_rows: list[list[tuple[str, Any]]] = attrs.field(factory=list)
    saved: float = attrs.field(factory=time.monotonic)

    @property
    def writable(self) -> Folder | None:
        """The folder, in the process that writes it; None in the others."""
        return self.folder if self.group.first else None

    def finish(self) -> None:
        """Writes the last checkpoint and the model."""
        if self.writable is not None:
            self.writable.save(self.model, self.state(len(self.plan), {}, {}), self.step)
            self.writable.write_model("model", self.model, self.model.state_dict())

    def resume(self, resume: Resume) -> State | None:
        """Takes over the newest checkpoint, checked against this run; None: it begins anew."""
        if self.folder is None:
            return None
        state = self.group.agreed(self._newest(self.folder, resume) if self.group.first else None)
        if isinstance(state, RequestError):  # raised in every process, since none may wait
            raise state
        if state is None:
            return None
        where = self.folder.path
        current = self.begun_with()
        for key, value in state.begun_with.items():
            if value != current[key]:
                difference = _difference(value, current[key])
                raise RequestError(
                    f"fit: the run in {where} was begun with another {key}: {difference}"
                )
        self.step = state.step
        self.history.rows.extend(map(dict, state.history))
        self.model.load_state_dict(state.part("model/"))
        self.bar.update(len(self.history))
        return state

    def _newest(self, folder: Folder, resume: Resume) -> State | RequestError | None:
        """The newest checkpoint, None where a run begins anew, or why neither can be."""
        where = folder.path
        try:
            state = folder.newest()
            if state is None and resume != "must":
                folder.check_unused()
        except RequestError as error:
            return error
        if state is None and resume == "must":
            return RequestError(
                f"fit: no good checkpoint in {where}; expected one to resume from; "
                "take resume='auto'"
            )
        if state is not None and resume == "never":
            return RequestError(
                f"fit: {where} holds a run already; "
                "take another folder, or resume='auto' to resume it"
            )
        return state

    def tell_start(self, state: State | None) -> None:
        """Sends `RunStarted`; `state` is what the run resumes from, if it does."""
        path = None if self.folder is None else self.folder.path
        options = self.begun_with()
        header = options.pop("model")
        done = 0 if state is None else state.place.get("batch", 0)
        self.listeners.tell(RunStarted(path, header, options, self.step + done))

    def begun_with(self) -> Json:
        """What must be the same for a run to resume, as plain JSON data."""
        options: Json = attrs.asdict(self.options)
        del options["on_nonfinite"], options["save_every"]
        stages = [to_dict(stage) for stage in self.plan]
        return {**options, "model": self.model.header(), "stages": stages}

    def state(self, stage: int, place: Json, tensors: dict[str, Tensor]) -> State:
        """The state of the run, with what a stage adds."""
        for row in self.history.rows[len(self.encoded_rows) :]:
            self.encoded_rows.append(encoded(list(row.items())))
        return State(stage, self.step, self.encoded_rows, place, self.begun_with(), tensors)

    def batches(self, loader: Pipeline, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch (counted over all stages) from number `start` on."""
        loader.load_state_dict({"epoch": epoch, "batch": start})
        return iter(loader)

    def rows_of(self, place: int) -> Tensor | None:
        """Where the rows of batch `place` of this epoch are in the data, (b,), if that is known.

        It is if the data are in memory and all in this process.
        """
        if self.group.count > 1 or not isinstance(self.loader.rows, Batch):
            return None
        return self.loader.indices()[place]

    def due(self) -> bool:
        """Whether the first process's clock asks for a checkpoint."""
        late = time.monotonic() - self.saved >= self.options.save_every
        return late and self.writable is not None


def _difference(then: object, now: object) -> str:
    """Where two plain values first differ."""
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        then = dict(enumerate(then))
        now = dict(enumerate(now))
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            if then.get(key) != now.get(key):
                return f"{key}: {_difference(then.get(key), now.get(key))}"
    return f"{then!r}, got {now!r}; take the same, or another folder"
