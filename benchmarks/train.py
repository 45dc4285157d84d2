"""What training costs above its steps, and what a second process brings.

    python benchmarks/train.py              # prints two ratios, writes benchmarks/train.json

Overhead: an epoch of `fit` against the same batches, steps and seeds in a bare loop, CPU time of
one thread, in turn.
Processes: rows a second of `torchrun --nproc-per-node=2` against one process, one torch thread
each, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import mvkit
from mvkit.data.pipeline import Pipeline
from mvkit.training.events import EpochFinished, Event

HERE = Path(__file__)


def demo_model(data: mvkit.data.datasets.catalogue.Splits) -> mvkit.Model:
    return mvkit.Model(
        data.modalities, latent_dim=16, aggregator="mopoe", prior="mog", objective="dreg", seed=0
    )


def overhead(count: int) -> float:
    """An epoch of `fit` divided by the same steps in a bare loop, CPU time, median over pairs."""
    torch.set_num_threads(1)
    data = mvkit.load_dataset("polydigits", missing=0.3)
    rows = data.train.batch.take(slice(0, 2560))
    model = demo_model(data)
    conformed = model.conform(rows)

    def bare() -> None:
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), 0.0, fused=True)
        for batch in Pipeline(conformed, batch_size=128):
            optimizer.zero_grad()
            model.loss(batch).loss.backward()
            optimizer.step()

    def ours() -> None:
        mvkit.fit(model, conformed, epochs=1, batch_size=128, lr=0.0)

    ratios = []
    for i in range(count + 1):
        start = time.process_time()
        bare()
        middle = time.process_time()
        ours()
        if i:  # warm-up first
            ratios.append((time.process_time() - middle) / (middle - start))
    return statistics.median(ratios)


def worker() -> None:
    """Trains three epochs, and prints the rows a second of the last two."""
    torch.set_num_threads(1)
    data = mvkit.load_dataset("polydigits")
    marks: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, EpochFinished):
            marks.append(time.perf_counter())

    mvkit.fit(demo_model(data), data.train, epochs=3, batch_size=512, listeners=[note])
    if marks:
        print(json.dumps(2 * len(data.train) / (marks[-1] - marks[0])))


def processes(count: int) -> dict[str, float]:
    """Rows a second by two processes and by one, in turn, and their ratio."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    rates: dict[str, list[float]] = {"one": [], "two": [], "ratio": []}
    for _ in range(count):
        for name, launcher in (("one", [sys.executable]), ("two", two)):
            command = [*launcher, str(HERE), "--worker"]
            done = subprocess.run(command, env=environment, capture_output=True, check=True)
            rates[name].append(json.loads(done.stdout.split()[-1]))
        rates["ratio"].append(rates["two"][-1] / rates["one"][-1])
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=5)
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    results = {
        "overhead": overhead(options.count),
        "processes": processes(options.count),
        "torch": torch.__version__,
    }
    text = json.dumps(results, indent=2)
    print(text)
    HERE.with_suffix(".json").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
