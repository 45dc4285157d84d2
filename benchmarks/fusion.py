"""What ways of fusing experts bring on polydigits: those built in beside those of
plugins/mvkit-fusion.

    python benchmarks/fusion.py                       # all, 10 epochs, seed 0: a Markdown table
    python benchmarks/fusion.py mopoe code --seeds 0 1 --missing 0.3

Latent 16, batch 128, MLP 512-512, normal likelihood with scale 0.25, standard prior, objective
elbo (code: its own bound). Needs mvkit-fusion installed. Appends to fusion.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
from learning import judges, measured

import mvkit
from mvkit.data.datasets.catalogue import Splits

BOUND = {"name": "sum", "terms": ["elbo", "entropy"]}
FUSIONS: dict[str, dict[str, object]] = {
    **{
        name: {"aggregator": name}
        for name in ("poe", "moe", "mopoe", "gpoe", "wasserstein", "mean_message")
    },
    "code": {"aggregator": "code", "objective": BOUND},
    "code, ρ = 0": {"aggregator": {"name": "code", "rho": 0.0}, "objective": BOUND},
    "code, 4 subsets": {"aggregator": {"name": "code", "max_subsets": 4}, "objective": BOUND},
    **{name: {"aggregator": name} for name in ("mwb", "hoelder", "hellinger")},
}


def loaded(missing: float, rows: int | None) -> Splits:
    """Polydigits, with `rows` of each split at most."""
    data = mvkit.load_dataset("polydigits", missing=missing)
    some = {}
    for split in ("train", "valid", "test"):
        whole = getattr(data, split)
        some[split] = attrs.evolve(whole, batch=whole.batch.take(slice(0, rows)))
    return attrs.evolve(data, **some)


def table(found: Sequence[dict[str, object]]) -> str:
    """Means over seeds in Markdown, a line for each way."""
    columns = [key for key in found[0] if key not in ("fusion", "seed")]
    lines = ["| fusion | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(row["fusion"] for row in found):
        own = [row for row in found if row["fusion"] == name]
        means = [statistics.fmean(float(row[key]) for row in own) for key in columns]
        lines.append(f"| {name} | " + " | ".join(f"{mean:.4g}" for mean in means) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "fusions", nargs="*", help=f"some of {', '.join(map(repr, FUSIONS))}; none: all"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--missing", type=float, default=0.0, help="share of modalities hidden in training"
    )
    parser.add_argument("--rows", type=int, help="rows of each split at most")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("fusion.jsonl"))
    options = parser.parse_args(arguments)
    unknown = [name for name in options.fusions if name not in FUSIONS]
    if unknown:
        parser.error(f"unknown fusion {unknown[0]!r}; known: {', '.join(FUSIONS)}")
    data, found = loaded(options.missing, options.rows), []
    judge = judges(mvkit.load_dataset("polydigits"))
    for name in options.fusions or FUSIONS:
        for seed in options.seeds:
            start = time.perf_counter()
            model = mvkit.Model(data.modalities, latent_dim=16, seed=seed, **FUSIONS[name])
            mvkit.fit(
                model,
                data.train,
                validation=data.valid,
                epochs=options.epochs,
                seed=seed,
                progress=False,
            )
            row = {"fusion": name, "seed": seed, "seconds": round(time.perf_counter() - start, 1)}
            row |= measured(model, data, judge)
            found.append(row)
            with options.out.open("a") as file:
                file.write(
                    json.dumps(row | {"epochs": options.epochs, "missing": options.missing}) + "\n"
                )
    print(table(found))


if __name__ == "__main__":
    main()
