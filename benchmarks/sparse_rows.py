r"""A pass over a million sparse cells in a file, beside scDataset and annbatch on the same matrix.

    python benchmarks/sparse_rows.py make FOLDER     # 0.8 GB, twice
    python benchmarks/sparse_rows.py run FOLDER --python scdataset=ENV/bin/python \
        annbatch=OTHER/bin/python               # writes benchmarks/sparse_rows.json

The file is laid out as AnnData does, CSR with int32 indices and float32 counts, uncompressed; 5 %
of the values are not 0. annbatch reads zarr alone: it gets the same arrays in a zarr folder,
uncompressed. Each contender runs in a process (and an environment) of its own, in turn, `--repeats`
times, after the pages were read once; `--most` rows of a pass. All shuffle blocks of 64 rows,
16,384 rows together, and end with dense batches of 128 rows; the clock starts after the first
16,384. `checked`: the batch is also conformed to a model of counts, as training has it; the others
leave that to the user.

Rows a second by the clock hang on what else the machine does; by the time of the CPU they do not.
Memory is what the process alone has: anonymous pages by /proc/self/smaps_rollup; `mapped` adds
pages of the file that only it has mapped, which are the system's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROWS, GENES, MADE = 1_000_000, 2_000, 10_000
BATCH, BLOCK, TOGETHER = 128, 64, 16_384
FULL = 13  # of 256: 5 % of the values
HERE = Path(__file__).parent
COUNTS = {"likelihood": "negative_binomial", "exposure": "total", "input": "log1p"}


def made_rows(rows: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Lengths of rows, columns and counts, block by block."""
    random = np.random.default_rng(seed)
    for start in range(0, rows, MADE):
        size = min(MADE, rows - start)
        seen = random.integers(0, 256, (size, GENES), dtype=np.uint8) < FULL
        columns = np.nonzero(seen)[1].astype(np.int32)
        counts = 1 + random.geometric(0.5, len(columns)).astype(np.float32)
        yield seen.sum(1), columns, counts


def make(folder: Path, rows: int) -> None:
    """Writes cells.h5ad and cells.zarr with the same arrays."""
    import h5py
    import zarr

    lengths, columns, counts = zip(*made_rows(rows, 0), strict=True)
    indptr = np.append(0, np.cumsum(np.concatenate(lengths)))
    arrays = {"indptr": indptr, "indices": np.concatenate(columns), "data": np.concatenate(counts)}
    attributes = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "cells.h5ad", "w") as file:
        group = file.create_group("X")
        group.attrs.update({**attributes, "shape": (rows, GENES)})
        for name, array in arrays.items():
            group.create_dataset(name, data=array)
    group = zarr.open_group(str(folder / "cells.zarr"), mode="w").create_group("X")
    group.attrs.update({**attributes, "shape": [rows, GENES]})
    for name, array in arrays.items():
        layout = {"chunks": (2**13,), "shards": (2**20,), "compressors": None}
        group.create_array(name, data=array, **layout)


def by_mvkit(folder: Path, checked: bool) -> Iterator[int]:
    from mvkit_omics import MatrixFile, SparseRows

    import mvkit

    rows = SparseRows({"rna": MatrixFile(folder / "cells.h5ad")}, {"rna": COUNTS}, block=BLOCK)
    schema = mvkit.Model(rows.modalities, latent_dim=2).schema if checked else None
    batches = mvkit.Pipeline(rows, batch_size=BATCH, schema=schema)
    return (len(batch.data["rna"]) for batch in batches)


def by_scdataset(folder: Path) -> Iterator[int]:
    import h5py
    import torch
    from anndata.io import sparse_dataset
    from scdataset import BlockShuffling, scDataset

    options: dict[str, Any] = {"batch_size": BATCH, "fetch_factor": TOGETHER // BATCH, "seed": 0}
    options["batch_transform"] = lambda rows: torch.from_numpy(rows.toarray())
    matrix = sparse_dataset(h5py.File(folder / "cells.h5ad", "r")["X"])
    strategy = BlockShuffling(block_size=BLOCK, indices=np.arange(matrix.shape[0]))
    loader = scDataset(matrix, strategy, **options)
    return (len(batch) for batch in loader)


def by_annbatch(folder: Path) -> Iterator[int]:
    import zarr
    from annbatch import Loader
    from anndata.io import sparse_dataset

    options: dict[str, Any] = {"chunk_size": BLOCK, "preload_nchunks": TOGETHER // BLOCK}
    options |= {"batch_size": BATCH, "shuffle": True, "preload_to_gpu": False, "to": "torch"}
    matrix = sparse_dataset(zarr.open_group(str(folder / "cells.zarr"), mode="r")["X"])
    loader = Loader(**options).add_dataset(matrix)
    return (len(batch["X"].to_dense()) for batch in loader)


CONTENDERS: dict[str, Callable[[Path], Iterator[int]]] = {
    "mvkit": lambda folder: by_mvkit(folder, False),
    "mvkit, checked": lambda folder: by_mvkit(folder, True),
    "scdataset": by_scdataset,
    "annbatch": by_annbatch,
}


class Watch(threading.Thread):
    """The most memory that the process alone has, in MB: anonymous, and with mapped pages."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = 0.0
        self.private = 0.0
        self.done = threading.Event()

    def look(self) -> None:
        sizes = {}
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
            name, value, _ = line.split()
            sizes[name] = int(value) / 1024
        private = sizes["Private_Clean:"] + sizes["Private_Dirty:"]
        self.anonymous = max(self.anonymous, sizes["Anonymous:"])
        self.private = max(self.private, private)

    def run(self) -> None:
        while not self.done.wait(0.5):
            self.look()


def one_pass(name: str, folder: Path, most: int) -> None:
    """Prints the figures of a pass of a contender, over `most` rows."""
    import torch

    torch.set_num_threads(1)
    batches = CONTENDERS[name](folder)
    watch = Watch()
    watch.look()
    before = watch.anonymous
    watch.start()
    begun = 0  # rows of the first window, in which code is compiled and modules are imported
    while begun < min(TOGETHER, most):
        begun += next(batches)
    clock, cpu = time.perf_counter(), time.process_time()
    rows = begun
    for size in batches:
        rows += size
        if rows >= most:
            break
    seconds, work = time.perf_counter() - clock, time.process_time() - cpu
    watch.done.set()
    watch.look()
    figures = {"rows": rows, "rows/s": (rows - begun) / seconds}
    figures["rows/s of CPU"] = (rows - begun) / work
    figures |= {"MB": watch.anonymous, "MB before": before, "MB with mapped": watch.private}
    print(json.dumps(figures))


def _output(command: list[str], *, others: bool) -> str:
    """What a command prints; other environments do not see the modules of this one."""
    hidden = {"PYTHONPATH"} if others else set()
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    finished = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return finished.stdout


def _written(passes: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians of the passes, which are also written to sparse_rows.json."""
    medians = {}
    for name, runs in passes.items():
        medians[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    result = {"machine": machine, "medians": medians, "passes": passes}
    (HERE / "sparse_rows.json").write_text(json.dumps(result, indent=1) + "\n")
    return medians


def warm(folder: Path) -> None:
    """Reads every page once."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(2**24):
                    pass


def compare(folder: Path, pythons: dict[str, str], repeats: int, most: int) -> None:
    """Runs the contenders in turn, prints their medians and writes sparse_rows.json."""
    warm(folder)
    names = [name for name in CONTENDERS if name.startswith("mvkit") or name in pythons]
    passes: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            python = pythons.get(name, sys.executable)
            command = [python, __file__, "pass", str(folder), name, f"--most={most}"]
            text = _output(command, others=name in pythons)
            passes[name].append(json.loads(text.splitlines()[-1]))
            print(name, passes[name][-1], flush=True)
        medians = _written(passes)
    print("| | rows/s | rows/s of CPU | MB |\n|---|---|---|---|")
    for name, run in medians.items():
        print(f"| {name} | {run['rows/s']:,.0f} | {run['rows/s of CPU']:,.0f} | {run['MB']:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["make", "run", "pass"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", nargs="?")
    parser.add_argument("--python", nargs="*", default=[], help="contender=its interpreter")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--most", type=int, default=ROWS, help="rows of a pass")
    options = parser.parse_args()
    if options.action == "make":
        make(options.folder, options.rows)
    elif options.action == "pass":
        one_pass(options.name, options.folder, options.most)
    else:
        pythons = dict(pair.split("=", 1) for pair in options.python)
        compare(options.folder, pythons, options.repeats, options.most)


if __name__ == "__main__":
    main()
