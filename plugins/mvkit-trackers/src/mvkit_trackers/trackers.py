"""Trackers: listeners that log a run, `mvkit.fit(model, data, listeners=[TensorBoard("runs/a")])`.

All log the same: the history's numbers under their names, by steps done; the configuration (the
model's header and `fit`'s options), stages, checkpoints, reports of non-finite numbers and the
final status.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
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

Numbers = Mapping[str, float]
Texts = Mapping[str, str]
PARAMETERS = 100  # as many as MLflow takes at once


class Tracker(ABC):
    """Logs the events of a run. To implement one, write three methods; `begin` is called first."""

    step = 0

    def __call__(self, event: Event) -> None:
        """Logs an event; other kinds are ignored."""
        match event:
            case RunStarted():
                self.step = event.step
                self.begin(event)
            case StageStarted():
                stage = json.dumps(to_dict(event.stage))
                self.log({}, {f"stage/{event.index}": stage}, self.step)
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
        """Opens the log, or resumes it where `run.step` is above 0, and logs the configuration."""

    @abstractmethod
    def log(self, numbers: Numbers, texts: Texts, step: int) -> None:
        """Logs numbers and texts by name, after `step` steps."""

    @abstractmethod
    def end(self, error: str | None) -> None:
        """Logs the final status, a failure if there is an `error`, and closes the log."""


class TensorBoard(Tracker):
    """Event files for TensorBoard: scalars and texts.

    A run that begins anew in the same folder hides the numbers of the one before; one that resumes
    hides those after its first step, which it logs again.

    Args:
        folder: where they are written; None: `tensorboard` in the run's folder, or `runs/<time>`
            if the run has none.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = folder

    def begin(self, run: RunStarted) -> None:
        with _needs("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        folder = self.folder or (run.folder and run.folder / "tensorboard")
        self.writer = SummaryWriter(folder and str(folder), purge_step=run.step + 1)
        self.log({}, {"config": json.dumps(_config(run), indent=1)}, run.step)

    def log(self, numbers: Numbers, texts: Texts, step: int) -> None:
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)
        for name, text in texts.items():
            # as code, or Markdown would eat underscores
            self.writer.add_text(name, f"```\n{text}\n```", step)
        self.writer.flush()

    def end(self, error: str | None) -> None:
        status = "finished" if error is None else f"failed: {error}"
        self.log({}, {"status": status}, self.step)
        self.writer.close()


class WandB(Tracker):
    """A run of Weights & Biases; the axis of the numbers is `step`, the texts are in its summary.

    A run with a folder keeps its id there and resumes under it; offline, syncing both parts joins
    them.

    Args:
        project: its name; None: `WANDB_PROJECT`, or `mvkit`.
        options: whatever else `wandb.init` takes, such as `mode="offline"`, `name=…`, `id=…`.
    """

    def __init__(self, project: str | None = None, **options: Any) -> None:
        self.project = project or os.environ.get("WANDB_PROJECT", "mvkit")
        self.options = options

    def begin(self, run: RunStarted) -> None:
        with _needs("wandb"):
            import wandb
        folder = run.folder and str(run.folder)
        options = {"dir": folder, "reinit": "create_new", **self.options}
        known = self.options.get("id") or _stored(run, "wandb.id")
        if known:
            options |= {"id": known, "resume": "allow"}
        self.run = wandb.init(project=self.project, **options)
        self.run.config.update(_config(run), allow_val_change=True)
        # W&B's own steps cannot return to those of a checkpoint
        self.run.define_metric("*", step_metric="step")
        _store(run, "wandb.id", self.run.id)

    def log(self, numbers: Numbers, texts: Texts, step: int) -> None:
        if numbers:
            self.run.log({**numbers, "step": step})
        self.run.summary.update(texts)

    def end(self, error: str | None) -> None:
        status = {"status": "finished"}
        if error is not None:
            status = {"status": "failed", "error": error}
        self.run.summary.update(status)
        self.run.finish(exit_code=0 if error is None else 1)


class MLflow(Tracker):
    """A run of MLflow: metrics, parameters by dotted path, tags, and the artifact `config.json`.

    A run with a folder keeps its id there and resumes under it. MLflow's active run is neither
    used nor changed.

    Args:
        uri: of the tracking store; None: MLflow's own choice (`MLFLOW_TRACKING_URI`).
        experiment: its name; None: `MLFLOW_EXPERIMENT_NAME`, or `mvkit`.
        run_id: a run to log into.
    """

    def __init__(
        self, uri: str | None = None, *, experiment: str | None = None, run_id: str | None = None
    ) -> None:
        self.uri = uri
        self.run_id = run_id
        self.experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", "mvkit")

    def begin(self, run: RunStarted) -> None:
        with _needs("mlflow"):
            import mlflow
        self.library = mlflow
        self.client = mlflow.MlflowClient(self.uri)
        config = _config(run)
        known = self.run_id or _stored(run, "mlflow.id")
        if known:
            self.client.update_run(known, "RUNNING")
        self.id = known or self._new_run(config)
        self.client.log_dict(self.id, config, "config.json")
        _store(run, "mlflow.id", self.id)

    def _new_run(self, config: Mapping[str, object]) -> str:
        """The id of a new run, with the parameters, which MLflow never changes again."""
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is None:
            experiment_id = self.client.create_experiment(self.experiment)
        else:
            experiment_id = experiment.experiment_id
        run_id: str = self.client.create_run(experiment_id).info.run_id
        parameter = self.library.entities.Param
        parameters = [parameter(_allowed(path), leaf) for path, leaf in _leaves(config)]
        for start in range(0, len(parameters), PARAMETERS):
            self.client.log_batch(run_id, params=parameters[start : start + PARAMETERS])
        return run_id

    def log(self, numbers: Numbers, texts: Texts, step: int) -> None:
        entities = self.library.entities
        now = int(1e3 * time.time())
        metrics = [entities.Metric(_allowed(k), x, now, step) for k, x in numbers.items()]
        tags = [entities.RunTag(_allowed(name), text) for name, text in texts.items()]
        self.client.log_batch(self.id, metrics=metrics, tags=tags)

    def end(self, error: str | None) -> None:
        if error is not None:
            self.client.set_tag(self.id, "error", error)
        self.client.set_terminated(self.id, "FINISHED" if error is None else "FAILED")


@contextlib.contextmanager
def _needs(package: str) -> Iterator[None]:
    """Inside, a library that cannot be imported becomes an error that says how to install it."""
    try:
        yield
    except ImportError as error:
        raise RequestError(
            f"tracker: {package} cannot be imported ({error}); "
            f"pip install 'mvkit-trackers[{package}]'"
        ) from error


def _config(run: RunStarted) -> dict[str, object]:
    return {"model": run.model, "options": run.options}


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested dicts and lists, by dotted path; an empty one is a leaf too."""
    children = dict(enumerate(value)) if isinstance(value, list) else value
    if not children or not isinstance(children, dict):
        yield path, str(value)
        return
    for key, child in children.items():
        yield from _leaves(child, f"{path}.{key}".removeprefix("."))


def _allowed(name: str) -> str:
    """A name with the characters that MLflow refuses replaced."""
    return re.sub(r"[^\w\-./ ]", "_", name)


def _stored(run: RunStarted, name: str) -> str | None:
    """What a run that resumes had stored in its folder."""
    if not run.step or run.folder is None or not (run.folder / name).exists():
        return None
    return (run.folder / name).read_text()


def _store(run: RunStarted, name: str, text: str) -> None:
    if run.folder is not None:
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / name).write_text(text)
