"""Run folders that were damaged, used before, or meddled with: nothing is lost without a word."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import safetensors.torch
import torch
from helpers import model, rows

import mvkit
from mvkit import CheckpointError, RequestError
from mvkit.apps.cli import main
from mvkit.core import safe_file, stored_tensors
from mvkit.registry import component, plugins
from mvkit.training.events import CheckpointSaved, EpochFinished, RunFinished, StopTraining
from mvkit.training.history import History
from mvkit.training.run_folder import Folder


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def an_interruptible_process():
    """Shells let their background processes ignore Ctrl-C."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(autouse=True)
def nobody_pulls_the_plug(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def stop_after(epochs):
    def listen(event):
        if isinstance(event, EpochFinished) and event.row["epoch"] == epochs:
            raise Stopped

    return listen


def begun(folder, epochs=2, **options):
    """Options of a run of 5 epochs that was stopped after some of them."""
    options = {"data": rows(8), "epochs": 5, "batch_size": 4, "checkpoint": folder, **options}
    with pytest.raises(Stopped):
        mvkit.fit(model(), listeners=[stop_after(epochs)], **options)
    return options


def checkpoints(folder):
    return sorted((folder / "checkpoints").iterdir())


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files}


def cut_by_a_byte(path, monkeypatch):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path, monkeypatch):
    path.write_bytes(b"")


def of_another_format(path, monkeypatch):
    monkeypatch.setattr(safe_file, "FORMAT", 2)


def of_another_model(path, monkeypatch):
    mvkit.save(model(), path)


@pytest.mark.parametrize("resume", ["auto", "must", "never"])
@pytest.mark.parametrize("harm", [cut_by_a_byte, empty, of_another_format, of_another_model])
def test_a_run_is_not_begun_over_one_that_cannot_be_read(harm, resume, tmp_path, monkeypatch):
    options = begun(tmp_path, validation=rows(4, seed=1))
    for path in checkpoints(tmp_path):
        harm(path, monkeypatch)
    before = contents(tmp_path)
    heard = []
    with pytest.raises(RequestError, match=r"none can be read \(2; the newest: .*move the"):
        mvkit.fit(model(), resume=resume, listeners=[heard.append], **options)
    assert contents(tmp_path) == before
    assert not heard


def test_every_checkpoint_that_is_announced_exists(tmp_path):
    options = begun(tmp_path, 4, keep=5)
    for path in checkpoints(tmp_path)[1:]:
        cut_by_a_byte(path, None)
    announced = []

    def listen(event):
        if isinstance(event, CheckpointSaved):
            announced.append((event.path.stem, event.path.exists()))

    with pytest.warns(UserWarning, match="truncated.*the checkpoint before it is used"):
        mvkit.fit(model(), listeners=[listen], **{**options, "keep": 1})
    assert announced == [(f"{step:08d}", True) for step in (4, 6, 8, 10)]
    assert [path.stem for path in checkpoints(tmp_path)] == ["00000010"]


def test_damaged_checkpoints_do_not_count_among_those_kept(tmp_path):
    folder = Folder(tmp_path, keep=2)
    for step in (1, 2, 3):
        folder.checkpoints.joinpath(f"{step:08d}.safetensors").write_bytes(b"")
    with pytest.raises(RequestError):
        folder.newest()
    options = begun(tmp_path / "run", 3, keep=3)
    paths = checkpoints(tmp_path / "run")
    cut_by_a_byte(paths[2], None)
    with pytest.warns(UserWarning, match="truncated"), pytest.raises(Stopped):
        mvkit.fit(model(), listeners=[stop_after(3)], **options)
    assert checkpoints(tmp_path / "run") == paths


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_dangling_link(path):
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize("harm", [a_folder, a_dangling_link])
def test_the_checkpoint_before_one_that_cannot_be_opened_is_used(harm, tmp_path):
    whole = model()
    history = mvkit.fit(whole, rows(8), epochs=5, batch_size=4)
    options = begun(tmp_path, 3)
    harm(checkpoints(tmp_path)[-1])
    again = model()
    with pytest.warns(UserWarning, match="the checkpoint before it is used"):
        assert mvkit.fit(again, **options).rows == history.rows
    assert all(map(torch.equal, again.parameters(), whole.parameters()))


def test_names_that_are_no_numbers_are_no_checkpoints(tmp_path):
    options = begun(tmp_path)
    (tmp_path / "checkpoints/²³.safetensors").write_bytes(b"")
    (tmp_path / "checkpoints/last.safetensors").write_bytes(b"")
    assert len(mvkit.fit(model(), **options)) == 5


def test_the_models_of_other_work_are_not_replaced(tmp_path):
    mvkit.save(model(), tmp_path / "model.safetensors")
    before = contents(tmp_path)
    with pytest.raises(RequestError, match=r"model.safetensors is there, but no checkpoint"):
        mvkit.fit(model(), rows(8), epochs=1, checkpoint=tmp_path)
    assert before.items() <= contents(tmp_path).items()


def test_only_half_written_files_of_mvkit_are_removed(tmp_path):
    options = begun(tmp_path)
    (tmp_path / ".precious.tmp").write_text("keep me")
    (tmp_path / ".d.tmp").mkdir()
    (tmp_path / ".model.safetensors.0123abcd.tmp").write_text("half")
    mvkit.fit(model(), **options)
    left = {path.name for path in tmp_path.glob(".*.tmp")}
    assert left == {".precious.tmp", ".d.tmp"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_lock_is_not_looked_for_behind_a_link(exists, tmp_path):
    target = tmp_path / "target"
    if exists:
        target.write_text("keep me")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(target)
    with pytest.raises(RequestError, match=r"\.lock is a link or a folder; expected a file"):
        mvkit.fit(model(), rows(8), epochs=1, checkpoint=tmp_path / "run")
    assert not exists or target.read_text() == "keep me"
    assert target.exists() == exists


def test_what_a_lock_holds_stays(tmp_path):
    (tmp_path / ".lock").write_text("keep me")
    mvkit.fit(model(), rows(8), epochs=1, checkpoint=tmp_path)
    assert (tmp_path / ".lock").read_text() == "keep me"


# history


def row_of(epoch):
    return {"stage": 0, "epoch": epoch + 1, "loss": epoch / 7}


def test_the_history_is_appended_to(tmp_path, monkeypatch):
    folder = Folder(tmp_path, keep=1)
    whole = []
    monkeypatch.setattr(
        safe_file, "write_whole", lambda path, blob: whole.append(path) or path.write_bytes(blob)
    )
    history = History()
    for epoch in range(20):
        history.rows.append(row_of(epoch) | ({"skipped": 1} if epoch in (7, 9) else {}))
        folder.history(history)
        lines = (tmp_path / "history.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == history.rows
        assert (tmp_path / "history.csv").read_text() == history.to_csv()
    names = [path.name for path in whole]
    assert names == ["history.jsonl", "history.csv", "history.csv"]  # at first; a new column


def test_a_run_costs_its_epochs_not_their_square(tmp_path):
    folder = Folder(tmp_path, keep=1)
    history = History()
    seconds = []
    for epoch in range(3000):
        history.rows.append({f"metric {k}": 0.1 * epoch for k in range(20)})
        start = time.perf_counter()
        folder.history(history)
        seconds.append(time.perf_counter() - start)
    early, late = sorted(seconds[100:600])[250], sorted(seconds[-500:])[250]
    assert late < 4 * early, (early, late)


@pytest.mark.parametrize("harm", ["removed", "cut", "longer"])
def test_files_of_the_history_that_somebody_changed_are_mended(harm, tmp_path):
    def spoil(event):
        if isinstance(event, EpochFinished) and event.row["epoch"] == 2:
            for name in ("history.jsonl", "history.csv"):
                path = tmp_path / name
                text = path.read_text()
                path.unlink()
                if harm != "removed":
                    path.write_text(text[:-9] if harm == "cut" else text + "nonsense")

    options = {"epochs": 4, "batch_size": 4, "checkpoint": tmp_path}
    history = mvkit.fit(model(), rows(8), listeners=[spoil], **options)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history.rows
    assert (tmp_path / "history.csv").read_text() == history.to_csv()


def test_columns_that_come_later_are_in_the_table(tmp_path):
    stages = [mvkit.Stage("elbo", 2), mvkit.Stage("jmvae", 2)]
    options = {"stages": stages, "checkpoint": tmp_path}
    history = mvkit.fit(model("joint"), rows(8), **options)
    assert len(history.columns) > len(history.rows[0])
    assert (tmp_path / "history.csv").read_text() == history.to_csv()


# events


class Meddler:
    @component.hookimpl
    def mvkit_event(self, event):
        if isinstance(event, EpochFinished):
            event.row.clear()
        if isinstance(event, RunFinished):
            event.history.rows.clear()


def test_events_are_copies():
    heard = []
    plugins.registry().manager.register(Meddler(), "meddler")
    own = Meddler()
    listeners = [own.mvkit_event, heard.append]
    history = mvkit.fit(model(), rows(8), epochs=2, listeners=listeners)
    plain = mvkit.fit(model(), rows(8), epochs=2)
    assert history.rows == plain.rows
    assert heard[-1].history.rows == plain.rows
    told = [event.row for event in heard if isinstance(event, EpochFinished)]
    assert told == plain.rows


# files


def test_a_file_keeps_its_permissions_and_a_link_stays_one(tmp_path):
    private = tmp_path / "private"
    safe_file.write_whole(private, b"old")
    private.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(private)
    safe_file.write_whole(link, b"new")
    assert link.is_symlink()
    assert private.read_bytes() == b"new"
    assert private.stat().st_mode & 0o777 == 0o600


def test_the_longest_names_can_be_written(tmp_path):
    path = tmp_path / ("x" * 255)
    safe_file.write_whole(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe"):
        mvkit.load(tmp_path / "pipe")


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*model.safetensors'"):
        mvkit.save(model(), tmp_path / "model.safetensors")


# Ctrl-C and stopping on purpose


class Pressed(torch.utils.data.Dataset):
    """Rows; reading one of them presses Ctrl-C, as often as asked."""

    def __init__(self, row=None, times=1):
        self.row = row
        self.times = times
        self.reads = 0

    def __len__(self):
        return 9

    def __getitem__(self, i):
        self.reads += 1
        if self.reads == self.row:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
        batch = rows(9, missing=False)
        return {name: value[i] for name, value in batch.data.items()}


# the fingerprint reads 18 rows, and each epoch 9: in the first, second and third epoch
@pytest.mark.parametrize("row", [19, 22, 27, 28, 40])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ctrl_c_saves_and_says_how_to_resume(row, accumulate, tmp_path):
    stage = mvkit.Stage("elbo", 3, accumulate=accumulate)
    options = {"stages": stage, "batch_size": 2}
    whole = model()
    history = mvkit.fit(whole, Pressed(), **options)
    options["checkpoint"] = tmp_path
    saved = []

    def listen(event):
        if isinstance(event, CheckpointSaved):
            saved.append(event.step)

    with pytest.raises(KeyboardInterrupt) as caught:
        mvkit.fit(model(), Pressed(row), listeners=[listen], **options)
    text = str(caught.value)
    assert text.startswith(f"fit: interrupted and saved after batch {saved[-1]}; to resume,")
    assert repr(str(tmp_path)) in text
    assert len(text.splitlines()) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = model()
    assert mvkit.fit(again, Pressed(), resume="must", **options).rows == history.rows
    assert all(map(torch.equal, again.parameters(), whole.parameters()))


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    data = Pressed(24, times=2)
    with pytest.raises(KeyboardInterrupt) as caught:
        mvkit.fit(model(), data, epochs=2, batch_size=9, checkpoint=tmp_path)
    assert data.reads == 24
    assert not checkpoints(tmp_path)
    assert not str(caught.value)


def test_without_a_folder_ctrl_c_is_as_ever():
    data = Pressed(4)
    with pytest.raises(KeyboardInterrupt):
        mvkit.fit(model(), data, epochs=2, batch_size=9)
    assert data.reads == 4


def test_ctrl_c_on_the_command_line(tmp_path, capsys):
    class Impatient:
        @component.hookimpl
        def mvkit_event(self, event):
            if isinstance(event, EpochFinished) and event.row["epoch"] == 1:
                signal.raise_signal(signal.SIGINT)

    plugins.registry().manager.register(Impatient(), "impatient")
    file = tmp_path / "run.toml"
    file.write_text('[data]\nname = "linear_gaussian"\nrows = 20\n[train]\nepochs = 2\n')
    run = tmp_path / "run"
    assert main(["train", str(file), "--folder", str(run)]) == 130
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown == f"mvkit: interrupted and saved; resume by: mvkit resume {run}"
    assert main(["resume", str(run)]) == 0


def test_a_listener_stops_on_purpose(tmp_path):
    def stop(event):
        if isinstance(event, EpochFinished) and event.row["epoch"] == 2:
            raise StopTraining

    options = {"batch_size": 4, "validation": rows(4, seed=1)}
    stages = [mvkit.Stage("elbo", 5), mvkit.Stage("elbo", 5)]
    tiny, other, again, whole = model(), model(), model(), model()
    heard = []
    stopped = mvkit.fit(
        tiny,
        rows(8),
        stages=stages,
        listeners=[stop, heard.append],
        checkpoint=tmp_path,
        **options,
    )
    plain = mvkit.fit(other, rows(8), stages=mvkit.Stage("elbo", 2), **options)
    assert stopped.rows == plain.rows
    assert all(map(torch.equal, tiny.parameters(), other.parameters()))
    assert heard[-1].error is None
    assert not tiny.training
    saved = mvkit.load(tmp_path / "model.safetensors")
    assert all(map(torch.equal, saved.parameters(), tiny.parameters()))
    history = mvkit.fit(again, rows(8), stages=stages, checkpoint=tmp_path, **options)
    assert history.rows == mvkit.fit(whole, rows(8), stages=stages, **options).rows
    assert all(map(torch.equal, again.parameters(), whole.parameters()))


def test_a_listener_stops_within_an_epoch(tmp_path):
    def stop(event):
        if isinstance(event, CheckpointSaved) and event.step == 3:
            raise StopTraining

    options = {"batch_size": 2, "save_every": 0, "checkpoint": tmp_path, "listeners": [stop]}
    history = mvkit.fit(model(), rows(8), epochs=3, **options)
    assert history["step"] == [4]  # the batch in progress is finished
    assert checkpoints(tmp_path)[-1].stem == "00000004"


def test_a_listener_stops_before_the_first_step(tmp_path):
    def stop(event):
        raise StopTraining

    tiny = model()
    history = mvkit.fit(tiny, rows(8), epochs=3, checkpoint=tmp_path, listeners=[stop])
    assert not history.rows
    assert all(map(torch.equal, tiny.parameters(), model().parameters()))
    assert not (tmp_path / "model.safetensors").exists()


# what schedules, optimizers and averages hold

SCHEDULES = [
    {"name": "CyclicLR", "base_lr": 1e-3, "max_lr": 1e-2, "step_size_up": 3, "every": "step"},
    {"name": "CyclicLR", "base_lr": 1e-3, "max_lr": 1e-2, "step_size_up": 2, "mode": "exp_range",
     "gamma": 0.9},
    {"name": "CosineAnnealingWarmRestarts", "T_0": 2, "T_mult": 2, "every": "step"},
    {"name": "CosineAnnealingLR", "T_max": 3},
    {"name": "ReduceLROnPlateau", "patience": 0, "threshold": 10.0},
    {"name": "PolynomialLR", "total_iters": 7, "power": 1.5, "every": "step"},
    {"name": "MultiStepLR", "milestones": [1, 3, 4], "every": "step"},
    {"name": "LinearLR", "total_iters": 4},
    {"name": "ConstantLR", "factor": 0.3, "total_iters": 3, "every": "step"},
]  # fmt: skip
OPTIMIZERS = {
    "Adam": {"amsgrad": True},
    "SGD": {"momentum": 0.9, "nesterov": True},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "Adagrad": {},
    "Adadelta": {},
    "NAdam": {},
    "RAdam": {},
    "ASGD": {"t0": 2},
    "Rprop": {},
    "Adafactor": {},
}


@mvkit.spec
class AnyOptimizer:
    """An optimizer of torch by its name."""

    kind: str = "SGD"

    def optimizer(self, parameters, lr):
        return getattr(torch.optim, self.kind)(parameters, lr=lr, **OPTIMIZERS[self.kind])


def resumed_and_not(make_stage, tmp_path):
    options = {"batch_size": 3, "save_every": 0, "validation": rows(4, seed=1)}
    whole = model()
    history = mvkit.fit(whole, rows(8), stages=make_stage(), **options)
    options["checkpoint"] = tmp_path
    for saves in (2, 3, 5):

        def listen(event):
            if isinstance(event, CheckpointSaved) and event.step >= saves:
                raise Stopped

        with pytest.raises(Stopped):
            mvkit.fit(model(), rows(8), stages=make_stage(), listeners=[listen], **options)
    again = model()
    assert mvkit.fit(again, rows(8), stages=make_stage(), **options).rows == history.rows
    assert all(map(torch.equal, again.parameters(), whole.parameters()))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule["name"])
def test_schedules_resume_with_the_same_bits(schedule, tmp_path):
    resumed_and_not(lambda: mvkit.Stage("elbo", 4, lr_schedule=schedule, ema=0.7), tmp_path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_resume_with_the_same_bits(name, tmp_path):
    plugins.declare(component.Component("optimizer", "any", "test_resume_faults:AnyOptimizer"))
    optimizer = {"name": "any", "kind": name}
    resumed_and_not(lambda: mvkit.Stage("elbo", 4, accumulate=2, optimizer=optimizer), tmp_path)


def test_files_are_what_safetensors_would_write(tmp_path):
    tensors = {
        f"é/{dtype}": torch.ones(3, 2).to(dtype) for dtype in stored_tensors.DTYPES.values()
    }
    tensors |= {"b": torch.arange(6.0).reshape(2, 3).t(), "a": torch.tensor(1.5)}
    tensors |= {"none": torch.zeros(0, 4), "twice": tensors["b"]}
    safe_file.write(tmp_path / "file", {"x": 'quote " and é'}, tensors)
    with safetensors.safe_open(tmp_path / "file", "pt") as file:
        metadata = file.metadata()
    copies = {name: value.contiguous().clone() for name, value in tensors.items()}
    expected = safetensors.torch.save(copies, metadata=metadata)
    assert (tmp_path / "file").read_bytes() == expected
    header, again = safe_file.read(tmp_path / "file")
    assert header["x"] == 'quote " and é'
    for name, value in tensors.items():
        assert again[name].dtype == value.dtype
        assert str(again[name]) == str(value)


def test_a_type_that_no_file_holds_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="'x' is torch.complex128; expected one of U64"):
        safe_file.write(tmp_path / "file", {}, {"x": torch.zeros(2, dtype=torch.complex128)})
    assert not list(tmp_path.iterdir())


def test_saving_needs_little_memory(tmp_path):
    code = """
        import resource, sys, torch
        from pathlib import Path
        from mvkit.core import safe_file
        tensors = {str(k): torch.ones(25_000_000) for k in range(3)}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        safe_file.write(Path(sys.argv[1]), {}, tensors)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
    """
    program = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "file")]
    shown = subprocess.run(program, check=True, capture_output=True, text=True)
    assert float(shown.stdout) < 60  # of 300 MB
