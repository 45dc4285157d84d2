"""What the pipeline costs above what must be paid, and what a dataset larger than memory costs
above one in memory.

    python benchmarks/data.py                # writes benchmarks/data.json, prints the table; needs
    5 GB of disk python benchmarks/data.py --gigabytes 0.5

The folder of shards is read in a process of its own that limits its private memory to 1 GB by
RLIMIT_DATA, which counts heap, anonymous and writable mappings. Pages of files, mapped for
reading, are the system's cache, which no process owns; `Private_*` of /proc/self/smaps_rollup
counts those of them that are mapped too, and is what is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from run import pairs

import mvkit
from mvkit.core.batch import conform
from mvkit.data.batch_order import order
from mvkit.data.pipeline import Pipeline
from mvkit.data.shards import Shards, save_shards
from mvkit.data.sources import Source

BATCH, ROWS = 256, 10_000
WIDE = {"a": (1024,), "b": (1024,), "c": (512,)}  # 10 KB a row
LIMIT, ALLOWED = (
    2**30,
    500,
)  # bytes of private memory that the system gives; MB that the dataset may take


def rows_of(shapes: dict[str, tuple[int, ...]], rows: int, seed: int) -> mvkit.Batch:
    """Random rows, a third of each modality missing."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, len(shapes), generator=generator) > 1 / 3
    mask[:, 0] |= ~mask.any(1)
    data = {name: torch.rand(rows, *shape, generator=generator) for name, shape in shapes.items()}
    return mvkit.Batch(data, mask, extra={"label": torch.arange(rows) % 10})


def drained(batches: Iterable[mvkit.Batch]) -> int:
    return sum(len(batch) for batch in batches)


def in_memory(count: int, width: int) -> dict[str, object]:
    """The pipeline against bare index_select and collating row by row; seconds of one thread."""
    torch.set_num_threads(1)
    shapes = dict.fromkeys("abc", (width,))
    rows = conform(rows_of(shapes, ROWS, 0), mvkit.Model(shapes).schema)
    loader = Pipeline(rows, batch_size=BATCH)
    tensors = (*rows.data.values(), rows.observed, rows.extra["label"])

    class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        """What torch's own loader collates row by row."""

        def __len__(self) -> int:
            return ROWS // 5

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            return {
                **{name: value[i] for name, value in rows.data.items()},
                "mask": rows.observed[i],
                "label": rows.extra["label"][i],
            }

    def bare() -> None:
        for index in order(ROWS, shuffle=True, seed=0, epoch=0).split(BATCH):
            [value.index_select(0, index) for value in tensors]

    by_row = torch.utils.data.DataLoader(Rows(), batch_size=BATCH, shuffle=True)
    _, _, slower = pairs(lambda: list(by_row), lambda: drained(loader), count, time.process_time)
    bare_ms, ours, ratio = pairs(bare, lambda: drained(loader), 10 * count, time.process_time)
    what = f"3 modalities of {width} numbers"
    return {
        f"pipeline rate / index_select rate, {what}": {
            "ratio": ratio,
            "ms": ours,
            "bare ms": bare_ms,
            "bound": 0.7,
        },
        f"pipeline rate / rate row by row, {what}": {"ratio": 5 * slower, "bound": 20.0},
    }


def waiting(epochs: int) -> dict[str, object]:
    """The share of a training step that the demo's model waits for data."""
    torch.set_num_threads(2)
    data = mvkit.load_dataset("polydigits", missing=0.3)
    made = mvkit.Model(
        data.modalities, latent_dim=16, aggregator="mopoe", prior="mog", objective="dreg", seed=0
    )
    made.train()
    optimizer = torch.optim.Adam(made.parameters(), 1e-3)
    loader = Pipeline(data.train.batch.take(slice(0, 4000)), schema=made.schema)
    waited, start = 0.0, time.perf_counter()
    for _ in range(epochs):
        batches = iter(loader)
        while True:
            before = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - before
            if batch is None:
                break
            optimizer.zero_grad(set_to_none=True)
            made.loss(batch).loss.backward()
            optimizer.step()
    return {
        "data wait / step, demo model": {
            "ratio": waited / (time.perf_counter() - start),
            "bound": 0.05,
        }
    }


def private() -> float:
    """Megabytes that this process alone maps."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return (
        sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_"))
        / 1024
    )


class Watch(threading.Thread):
    """The most private memory, looked at every 50 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.done = 0.0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.05):
            self.peak = max(self.peak, private())


def rate(
    rows: Source | mvkit.Batch, batches: int | None, *, schema: object = None, workers: int = 0
) -> float:
    """Rows a second of one pass, or of so many batches of it."""
    loader = Pipeline(rows, batch_size=BATCH, seed=1, schema=schema, workers=workers)
    start, seen = time.perf_counter(), 0
    for i, batch in enumerate(loader):
        seen += len(batch)
        if batches is not None and i + 1 == batches:
            break
    return seen / (time.perf_counter() - start)


def training_rate(rows: Source | mvkit.Batch, batches: int, workers: int) -> float:
    """Rows a second of training a small model."""
    made = mvkit.Model(WIDE, latent_dim=16, seed=0).train()
    optimizer = torch.optim.Adam(made.parameters(), 1e-3)
    loader = Pipeline(rows, batch_size=BATCH, seed=1, schema=made.schema, workers=workers)
    start, seen = time.perf_counter(), 0
    for i, batch in enumerate(loader):
        optimizer.zero_grad(set_to_none=True)
        made.loss(batch).loss.backward()
        optimizer.step()
        seen += len(batch)
        if i + 1 == batches:
            break
    return seen / (time.perf_counter() - start)


def forget(folder: Path) -> None:
    """Drops a folder's pages from the system's cache, so that the next read is one of the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def limited(folder: Path) -> dict[str, float]:
    """Rates of a folder of shards under the limit; run in a process of its own."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    torch.set_num_threads(1)
    made, found = mvkit.Model(WIDE), {"before any row": private()}

    def measured(name: str, run: Callable[[], float]) -> None:
        watch = Watch()
        watch.start()
        found[name] = run()
        watch.done.set()
        watch.join()
        found[f"{name}, private MB"] = watch.peak

    window = Shards(folder)
    found["rows"] = float(len(window))
    forget(folder)
    measured("window, cold", lambda: rate(window, None))
    measured("window", lambda: rate(window, None))
    measured("window, conformed", lambda: rate(window, 500, schema=made.schema))
    measured("window, training", lambda: training_rate(window, 100, 1))
    measured("random", lambda: rate(Shards(folder, window=None), 500))
    forget(folder)
    measured("random, cold", lambda: rate(Shards(folder, window=None), 100))
    return found


def larger_than_memory(gigabytes: float) -> dict[str, object]:
    """A folder of real bytes against rows in memory: as many as the limit would hold."""
    torch.set_num_threads(1)
    row = 4 * sum(shape[0] for shape in WIDE.values())
    part = 2**24 // row

    def batches() -> Iterator[mvkit.Batch]:
        for i in range(int(gigabytes * 1e9) // (row * part) + 1):
            yield rows_of(WIDE, part, i)

    folder = Path(tempfile.mkdtemp(dir=Path(__file__).parent, prefix=".shards-"))
    try:
        save_shards(batches(), folder, WIDE)
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
        program = [sys.executable, __file__, "--only-shards", str(folder)]
        found = json.loads(
            subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True).stdout
        )
    finally:
        shutil.rmtree(folder)
    rows = rows_of(WIDE, 50_000, 0)
    plain = max(rate(rows, None) for _ in range(3))
    whole = conform(rows, mvkit.Model(WIDE).schema)
    ready = max(rate(whole, None) for _ in range(3))
    training = training_rate(rows, 100, 0)
    return {
        "shards, GB": {"size": size, "limit": LIMIT / 1e9, "rows": found["rows"]},
        "private memory, MB": {
            key.partition(", private")[0]: v for key, v in found.items() if "private" in key
        }
        | {"before any row": found["before any row"], "bound": ALLOWED},
        "rows / s in memory": {
            "not conformed": plain,
            "conformed once": ready,
            "training": training,
        },
        "rows / s of shards": {
            k: v
            for k, v in found.items()
            if "private" not in k and k not in ("rows", "before any row")
        },
        "window rate / rate in memory": {
            "ratio": found["window"] / plain,
            "cold": found["window, cold"] / plain,
            "conformed": found["window, conformed"] / ready,
            "training": found["window, training"] / training,
            "bound": 0.3,
        },
        "random rate / rate in memory": {
            "ratio": found["random"] / plain,
            "cold": found["random, cold"] / plain,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=7, help="timed pairs")
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--only-shards", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.only_shards:
        print(json.dumps(limited(options.only_shards)))
        return
    table = in_memory(options.count, 64) | in_memory(options.count, 784)
    table |= waiting(3) | larger_than_memory(options.gigabytes)
    cores = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    table["machine"] = f"{cores}, torch {torch.__version__}"
    Path(__file__).with_name("data.json").write_text(json.dumps(table, indent=1) + "\n")
    for name, row in table.items():
        shown = ", ".join(f"{k} {v:.4g}" for k, v in row.items()) if isinstance(row, dict) else row
        print(f"{name:<44} {shown}")


if __name__ == "__main__":
    main()
