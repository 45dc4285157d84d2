"""Run folders: the files of a training run, from which it resumes bit for bit.

checkpoints/00000120.safetensors   the complete state after 120 batches; the newest few are kept
best.safetensors                   the model with the lowest validation loss of its stage
model.safetensors                  the model at the end
history.jsonl, history.csv         one line per epoch
nonfinite.safetensors              the state before a non-finite loss or gradient

A folder whose checkpoints cannot be read, or that holds the model of other work, is refused.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import attrs
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, SequentialLR

from mvkit.core import safe_file
from mvkit.errors import CheckpointError, RequestError
from mvkit.models.checkpoint import header_of
from mvkit.models.multimodal import MultimodalModel
from mvkit.training.history import History

Json = dict[str, Any]  # a JSON object, as `json.loads` returns it


@attrs.frozen(eq=False)
class State:
    """The complete state of a run between two steps, beside its model.

    Args:
        stage: number of the stage.
        step: batches done before its current epoch.
        history: rows of the history as lists of items, because the file sorts keys; `encoded` when
            they are written, `decoded` when they were read.
        place: where the stage is, with its optimizer and schedule; empty after the last one.
        begun_with: what must be the same for a run to resume.
        tensors: by name.
        setting: what may differ when a run resumes, and is then noted.
        notes: those of the history.
    """

    stage: int
    step: int
    history: Sequence[Sequence[tuple[str, Any]]]
    place: Json
    begun_with: Json
    tensors: dict[str, Tensor]
    setting: Json = attrs.field(factory=dict)
    notes: Sequence[str] = ()

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with a prefix, named without it."""
        tensors = self.tensors.items()
        return {k.removeprefix(prefix): value for k, value in tensors if k.startswith(prefix)}


class Folder:
    """The folder of a run.

    Args:
        path: created if it does not exist.
        keep: how many of the newest checkpoints are kept.

    Attributes:
        unreadable: checkpoints that were damaged when the run began, and why; they count for
            nothing.
        rows_written, columns: rows of the history in its files, and the columns of its table.
        sizes: how long this run left the files of the history.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int) -> None:
        self.path = Path(path)
        self.keep = keep
        self.checkpoints = self.path / "checkpoints"
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.unreadable: dict[Path, str] = {}
        self.rows_written = 0
        self.columns: list[str] = []
        self.sizes: dict[Path, int] = {}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other runs out, and removes what a killed one left half-written.

        Raises:
            RequestError: another process trains in the folder, or its lock is no file.
        """
        with _opened(self.path / ".lock") as file:
            _lock(file, self.path)
            for folder in (self.path, self.checkpoints):
                for stale in folder.glob(".*.tmp"):
                    if safe_file.TEMPORARY.fullmatch(stale.name) and stale.is_file():
                        stale.unlink()
            yield

    def save(
        self, model: MultimodalModel, state: State, step: int, name: str | None = None
    ) -> Path:
        """Writes the state after `step` batches, then removes checkpoints beyond those kept."""
        path = self.path / name if name else self.checkpoints / f"{step:08d}.safetensors"
        numbers = attrs.asdict(state, recurse=False)
        tensors = {f"model/{key}": value for key, value in model.state_dict().items()}
        tensors |= numbers.pop("tensors")
        rows = numbers.pop("history")
        training = {**encoded(numbers), "history": rows}
        if path.is_dir():  # it was reported when the run began
            path.rename(path.with_suffix(".unreadable"))
        safe_file.write(path, {**header_of(model), "training": training}, tensors)
        self.unreadable.pop(path, None)
        if not name:
            self._prune(path)
        return path

    def _prune(self, newest: Path) -> None:
        """Removes what lies behind the newest few checkpoints.

        What lies ahead, of a run that went further and whose files are damaged, is left alone:
        it must not push out what was written just now.
        """
        behind = [path for path in self._oldest_first() if _step(path) <= _step(newest)]
        good = [path for path in behind if path not in self.unreadable]
        oldest_kept = _step(good[-self.keep :][0])
        for path in behind:
            if _step(path) < oldest_kept and not path.is_dir():
                path.unlink()

    def newest(self) -> State | None:
        """The newest intact checkpoint; None if there are none at all. Damaged ones are reported.

        Raises:
            RequestError: there are checkpoints, and none can be read.
        """
        self.unreadable = {}
        for path in reversed(self._oldest_first()):
            try:
                state = _read_state(path)
            except (CheckpointError, OSError) as error:
                self.unreadable[path] = str(error)
                continue
            for reason in self.unreadable.values():
                warnings.warn(f"{reason}; the checkpoint before it is used", stacklevel=3)
            return state
        if self.unreadable:
            reason = next(iter(self.unreadable.values()))
            raise RequestError(
                f"fit: {self.path} holds the checkpoints of a run, and none can be read "
                f"({len(self.unreadable)}; the newest: {reason}); expected one good checkpoint to "
                "resume from, or none; take another folder, or move the checkpoints out of it"
            )
        return None

    def begun_to_place(self) -> bool:
        """Whether the run was begun with a stage that places the prior; no, where there is none
        that can be read.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are given when the run is resumed
                state = self.newest()
        except RequestError:
            return False
        stages = [] if state is None else state.begun_with["stages"]
        return any(stage.get("place") for stage in stages)

    def check_unused(self) -> None:
        """Raises RequestError if a run that begins here would replace the model of another."""
        model = self.path / "model.safetensors"
        if model.exists():
            raise RequestError(
                f"fit: {model} is there, but no checkpoint of the run that wrote it, and this run "
                "would replace it; take another folder, or move it out of this one"
            )

    def _oldest_first(self) -> list[Path]:
        paths = self.checkpoints.glob("*.safetensors")
        numbered = [path for path in paths if path.stem.isascii() and path.stem.isdecimal()]
        return sorted(numbered, key=_step)

    def write_model(self, name: str, model: MultimodalModel, weights: dict[str, Tensor]) -> None:
        """Writes a model with these weights to a file that `mvkit.load` reads."""
        safe_file.write(self.path / f"{name}.safetensors", header_of(model), weights)

    def history(self, history: History) -> None:
        """Brings the files of the history up to date: the lines that they lack are appended.

        They are written anew where they are not what this run left: when it begins or resumes,
        after somebody changed them, and when a row has a new column.
        """
        start = self.rows_written
        new_keys = set().union(*history.rows[start:]).difference(self.columns)
        lines = self.path / "history.jsonl"
        table = self.path / "history.csv"
        self._append(lines, history.to_jsonl(start), history.to_jsonl)
        if new_keys:
            self.sizes.pop(table, None)
            self.columns = history.columns
        self._append(table, history.to_csv_rows(self.columns, start), history.to_csv)
        self.rows_written = len(history)

    def _append(self, path: Path, lines: str, whole: Callable[[], str]) -> None:
        """Appends lines to a file of the length that this run left; writes it anew otherwise."""
        size = path.stat().st_size if path.is_file() else None
        if size is None or size != self.sizes.get(path):
            safe_file.write_whole(path, whole().encode())
        else:
            safe_file.append(path, lines.encode())
        self.sizes[path] = path.stat().st_size


def notes_of(folder: Path) -> list[str]:
    """The notes in the history of a run, by its newest checkpoint; none if it has no good one."""
    for path in sorted((folder / "checkpoints").glob("*.safetensors"), reverse=True):
        try:
            notes = safe_file.read_header(path)["training"]["notes"]
            return [str(note) for note in notes]
        except (CheckpointError, OSError, LookupError, TypeError):
            continue
    return []


def _step(path: Path) -> int:
    """The number of batches in the name of a checkpoint."""
    return int(path.stem)


def _read_state(path: Path) -> State:
    """The state in a checkpoint; raises CheckpointError or OSError, which name the file."""
    header, tensors = safe_file.read(path)
    try:
        return State(**decoded(header["training"]), tensors=tensors)
    except (KeyError, TypeError):
        raise CheckpointError(
            f"{path}: not the state of a training run, or that of another mvkit; "
            "take another copy, or remove it"
        ) from None


def _opened(lock: Path) -> IO[bytes]:
    """The lock of a folder, open; it is never emptied, nor looked for behind a link."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    if lock.is_symlink() or lock.is_dir():
        raise RequestError(
            f"fit: {lock} is a link or a folder; expected a file of mvkit's own; remove it, or "
            "take another folder"
        )
    return open(os.open(lock, flags, 0o666), "r+b")


def _lock(file: IO[bytes], path: Path) -> None:
    """Locks an open file until it is closed."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise RequestError(
            f"fit: another process trains in {path} right now; wait for it, or take another folder"
        ) from None


def encoded(value: Any) -> Any:
    """Plain JSON data; numbers that JSON lacks as {"float": "inf"}."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, dict):
        return {key: encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(item) for item in value]
    return value


def decoded(value: Any) -> Any:
    """What `encoded` was given, with lists in place of tuples."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"float"}:
        return float(value["float"])
    return {key: decoded(item) for key, item in value.items()}


def optimizer_state(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]
) -> tuple[Json, dict[str, Tensor]]:
    """An optimizer's state by the names of its parameters: plain numbers, and tensors."""
    names = _names(optimizer, parameters)
    data = optimizer.state_dict()
    tensors = {}
    plain: Json = {}
    for index, entries in data["state"].items():
        name = names[index]
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{key}"] = value
            else:
                plain.setdefault(name, {})[key] = value
    for group in data["param_groups"]:
        del group["params"]
    return {"state": plain, "groups": data["param_groups"]}, tensors


def restore_optimizer(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    plain: Json,
    tensors: dict[str, Tensor],
) -> None:
    """Puts back what `optimizer_state` returned; the tensors' names without their prefix."""
    places = {name: place for place, name in enumerate(_names(optimizer, parameters))}
    data = optimizer.state_dict()
    state = data["state"]
    for name, numbers in plain["state"].items():
        state.setdefault(places[name], {}).update(numbers)
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        # a copy, since the file's own memory is only mapped
        state.setdefault(places[name], {})[key] = value.clone()
    for group, saved in zip(data["param_groups"], plain["groups"], strict=True):
        for key, value in saved.items():
            group[key] = tuple(value) if isinstance(value, list) else value
    optimizer.load_state_dict(data)
    # which casts numbers of its own, such as NAdam's product of momenta, to the parameter's type
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        loaded = optimizer.state[parameters[name]]
        if loaded[key].dtype != value.dtype:
            loaded[key] = value.to(loaded[key].device, copy=True)


def _names(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Names of the parameters in the order of an optimizer's groups, by which torch numbers
    them.
    """
    names = {parameter: name for name, parameter in parameters.items()}
    ordered = []
    for group in optimizer.param_groups:
        ordered += [names[parameter] for parameter in group["params"]]
    return ordered


def plain_state(scheduler: LRScheduler) -> Json:
    """The part of a scheduler's state that a file returns as it is; its constructor sets the rest.

    A file does not return keys that are numbers, such as the milestones of `MultiStepLR`.
    """
    state: Json = {}
    whole = scheduler.state_dict()
    if isinstance(scheduler, SequentialLR | ChainedScheduler):
        del whole["_schedulers"]
        state["_schedulers"] = [plain_state(held) for held in scheduler._schedulers]
    for key, value in whole.items():
        plain = encoded(value)
        with contextlib.suppress(TypeError):
            if json.loads(json.dumps(plain)) == plain:
                state[key] = value
    return state
