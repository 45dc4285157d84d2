"""What more processes bring, on paper: rows a second from measured times of a step and its parts.

python benchmarks/cost_model.py                       # measures, and prints tables
python benchmarks/cost_model.py --write benchmarks/cost_model.json

Measured here, on the CPU: the time of a step of `mvkit.fit` by rows, of which the gather of a
batch; and what gloo takes to add numbers over processes. Nothing of GPUs is measured by this
script: what they and their networks do is assumed, in the tables `MACHINES` and `NETWORKS`, and
can be given: `--floor-ms 1.5 --rows-per-second 2e6`, as `make device-check` prints them.

A step of n processes, each with b rows of a global batch, takes

    floor + b / rate                                  the network, forwards and backwards
    + reduce(gradients, n)                            by nccl, or gloo on CPUs; nothing is hidden
    + SMALL · reduce(0, n) + gloo(n)                  flags and sums of every step

    reduce(bytes, n) = 2 · hops(n) · latency + 2 · (n - 1)/n · bytes / bandwidth

nccl adds small tensors along trees, hops = log2 n; gloo along a ring, hops = n - 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed

import mvkit
from mvkit.data.pipeline import Pipeline

ROWS = (32, 128, 512)
SIZES = (32, 2**14, 2**20, 2**23)  # bytes
SMALL = 2  # all-reduces of a few numbers in a step, beside gradients: buffers, used parameters
COUNTS = (1, 2, 8, 16, 64, 256, 1000)
GPUS = 8  # of a node, joined by NVLink; beyond, InfiniBand is what counts

# assumed: seconds of latency of a hop, bytes a second
NETWORKS = {
    "NVLink 4": (4e-6, 300e9),
    "InfiniBand NDR, 400 Gb/s": (8e-6, 40e9),
    "Ethernet, 25 Gb/s": (30e-6, 2.5e9),
}
# assumed: seconds of a step without rows, rows a second
MACHINES = {"GPU, eager": (12e-3, 1e6), "GPU, whole steps in a graph": (1.5e-3, 1e6)}
GLOO_HOP = 30e-6  # assumed: seconds, between nodes


def digits():
    data = mvkit.load_dataset("polydigits", missing=0.3)
    model = mvkit.Model(data.modalities, latent_dim=16, aggregator="mopoe", prior="mog", seed=0)
    return model, data.train


def median_of(function, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def step_times(repeats=5):
    """Seconds of a step of fit and of the gather of its batch, by rows."""
    model, rows = digits()
    times = {}
    for size in ROWS:
        part = rows[: 8 * size]
        options = {"batch_size": size, "progress": False, "epochs": 1}
        pipeline = Pipeline(part, schema=model.schema, batch_size=size)
        gather = median_of(lambda pipeline=pipeline: sum(1 for _ in pipeline), repeats) / 8
        stamps = []

        def stamp(event, stamps=stamps):
            if isinstance(event, mvkit.training.events.EpochFinished):
                stamps.append(time.perf_counter())

        mvkit.fit(model, part, listeners=[stamp], **{**options, "epochs": repeats + 1})
        epochs = [after - before for before, after in itertools.pairwise(stamps)]
        times[size] = {"step": statistics.median(epochs) / 8, "gather": gather}
    return times


def line_through(xs, ys):
    """Intercept and slope of least squares, neither below zero."""
    (slope, intercept), *_ = torch.linalg.lstsq(
        torch.tensor([[x, 1.0] for x in xs]).double(), torch.tensor(ys)[:, None].double()
    )
    return max(float(intercept), 0.0), max(float(slope), 1e-12)


def measure_reduce(path):
    """What each worker does: adds tensors of several sizes over all processes."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    times = {}
    for size in SIZES:
        values = torch.ones(size // 4)
        distributed.barrier()
        times[size] = median_of(lambda values=values: distributed.all_reduce(values), 30)
    if distributed.get_rank() == 0:
        Path(path).write_text(json.dumps(times))
    distributed.destroy_process_group()


def reduce_times(processes):
    """Seconds of an all-reduce by gloo, by bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "times.json"
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *torchrun, __file__, "--worker", str(path)]
        subprocess.run(command, check=True, capture_output=True)
        return {int(size): seconds for size, seconds in json.loads(path.read_text()).items()}


def reduce(size, count, latency, bandwidth, *, ring=False):
    """Seconds of an all-reduce."""
    if count == 1:
        return 0.0
    hops = count - 1 if ring else math.log2(count)
    return 2 * hops * latency + 2 * (count - 1) / count * size / bandwidth


def step_of(rows, count, machine, size, across, *, flags="gloo"):
    """Seconds of a step of `count` GPUs with so many rows each."""
    floor, rate = machine
    inside = min(count, GPUS)
    nodes = math.ceil(count / GPUS)
    seconds = floor + rows / rate
    for bytes_, times in ((size, 1), (0, SMALL)):
        seconds += times * reduce(bytes_, inside, *NETWORKS["NVLink 4"])
        seconds += times * reduce(bytes_, nodes, *across)
    if flags == "gloo":
        seconds += reduce(0, count, GLOO_HOP, math.inf, ring=True)
    return seconds


def table(title, machine, size, across, rows_of, flags):
    """Rows a second and efficiency by the number of GPUs; returns the rows of the table."""
    print(f"\n{title}\n\n| GPUs | rows of each | step, ms | rows a second | efficiency |")
    print("|---|---|---|---|---|")
    alone = rows_of(1) / step_of(rows_of(1), 1, machine, size, across)
    out = []
    for count in COUNTS:
        rows = rows_of(count)
        seconds = step_of(rows, count, machine, size, across, flags=flags)
        rate = rows * count / seconds
        out.append({"gpus": count, "rows": rows, "seconds": seconds, "rate": rate})
        share = rate / count / alone
        print(f"| {count} | {rows:.0f} | {1e3 * seconds:.2f} | {rate:.3g} | {share:.0%} |")
    return out


def stops_paying(machine, size, across, rows_of, flags):
    """The count from which twice as many GPUs bring less than a quarter more rows a second."""
    count = 1
    while count < 2**14:
        rates = []
        for n in (count, 2 * count):
            rows = rows_of(n)
            seconds = step_of(rows, n, machine, size, across, flags=flags)
            rates.append(rows * n / seconds)
        if rates[1] < 1.25 * rates[0]:
            return count
        count *= 2
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--floor-ms", type=float, help="of a step without rows, measured")
    parser.add_argument("--rows-per-second", type=float, default=1e6)
    parser.add_argument("--gradients-mb", type=float, help="of the model's; else of this one")
    parser.add_argument("--write", help="a file for what was measured, as JSON")
    options = parser.parse_args()
    if options.worker:
        measure_reduce(options.worker)
        return
    torch.set_num_threads(1)
    model, _ = digits()
    size = 4 * sum(value.numel() for value in model.parameters())
    steps = step_times()
    floor, slope = line_through(ROWS, [steps[rows]["step"] for rows in ROWS])
    print(f"model: {size / 1e6:.2f} MB of gradients; torch {torch.__version__}, one thread")
    print(f"step here: {1e3 * floor:.1f} ms + rows / {1 / slope:,.0f} a second")
    for rows, times in steps.items():
        print(
            f"  {rows} rows: {1e3 * times['step']:.2f} ms, gather {1e3 * times['gather']:.3f} ms"
        )
    reduces = {count: reduce_times(count) for count in (2, 4)}
    for count, times in reduces.items():
        shown = ", ".join(f"{size_} B {1e6 * seconds:.0f} us" for size_, seconds in times.items())
        print(f"all-reduce by gloo, {count} processes on {os.cpu_count()} cores: {shown}")
    size = size if options.gradients_mb is None else options.gradients_mb * 1e6
    machines = dict(MACHINES)
    if options.floor_ms is not None:
        machines = {"GPU, as given": (1e-3 * options.floor_ms, options.rows_per_second)}
    weak, strong = (lambda count: 4096), (lambda count: 65536 / count)
    tables, ends = {}, {}
    for name, machine in machines.items():
        for across in ("InfiniBand NDR, 400 Gb/s", "Ethernet, 25 Gb/s"):
            for what, rows_of in (("4,096 rows each", weak), ("65,536 rows in all", strong)):
                for flags in ("gloo", "nccl"):
                    title = f"{name}, {across}, {what}, flags by {flags}"
                    arguments = (machine, size, NETWORKS[across], rows_of, flags)
                    tables[title] = table(title, *arguments)
                    ends[title] = stops_paying(*arguments)
    print("\nTwice as many bring less than a quarter more from")
    for title, count in ends.items():
        print(f"  {title}: {'beyond 16,384' if count is None else count} GPUs")
    if options.write:
        measured = {"steps": steps, "all_reduce": reduces, "gradient_bytes": size}
        everything = {**measured, "tables": tables, "stops_paying": ends}
        Path(options.write).write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
