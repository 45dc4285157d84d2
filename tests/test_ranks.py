"""Several processes do what one does: the same batches, the same sums, the same weights on all of
them.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = str(Path(__file__).parent / "ranks_worker.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for launcher in (torchrun, []):
        command = [sys.executable, *launcher, WORKER, str(folder)]
        subprocess.run(command, check=True, timeout=300, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def outcomes(folder):
    return {name: torch.load(folder / f"{name}.pt") for name in ("1-0", "2-0", "2-1")}


def test_all_processes_end_with_the_same_bits(outcomes):
    for name, first in outcomes["2-0"].items():
        assert first["history"] == outcomes["2-1"][name]["history"]
        for key, value in first["weights"].items():
            assert torch.equal(value, outcomes["2-1"][name]["weights"][key]), (name, key)


def test_two_processes_train_as_one(outcomes):
    assert len(outcomes["1-0"]) >= 10
    for name, alone in outcomes["1-0"].items():
        if name == "scales of batches":  # each share measures its own
            continue
        both = outcomes["2-0"][name]
        for key, value in alone["weights"].items():
            near = {"rtol": 1e-7, "atol": 1e-9, "msg": lambda m: f"{name}: {m}"}
            torch.testing.assert_close(both["weights"][key], value, **near)
        for row, other in zip(alone["history"], both["history"], strict=True):
            assert row.keys() == other.keys()
            for key in row:
                assert other[key] == pytest.approx(row[key], rel=1e-9, nan_ok=True), (name, key)


def test_a_run_resumes_with_the_same_bits_or_with_fewer_processes(outcomes):
    for name in ("validation", "coupled rows", "opponent", "refiners", "hidden cells"):
        whole, again = outcomes["2-0"][name], outcomes["2-0"][f"again: {name}"]
        assert again["history"] == whole["history"]
        for key, value in again["weights"].items():
            assert torch.equal(value, whole["weights"][key]), key
    # from two processes to one: see `again` in the test above


def test_a_non_finite_loss_ends_every_process_and_the_first_keeps_the_state(folder):
    first = (folder / "error-2-0.txt").read_text()
    second = (folder / "error-2-1.txt").read_text()
    assert "batch 1: not finite: loss" in second
    assert "the state before it is in" in first
    assert (folder / "spoilt-2" / "nonfinite.safetensors").exists()
