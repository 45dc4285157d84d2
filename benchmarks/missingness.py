"""Values missing not at random: the white wines of not-MIWAE's public demo, by seed.

    python benchmarks/missingness.py --seeds 0 1 2 --data /path/to/mixed_tables/Wine

The table has red and white wines together (UCI Wine Quality, the copy that comes with HI-VAE);
the 4,898 whites and their 11 columns are standardised, then values above the mean are removed in
the first 5 columns, half of the 11. Models as the notebook's: one modality, 10 latents, an
encoder of 2 x 128 tanh, a linear decoder, a normal likelihood with one trained scale, K = 20,
batches of 16, 30,000 steps, Adam at 1e-3. What is reported is the root mean square error of the
removed values in standard deviations. MICE is scikit-learn's IterativeImputer with 10 rounds, as
in the authors' code. Appends to missingness.jsonl; `--table` prints what is there.

Missing values are drawn from the decoder, as the paper says; the notebook takes its means.

Reference: Ipsen, Mattei and Frellsen, not-MIWAE, ICLR 2021, https://arxiv.org/abs/2006.12871;
data: Cortez et al., 2009, https://doi.org/10.1016/j.dss.2009.05.016.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import mvkit
from mvkit import recipes

STEPS, BATCH, SAMPLES, DRAWS = 30_000, 16, 20, 1000
LATENT, COLUMNS, WHITE = 10, 11, 2
LOG = Path(__file__).with_suffix(".jsonl")
Table = NDArray[np.float64]
ENCODER = {"name": "mlp", "hidden": [128, 128], "activation": "tanh"}
PUBLISHED = {"self-masking, sign given": "1.035", "mice": "1.41"}


def white_wines(folder: Path) -> Table:
    """The 11 columns of the white wines, standardised, (4898, 11)."""
    values = np.loadtxt(folder / "data.csv.gz", delimiter=",")
    white = values[values[:, COLUMNS + 1] == WHITE][:, :COLUMNS]
    if white.shape != (4898, COLUMNS):
        raise SystemExit(f"{folder}: {white.shape} white wines; expected (4898, 11)")
    return (white - white.mean(0)) / white.std(0)


def without_high(values: Table) -> Table:
    """The table with NaN for values above the mean in the first half of its columns."""
    half = values.shape[1] // 2
    gaps = values.copy()
    gaps[:, :half][values[:, :half] > values[:, :half].mean(0)] = np.nan
    return gaps


def error(values: Table, gaps: Table, filled: Table) -> float:
    """Root mean square error of what was removed."""
    missing = np.isnan(gaps)
    return float(np.sqrt(np.square(values - filled)[missing].mean()))


def mean_imputation(gaps: Table, seed: int) -> Table:
    """Gaps filled with the mean of what is left of a column."""
    return np.where(np.isnan(gaps), np.nanmean(gaps, 0), gaps)


def mice(gaps: Table, seed: int) -> Table:
    """Chained regressions."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        filled: Table = IterativeImputer(max_iter=10, random_state=seed).fit_transform(gaps)
    return filled


def by_model(gaps: Table, seed: int, missingness: object) -> Table:
    """A model's imputation, by self-normalised importance weights."""
    wine = mvkit.Modality(
        (COLUMNS,), {"name": "normal", "scale": "trained"}, encoder=ENCODER, decoder="linear"
    )
    make = recipes.miwae if missingness is None else recipes.not_miwae
    options = {} if missingness is None else {"missingness": missingness}
    model = make({"wine": wine}, LATENT, samples=SAMPLES, seed=seed, **options)
    epochs = round(STEPS / math.ceil(len(gaps) / BATCH))
    rows = {"wine": gaps.astype(np.float32)}
    mvkit.fit(
        model, rows, epochs=epochs, batch_size=BATCH, seed=seed, device="cpu", progress=False
    )
    generator = torch.Generator().manual_seed(seed)
    filled: Table = mvkit.impute(model, rows, n=DRAWS, generator=generator)["wine"]
    return filled.astype(np.float64)


def self_masking(sign: str) -> Callable[[Table, int], Table]:
    """Imputation by not-MIWAE, whose values mask themselves."""
    return lambda gaps, seed: by_model(gaps, seed, {"name": "self", "sign": sign})


METHODS: dict[str, Callable[[Table, int], Table]] = {
    "mean": mean_imputation,
    "mice": mice,
    "miwae": lambda gaps, seed: by_model(gaps, seed, None),
    "self-masking, sign given": self_masking("high"),
    "self-masking, sign free": self_masking("free"),
    "logistic": lambda gaps, seed: by_model(gaps, seed, "logistic"),
}


def table() -> str:
    """Means over seeds of what the log holds, the last run of each seed."""
    errors: dict[str, dict[int, float]] = {}
    for line in LOG.read_text().splitlines():
        row = json.loads(line)
        errors.setdefault(row["method"], {})[row["seed"]] = row["rmse"]
    lines = ["| method | RMSE, mean | by seed | published |", "|---|---|---|---|"]
    for method in METHODS:
        by_seed = errors.get(method)
        if by_seed:
            listed = ", ".join(f"{by_seed[seed]:.3f}" for seed in sorted(by_seed))
            mean = f"{np.mean(list(by_seed.values())):.3f}"
            lines.append(f"| {method} | {mean} | {listed} | {PUBLISHED.get(method, '')} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the methods asked for, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("shared/data/mixed_tables/Wine"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        values = white_wines(options.data)
        gaps = without_high(values)
        for method in options.methods:
            for seed in options.seeds:
                start = time.monotonic()
                rmse = error(values, gaps, METHODS[method](gaps, seed))
                row = {"method": method, "seed": seed, "rmse": round(rmse, 4)}
                row["seconds"] = round(time.monotonic() - start)
                with LOG.open("a") as log:
                    log.write(json.dumps(row) + "\n")
                print(row, flush=True)
    print(table())


if __name__ == "__main__":
    main()
