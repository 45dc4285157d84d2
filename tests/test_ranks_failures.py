"""A process that fails ends the others with an error in time; none of them waits for ever.

They are started without torchrun, which would end them by itself.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mvkit import RequestError
from mvkit.training.distributed import patience

WORKER = Path(__file__).parent / "ranks_failures_worker.py"
LIMIT = 6  # seconds, in place of a minute


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture
def start():
    processes = []
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}

    def begin(rank, how, failing):
        environment = {**os.environ, **address, "RANK": str(rank), "FAILING": str(failing)}
        environment["MVKIT_RANKS_TIMEOUT"] = str(LIMIT)
        command = [sys.executable, str(WORKER), how]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


CASES = [(1, how) for how in ("dies", "raises", "stops answering", "never comes", "is not there")]


@pytest.mark.parametrize(("failing", "how"), [*CASES, (0, "dies"), (0, "stops answering")])
def test_the_others_end_with_an_error_in_time(failing, how, start):
    failed = None if how == "is not there" else start(failing, how, failing)
    other = start(1 - failing, how, failing)
    assert other.stdout.readline() == "begins\n"
    shown, _ = other.communicate(timeout=60)  # raises if that is not enough
    assert other.returncode == 1
    assert shown.startswith(f"RankError: fit: process {1 - failing} lost the others: ")
    assert "set MVKIT_RANKS_TIMEOUT to more seconds than 6" in shown
    if how == "raises":
        assert "ValueError: this row is broken" in failed.communicate(timeout=60)[0]
    if how in ("stops answering", "never comes"):
        assert failed.poll() is None  # it was alive, and the other did not wait


def test_processes_wait_for_a_minute_unless_told(monkeypatch):
    monkeypatch.delenv("MVKIT_RANKS_TIMEOUT", raising=False)
    assert patience().total_seconds() == 60
    monkeypatch.setenv("MVKIT_RANKS_TIMEOUT", "2.5")
    assert patience().total_seconds() == 2.5


@pytest.mark.parametrize("wanted", ["soon", "0", "-1", "nan", "inf", ""])
def test_a_limit_that_is_none_is_refused(wanted, monkeypatch):
    monkeypatch.setenv("MVKIT_RANKS_TIMEOUT", wanted)
    with pytest.raises(
        RequestError, match=r"MVKIT_RANKS_TIMEOUT='.*'; expected a number of seconds above 0"
    ):
        patience()
