"""How many hidden cells the 90 per cent intervals and sets of `mvkit.impute(table)` hold.

    python benchmarks/intervals.py run --rows 2000 --steps 120
    python benchmarks/intervals.py run --why mar --weights equal --rows 2000 --steps 120
    python benchmarks/intervals.py table

Adult, Breast (Wisconsin), Wine (quality) and defaultCredit of UCI, and rosmap (three tables of 200
features of the same people). A share of 20 per cent of the cells is hidden: `mcar` at random; `mar`
with probabilities up to 40 per cent by the rank of one column, the driver, that is never hidden (in
each of three tables of rosmap its own); `mnar` more often where a number itself is large, with and
without `missingness="self"`. Masks are seeds. `run` adds lines to `intervals.jsonl`, one for each
column, and leaves out what has some. `--weights equal` calibrates without the odds of gaps.
`--rows` takes the first rows alone, and `--steps` trains for less: conformal intervals hold their
share with any model, and better models have narrower ones. `table` prints the mean over columns and
masks, as in docs/benchmarks.md, with the lowest and highest mask, and the standard error as if
columns and masks were independent.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
import warnings
from pathlib import Path

import numpy as np
import pandas
import torch
from mixed_tables import Table

import mvkit

LINES = Path(__file__).with_suffix(".jsonl")
FOLDER = Path("../shared/data")
TABLES = ("Adult", "Breast", "Wine", "defaultCredit")
DATA = (*TABLES, "rosmap")
RATE = 0.2
LEVEL = 0.9


def frames_of(folder, name, rows):
    """Complete tables by name."""
    if name == "rosmap":
        tables = {}
        for number in (1, 2, 3):
            parts = [
                pandas.read_csv(folder / "rosmap" / f"{number}_{part}.csv", header=None)
                for part in ("tr", "te")
            ]
            table = pandas.concat(parts, ignore_index=True)
            table.columns = [f"f{i}" for i in table.columns]
            tables[f"omics{number}"] = table
        return tables
    table = Table(folder / "mixed_tables", name, 10, "own1")
    table.observed = table.values
    return {"table": table.frame().iloc[:rows]}


def hidden_cells(frame, why, seed):
    """Which cells of a table are hidden, bool."""
    random = np.random.default_rng([seed, len(frame), frame.shape[1]])
    uniform = random.uniform(size=frame.shape)
    if why == "mcar":
        return uniform < RATE
    numeric = frame.apply(lambda x: x.cat.codes if x.dtype == "category" else x)
    numeric = numeric.apply(lambda x: x.astype("category").cat.codes if x.dtype == object else x)
    rank = (numeric.rank().to_numpy() - 0.5) / len(frame)
    if why == "mnar":
        numbers = frame.dtypes.map(pandas.api.types.is_numeric_dtype).to_numpy()
        return (uniform < 2 * RATE * rank) & numbers
    driver = np.argmax(numeric.nunique())
    hidden = uniform < 2 * RATE * rank[:, [driver]]
    hidden[:, driver] = False
    return hidden


def lines_of(full, hidden, imputation, table):
    """One line for each column with hidden cells: kind, cells, coverage, width or size."""
    low, high, sets = imputation.low, imputation.high, imputation.sets
    if isinstance(low, dict):
        low, high, sets = low[table], high[table], sets[table]
    for i, name in enumerate(full.columns):
        gap = hidden[:, i] & full[name].notna().to_numpy()  # some have no truth
        if not gap.any():
            continue
        truth = full[name][gap]
        if name in sets:
            members = sets[name][gap]
            inside = np.mean(
                [str(x) in map(str, cell) for x, cell in zip(truth, members, strict=True)]
            )
            yield name, "category", gap.sum(), inside, np.mean([len(cell) for cell in members])
            continue
        if name not in low:
            continue
        ends = [low[name][gap], high[name][gap]]
        kind = "number"
        values = truth
        if full[name].dtype == "category":
            kind, values = "ordered", truth.cat.codes
            ends = [end.cat.codes for end in ends]
        ends = [end.to_numpy(float) for end in ends]
        values = values.to_numpy(float)
        inside = (ends[0] <= values) & (values <= ends[1])
        whole = bool((values == values.round()).all())
        width = np.mean(ends[1] - ends[0])
        if kind == "number" and whole:
            kind = "whole"
        size = width + 1 if kind != "number" else width / full[name].std()
        yield name, kind, gap.sum(), inside.mean(), size


def run(options):
    for name in options.data:
        frames = frames_of(options.folder, name, options.rows)
        for why, mask in itertools.product(options.why, options.masks):
            for missingness in [None, "self"] if why == "mnar" else [None]:
                about = {
                    "data": name,
                    "why": why,
                    "mask": mask,
                    "rows": max(len(frame) for frame in frames.values()),
                    "missingness": missingness,
                    "weights": options.weights,
                    "steps": options.steps,
                }
                if not is_done(about, options.output):
                    run_once(frames, about, options)


def is_done(about, output):
    """Whether the output has lines of a run."""
    if not output.exists():
        return False
    lines = [json.loads(text) for text in output.read_text().splitlines()]
    return any(about.items() <= line.items() for line in lines)


def run_once(frames, about, options):
    hidden = {}
    for i, (key, frame) in enumerate(frames.items()):
        hidden[key] = hidden_cells(frame, about["why"], 10 * about["mask"] + i)
    if not any(cells.any() for cells in hidden.values()):  # no numbers to miss for their size
        return
    shown = {key: frame.mask(hidden[key]) for key, frame in frames.items()}
    begun = time.process_time()
    choices = {"held_out": options.held_out} if options.held_out else {}
    if options.steps:
        batch = min(256, max(16, 2 ** round(math.log2(about["rows"] / 12))))
        choices["epochs"] = max(1, round(options.steps / math.ceil(about["rows"] / batch)))
    given = shown["table"] if len(shown) == 1 else shown
    imputation = mvkit.impute(
        given,
        intervals=LEVEL,
        weights=about["weights"],
        choices=choices,
        missingness=about["missingness"],
        seed=about["mask"],
        progress=False,
    )
    about = {**about, "seconds": round(time.process_time() - begun)}
    lines = []
    for key, frame in frames.items():
        for column, kind, cells, inside, size in lines_of(frame, hidden[key], imputation, key):
            lines.append(
                {
                    **about,
                    "column": f"{key}.{column}",
                    "kind": kind,
                    "cells": int(cells),
                    "coverage": round(float(inside), 4),
                    "size": round(float(size), 3),
                }
            )
    with options.output.open("a") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)
    print(summary(pandas.DataFrame(lines)).to_string(), flush=True)


def summary(lines):
    """Coverage by kind of column: mean over columns and masks, spread of masks, standard error."""
    lines = lines.assign(missingness=lines.missingness.fillna("none"))
    groups = ["data", "why", "missingness", "weights", "kind"]
    by_mask = lines.groupby([*groups, "mask"]).coverage.mean().groupby(groups)
    table = lines.groupby(groups).agg(
        cells=("cells", "sum"),
        coverage=("coverage", "mean"),
        error=("coverage", "sem"),
        size=("size", "mean"),
    )
    table.insert(0, "masks", by_mask.count())
    table["lowest"] = by_mask.min()
    table["highest"] = by_mask.max()
    return table.round(3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--data", nargs="+", default=list(DATA))
    parser.add_argument("--why", nargs="+", default=["mcar", "mar", "mnar"])
    parser.add_argument("--masks", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--weights", choices=["odds", "equal"], default="odds")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--held-out", type=float)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--output", type=Path, default=LINES)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.what == "run":
        run(options)
    else:
        print(summary(pandas.read_json(options.output, lines=True)).to_string())


if __name__ == "__main__":
    main()
