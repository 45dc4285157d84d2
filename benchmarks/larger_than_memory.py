"""Rows larger than memory: rates from a cold disk and from the system's cache, and what they cost.

    python benchmarks/larger_than_memory.py --gigabytes 20 --folder /mnt/disk

Writes as many bytes of shards (they are deleted afterwards), and reads them in a process that may
have 2 GB in all: a control group where the system lets it make one, which counts the cache of
files, too; else RLIMIT_DATA, which counts what the process has for itself. Private memory is
`Private_*` of /proc/self/smaps_rollup, looked at every 50 ms. Cold means that the system was told
to forget the files' pages. `cat` is `cat folder/* > /dev/null` from the same cold disk, right
before and right after, in a process under no limit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import mvkit
from mvkit.core.batch import conform
from mvkit.data.shards import Shards, save_shards

BATCH = 256
WIDE = {"a": (1024,), "b": (1024,), "c": (512,)}  # 10 KB a row
LIMIT = 2 * 2**30  # bytes
ALLOWED = 500  # MB of private memory
WARM = 0.5  # GB that stay in the cache, in the group's limit too
Clock = Callable[[], float]
GROUPS = Path("/sys/fs/cgroup/memory")


def rows_of(rows: int, seed: int) -> mvkit.Batch:
    """Random rows, a third of each modality missing."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, len(WIDE), generator=generator) > 1 / 3
    mask[:, 0] |= ~mask.any(1)
    data = {name: torch.rand(rows, *shape, generator=generator) for name, shape in WIDE.items()}
    return mvkit.Batch(data, mask, extra={"label": torch.arange(rows) % 10})


def batches(gigabytes: float) -> Iterator[mvkit.Batch]:
    """Rows of so many bytes, a shard at a time; their bytes repeat every 64 shards."""
    row = 4 * sum(shape[0] for shape in WIDE.values())
    part = 2**24 // row
    drawn = [rows_of(part, seed) for seed in range(16)]
    for i in range(max(1, int(gigabytes * 1e9) // (row * part))):
        yield drawn[i % len(drawn)]


def forget(folder: Path) -> None:
    """Drops a folder's pages from the system's cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def private() -> float:
    """Megabytes that this process alone maps."""
    text = Path("/proc/self/smaps_rollup").read_text()
    lines = [line for line in text.splitlines() if line.startswith("Private_")]
    return sum(int(line.split()[1]) for line in lines) / 1024


class Watch(threading.Thread):
    """The most private memory, looked at every 50 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.05):
            self.peak = max(self.peak, private())


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def cat(folder: Path) -> float:
    """Bytes a second of `cat` to nowhere from a cold disk."""
    forget(folder)
    start = time.perf_counter()
    subprocess.run(f"cat {folder}/* > /dev/null", shell=True, check=True)
    return size_of(folder) / (time.perf_counter() - start)


def seconds(
    rows: object, schema: object = None, epoch: int = 0, clock: Clock = time.perf_counter
) -> float:
    """Of one pass: by the clock, or of CPU time of all threads."""
    pipeline = mvkit.Pipeline(rows, batch_size=BATCH, seed=1, schema=schema)
    pipeline.set_epoch(epoch)
    start = clock()
    count = sum(len(batch) for batch in pipeline)
    if count != len(pipeline.rows):
        raise AssertionError(f"{count} rows of {len(pipeline.rows)}")
    return clock() - start


def fastest(rows: object, schema: object, clock: Clock = time.perf_counter) -> float:
    """Seconds of the fastest of five passes, each in an order of its own."""
    return min(seconds(rows, schema, epoch, clock) for epoch in range(5))


def resumes(rows: Shards, schema: object) -> bool:
    """Whether a pass that resumes in the middle has the batches of one that does not."""
    whole = mvkit.Pipeline(rows, batch_size=BATCH, seed=1, schema=schema)
    middle = len(whole) // 2
    later = mvkit.Pipeline(rows, batch_size=BATCH, seed=1, schema=schema)
    later.load_state_dict({"epoch": 0, "batch": middle})
    passes = zip(list_from(iter(whole), middle, 20), list_from(iter(later), 0, 20), strict=True)
    return all(torch.equal(x.data[name], y.data[name]) for x, y in passes for name in WIDE)


def list_from(stream: Iterator[mvkit.Batch], start: int, count: int) -> Iterator[mvkit.Batch]:
    for i, batch in enumerate(stream):
        if start <= i < start + count:
            yield batch
        if i + 1 == start + count:
            return


def limited(folder: Path, small: Path) -> dict[str, float]:
    """What is measured in the process with a limit."""
    torch.set_num_threads(1)
    schema = mvkit.Model(WIDE).schema
    report: dict[str, float] = {"private MB, before any row": private()}

    def measured(name: str, run: Callable[[], float], bytes_read: int) -> None:
        watch = Watch()
        watch.start()
        took = run()
        watch.done.set()
        watch.join()
        report[f"GB / s, {name}"] = bytes_read / took / 1e9
        report[f"private MB, {name}"] = watch.peak

    rows = Shards(folder)
    size = size_of(folder)
    forget(folder)
    measured("cold", lambda: seconds(rows), size)
    forget(folder)
    measured("cold, conformed", lambda: seconds(rows, schema), size)
    forget(folder)
    steps = {"a": "standardise", "b": ["log1p", "standardise"]}
    measured("cold, transforms fitted", lambda: fitting(rows, steps), size)
    rows._buffers = None
    warm = Shards(small)
    seconds(warm, schema)
    size = size_of(small)
    for name, given in {"warm": None, "warm, conformed": schema}.items():
        measured(name, lambda given=given: fastest(warm, given), size)
        report[f"GB / CPU s, {name}"] = size / fastest(warm, given, time.process_time) / 1e9
    report["resumes exactly"] = float(resumes(warm, schema))
    return report


def fitting(rows: Shards, steps: dict[str, object]) -> float:
    start = time.perf_counter()
    rows.fit_transforms(steps)
    return time.perf_counter() - start


def in_memory() -> dict[str, float]:
    """Rates of half a gigabyte of the same rows in memory."""
    torch.set_num_threads(1)
    parts = list(batches(WARM))
    data = {name: torch.cat([part.data[name] for part in parts]) for name in WIDE}
    rows = mvkit.Batch(data, torch.cat([part.mask for part in parts]))
    size = sum(x.nbytes for x in data.values())
    ready = conform(rows, mvkit.Model(WIDE).schema)
    rates = {}
    for name, given in {"in memory": rows, "in memory, conformed": ready}.items():
        rates[f"GB / s, {name}"] = size / fastest(given, None) / 1e9
        rates[f"GB / CPU s, {name}"] = size / fastest(given, None, time.process_time) / 1e9
    return rates


@contextlib.contextmanager
def group() -> Iterator[Path | None]:
    """A control group of 2 GB; None where none can be made."""
    folder = GROUPS / f"mvkit-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError:
        yield None
        return
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def in_limits(folder: Path, small: Path) -> tuple[dict[str, float], str]:
    """What `limited` measures in a process of its own, and what limits that."""
    program = [sys.executable, __file__, "--only", str(folder), str(small)]
    with group() as limit:
        kind = "RLIMIT_DATA" if limit is None else "control group, cache of files included"

        def enter() -> None:
            resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
            if limit is not None:
                (limit / "cgroup.procs").write_text(str(os.getpid()))

        run = subprocess.run(
            program, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=enter
        )
    return json.loads(run.stdout), kind


def measured(gigabytes: float, place: Path | None) -> dict[str, object]:
    folder = Path(tempfile.mkdtemp(dir=place, prefix=".shards-"))
    large = folder / "large"
    small = folder / "small"
    try:
        save_shards(batches(gigabytes), large, WIDE)
        save_shards(batches(WARM), small, WIDE)
        before = cat(large)
        report, kind = in_limits(large, small)
        after = cat(large)
        size = size_of(large)
    finally:
        shutil.rmtree(folder)
    disk = statistics.mean([before, after]) / 1e9
    report |= in_memory() | {"GB": size / 1e9, "GB / s, cat, cold": disk}
    shares = {}
    for unit in ("GB / s", "GB / CPU s"):
        for kind in ("", ", conformed"):
            share = report[f"{unit}, warm{kind}"] / report[f"{unit}, in memory{kind}"]
            shares[f"warm{kind} / in memory, {unit}"] = share
    return {
        **report,
        **shares,
        "cat, cold, before and after": [before / 1e9, after / 1e9],
        "cold / cat": report["GB / s, cold"] / disk,
        "cold, conformed / cat": report["GB / s, cold, conformed"] / disk,
        "bound": 0.5,
        "private MB, bound": ALLOWED,
        "limit": f"{LIMIT / 2**30:g} GiB, {kind}",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--only", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.only:
        print(json.dumps(limited(*options.only)))
        return
    table = measured(options.gigabytes, options.folder)
    Path(__file__).with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
    for name, value in table.items():
        print(f"{name:<40} {value if isinstance(value, str | list) else format(value, '.4g')}")


if __name__ == "__main__":
    main()
