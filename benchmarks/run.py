"""What mvkit costs above what must be paid: one table of ratios from one run.

    python benchmarks/run.py                # writes benchmarks/results.json, prints the table

Every pair of commands is timed in turn, A B A B …; a ratio is the median of the ratios pair by
pair.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import mvkit
from mvkit.data.pipeline import Pipeline, order

BATCH, LATENT, WIDTH = 128, 16, 784


def pairs(
    one: Callable[[], object],
    other: Callable[[], object],
    count: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float, float]:
    """Median milliseconds of each, and the median ratio one / other, pair by pair."""
    times: list[tuple[float, float]] = []
    for i in range(count + 3):
        start = clock()
        one()
        middle = clock()
        other()
        if i >= 3:  # warm-up first
            times.append((1e3 * (middle - start), 1e3 * (clock() - middle)))
    return (
        *(statistics.median(t) for t in zip(*times, strict=True)),
        statistics.median(a / b for a, b in times),
    )


def mlp(before: int, after: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(before, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, after)
    )


def step(
    m: int, aggregator: object, objective: object, count: int, repeats: int = 1
) -> tuple[float, float, float]:
    """A training step against the same rows through the same nets, squared error, backward, fused
    Adam with lr 0.
    """
    x = {f"m{i}": torch.rand(BATCH, WIDTH) for i in range(m)}
    model = mvkit.Model(
        {name: mvkit.Modality((WIDTH,)) for name in x},
        latent_dim=LATENT,
        aggregator=aggregator,
        objective=objective,
    )
    batch = model.conform(mvkit.Batch(x))
    ours = torch.optim.Adam(model.parameters(), 0.0, fused=True)
    encoders, decoders = (
        [mlp(a, b) for _ in x] for a, b in ((WIDTH, 2 * LATENT), (LATENT, WIDTH))
    )
    parameters = [p for net in (*encoders, *decoders) for p in net.parameters()]
    bare = torch.optim.Adam(parameters, 0.0, fused=True)

    def with_mvkit() -> None:
        ours.zero_grad(set_to_none=True)
        model.loss(batch).loss.backward()
        ours.step()

    def without() -> None:
        bare.zero_grad(set_to_none=True)
        codes = [encoder(value) for encoder, value in zip(encoders, x.values(), strict=True)]
        loss = torch.zeros(())
        for code, decoder, value in zip(codes, decoders, x.values(), strict=True):
            z = code[:, :LATENT] + code[:, LATENT:]
            rows = z.repeat(repeats, 1)
            loss = loss + (decoder(rows).reshape(repeats, BATCH, -1) - value).square().sum()
        loss.backward()
        bare.step()

    model.train()
    return pairs(with_mvkit, without, count)


def pipeline(count: int) -> dict[str, float]:
    """Rows a second of the pipeline, of collating row by row, and of bare index_select."""
    rows = mvkit.load_dataset("polydigits", missing=0.3).train.batch
    model = mvkit.Model(mvkit.load_dataset("polydigits").modalities)
    rows = model.conform(rows)
    loader = Pipeline(rows, batch_size=BATCH)

    def through_pipeline() -> None:
        for _ in loader:
            pass

    class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        """What torch's own loader collates row by row."""

        def __len__(self) -> int:
            return 1000

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            return {
                **{k: v[i] for k, v in rows.data.items()},
                "mask": rows.observed[i],
                "label": rows.extra["label"][i],
            }

    def row_by_row() -> None:
        for _ in torch.utils.data.DataLoader(Rows(), batch_size=BATCH, shuffle=True):
            pass

    def bare() -> None:
        for index in order(len(rows), shuffle=True, seed=0, epoch=0).split(BATCH):
            [
                v.index_select(0, index)
                for v in (*rows.data.values(), rows.observed, rows.extra["label"])
            ]

    _, _, slower = pairs(row_by_row, through_pipeline, count)
    ours, _, bare_ratio = pairs(through_pipeline, bare, count)
    return {
        "per row / pipeline": 10 * slower,
        "bound": 10.0,
        "pipeline / index_select": bare_ratio,
        "rows / s": 1e7 / ours,
    }


def likelihood(count: int, m: int = 3) -> tuple[float, float, float]:
    """log_likelihood at n=1000 against decoding as many rows, in blocks; CPU time."""
    x = {f"m{i}": torch.rand(16, WIDTH) for i in range(m)}
    model = mvkit.Model(
        {name: mvkit.Modality((WIDTH,)) for name in x}, latent_dim=LATENT, aggregator="mopoe"
    ).eval()
    batch = model.conform(mvkit.Batch(x))
    z = torch.randn(4096, LATENT)

    @torch.no_grad()
    def bare() -> None:
        for start in range(0, 16_000, 4096):
            for decoder in model.decoders.values():
                decoder.network(z[: min(4096, 16_000 - start)])

    return pairs(lambda: model.log_likelihood(batch, n=1000), bare, count, time.process_time)


def seconds_to_import() -> dict[str, float]:
    """Seconds that importing mvkit adds to importing torch, median of 7 fresh processes, and
    extras it imports; from bytecode, as after an installation.
    """
    program = (
        "import sys, time, torch; known = set(sys.modules); t = time.perf_counter(); import mvkit;"
        "print(time.perf_counter() - t);"
        "print(len({'sklearn', 'matplotlib', 'pandas', 'scipy', 'torchdata', 'tqdm'} & set(sys.modules) - known))"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        ).stdout.split()
        for _ in range(8)
    ][1:]
    return {
        "seconds": statistics.median(float(o[0]) for o in outputs),
        "extras": max(float(o[1]) for o in outputs),
        "bound": 0.2,
    }


def many_subsets(count: int) -> dict[str, float]:
    """Mopoe with 1,023 subsets, in a process of its own so that its peak memory is seen."""
    program = [sys.executable, __file__, "--only-subsets", "--count", str(count)]
    return json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=30, help="timed pairs")
    parser.add_argument("--only-subsets", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*unimodal encoders")
    torch.set_num_threads(2)
    count = options.count
    if options.only_subsets:
        ours, floor, ratio = step(10, "mopoe", "elbo", count)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"ms": ours, "floor": floor, "ratio": ratio, "peak GB": peak}))
        return
    table: dict[str, object] = {}
    moe = {"name": "elbo", "draw": "balanced"}
    for m, bound in ((2, 1.35), (3, 1.25), (5, 1.25)):
        for name, objective in (("poe", "elbo"), ("moe", moe), ("mopoe", "elbo")):
            ours, floor, ratio = step(m, name, objective, count)
            table[f"step, {name}, M={m}"] = {
                "ms": ours,
                "floor": floor,
                "ratio": ratio,
                "bound": bound,
            }
    table["step, mopoe, M=10, 1,023 subsets"] = {**many_subsets(count), "bound": 2.0}
    torch.set_num_threads(1)
    for m, bound in ((3, 1.5), (5, 1.2), (8, 1.3), (10, 1.3)):
        ours, floor, ratio = likelihood(max(5, count // 4), m)
        table[f"log_likelihood, mopoe, M={m}, n=1000, against bare decodes"] = {
            "ms": ours,
            "floor": floor,
            "ratio": ratio,
            "bound": bound,
        }
    torch.set_num_threads(2)
    table["pipeline"] = pipeline(max(5, count // 4))
    table["import mvkit after torch"] = seconds_to_import()
    table["machine"] = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    )
    Path(__file__).with_name("results.json").write_text(json.dumps(table, indent=1) + "\n")
    for name, row in table.items():
        shown = ", ".join(f"{k} {v:.4g}" for k, v in row.items()) if isinstance(row, dict) else row
        print(f"{name:<48} {shown}")


if __name__ == "__main__":
    main()
