"""Trackers: events arrive in each library's own files; nothing is logged unasked; no network."""

import json
import struct
import sys
import time

import pytest
import torch
from mvkit_trackers import MLflow, TensorBoard, WandB

import mvkit
from mvkit import RequestError, Stage
from mvkit.registry import plugins
from mvkit.training.events import (
    CheckpointSaved,
    EpochFinished,
    Listeners,
    NonFinite,
    RunFinished,
    RunStarted,
    StageStarted,
)

MODEL = {"name": "model", "latent_dim": 3, "modalities": {"rna+": {"shape": [5]}}, "unused": []}
OPTIONS = {"epochs": 3, "lr": 0.001}


def first(folder):
    """A run that is killed after its second epoch."""
    return [
        RunStarted(folder, MODEL, OPTIONS, 0),
        StageStarted(0, Stage("iwae", 3)),
        EpochFinished({"stage": 0, "epoch": 1, "loss": 4.0}, 10),
        CheckpointSaved(folder / "step-10", 10),
        EpochFinished(
            {"stage": 0, "epoch": 2, "loss": 99.0, "valid/log_px/rna+": float("inf")}, 20
        ),
    ]


def second(folder, error=None):
    """The same run, from its checkpoint to the end."""
    return [
        RunStarted(folder, MODEL, {**OPTIONS, "resume": "auto"}, 10),
        StageStarted(0, Stage("iwae", 3)),
        EpochFinished({"stage": 0, "epoch": 2, "loss": 2.0}, 20),
        NonFinite("stage 0, epoch 3, step 25: gradient of decoders.rna+"),
        EpochFinished({"stage": 0, "epoch": 3, "loss": 1.0}, 30),
        RunFinished(None, error),
    ]


def tell(tracker, events):
    for event in events:
        tracker(event)
    return tracker


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "WANDB_PROJECT",
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME",
        "MVKIT_TRACKERS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


# TensorBoard


def board(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(str(folder)).Reload()


def scalars(events, name):
    return [(event.step, event.value) for event in events.Scalars(name)]


def text(events, name):
    values = events.Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val
    return values[0].decode().strip("`\n")


@pytest.fixture
def needs_tensorboard():
    pytest.importorskip("tensorboard", reason="pip install 'mvkit-trackers[tensorboard]'")


@pytest.mark.usefixtures("needs_tensorboard")
def test_tensorboard_has_numbers_steps_configuration_stages_and_status(tmp_path):
    tell(TensorBoard(tmp_path / "a"), second(tmp_path))
    events = board(tmp_path / "a")
    assert scalars(events, "loss") == [(20, 2.0), (30, 1.0)]
    assert json.loads(text(events, "config")) == {
        "model": MODEL,
        "options": {**OPTIONS, "resume": "auto"},
    }
    assert json.loads(text(events, "stage/0"))["objective"]["name"] == "iwae"
    assert "decoders.rna+" in text(events, "nonfinite")
    assert text(events, "status") == "finished"


@pytest.mark.usefixtures("needs_tensorboard")
def test_tensorboard_goes_on_after_the_checkpoint_and_hides_what_came_after_it(tmp_path):
    killed = tell(TensorBoard(), first(tmp_path))
    tell(TensorBoard(), second(tmp_path, "no disk"))
    killed.writer.close()
    events = board(tmp_path / "tensorboard")
    assert scalars(events, "loss") == [(10, 4.0), (20, 2.0), (30, 1.0)]
    assert text(events, "status") == "failed: no disk"


@pytest.mark.usefixtures("needs_tensorboard")
def test_tensorboard_shows_the_last_run_that_starts_afresh_in_a_folder(tmp_path):
    for loss in (5.0, 6.0):
        tell(
            TensorBoard("a"),
            [*first(tmp_path)[:2], EpochFinished({"loss": loss}, 7), RunFinished(None)],
        )
    assert scalars(board("a"), "loss") == [(7, 6.0)]


# W&B


def records(folder):
    """Records of all of W&B's offline files in a folder, oldest first.

    A file is a LevelDB log after seven bytes.
    """
    pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    for path in sorted(folder.rglob("*.wandb"), key=lambda p: p.stat().st_mtime_ns):
        data, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            left = 32768 - at % 32768
            if left < 7:  # no header fits in what is left of the block
                at += left
                continue
            length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            whole += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # full, or last piece
                yield pb2.Record.FromString(whole)
                whole = b""


def key(item):
    return item.key or "/".join(item.nested_key)


@pytest.fixture
def logged():
    pytest.importorskip("wandb", reason="pip install 'mvkit-trackers[wandb]'")

    def read(folder, runs):
        deadline = (
            time.monotonic() + 20
        )  # W&B's own process writes on for some milliseconds after `finish`
        while (
            sum(r.HasField("exit") for r in records(folder)) < runs and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        log = {"ids": [], "config": {}, "rows": [], "summary": {}, "exit": []}
        for record in records(folder):
            if record.HasField("run"):
                log["ids"].append(record.run.run_id)
                log["project"] = record.run.project
            log["config"] |= {key(i): json.loads(i.value_json) for i in record.config.update}
            if record.HasField("history"):
                log["rows"].append({key(i): json.loads(i.value_json) for i in record.history.item})
            log["summary"] |= {key(i): json.loads(i.value_json) for i in record.summary.update}
            if record.HasField("exit"):
                log["exit"].append(record.exit.exit_code)
        return log

    return read


def test_wandb_has_numbers_steps_configuration_stages_and_status(tmp_path, logged):
    tell(WandB("digits", name="a"), second(tmp_path, "no disk"))
    log = logged(tmp_path, 1)
    assert log["project"] == "digits"
    assert [(row["step"], row["loss"]) for row in log["rows"]] == [(20, 2.0), (30, 1.0)]
    assert log["config"]["model"] == MODEL
    assert log["config"]["options"] == {**OPTIONS, "resume": "auto"}
    assert json.loads(log["summary"]["stage/0"])["objective"]["name"] == "iwae"
    assert "decoders.rna+" in log["summary"]["nonfinite"]
    assert (log["summary"]["status"], log["summary"]["error"], log["exit"]) == (
        "failed",
        "no disk",
        [1],
    )


def test_wandb_goes_on_under_the_same_id(tmp_path, logged):
    killed = tell(WandB(), first(tmp_path))
    killed.run.finish()
    tell(WandB(), second(tmp_path))
    log = logged(tmp_path, 2)
    assert len(log["ids"]) >= 2
    assert len(set(log["ids"])) == 1
    assert [row["step"] for row in log["rows"]] == [10, 20, 20, 30]
    assert log["summary"]["status"] == "finished"


# MLflow

mlflow_only = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)  # its imports' own


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store that several tests share: making its tables takes seconds."""
    pytest.importorskip("mlflow", reason="pip install 'mvkit-trackers[mlflow]'")
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/store.db"


def run_of(tracker):
    run = tracker.client.get_run(tracker.id)
    history = {
        name: tracker.client.get_metric_history(tracker.id, name) for name in run.data.metrics
    }
    return run, {
        name: sorted((m.step, m.value) for m in metrics) for name, metrics in history.items()
    }


@mlflow_only
def test_mlflow_has_numbers_steps_configuration_stages_and_status(tmp_path, store):
    tracker = tell(MLflow(store, experiment="digits"), second(None, "no disk"))
    run, history = run_of(tracker)
    assert tracker.client.get_experiment(run.info.experiment_id).name == "digits"
    assert history["loss"] == [(20, 2.0), (30, 1.0)]
    assert run.data.params["model.latent_dim"] == "3"
    assert run.data.params["model.modalities.rna_.shape.0"] == "5"
    assert run.data.params["model.unused"] == "[]"
    assert run.data.params["options.resume"] == "auto"
    assert json.loads(run.data.tags["stage/0"])["objective"]["name"] == "iwae"
    assert "decoders.rna+" in run.data.tags["nonfinite"]
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "no disk")
    config = tracker.library.artifacts.load_dict(f"{run.info.artifact_uri}/config.json")
    assert config["model"] == MODEL


@mlflow_only
def test_mlflow_goes_on_in_the_same_run_and_a_fresh_one_does_not(tmp_path, store):
    killed = tell(MLflow(store), first(tmp_path))
    tracker = tell(MLflow(store), second(tmp_path))
    run, history = run_of(tracker)
    assert tracker.id == killed.id
    assert history["loss"] == [(10, 4.0), (20, 2.0), (20, 99.0), (30, 1.0)]
    assert "valid/log_px/rna_" in history
    assert run.info.status == "FINISHED"
    assert tell(MLflow(store), first(tmp_path)).id != killed.id


@mlflow_only
def test_mlflow_takes_more_parameters_than_fit_in_one_call(store):
    many = {f"option{i}": i for i in range(250)}
    run, _ = run_of(tell(MLflow(store), [RunStarted(None, many, {}, 0), RunFinished(None)]))
    assert len(run.data.params) == 251


# a real run


@pytest.mark.usefixtures("needs_tensorboard")
def test_a_run_of_fit_that_is_resumed_has_one_log(tmp_path):
    def stop(event):
        if isinstance(event, EpochFinished) and event.row["epoch"] == 2:
            raise KeyboardInterrupt

    def train(*listeners):
        model = mvkit.Model({"a": (2,)}, latent_dim=1, seed=0)
        data = {"a": torch.randn(8, 2, generator=torch.Generator().manual_seed(0))}
        options = {"epochs": 4, "batch_size": 4, "progress": False, "checkpoint": tmp_path / "run"}
        return mvkit.fit(model, data, listeners=[TensorBoard(), *listeners], **options)

    with pytest.raises(KeyboardInterrupt):
        train(stop)
    history = train()
    events = board(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in scalars(events, "loss")] == [2, 4, 6, 8]
    assert [value for _, value in scalars(events, "loss")] == pytest.approx(
        history["loss"], rel=1e-6
    )
    config = json.loads(text(events, "config"))
    assert (config["model"]["latent_dim"], config["options"]["batch_size"]) == (1, 4)
    assert text(events, "status") == "finished"


# asking


@pytest.fixture
def listeners(monkeypatch):
    monkeypatch.setenv("MVKIT_PLUGINS", "mvkit-trackers")
    plugins.registry.cache_clear()
    yield Listeners
    plugins.registry.cache_clear()


def test_nothing_is_logged_unasked(tmp_path, listeners):
    delivery = listeners()
    assert [name.partition(" ")[0] for name in delivery.hooks] == ["mvkit-trackers"]
    tell(delivery.tell, [*first(tmp_path), RunFinished(None)])
    assert plugins.problems() == []
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("needs_tensorboard")
def test_the_environment_asks(tmp_path, listeners, monkeypatch):
    monkeypatch.setenv("MVKIT_TRACKERS", " tensorboard, ")
    tell(listeners().tell, [*first(tmp_path), RunFinished(None)])
    assert scalars(board(tmp_path / "tensorboard"), "loss") == [(10, 4.0), (20, 99.0)]


def test_an_unknown_tracker_is_named(tmp_path, listeners, monkeypatch):
    monkeypatch.setenv("MVKIT_TRACKERS", "tensorbord")
    with pytest.warns(
        UserWarning, match="MVKIT_TRACKERS: no tracker 'tensorbord'; did you mean 'tensorboard'?"
    ):
        listeners().tell(first(tmp_path)[0])


@pytest.mark.usefixtures("needs_tensorboard")
def test_a_tracker_that_raises_leaves_the_others_alone(tmp_path, listeners, monkeypatch):
    def broken(self, *_):
        raise OSError("no disk")

    monkeypatch.setenv("MVKIT_TRACKERS", "mlflow,tensorboard")
    monkeypatch.setattr(MLflow, "begin", broken)
    delivery = listeners()
    events = [*first(tmp_path), RunFinished(None)]
    with pytest.warns(
        UserWarning,
        match="MVKIT_TRACKERS: mlflow raised OSError: no disk; it is disabled for the rest",
    ):
        delivery.tell(events[0])
    tell(delivery.tell, events[1:])
    assert scalars(board(tmp_path / "tensorboard"), "loss") == [(10, 4.0), (20, 99.0)]


def test_a_library_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        RequestError, match=r"wandb cannot be imported .*pip install 'mvkit-trackers\[wandb\]'"
    ):
        WandB()(first(tmp_path)[0])
