"""Run: what the stages of a training run share."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import attrs
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.given import ROW_WEIGHT
from mvkit.data.lengths import known_length
from mvkit.data.pipeline import Pipeline
from mvkit.errors import DataError, RequestError
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.swapped_modules import digest_of_weights
from mvkit.registry.spec import to_dict
from mvkit.training.distributed import ProcessGroup
from mvkit.training.events import Listeners, RunStarted
from mvkit.training.fingerprint import difference, fingerprint
from mvkit.training.history import History
from mvkit.training.interruption import Interruption, resumed_by
from mvkit.training.options import Compile, DataOn, Options, Resume
from mvkit.training.run_folder import Folder, Json, State, encoded
from mvkit.training.stages import Stage
from mvkit.training.starts import known_weights
from mvkit.training.step import Backend, ProgramSteps

if TYPE_CHECKING:
    from tqdm import tqdm

# what differs, in messages
OTHER = {"data": "other data", "validation": "other validation data"}


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
        rows_before: rows of the history when the run resumed.
        interruption: of this process, by Ctrl-C or SIGTERM.
        stopped, interrupted: whether a listener or Ctrl-C ended the run, in any process.
        fingerprints: of the data, and of those to validate on.
        mode: whether it may or must resume.
        weights: a digest of those that the model came with, if it was made with a seed.
        initial_weights: likewise of those that the run began with, if its seed did not give them.
        encoded_rows: the rows of the history as checkpoints hold them, each encoded once.
        saved: when the last checkpoint was written, in seconds of the monotonic clock.
        mean_weight: of the rows to train on, by which their weights are divided.
        data_on: where rows are stored, `host` or `device`.
        compile: what is compiled; with `step`, batches are dense.
        may_lack: modalities that rows to train on may lack, if their batches are to be dense.
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
    rows_before: int = 0
    interruption: Interruption = attrs.field(factory=Interruption)
    stopped: bool = False
    interrupted: bool = False
    fingerprints: Json = attrs.field(factory=lambda: {"data": None, "validation": None})
    mode: Resume = "auto"
    weights: str | None = None
    initial_weights: str | None = None
    encoded_rows: list[list[tuple[str, Any]]] = attrs.field(factory=list)
    saved: float = attrs.field(factory=time.monotonic)
    mean_weight: float = 1.0
    data_on: DataOn = "host"
    compile: Compile = False
    may_lack: frozenset[str] | None = None

    def _weighed(self, batch: Batch) -> Batch:
        """A batch whose weights, if it has any, are 1 in the mean over the rows to train on."""
        if batch.row_weight is None:
            return batch
        weight = batch.row_weight / self.mean_weight
        return attrs.evolve(batch, row_weight=weight)

    def weigh_rows(self) -> None:
        """Finds the mean of the rows' weights, where all are known beforehand."""
        dtype = self.model.like.dtype
        weights = known_weights(self.loader, dtype, ROW_WEIGHT)
        if self.valid is not None:
            known_weights(self.valid, dtype, f"validation: {ROW_WEIGHT}")
        if weights is not None:
            self.mean_weight = float(weights.mean())

    @property
    def writable(self) -> Folder | None:
        """The folder, in the process that writes it; None in the others."""
        return self.folder if self.group.first else None

    def finish(self) -> None:
        """Writes the model, unless it is there and nothing was trained.

        The last checkpoint, from which the run can be lengthened, stays as it is.
        """
        if self.writable is None:
            return
        trained = len(self.history) > self.rows_before
        absent = not (self.writable.path / "model.safetensors").exists()
        if trained or (absent and len(self.history)):
            self.writable.write_model("model", self.model, self.model.state_dict())

    def resume(self, resume: Resume) -> State | None:
        """Takes over the newest checkpoint, checked against this run; None: it begins anew."""
        if self.folder is None:
            return None
        self.mode = resume
        self.model.check_savable()
        state = self.group.agreed(self._newest(self.folder, resume) if self.group.first else None)
        if isinstance(state, RequestError):  # raised in every process, since none may wait
            raise state
        if state is None:
            return None
        then = dict(state.begun_with)
        weights = then.pop("initial_weights", None)
        # runs that an earlier mvkit finished have no optimizer, and so cannot be lengthened
        self._check_same(then, longer=state.stage < len(self.plan))
        self._check_weights(weights)
        self.step = state.step
        self.history.rows.extend(map(dict, state.history))
        self.model.load_state_dict(state.part("model/"))
        self._note_changes(state)
        self.rows_before = len(self.history)
        self.bar.update(self.rows_before)
        return state

    def _check_same(self, then: Json, *, longer: bool) -> None:
        """Raises RequestError, which names what decides numbers and differs from the run's.

        Args:
            then: what the run was begun with.
            longer: whether its last stage may have more epochs now.
        """
        now = self.begun_with()
        if longer:
            then = {**then, "stages": _lengthened(then["stages"], now["stages"])}
        for key, value in then.items():
            if value != now[key]:
                where = "" if self.folder is None else self.folder.path
                what = OTHER.get(key, f"another {key}")
                raise RequestError(
                    f"fit: the run in {where} was begun with {what}: "
                    f"{difference(value, now[key])}; take the same, or another folder"
                )

    def compare_processes(self) -> None:
        """Raises RequestError in every process where one has other options or data."""
        facts = self.group.gathered({**self.begun_with(), "save_every": self.options.save_every})
        for rank, other in enumerate(facts):
            if other != facts[0]:
                raise RequestError(
                    f"fit: processes 0 and {rank} differ in {difference(facts[0], other)}; "
                    "expected the same options and data in all; each takes its share by itself"
                )

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
            advice = "take resume='auto'"
            return RequestError(
                f"fit: no good checkpoint in {where}; expected one to resume from; "
                f"{'begin it by mvkit train' if resumed_by.get() else advice}"
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
        del options["data"], options["validation"]
        done = 0 if state is None else state.place.get("batch", 0)
        self.listeners.tell(RunStarted(path, header, options, self.step + done))

    def begun_with(self) -> Json:
        """What must be the same for a run to resume, as plain JSON data."""
        options: Json = attrs.asdict(self.options)
        del options["on_nonfinite"], options["save_every"]
        stages = [to_dict(stage) for stage in self.plan]
        header = self.model.header()
        header.pop("refined_to", None)  # noted when a stage begins
        header.pop("placed", None)  # likewise
        return {**options, "model": header, "stages": stages, **self.fingerprints}

    def look_at_data(self) -> None:
        """Takes fingerprints of the data, once, if anything is compared with them."""
        if self.folder is None and self.group.count == 1:
            return
        self.fingerprints["data"] = fingerprint(self.loader)
        if self.valid is not None:
            self.fingerprints["validation"] = fingerprint(self.valid)

    def warn(self, sentences: Iterable[str]) -> None:
        """Warns of what is odd about the data, and notes it in the history."""
        for sentence in sentences:
            self.history.notes.append(sentence)
            if self.group.first:
                warnings.warn(f"fit: {sentence}", stacklevel=7)

    def look_at_weights(self) -> None:
        """Takes a digest of the initial weights, before data place some of them."""
        if self.folder is None or self.model.seeded_weights is None:
            return
        self.weights = digest_of_weights(self.model)
        if self.weights != self.model.seeded_weights:
            self.initial_weights = self.weights

    def _check_weights(self, then: str | None) -> None:
        """Raises RequestError for a model that was made with a seed and begins with other weights.

        What a run left in the model, from which it is resumed in the same process, is no such.

        Args:
            then: a digest of those that the run was begun with; None: its seed gave them.
        """
        now = self.weights
        self.initial_weights = then
        if then is None or now is None or now in (then, self.model.left_weights):
            return
        where = "" if self.folder is None else self.folder.path
        raise RequestError(
            f"fit: the run in {where} was begun with other initial weights, which were given to "
            f"the model after its seed had drawn some: {difference(then, now)}; give it the same "
            "ones again (those that were loaded into it), or take another folder"
        )

    def remember_weights(self) -> None:
        """Notes in the model what the run left in it, if initial weights are compared."""
        if self.initial_weights is not None:
            self.model.left_weights = digest_of_weights(self.model)

    def state(self, stage: int, place: Json, tensors: dict[str, Tensor]) -> State:
        """The state of the run, with what a stage adds."""
        for row in self.history.rows[len(self.encoded_rows) :]:
            self.encoded_rows.append(encoded(list(row.items())))
        begun_with = self.begun_with()
        if self.initial_weights is not None:
            begun_with["initial_weights"] = self.initial_weights
        return State(
            stage,
            self.step,
            self.encoded_rows,
            place,
            begun_with,
            tensors,
            self.setting(),
            self.history.notes,
        )

    def setting(self) -> Json:
        """What may differ when a run resumes, as plain JSON data."""
        return {
            "epochs of the last stage": self.plan[-1].epochs,
            "device": str(self.model.like.device),
            "processes": self.group.count,
            "workers": self.loader.workers,
            "data_on": self.data_on,
            "compile": self.compile,
            "save_every": self.options.save_every,
            "keep": None if self.folder is None else self.folder.keep,
            "listeners": self.listeners.classes,
        }

    def _note_changes(self, state: State) -> None:
        """Notes in the history what was otherwise when the run was saved."""
        # what is said of the data was said when the run began, too
        self.history.notes[:] = dict.fromkeys([*state.notes, *self.history.notes])
        done = state.step + state.place.get("batch", 0)
        for key, now in self.group.agreed(self.setting()).items():
            then = state.setting.get(key, now)
            if then != now:
                note = f"resumed after batch {done}: {key}: {then!r}, then {now!r}"
                self.history.notes.append(note)

    def batches(self, loader: Pipeline, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch (counted over all stages) from number `start` on."""
        loader.load_state_dict({"epoch": epoch, "batch": start})
        batches = iter(loader)
        if self.group.count > 1 and known_length(loader) is None:
            batches = self._in_step(batches)
        if self.may_lack is not None and loader is self.loader:
            return (self._weighed(batch).dense(self.may_lack) for batch in batches)
        return map(self._weighed, batches)

    def programs(self, *, accumulates: bool) -> ProgramSteps | None:
        """What computes whole steps by programs, if that is wanted."""
        if self.compile != "step":
            return None
        cuda = self.model.like.device.type == "cuda"
        backend: Backend = "graph" if cuda else "inductor"
        return ProgramSteps(self.model, backend, accumulates=accumulates)

    def _in_step(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Batches of a stream; raises DataError where it ends earlier in some processes."""
        while True:
            batch = next(batches, None)
            (going,) = self.group.sums(float(batch is not None))
            if batch is None and not going:
                return
            if batch is None or going < self.group.count:
                raise DataError(
                    "fit: the data end earlier in some processes than in others; expected the "
                    "same data in all; each takes its share by itself"
                )
            yield batch

    def rows_of(self, place: int) -> Tensor | None:
        """Where the rows of batch `place` of this epoch are in the data, (b,), if that is known.

        It is if the data are in memory and all in this process.
        """
        if self.group.count > 1 or not isinstance(self.loader.rows, Batch):
            return None
        return self.loader.indices()[place]

    def pooled(self, rows: int) -> tuple[float, bool]:
        """Rows of all processes, and whether a checkpoint is due; notes whether one of them ends.

        Args:
            rows: of this process.
        """
        ends = self.listeners.stopped, self.interruption.noted
        total, due, stopped, interrupted = self.group.sums(rows, self.due(), *ends)
        self.stopped = stopped > 0
        self.interrupted = interrupted > 0
        return total, due > 0 or self.interrupted

    def raise_if_interrupted(self, step: int) -> None:
        """Raises KeyboardInterrupt, in every process, after a checkpoint that followed Ctrl-C.

        Args:
            step: batches done.
        """
        if self.interrupted and self.folder is not None:
            again = f"call fit again with checkpoint={str(self.folder.path)!r}"
            if self.mode == "never":  # which refuses a folder that holds a run
                again += " and resume='auto'"
            raise KeyboardInterrupt(
                f"fit: interrupted and saved after batch {step}; to resume, "
                f"{resumed_by.get() or again}"
            )

    def due(self) -> bool:
        """Whether the first process's clock asks for a checkpoint."""
        late = time.monotonic() - self.saved >= self.options.save_every
        return late and self.writable is not None


def _lengthened(then: list[Json], now: list[Json]) -> list[Json]:
    """The stages that a run was begun with, as long in the end as they are now to be."""
    if not then or len(then) != len(now):
        return then
    epochs = max(then[-1]["epochs"], now[-1]["epochs"])
    return [*then[:-1], {**then[-1], "epochs": epochs}]
