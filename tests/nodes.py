"""Nodes of a run on this machine: agents of torchrun at addresses of their own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

TRAIN = Path(__file__).parent.parent / "docs" / "scale" / "train.py"
ADDRESSES = ("127.0.0.1", "127.0.0.2")


def free_port(address="127.0.0.1"):
    with socket.socket() as free:
        free.bind((address, 0))
        return free.getsockname()[1]


def start_nodes(script, *arguments, restarts=0, log=None, environment=()):
    """An agent for each address, with one worker each; what they say goes to a file each."""
    port = free_port()
    agents = []
    for number, address in enumerate(ADDRESSES):
        torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        meeting = [
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={ADDRESSES[0]}:{port}",
            "--rdzv-id=digits",
            f"--local-addr={address}",
            f"--rdzv-conf=is_host={number == 0}",
            f"--max-restarts={restarts}",
            "--monitor-interval=0.1",
        ]
        command = [sys.executable, *torchrun, *meeting, str(script), *map(str, arguments)]
        out = subprocess.DEVNULL if log is None else open(f"{log}-{number}.txt", "ab")
        settings = {**os.environ, "OMP_NUM_THREADS": "1", **dict(environment)}
        agents.append(subprocess.Popen(command, stdout=out, stderr=out, env=settings))
        if log is not None:
            out.close()
    return agents


def workers_of(agent):
    """Ids of the processes that an agent has started and that still run."""
    children = []
    for listed in Path(f"/proc/{agent.pid}/task").glob("*/children"):
        children += map(int, listed.read_text().split())
    return children
