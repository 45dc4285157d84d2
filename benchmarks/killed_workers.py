"""Kills workers of elastic runs on two nodes at random moments, and compares what they end with.

python benchmarks/killed_workers.py --kills 100 > killed.json

Two agents of torchrun, at two addresses of this machine, train docs/scale/train.py. Every few
seconds a worker of one of them gets SIGKILL, whatever it is doing: importing, meeting the others,
training, saving. The agents start it again. A run is lost if an agent gives up, if no epoch ends
for five minutes, or if its history or any bit of its weights differs from an unbroken run's.
killed_workers.json joins two such outputs, of seeds 0 and 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import mvkit

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from nodes import TRAIN, start_nodes, workers_of

RUN = ("--rows=300", "--epochs=300")
STANDS_STILL = 300.0  # seconds


def unbroken(folder):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *torchrun, TRAIN, f"--folder={folder}", *RUN]
    subprocess.run(command, check=True, capture_output=True)


def epochs_in(folder):
    path = folder / "history.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


class Due:
    """When the next kill is due: a random while after the last one, which hits the start of the
    workers; or, three times in four, a random while after the first epoch that follows it.
    """

    def __init__(self, epochs, pause, chance):
        self.epochs = epochs
        self.delay = chance.uniform(0, pause)
        self.training = chance.random() < 0.75
        self.start = None if self.training else time.monotonic()

    def now(self, epochs):
        if self.start is None and epochs > self.epochs:
            self.start = time.monotonic()
        return self.start is not None and time.monotonic() - self.start >= self.delay


def broken(folder, kills, pause, chance):
    """Trains with so many kills, unless the run ends before; returns a record of it."""
    agents = start_nodes(TRAIN, f"--folder={folder}", *RUN, restarts=10**6, log=folder)
    killed_at = []
    moved = time.monotonic(), 0
    due = Due(0, pause, chance)
    while any(agent.poll() is None for agent in agents):
        now, epochs = time.monotonic(), epochs_in(folder)
        if epochs != moved[1]:
            moved = now, epochs
        if now - moved[0] > STANDS_STILL:
            break
        if due.now(epochs) and len(killed_at) < kills:
            for worker in workers_of(chance.choice(agents)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
                    killed_at.append(epochs)
                    due = Due(epochs, pause, chance)
        time.sleep(0.05)
    codes = [agent.poll() for agent in agents]
    for agent in agents:
        agent.kill()
        agent.wait()
    return {"kills": len(killed_at), "killed_after_epochs": killed_at, "codes": codes}


def same(folder, other):
    if not (folder / "model.safetensors").exists():
        return False
    histories = [(each / "history.jsonl").read_text() for each in (folder, other)]
    models = [mvkit.load(each / "model.safetensors") for each in (folder, other)]
    weights, expected = (model.state_dict() for model in models)
    equal = all(torch.equal(value, expected[name]) for name, value in weights.items())
    return equal and histories[0] == histories[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--kills-a-run", type=int, default=10)
    parser.add_argument("--pause", type=float, default=5.0, help="longest, before a kill")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no run begins")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    start = time.monotonic()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        unbroken(whole)
        while (left := options.kills - sum(run["kills"] for run in runs)) > 0:
            if time.monotonic() - start > 60 * options.minutes:
                break
            at = Path(folder) / f"run-{len(runs)}"
            kills = min(left, options.kills_a_run)
            run = broken(at, kills, options.pause, chance)
            run["equal"] = run["codes"] == [0, 0] and same(at, whole)
            runs.append(run)
            print(run, file=sys.stderr, flush=True)
            if not run["equal"]:
                for log in Path(folder).glob(f"{at.name}-*.txt"):
                    print(log.read_text()[-5000:], file=sys.stderr)
    summary = {
        "kills": sum(run["kills"] for run in runs),
        "runs": len(runs),
        "lost": sum(not run["equal"] for run in runs),
        "seconds": round(time.monotonic() - start),
        "torch": torch.__version__,
        "by_run": runs,
    }
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
