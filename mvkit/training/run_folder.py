"""Run folders: the files of a training run, from which it goes on exactly where it stood.

checkpoints/00000120.safetensors   all that the run is after 120 batches: the newest few
best.safetensors                   the model with the lowest validation loss of its stage
model.safetensors                  the model at the end
history.jsonl, history.csv         a line an epoch
nonfinite.safetensors              the state before a loss or gradient that was no number
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from mvkit.core import safe_file
from mvkit.errors import CheckpointError, RequestError
from mvkit.models.checkpoint import header_of, save
from mvkit.training.history import History


@attrs.frozen(eq=False)
class State:
    """All that a run is between two steps: plain numbers, and tensors by name."""

    numbers: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, without it."""
        return {
            k.removeprefix(prefix): value
            for k, value in self.tensors.items()
            if k.startswith(prefix)
        }


class Folder:
    """The folder of a run.

    Args:
        path: made if it is not there.
        keep: how many of the newest checkpoints are kept.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int) -> None:
        self.path, self.keep = Path(path), keep
        self.checkpoints = self.path / "checkpoints"
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other runs out, and clears away what a killed one left half-written."""
        with open(self.path / ".lock", "w") as file, _locked(file, self.path):
            for folder in (self.path, self.checkpoints):
                for stale in folder.glob(".*.tmp"):
                    stale.unlink()
            yield

    def save(self, model: Any, state: State, step: int, name: str | None = None) -> Path:
        """Writes the state after so many batches, then removes the oldest beyond those kept."""
        path = self.path / name if name else self.checkpoints / f"{step:08d}.safetensors"
        tensors = {f"model/{k}": v for k, v in model.state_dict().items()} | state.tensors
        safe_file.write(path, {**header_of(model), "training": encoded(state.numbers)}, tensors)
        if not name:
            for old in self._found()[: -self.keep]:
                old.unlink()
        return path

    def newest(self) -> State | None:
        """The newest good checkpoint, None if there is none; damaged ones are reported."""
        for path in reversed(self._found()):
            try:
                header, tensors = safe_file.read(path)
                return State(decoded(header["training"]), tensors)
            except (CheckpointError, KeyError) as error:
                warnings.warn(
                    f"{error}; the checkpoint before it is used, if there is one", stacklevel=3
                )
        return None

    def _found(self) -> list[Path]:
        return sorted(
            path for path in self.checkpoints.glob("*.safetensors") if path.stem.isdigit()
        )

    def best(self, model: Any, weights: dict[str, Tensor]) -> None:
        """Writes the best model of a stage so far."""
        safe_file.write(self.path / "best.safetensors", header_of(model), weights)

    def finish(self, model: Any) -> None:
        """Writes the model at the end."""
        save(model, self.path / "model.safetensors")

    def history(self, history: History) -> None:
        """Writes the history so far."""
        safe_file.write_whole(self.path / "history.jsonl", history.to_jsonl().encode())
        safe_file.write_whole(self.path / "history.csv", history.to_csv().encode())


@contextlib.contextmanager
def _locked(file: Any, path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise RequestError(
            f"fit: another process trains in {path} right now; wait for it, or take another"
        ) from None
    yield


def encoded(value: Any) -> Any:
    """Plain JSON data, numbers that JSON lacks as {"float": "inf"}."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, dict):
        return {key: encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(item) for item in value]
    return value


def decoded(value: Any) -> Any:
    """What `encoded` was given, tuples as lists."""
    if isinstance(value, dict):
        return (
            float(value["float"])
            if set(value) == {"float"}
            else {k: decoded(item) for k, item in value.items()}
        )
    return [decoded(item) for item in value] if isinstance(value, list) else value


def optimizer_state(
    optimizer: torch.optim.Optimizer, names: list[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An optimizer's state by the names of its parameters: plain numbers, and tensors."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    data = optimizer.state_dict()
    for index, entries in data["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{names[index]}/{key}"] = value
            else:
                plain.setdefault(names[index], {})[key] = value
    groups = [{k: v for k, v in group.items() if k != "params"} for group in data["param_groups"]]
    return {"state": plain, "groups": groups}, tensors


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    named: dict[str, Tensor],
    plain: dict[str, Any],
    tensors: dict[str, Tensor],
) -> None:
    """Puts back what `optimizer_state` gave, tensors without their prefix."""
    for key, value in tensors.items():
        owner, _, entry = key.rpartition("/")
        parameter = named[owner]
        device = _device_of_step(optimizer, parameter) if entry == "step" else parameter.device
        optimizer.state[parameter][entry] = value.to(
            device, copy=True
        )  # the file's own memory is only mapped
    for name, entries in plain["state"].items():
        optimizer.state[named[name]].update(entries)
    for group, saved in zip(optimizer.param_groups, plain["groups"], strict=True):
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})


def _device_of_step(optimizer: torch.optim.Optimizer, parameter: Tensor) -> torch.device:
    """Fused and capturable optimizers count their steps where the parameter lies, others on the CPU."""
    group = optimizer.param_groups[0]
    there = group.get("fused") or group.get("capturable")
    return parameter.device if there else torch.device("cpu")


def plain_state(scheduler: Any) -> dict[str, Any]:
    """What of a scheduler's state is plain data; the rest it has from its construction."""
    found = {}
    for key, value in scheduler.state_dict().items():
        with contextlib.suppress(TypeError):
            json.dumps(value)
            found[key] = value
    return found
