"""How many hidden cells the 90 per cent intervals and sets of `mvkit.impute(table)` hold.

    python benchmarks/intervals.py run --data Wine --why mcar mar --masks 1 2 3
    python benchmarks/intervals.py table

Adult, Breast (Wisconsin), Wine (quality) and defaultCredit of UCI, and rosmap (three tables of 200
features of the same people). A share of 20 per cent of the cells is hidden: `mcar` at random; `mar`
by logistic probabilities of one column, the driver, that is never hidden (in each of three tables
of rosmap its first); `mnar` more often where a number itself is large, with and without
`missingness="self"`. Masks are seeds. `run` adds lines to `intervals.jsonl`, one for each column.
`--rows` takes the first rows alone, and `--steps` trains for less: conformal intervals hold their
share with any model, and better models have narrower ones.
"""

from __future__ import annotations

import argparse
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
        gap = hidden[:, i]
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
        for why in options.why:
            for mask in options.masks:
                for missingness in [None, "self"] if why == "mnar" else [None]:
                    one(name, frames, why, mask, missingness, options)


def one(name, frames, why, mask, missingness, options):
    hidden = {
        key: hidden_cells(frame, why, 10 * mask + i)
        for i, (key, frame) in enumerate(frames.items())
    }
    shown = {key: frame.mask(hidden[key]) for key, frame in frames.items()}
    begun = time.monotonic()
    rows = max(len(frame) for frame in frames.values())
    choices = {"held_out": options.held_out} if options.held_out else {}
    if options.steps:
        batch = min(256, max(16, 2 ** round(math.log2(rows / 12))))
        choices["epochs"] = max(1, round(options.steps / math.ceil(rows / batch)))
    given = shown["table"] if len(shown) == 1 else shown
    imputation = mvkit.impute(
        given, intervals=LEVEL, choices=choices, missingness=missingness, seed=mask, progress=False
    )
    about = {
        "data": name,
        "why": why,
        "mask": mask,
        "rows": rows,
        "missingness": missingness,
        "steps": options.steps,
        "seconds": round(time.monotonic() - begun),
    }
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
    """Coverage over all hidden cells by kind of column, and of the lowest and highest column."""
    lines = lines.assign(
        inside=lines.cells * lines.coverage, missingness=lines.missingness.fillna("none")
    )
    groups = lines.groupby(["data", "why", "missingness", "mask", "kind"])
    table = groups.agg(
        columns=("column", "count"),
        cells=("cells", "sum"),
        inside=("inside", "sum"),
        lowest=("coverage", "min"),
        highest=("coverage", "max"),
        size=("size", "mean"),
    )
    table["coverage"] = table.pop("inside") / table.cells
    return table.round(3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--data", nargs="+", default=list(DATA))
    parser.add_argument("--why", nargs="+", default=["mcar", "mar"])
    parser.add_argument("--masks", nargs="+", type=int, default=[1, 2, 3])
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
