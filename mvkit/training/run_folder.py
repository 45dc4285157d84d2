"""Run folders: the files of a training run, from which it resumes bit for bit.

checkpoints/00000120.safetensors   the complete state after 120 batches; the newest few are kept
best.safetensors                   the model with the lowest validation loss of its stage
model.safetensors                  the model at the end
history.jsonl, history.csv         one line per epoch
nonfinite.safetensors              the state before a non-finite loss or gradient
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import attrs
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

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
        history: rows of the history as lists of items, because the file sorts keys.
        place: where the stage is, with its optimizer and schedule; empty after the last one.
        begun_with: what must be the same for a run to resume.
        tensors: by name.
    """

    stage: int
    step: int
    history: list[list[tuple[str, float]]]
    place: Json
    begun_with: Json
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with a prefix, named without it."""
        tensors = self.tensors.items()
        return {k.removeprefix(prefix): value for k, value in tensors if k.startswith(prefix)}


class Folder:
    """The folder of a run.

    Args:
        path: created if it does not exist.
        keep: how many of the newest checkpoints are kept.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int) -> None:
        self.path = Path(path)
        self.keep = keep
        self.checkpoints = self.path / "checkpoints"
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other runs out, and removes what a killed one left half-written."""
        with open(self.path / ".lock", "w") as file:
            _lock(file, self.path)
            for folder in (self.path, self.checkpoints):
                for stale in folder.glob(".*.tmp"):
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
        safe_file.write(path, {**header_of(model), "training": encoded(numbers)}, tensors)
        if not name:
            for old in self._oldest_first()[: -self.keep]:
                old.unlink()
        return path

    def newest(self) -> State | None:
        """The newest intact checkpoint; None if there is none. Damaged ones are reported."""
        for path in reversed(self._oldest_first()):
            try:
                header, tensors = safe_file.read(path)
                return State(**decoded(header["training"]), tensors=tensors)
            except (CheckpointError, KeyError, TypeError) as error:
                warnings.warn(
                    f"{error}; the checkpoint before it is used, if there is one", stacklevel=3
                )
        return None

    def _oldest_first(self) -> list[Path]:
        paths = self.checkpoints.glob("*.safetensors")
        return sorted(path for path in paths if path.stem.isdigit())

    def write_model(self, name: str, model: MultimodalModel, weights: dict[str, Tensor]) -> None:
        """Writes a model with these weights to a file that `mvkit.load` reads."""
        safe_file.write(self.path / f"{name}.safetensors", header_of(model), weights)

    def history(self, history: History) -> None:
        """Writes the history so far."""
        safe_file.write_whole(self.path / "history.jsonl", history.to_jsonl().encode())
        safe_file.write_whole(self.path / "history.csv", history.to_csv().encode())


def _lock(file: IO[str], path: Path) -> None:
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


def encoded(value: object) -> object:
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


def optimizer_state(optimizer: Optimizer, names: Sequence[str]) -> tuple[Json, dict[str, Tensor]]:
    """An optimizer's state by the names of its parameters: plain numbers, and tensors."""
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
    optimizer: Optimizer, names: Sequence[str], plain: Json, tensors: dict[str, Tensor]
) -> None:
    """Puts back what `optimizer_state` returned; the tensors' names without their prefix."""
    data = optimizer.state_dict()
    state = data["state"]
    for name, numbers in plain["state"].items():
        state.setdefault(names.index(name), {}).update(numbers)
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        # a copy, since the file's own memory is only mapped
        state.setdefault(names.index(name), {})[key] = value.clone()
    for group, saved in zip(data["param_groups"], plain["groups"], strict=True):
        for key, value in saved.items():
            group[key] = tuple(value) if isinstance(value, list) else value
    optimizer.load_state_dict(data)


def plain_state(scheduler: LRScheduler) -> Json:
    """The part of a scheduler's state that is plain data; its constructor sets the rest."""
    state = {}
    for key, value in scheduler.state_dict().items():
        with contextlib.suppress(TypeError):
            json.dumps(value)
            state[key] = value
    return state
