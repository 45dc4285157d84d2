"""What ten copies from ten seeds cost beside one: trained in one step, and one after another.

    python benchmarks/seeds.py              # prints a table, writes benchmarks/seeds.json

Polydigits without gaps, `mopoe`, 16 latents, multilayer perceptrons of 128, batches of 128, two
threads of torch. Wall time and CPU time of `mvkit.fit` as users call it, in turn, medians; what
comes before the first step and after the last is part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait leave the cores to others

import torch

import mvkit

HERE = Path(__file__)
SEEDS = 10
WAYS: dict[str, dict[str, Any]] = {
    "one": {"seed": 0},
    "stacked": {"seeds": SEEDS, "stacked": True},
    "sequential": {"seeds": SEEDS, "stacked": False},
}


def model_of(data: mvkit.data.datasets.catalogue.Splits, hidden: int) -> mvkit.Model:
    network = {"name": "mlp", "hidden": [hidden]}
    modalities = {}
    for name, modality in data.modalities.items():
        modalities[name] = mvkit.Modality(
            modality.shape, modality.likelihood, encoder=network, decoder=network
        )
    return mvkit.Model(modalities, latent_dim=16, aggregator="mopoe", seed=0)


def measured(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Seconds of each way, in turn; of the clock and of all threads."""
    data = mvkit.load_dataset("polydigits", missing=options.missing)
    seconds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    rows = data.train.batch.take(slice(0, options.rows))
    for turn in range(options.count + 1):
        for way, seeds in WAYS.items():
            model = model_of(data, options.hidden)
            epochs = options.epochs if turn else 1  # a warm-up first
            wall, cpu = time.perf_counter(), time.process_time()
            mvkit.fit(model, rows, epochs=epochs, batch_size=128, progress=False, **seeds)
            times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            if turn:
                seconds[way].append(times)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--missing", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds = measured(options)
    results: dict[str, Any] = {"options": vars(options), "torch": torch.__version__}
    for clock in ("wall", "cpu"):
        medians = {}
        for way, times in seconds.items():
            medians[way] = statistics.median(each[clock] for each in times)
        results[f"{clock} seconds"] = medians
        for way in ("stacked", "sequential"):
            of_turns = zip(seconds[way], seconds["one"], strict=True)
            ratios = [ten[clock] / one[clock] for ten, one in of_turns]
            results[f"{way} / one, {clock}"] = statistics.median(ratios)
    text = json.dumps(results, indent=2)
    print(text)
    HERE.with_suffix(".json").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
