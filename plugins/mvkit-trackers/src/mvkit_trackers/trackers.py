"""Listeners that write a run down: `mvkit.fit(model, data, listeners=[TensorBoard("runs/a")])`.

All log the same: the history's numbers under their names, against the steps done; configuration (the model's header and
`fit`'s options), stages, checkpoints, reports of non-finite numbers and the final status.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mvkit.errors import RequestError
from mvkit.registry.spec import to_dict
from mvkit.training.events import (
    CheckpointSaved,
    EpochFinished,
    Event,
    NonFinite,
    RunFinished,
    RunStarted,
    StageStarted,
)


class Tracker(ABC):
    """Writes down what a run tells. To implement one, write these three methods; a run calls `begin` first."""

    step = 0

    def __call__(self, event: Event) -> None:
        """Hears an event; kinds that it does not know are passed over."""
        match event:
            case RunStarted():
                self.step = event.step
                self.begin(event)
            case StageStarted():
                self.log({}, {f"stage/{event.index}": json.dumps(to_dict(event.stage))}, self.step)
            case EpochFinished():
                self.step = event.step
                self.log(event.row, {}, event.step)
            case CheckpointSaved():
                self.log({}, {"checkpoint": str(event.path)}, event.step)
            case NonFinite():
                self.log({}, {"nonfinite": event.report}, self.step)
            case RunFinished():
                self.end(event.error)

    @abstractmethod
    def begin(self, run: RunStarted) -> None:
        """Opens the log, or goes on with it where `run.step` is above 0, and notes the configuration."""

    @abstractmethod
    def log(self, numbers: Mapping[str, float], texts: Mapping[str, str], step: int) -> None:
        """Notes numbers and texts by name, after so many steps."""

    @abstractmethod
    def end(self, error: str | None) -> None:
        """Notes whether the run came to its end, and closes the log."""


class TensorBoard(Tracker):
    """Event files for TensorBoard: scalars, and texts.

    Args:
        folder: where they go; None: `tensorboard` in the run's folder, or `runs/<time>` if the run keeps none.
            A run that starts afresh in the same folder hides the numbers of the one before; one that goes on hides
            those after its first step, which it finds again.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = folder

    def begin(self, run: RunStarted) -> None:
        board = _library("tensorboard", "torch.utils.tensorboard")
        folder = self.folder or (run.folder and run.folder / "tensorboard")
        self.writer = board.SummaryWriter(folder and str(folder), purge_step=run.step + 1)
        self.log({}, {"config": json.dumps(_config(run), indent=1)}, run.step)

    def log(self, numbers: Mapping[str, float], texts: Mapping[str, str], step: int) -> None:
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)
        for name, text in texts.items():
            self.writer.add_text(
                name, f"```\n{text}\n```", step
            )  # or Markdown would eat underscores
        self.writer.flush()

    def end(self, error: str | None) -> None:
        self.log({}, {"status": "finished" if error is None else f"failed: {error}"}, self.step)
        self.writer.close()


class WandB(Tracker):
    """A run of Weights & Biases; the numbers' own axis is `step`, the texts are in its summary.

    A run with a folder keeps its id there, and goes on under it; offline, syncing both parts joins them.

    Args:
        project: its name; None: `WANDB_PROJECT`, or `mvkit`.
        options: whatever else `wandb.init` takes, such as `mode="offline"`, `name=…`, `id=…`.
    """

    def __init__(self, project: str | None = None, **options: Any) -> None:
        self.project, self.options = project or os.environ.get("WANDB_PROJECT", "mvkit"), options

    def begin(self, run: RunStarted) -> None:
        wandb = _library("wandb")
        known = self.options.get("id") or _recall(run, "wandb.id")
        options: dict[str, Any] = {
            "dir": run.folder and str(run.folder),
            "reinit": "create_new",
            **self.options,
        }
        if known:
            options |= {"id": known, "resume": "allow"}
        self.run = wandb.init(project=self.project, **options)
        self.run.config.update(_config(run), allow_val_change=True)
        self.run.define_metric(
            "*", step_metric="step"
        )  # W&B's own steps refuse to go back to those of a checkpoint
        _remember(run, "wandb.id", self.run.id)

    def log(self, numbers: Mapping[str, float], texts: Mapping[str, str], step: int) -> None:
        if numbers:
            self.run.log({**numbers, "step": step})
        self.run.summary.update(texts)

    def end(self, error: str | None) -> None:
        self.run.summary.update(
            {"status": "finished"} if error is None else {"status": "failed", "error": error}
        )
        self.run.finish(exit_code=0 if error is None else 1)


class MLflow(Tracker):
    """A run of MLflow: metrics, parameters by dotted path, tags, and `config.json` as an artifact.

    A run with a folder keeps its id there, and goes on under it. MLflow's active run is neither used nor changed.

    Args:
        uri: of the tracking store; None: MLflow's own choice (`MLFLOW_TRACKING_URI`).
        experiment: its name; None: `MLFLOW_EXPERIMENT_NAME`, or `mvkit`.
        run_id: a run to log into.
    """

    def __init__(
        self, uri: str | None = None, *, experiment: str | None = None, run_id: str | None = None
    ) -> None:
        self.uri, self.run_id = uri, run_id
        self.experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", "mvkit")

    def begin(self, run: RunStarted) -> None:
        self.library = _library("mlflow")
        self.client = self.library.MlflowClient(self.uri)
        config = _config(run)
        known = self.run_id or _recall(run, "mlflow.id")
        if known:
            self.id = known
            self.client.update_run(known, "RUNNING")
        else:
            experiment = self.client.get_experiment_by_name(self.experiment)
            number = (
                experiment.experiment_id
                if experiment
                else self.client.create_experiment(self.experiment)
            )
            self.id = self.client.create_run(number).info.run_id
            params = [
                self.library.entities.Param(_key(k), v) for k, v in _flat(config)
            ]  # MLflow's never change
            for start in range(0, len(params), 100):  # as many as it takes at once
                self.client.log_batch(self.id, params=params[start : start + 100])
        self.client.log_dict(self.id, config, "config.json")
        _remember(run, "mlflow.id", self.id)

    def log(self, numbers: Mapping[str, float], texts: Mapping[str, str], step: int) -> None:
        entities, now = self.library.entities, int(1e3 * time.time())
        metrics = [
            entities.Metric(_key(name), number, now, step) for name, number in numbers.items()
        ]
        tags = [entities.RunTag(_key(name), text) for name, text in texts.items()]
        self.client.log_batch(self.id, metrics=metrics, tags=tags)

    def end(self, error: str | None) -> None:
        if error is not None:
            self.client.set_tag(self.id, "error", error)
        self.client.set_terminated(self.id, "FINISHED" if error is None else "FAILED")


def _library(package: str, module: str = "") -> Any:
    try:
        return importlib.import_module(module or package)
    except ImportError as error:
        raise RequestError(
            f"tracker: {package} cannot be imported ({error}); pip install 'mvkit-trackers[{package}]'"
        ) from error


def _config(run: RunStarted) -> dict[str, Any]:
    return {"model": run.model, "options": run.options}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested dicts and lists, by dotted path."""
    items = (
        value.items()
        if isinstance(value, dict)
        else list(enumerate(value))
        if isinstance(value, list)
        else ()
    )
    if not items:
        yield path, str(value)
    for key, item in items:
        yield from _flat(item, f"{path}.{key}" if path else str(key))


def _key(name: str) -> str:
    """A name with what MLflow refuses replaced."""
    return re.sub(r"[^\w\-./ ]", "_", name)


def _recall(run: RunStarted, name: str) -> str | None:
    """What a run that goes on had noted in its folder."""
    path = run.folder and run.folder / name
    return path.read_text() if run.step and path and path.exists() else None


def _remember(run: RunStarted, name: str, text: str) -> None:
    if run.folder is not None:
        Path(run.folder).mkdir(parents=True, exist_ok=True)
        (run.folder / name).write_text(text)
