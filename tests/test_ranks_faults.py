"""Processes that do not agree are told so before they train; none waits for another."""

import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "ranks_faults_worker.py"

EXPECTED = {
    "lengths": "RequestError: fit: processes 0 and 1 differ in data: rows: 9, got 6; expected",
    "batch sizes": "RequestError: fit: processes 0 and 1 differ in batch_size: 4, got 2; expected",
    "values": "RequestError: fit: processes 0 and 1 differ in data: values: a: 'sha256",
    "validation": "RequestError: fit: processes 0 and 1 differ in validation: None, got {",
    "epochs": "RequestError: fit: processes 0 and 1 differ in stages: 0: epochs: 2, got 3",
    "models": "RequestError: fit: processes 0 and 1 differ in model: ",
    "streams": "trained",
    "first batches of streams": "RequestError: fit: processes 0 and 1 differ in data: values: a",
    "lengths of streams": "DataError: fit: the data end earlier in some processes than in others",
    "folders": "RequestError: fit: no good checkpoint in",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    subprocess.run([*command, str(WORKER), str(folder)], check=True, timeout=200)
    return [(folder / f"{rank}.txt").read_text().splitlines() for rank in (0, 1)]


@pytest.mark.parametrize("name", EXPECTED)
def test_every_process_is_told_what_differs(name, outcomes):
    for lines in outcomes:
        texts = dict(line.split(": ", 1) for line in lines)
        assert texts[name].startswith(EXPECTED[name])
