"""Runs on several machines: agents of torchrun at two addresses of this one, as on two nodes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from nodes import ADDRESSES, TRAIN, start_nodes, workers_of

import mvkit

WORKER = Path(__file__).parent / "ranks_worker.py"
NAMES = ("unequal last batches, incomplete rows", "validation", "coupled rows")
needs_addresses = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux answers at 127.0.0.2 without being set up"
)
RUN = ("--rows=300", "--epochs=12")


def ended(agents, logs):
    codes = [agent.wait(200) for agent in agents]
    said = "".join(path.read_text() for path in logs.parent.glob(f"{logs.name}-*.txt"))
    assert codes == [0] * len(ADDRESSES), said
    return said


@needs_addresses
def test_two_nodes_train_as_one_process(tmp_path):
    subprocess.run([sys.executable, WORKER, tmp_path, *NAMES], check=True, timeout=200)
    ended(start_nodes(WORKER, tmp_path, *NAMES, log=tmp_path / "log"), tmp_path / "log")
    alone, *both = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert sorted(node.pop("node") for node in both) == ["0", "1"]
    for name in NAMES:
        assert both[0][name]["history"] == both[1][name]["history"]
        for row, other in zip(alone[name]["history"], both[0][name]["history"], strict=True):
            assert other == pytest.approx(row, rel=1e-9, nan_ok=True), name
        for key, value in alone[name]["weights"].items():
            assert torch.equal(both[0][name]["weights"][key], both[1][name]["weights"][key]), key
            near = {"rtol": 1e-7, "atol": 1e-9}
            torch.testing.assert_close(both[0][name]["weights"][key], value, **near)


def epochs_in(folder):
    path = folder / "history.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def kill_worker(agent, folder, epochs):
    """Kills what an agent started, when the run has got so far; returns how far it had got."""
    end = time.monotonic() + 150
    while epochs_in(folder) < epochs:
        assert time.monotonic() < end
        assert agent.poll() is None
        time.sleep(0.02)
    (worker,) = workers_of(agent)
    os.kill(worker, signal.SIGKILL)
    return epochs_in(folder)


@needs_addresses
def test_killed_workers_start_again_and_the_run_ends_with_the_bits_of_an_unbroken_one(tmp_path):
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    unbroken = [*torchrun, TRAIN, f"--folder={whole}", *RUN]
    subprocess.run(unbroken, check=True, timeout=200, capture_output=True)
    log = tmp_path / "log"
    agents = start_nodes(TRAIN, f"--folder={killed}", *RUN, restarts=9, log=log)
    assert kill_worker(agents[1], killed, 2) < 12
    assert kill_worker(agents[0], killed, 6) < 12
    ended(agents, log)
    histories = [(folder / "history.jsonl").read_text() for folder in (whole, killed)]
    assert histories[0] == histories[1]
    weights, other = (mvkit.load(folder / "model.safetensors") for folder in (whole, killed))
    for key, value in weights.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
