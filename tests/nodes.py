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


def start_nodes(script, *arguments, log, restarts=0):
    """An agent for each address, with one worker each; what they say is appended to `log`-0.txt
    and `log`-1.txt.
    """
    port = free_port()
    agents = []
    for number, address in enumerate(ADDRESSES):
        torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        meeting = [
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={ADDRESSES[0]}:{port}",
            "--rdzv-id=digits",
            f"--rdzv-conf=is_host={number == 0}",
            f"--local-addr={address}",
            f"--max-restarts={restarts}",
            "--monitor-interval=0.1",
        ]
        command = [sys.executable, *torchrun, *meeting, str(script), *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with open(f"{log}-{number}.txt", "ab") as said:
            agents.append(subprocess.Popen(command, stdout=said, stderr=said, env=environment))
    return agents


def workers_of(agent):
    """Ids of the processes that an agent has started and that still run."""
    children = []
    for listed in Path(f"/proc/{agent.pid}/task").glob("*/children"):
        children += map(int, listed.read_text().split())
    return children
