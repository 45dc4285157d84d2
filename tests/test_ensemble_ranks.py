"""Copies from several seeds, trained by two processes: the same in both, and written once."""

import subprocess
import sys
from pathlib import Path

import torch

import mvkit

WORKER = str(Path(__file__).parent / "seeds_worker.py")


def test_two_processes_end_with_the_same_ensemble(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *torchrun, WORKER, str(tmp_path)]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    first, second = (torch.load(tmp_path / f"2-{rank}.pt") for rank in (0, 1))
    assert first["rows"] == second["rows"]
    assert [row["seed"] for row in first["rows"]] == [0, 0, 3, 3]
    for part in ("weights", "best"):
        for key, value in first[part].items():
            assert torch.equal(value, second[part][key]), key
    saved = mvkit.load(tmp_path / "run2" / "ensemble.safetensors")
    for key, value in saved.state_dict().items():
        assert torch.equal(value, first["weights"][key]), key
