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
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
    ]
    for command in ([*torchrun, WORKER], [sys.executable, WORKER]):
        subprocess.run([*command, str(folder)], check=True, timeout=120, capture_output=True)
    return {name: torch.load(folder / f"{name}.pt") for name in ("1-0", "2-0", "2-1")}


def test_all_processes_end_with_the_same_bits(outcomes):
    for name, first in outcomes["2-0"].items():
        assert first["history"] == outcomes["2-1"][name]["history"]
        for key, value in first["weights"].items():
            assert torch.equal(value, outcomes["2-1"][name]["weights"][key]), (name, key)


def test_two_processes_train_as_one(outcomes):
    assert len(outcomes["1-0"]) == 6
    for name, alone in outcomes["1-0"].items():
        both = outcomes["2-0"][name]
        for key, value in alone["weights"].items():
            torch.testing.assert_close(
                both["weights"][key], value, rtol=1e-7, atol=1e-9, msg=lambda m: f"{name}: {m}"
            )
        for row, other in zip(alone["history"], both["history"], strict=True):
            assert row.keys() == other.keys()
            for key in row:
                assert other[key] == pytest.approx(row[key], rel=1e-9, nan_ok=True), (name, key)


def test_a_run_goes_on_with_the_same_bits_or_with_fewer_processes(outcomes):
    whole, again = outcomes["2-0"]["validation"], outcomes["2-0"]["again"]
    assert again["history"] == whole["history"]
    assert all(
        torch.equal(value, whole["weights"][key]) for key, value in again["weights"].items()
    )
    # from two processes to one: see `again` in the test above
