"""Hidden cells of four tables of mixed columns, recovered with no option given.

    python benchmarks/mixed_tables.py run --data Breast Wine --rates 10 30 50 --masks 1 2
    python benchmarks/mixed_tables.py table

Adult, Breast (Wisconsin), Wine (quality) and defaultCredit of UCI with the masks that HI-VAE's
authors published: a share of 10 to 50 per cent of the cells, two masks each (`--folder` has them).
`run` adds lines to `mixed_tables.jsonl` for each method that has none yet; `table` prints what is
there, as in docs/benchmarks.md. Score, as in that paper: root mean square error over the range of
numbers, share wrong of categories, mean distance over the number of levels of ordered ones,
averaged over the columns; lower is better. Every method gets the same tables and types: ordered
categories and counts are numbers, rounded, to scikit-learn's imputers, and categories are one-hot,
to forests codes. `--masks own1` hides other cells, for whoever changes what `impute` chooses: the
published masks are to report on, never to choose by.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer
from sklearn.linear_model import BayesianRidge

import mvkit
from mvkit.data.table_layout import observing

LINES = Path(__file__).with_suffix(".jsonl")
FOLDER = Path("../shared/data/mixed_tables")
TABLES = ("Adult", "Breast", "Wine", "defaultCredit")
RATES = (10, 20, 30, 40, 50)
TREES = 30
LARGE = 10_000  # rows, beyond which a tree sees a part of them
KNN_ROWS = 5_000  # that neighbours are sought among
DRAWS = 101  # of each row, whose median or mean is taken


class Table:
    """One table with its types, and the cells that are known and the cells that are hidden.

    Args:
        folder: with the published files.
        name: of the table.
        rate: per cent of the cells that are hidden.
        mask: 1 or 2, as published, or `own` and a seed.
    """

    def __init__(self, folder: Path, name: str, rate: int, mask: str) -> None:
        self.values = pandas.read_csv(folder / name / "data.csv.gz", header=None).to_numpy(float)
        with gzip.open(folder / name / "data_types.csv.gz", "rt") as file:
            text = file.read()
        rows = [line.split(",") for line in text.splitlines()[1:] if line.strip()]
        self.types = [row[0] for row in rows]
        self.classes = [int(row[2]) if row[2:] and row[2].strip() else 0 for row in rows]
        known = ~np.isnan(self.values)
        self.hidden = self._mask(folder / name, rate, mask) & known
        self.observed = np.where(self.hidden, np.nan, self.values)

    def _mask(self, folder: Path, rate: int, mask: str) -> np.ndarray:
        shape = self.values.shape
        if mask.startswith("own"):
            generator = np.random.default_rng([int(mask[3:]), rate])
            return generator.random(shape) < rate / 100
        pairs = pandas.read_csv(folder / f"Missing{rate}_{mask}.csv.gz", header=None).to_numpy(int)
        hidden = np.zeros(shape, bool)
        hidden[pairs[:, 0] - 1, pairs[:, 1] - 1] = True
        return hidden

    def frame(self) -> pandas.DataFrame:
        """What a user would have: categories as words, ordered ones with their order."""
        columns = {}
        for i, kind in enumerate(self.types):
            x = self.observed[:, i]
            levels = np.unique(x[~np.isnan(x)])
            if kind in ("cat", "ordinal"):
                codes = np.where(
                    np.isnan(x), -1, np.searchsorted(levels, x).clip(max=len(levels) - 1)
                )
                words = [f"{level:g}" for level in levels]
                dtype = pandas.CategoricalDtype(words, ordered=kind == "ordinal")
                columns[f"c{i}"] = pandas.Categorical.from_codes(codes, dtype=dtype)
            elif kind == "count":
                columns[f"c{i}"] = pandas.array(x, dtype="Int64")
            else:
                columns[f"c{i}"] = x
        return pandas.DataFrame(columns)

    def numbers_of(self, frame: pandas.DataFrame) -> np.ndarray:
        """The numbers of such a table."""
        return frame.astype(object).astype(float).to_numpy(float)

    def score(self, filled: np.ndarray) -> tuple[float, list[float]]:
        """HI-VAE's score, and the errors by column."""
        errors = []
        for i, kind in enumerate(self.types):
            cells = self.hidden[:, i]
            truth, said = self.values[cells, i], filled[cells, i]
            if kind == "cat":
                errors.append(float((truth != said).mean()))
            elif kind == "ordinal":
                errors.append(float(np.abs(truth - said).mean() / self.classes[i]))
            else:
                span = np.nanmax(self.values[:, i]) - np.nanmin(self.values[:, i])
                errors.append(float(np.sqrt(np.square(truth - said).mean()) / span))
        return float(np.mean(errors)), errors


def rounded(table: Table, filled: np.ndarray) -> np.ndarray:
    """Numbers as their columns may hold them: whole counts and levels, within what was seen."""
    filled = filled.copy()
    for i, kind in enumerate(table.types):
        if kind in ("count", "ordinal"):
            filled[:, i] = filled[:, i].round()
    return filled.clip(np.nanmin(table.observed, 0), np.nanmax(table.observed, 0))


def ours(table: Table, seed: int) -> np.ndarray:
    """`mvkit.impute(table)`, no option given."""
    return table.numbers_of(mvkit.impute(table.frame(), seed=seed).table)


def groups_of(table: Table) -> dict[str, list[int]]:
    """Columns by kind; each of categories by itself, as their numbers of classes differ."""
    groups: dict[str, list[int]] = {}
    for i, kind in enumerate(table.types):
        groups.setdefault(f"cat{i}" if kind == "cat" else kind, []).append(i)
    return groups


def modality_of(table: Table, kind: str, columns: list[int]) -> tuple[np.ndarray, mvkit.Modality]:
    """Columns of a kind as an array, and their likelihood: those of HI-VAE."""
    x = table.observed[:, columns]
    if kind.startswith("cat"):
        levels = np.unique(x[~np.isnan(x)])
        one_hot = np.where(np.isnan(x), np.nan, x == levels)
        return one_hot, mvkit.Modality((len(levels),), "categorical")
    if kind == "ordinal":
        levels = max(table.classes[i] for i in columns)
        likelihood = {"name": "ordinal", "levels": levels}
        return x - np.nanmin(x, 0), mvkit.Modality((len(columns),), likelihood)
    if kind == "count":
        return x, mvkit.Modality((len(columns),), "poisson", input="log1p")
    likelihood = {"name": "normal", "scale": "decoded"}
    return x, mvkit.Modality((len(columns),), likelihood)


def hivae(table: Table, seed: int) -> np.ndarray:
    """`recipes.hivae` as it comes: z of 10 numbers, 10 components, 5 numbers of each column.

    Batches of 200 rows, 500 epochs but 4,000 steps at most, Adam at its default. Means of numbers,
    medians of ordered categories, the most probable of others.
    """
    groups = groups_of(table)
    arrays = {}
    modalities = {}
    for kind, columns in groups.items():
        arrays[kind], modalities[kind] = modality_of(table, kind, columns)
    steps = {"real": ["standardise"], "pos": ["log1p", "standardise"]}
    data = mvkit.MultimodalDataset.from_arrays(arrays, modalities=modalities)
    data = data.fit_transforms({kind: steps[kind] for kind in groups if kind in steps})
    model = mvkit.recipes.hivae(data.modalities, seed=seed)
    epochs = max(1, min(500, 4000 * 200 // len(data)))
    known = data.take(observing(data.batch))
    mvkit.fit(model, known, epochs=epochs, batch_size=200, seed=seed, progress=False)
    filled = table.observed.copy()
    for kind, columns in groups.items():
        seen = table.observed[:, columns]
        filled[:, columns] = np.where(np.isnan(seen), said_of(model, data, kind, seen), seen)
    return rounded(table, filled)


def said_of(model: mvkit.Model, data: Any, kind: str, seen: np.ndarray) -> np.ndarray:
    """What a model of `hivae` says of the columns of a kind, at the means of its latents."""
    options: dict[str, Any] = {"latent": "mean", "empty": "prior"}
    options["generator"] = torch.Generator().manual_seed(0)
    if kind in ("ordinal", "pos"):  # whose medians and means, undoing logarithms, need draws
        options |= {"n": DRAWS, "sample": True}
    values = model.translate(data, [kind], **options)[kind].double()
    if kind.startswith("cat"):
        levels = np.unique(seen[~np.isnan(seen)])
        return levels[values[0].argmax(1).numpy()][:, None]
    if kind == "ordinal":
        return values.median(0).values.numpy() + np.nanmin(seen, 0)
    return values.mean(0).numpy()


def mean(table: Table, seed: int) -> np.ndarray:
    """Means of numbers, medians of ordered categories, the most frequent of others."""
    filled = table.observed.copy()
    for i, kind in enumerate(table.types):
        x = table.observed[:, i]
        known = x[~np.isnan(x)]
        values, counts = np.unique(known, return_counts=True)
        guess = {"cat": values[counts.argmax()], "ordinal": np.median(known)}.get(
            kind, known.mean()
        )
        filled[np.isnan(x), i] = guess
    return rounded(table, filled)


def on_one_hot(table: Table, imputer: Any) -> np.ndarray:
    """What an imputer of scikit-learn makes of standardised numbers and one-hot categories."""
    columns = []
    places = []
    for i, kind in enumerate(table.types):
        x = table.observed[:, i]
        levels = np.unique(x[~np.isnan(x)]) if kind == "cat" else None
        width = 1 if levels is None else len(levels)
        places.append((len(columns), width, levels))
        for level in [None] if levels is None else levels:
            columns.append(x if level is None else np.where(np.isnan(x), np.nan, x == level))
    encoded = np.stack(columns, 1)
    centre, spread = np.nanmean(encoded, 0), np.nanstd(encoded, 0) + 1e-12
    encoded = imputer.fit_transform((encoded - centre) / spread) * spread + centre
    filled = np.empty_like(table.observed)
    for i, (start, width, levels) in enumerate(places):
        block = encoded[:, start : start + width]
        filled[:, i] = block[:, 0] if levels is None else levels[block.argmax(1)]
    return rounded(table, filled)


def iterative(table: Table, seed: int) -> np.ndarray:
    """IterativeImputer with its default estimator."""
    return on_one_hot(table, IterativeImputer(BayesianRidge(), max_iter=10, random_state=seed))


def knn(table: Table, seed: int) -> np.ndarray:
    """KNNImputer with its default of five neighbours, of large tables in parts of rows."""
    if len(table.values) <= KNN_ROWS:
        return on_one_hot(table, KNNImputer())

    class InParts:
        def fit_transform(self, x: np.ndarray) -> np.ndarray:
            parts = [
                KNNImputer().fit_transform(part) for part in np.array_split(x, len(x) // KNN_ROWS)
            ]
            return np.concatenate(parts)

    return on_one_hot(table, InParts())


class Forest(RegressorMixin, BaseEstimator):
    """A random forest of either sort: a classifier where all targets are whole.

    Numbers are shifted so that none is.
    """

    def __init__(self, large: bool = False, seed: int = 0) -> None:
        self.large = large
        self.seed = seed

    def fit(self, x: np.ndarray, y: np.ndarray) -> Forest:
        classes = bool((y == y.round()).all())
        forest = RandomForestClassifier if classes else RandomForestRegressor
        self.forest = forest(
            n_estimators=TREES,
            max_features="sqrt" if classes else 1 / 3,
            min_samples_leaf=5 if self.large else 1,
            max_samples=0.3 if self.large else None,
            random_state=self.seed,
        )
        self.forest.fit(x, y)
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.forest.predict(x).astype(float)


def forests(table: Table, seed: int) -> np.ndarray:
    """missForest: IterativeImputer with random forests, three rounds of thirty trees."""
    x = table.observed
    category = np.array(table.types) == "cat"
    centre = np.where(category, 0.0, np.nanmean(x, 0))
    spread = np.where(category, 1.0, np.nanstd(x, 0) / 0.9137)
    shift = np.where(category, 0.0, 0.00713)
    forest = Forest(large=len(x) > LARGE, seed=seed)
    imputer = IterativeImputer(forest, max_iter=3, random_state=seed)
    filled = imputer.fit_transform((x - centre) / spread + shift)
    return rounded(table, (filled - shift) * spread + centre)


METHODS: dict[str, Callable[[Table, int], np.ndarray]] = {
    "impute": ours,
    "mean": mean,
    "knn": knn,
    "iterative": iterative,
    "forests": forests,
    "hivae": hivae,
}


def run(options: argparse.Namespace) -> None:
    """Adds a line for each method, table, rate and mask that has none."""
    torch.set_num_threads(1)
    done = {(line["method"], line["data"], line["rate"], line["mask"]) for line in lines()}
    cells = itertools.product(options.masks, options.rates, options.data, options.methods)
    for mask, rate, name, method in cells:
        if (method, name, rate, mask) in done:
            continue
        table = Table(options.folder, name, rate, mask)
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            filled = METHODS[method](table, 0)
        seconds = round(time.process_time() - start)
        score, errors = table.score(filled)
        line = {"method": method, "data": name, "rate": rate, "mask": mask, "score": score}
        line |= {"seconds": seconds, "errors": [round(error, 5) for error in errors]}
        print(line, flush=True)
        with LINES.open("a") as file:
            file.write(json.dumps(line) + "\n")


def lines() -> list[dict[str, Any]]:
    """What was run."""
    if not LINES.exists():
        return []
    return [json.loads(line) for line in LINES.read_text().splitlines()]


def table() -> str:
    """Scores by table and rate, the two masks each, and how many cells `impute` wins."""
    scores: dict[tuple[str, int, str], dict[str, float]] = {}
    seconds: dict[tuple[str, str], list[float]] = {}
    for line in lines():
        if not line["mask"].startswith("own"):
            cell = (line["data"], line["rate"], line["mask"])
            scores.setdefault(cell, {})[line["method"]] = line["score"]
            seconds.setdefault((line["data"], line["method"]), []).append(line["seconds"])
    text = [f"| table | hidden | {' | '.join(METHODS)} | won |", "|---" * (len(METHODS) + 3) + "|"]
    won = counted = 0
    for name, rate in itertools.product(TABLES, RATES):
        both = [scores[cell] for cell in ((name, rate, "1"), (name, rate, "2")) if cell in scores]
        if not both:
            continue
        wins = sum(_wins(cell) for cell in both)
        won += wins
        counted += sum({"impute", "iterative", "forests"} <= cell.keys() for cell in both)
        shown = []
        for method in METHODS:
            shown.append(" ".join(f"{cell[method]:.4f}" for cell in both if method in cell))
        text.append(f"| {name} | {rate} % | {' | '.join(shown)} | {wins} |")
    for name in TABLES:
        times = []
        for method in METHODS:
            own = seconds.get((name, method), [])
            times.append(f"{max(own):.0f} s" if own else "")
        text.append(f"| {name} | CPU time at most | {' | '.join(times)} | |")
    return "\n".join([*text, "", f"`impute` wins {won} of {counted} cells."])


def _wins(cell: dict[str, float]) -> bool:
    """Whether `impute` is better than both the linear and the forests' imputer."""
    rivals = [cell.get("iterative"), cell.get("forests")]
    return "impute" in cell and all(
        rival is not None and cell["impute"] < rival for rival in rivals
    )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--data", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--rates", nargs="+", type=int, default=RATES)
    parser.add_argument("--masks", nargs="+", default=["1", "2"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    if options.what == "run":
        run(options)
    print(table())


if __name__ == "__main__":
    main()
