"""Whether what recipes generate agrees, is near the data, and is as diverse: samplers compared.

    python benchmarks/generation.py run                              # all, three seeds
    python benchmarks/generation.py run --recipes mopoe --samplers none gmm --seeds 0 --missing 0
    python benchmarks/generation.py table

Latent 16, 20 epochs, batch 128, MLP 512-512, normal likelihood with scale 0.25, on polydigits
(`digits`) and on polydigits(attribute="quadrant") (`quadrant`), whose first picture leaves open
where the digit is in all others. `run` adds lines to generation.jsonl and leaves out what is there;
`--models FOLDER` keeps the trained models for another start. `table` prints means over seeds, after
a line of what real rows have under the same judges. A sampler or a refiner whose package is not
installed is skipped, with a word.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

import mvkit
from mvkit import recipes
from mvkit.data.datasets.catalogue import Splits
from mvkit.evaluation.diversity import mean_distance
from mvkit.evaluation.frechet import frechet_distance
from mvkit.evaluation.neighbours import within_neighbours
from mvkit.evaluation.perceptron import Perceptron, fit_perceptron

LINES = Path(__file__).with_suffix(".jsonl")
RECIPES = ("mopoe", "jmvae", "cmvae")
SAMPLERS: dict[str, dict[str, object]] = {
    "none": {},
    "gmm": {"name": "gmm", "components": 50, "conditional": True},
    "mvkit-diffusion/latent_flow": {"name": "mvkit-diffusion/latent_flow"},
}
KEYS = (
    *("data", "recipe", "missing", "seed", "epochs", "rows", "sampler", "refiner"),
    "refiner options",  # of refined lines alone
)
NEIGHBOURS_OF = 1000  # rows, for precision and recall: they depend on the number
OPEN = {"name": "agreement", "given": [["m0"]], "n": 4}
Judges = Mapping[str, Perceptron]
Line = dict[str, object]


def data_of(name: str, missing: float, rows: int | None) -> Splits:
    """Polydigits, with or without the attribute; `rows` of each split at most."""
    attribute = "quadrant" if name == "quadrant" else None
    data = mvkit.load_dataset("polydigits", missing=missing, attribute=attribute)
    some = {}
    for split in ("train", "valid", "test"):
        whole = getattr(data, split)
        some[split] = attrs.evolve(whole, batch=whole.batch.take(slice(0, rows)))
    return attrs.evolve(data, **some)


def judges_of(data: Splits, label: str) -> Judges:
    """A classifier of each modality's real pictures, which all models are judged by."""
    train = data.train.batch
    judges = {}
    for name, x in train.data.items():
        if label == "label" or name != "m0":
            judges[name] = fit_perceptron(x, train.extra[label])
    return judges


def features_of(judges: Judges) -> dict[str, Callable[[Tensor], Tensor]]:
    """What the hidden layers of the judges say."""
    return {
        name: lambda x, judge=judge: torch.from_numpy(judge.hidden(x))
        for name, judge in judges.items()
    }


def real_rows(data: Splits, judges: Judges) -> Line:
    """What real rows have under the judges: training rows take the place of samples."""
    test, train = data.test.batch, data.train.batch
    classes = np.stack([judge(test.data[name]) for name, judge in judges.items()])
    columns: dict[str, list[float]] = {}
    for name, features in features_of(judges).items():
        own, other = features(test.data[name]), features(train.data[name][: len(test)])
        few = slice(0, NEIGHBOURS_OF)
        shares = {
            "Fréchet": frechet_distance(own, other),
            "precision": float(within_neighbours(other[few], own[few]).double().mean()),
            "recall": float(within_neighbours(own[few], other[few]).double().mean()),
            "distance": mean_distance(test.data[name][few].flatten(1)),
            "ceiling": ceiling(data, name, judges[name]),
        }
        for key, value in shares.items():
            columns.setdefault(key, []).append(value)
    line: Line = {key: statistics.fmean(values) for key, values in columns.items()}
    right = classes == test.extra["label"].numpy()
    return line | {
        "given 1": float(right.mean()),
        "unconditional": float((classes == classes[0]).all(0).mean()),
    }


def ceiling(data: Splits, name: str, judge: Perceptron) -> float:
    """E p(true label | picture) by the judge, its temperature fitted to valid rows.

    Draws from p(x_m | picture) cannot be right more often than this, of a calibrated judge.
    """

    def log_p(batch: mvkit.Batch, temperature: float) -> np.ndarray:
        x = batch.data[name].flatten(1).numpy()
        logits = np.log(judge.network.predict_proba(x) + 1e-12) / temperature
        normalised = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        return normalised[np.arange(len(x)), batch.extra["label"].numpy()]

    valid = data.valid.batch
    fitted = minimize_scalar(lambda t: -log_p(valid, t).mean(), bounds=(0.2, 10), method="bounded")
    return float(np.exp(log_p(data.test.batch, fitted.x)).mean())


def trained(line: Line, data: Splits, folder: Path | None) -> tuple[mvkit.Model, float | None]:
    """The base model and the CPU seconds of its training; from the folder where it is there."""
    name, seed, epochs = line["recipe"], line["seed"], line["epochs"]
    file = f"{line['data']}-{name}-{line['missing']}-{seed}-{epochs}.safetensors"
    if folder is not None and (folder / file).exists():
        return mvkit.load(folder / file), None
    start = time.process_time()
    model = getattr(recipes, str(name))(data.modalities, latent_dim=16, seed=seed)
    mvkit.fit(model, data.train, validation=data.valid, epochs=epochs, seed=seed, progress=False)
    seconds = time.process_time() - start
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        mvkit.save(model, folder / file)
    return model, seconds


def measured(model: mvkit.Model, data: Splits, judges: Judges, line: Line) -> Line:
    """All measures of one model with one sampler on complete test rows."""
    sampler = None if line["sampler"] == "none" else str(line["sampler"])
    options = {"classifiers": judges, "sampler": sampler, "refine": line["refiner"] != "none"}
    if line["data"] == "quadrant":
        report = mvkit.evaluate(model, data.test, [OPEN], label="quadrant", **options)
        return {
            "open, agree": report["agreement/given m0"],
            "open, by chance": report["agreement/given m0, by chance"],
            "open, two alike": report["agreement/given m0, two draws alike"],
        }
    metrics = [{"name": name, "sampler": sampler} for name in ("frechet", "diversity")]
    metrics += [{"name": "precision_recall", "sampler": sampler, "limit": NEIGHBOURS_OF}]
    metrics += [{"name": "coherence", "sets": "cyclic", "sampler": sampler}]
    report = mvkit.evaluate(model, data.test, metrics, features=features_of(judges), **options)
    columns = dict(_columns(report, list(model.names), sampler))
    means = {"name": "coherence", "sets": "cyclic", "latent": "mean"}
    of_means = mvkit.evaluate(model, data.test, [means], **options)
    lines = {f"{score.metric}/{score.name}": score.value for score in of_means.scores}
    if "coherence/given 1" in lines:  # not every sampler has means
        columns["given 1, mean"] = lines["coherence/given 1"]
    return columns


def _columns(
    report: mvkit.Report, names: list[str], sampler: str | None
) -> Iterator[tuple[str, float]]:
    """The columns of the table from a report; those of modalities as means over them."""
    lines = {f"{score.metric}/{score.name}": score.value for score in report.scores}
    yield "given 1", lines["coherence/given 1"]
    yield f"given {len(names) - 1}", lines[f"coherence/given {len(names) - 1}"]
    title = "unconditional" if sampler is None else f"unconditional, {sampler}"
    if f"coherence/{title}" in lines:
        yield "unconditional", lines[f"coherence/{title}"]
    by_modality = {
        "Fréchet": "frechet/{}, samples",
        "Fréchet given 4": "frechet/{}, given all others",
        "precision": "precision_recall/{}, samples, precision",
        "recall": "precision_recall/{}, samples, recall",
        "recall, reconstructed": "precision_recall/{}, reconstructed, recall",
        "distance": "diversity/{}, samples",
        "distance, reconstructed": "diversity/{}, reconstructed",
        "distance, real": "diversity/{}, real",
    }
    for column, pattern in by_modality.items():
        values = [lines.get(pattern.format(name)) for name in names]
        if None not in values:
            yield column, statistics.fmean(values)
    yield "spread", lines["diversity/spread, given 1"]
    if "diversity/spread, of the posterior's" in lines:
        yield "spread, of the posterior's", lines["diversity/spread, of the posterior's"]


def run(options: argparse.Namespace) -> None:
    """Trains and measures what has no line yet."""
    done = {key_of(line) for line in lines_of(options.out)}
    samplers = [name for name in options.samplers if installed("sampler", name)]
    if not installed("refiner", options.refiner):
        return
    for name in options.data:
        label = "quadrant" if name == "quadrant" else "label"
        complete = data_of(name, 0.0, options.rows)
        judges = judges_of(complete, label)
        base = {"data": name, "epochs": options.epochs, "refiner": "none", "rows": options.rows}
        real = base | {"recipe": "real rows", "missing": 0.0, "seed": 0, "sampler": "none"}
        if name == "digits" and key_of(real) not in done:
            write(options.out, real | real_rows(complete, judges))
        for missing in options.missing:
            data = data_of(name, missing, options.rows)
            for recipe in options.recipes:
                for seed in options.seeds:
                    line = base | {"recipe": recipe, "missing": missing, "seed": seed}
                    left = []
                    for sampler in samplers:
                        for refiner in dict.fromkeys(("none", options.refiner)):
                            own = line | of_sources(sampler, refiner, options)
                            if key_of(own) not in done:
                                left.append((sampler, refiner))
                    if left:
                        one_model(line, data, judges, left, options)


def installed(kind: str, name: str) -> bool:
    """Whether there is such a part; says so where there is none."""
    if name == "none":
        return True
    try:
        mvkit.plugins.lookup(kind, name)
    except mvkit.UnknownComponent:
        print(f"skipped: {kind} {name!r} is not installed")
        return False
    return True


def one_model(
    line: Line,
    data: Splits,
    judges: Judges,
    left: list[tuple[str, str]],
    options: argparse.Namespace,
) -> None:
    """Trains one model and measures it with each sampler and refiner; a line each."""
    model, seconds = trained(line, data, options.models)
    of_refiners = 0.0
    if any(refiner != "none" for _, refiner in left):
        start = time.process_time()
        epochs = {"epochs": options.refiner_epochs, "seed": line["seed"], "progress": False}
        refiner = {"name": options.refiner, **json.loads(options.refiner_options)}
        mvkit.fit_refiner(model, data.train, refiner=refiner, **epochs)
        of_refiners = time.process_time() - start
    for sampler in dict.fromkeys(sampler for sampler, _ in left):
        start = time.process_time()
        if sampler != "none":
            mvkit.fit_sampler(model, data.train, SAMPLERS.get(sampler, sampler), seed=line["seed"])
        above = time.process_time() - start
        for refiner in [refiner for name, refiner in left if name == sampler]:
            own = line | of_sources(sampler, refiner, options)
            own |= {"seconds": seconds, "seconds above": above}
            if refiner != "none":
                own["seconds of refiners"] = of_refiners
            write(options.out, own | measured(model, data, judges, own))


def of_sources(sampler: str, refiner: str, options: argparse.Namespace) -> Line:
    """The part of a line that says what draws."""
    own: Line = {"sampler": sampler, "refiner": refiner}
    if refiner != "none":
        own["refiner options"] = options.refiner_options
    return own


def key_of(line: Line) -> tuple[object, ...]:
    """What a line is about."""
    return tuple(line.get(key) for key in KEYS)


def lines_of(path: Path) -> list[Line]:
    """The lines that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(path: Path, line: Line) -> None:
    """Adds a line; numbers to four places."""
    rounded = {}
    for key, value in line.items():
        rounded[key] = round(value, 4) if isinstance(value, float) else value
    print(json.dumps(rounded, ensure_ascii=False), flush=True)
    with path.open("a") as file:
        file.write(json.dumps(rounded, ensure_ascii=False) + "\n")


def table(path: Path) -> str:
    """Means over seeds in Markdown: a line for each model and sampler, of both data sets."""
    groups: dict[tuple[object, ...], dict[str, list[float]]] = {}
    left_out = set(KEYS)
    for line in lines_of(path):
        refiner = f"{line['refiner']} {line.get('refiner options', '')}"
        group = (line["recipe"], line["missing"], line["sampler"], refiner)
        columns = groups.setdefault(group, {})
        for key, value in line.items():
            if key in ("seconds", "seconds above", "seconds of refiners"):
                key = f"{key}, {line['data']}"
            if key not in left_out and value is not None:
                columns.setdefault(key, []).append(float(value))
    titles = list(dict.fromkeys(key for columns in groups.values() for key in columns))
    heads = ["model", "missing", "sampler", "refiner", *titles]
    text = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for group, columns in groups.items():
        means = [
            f"{statistics.fmean(columns[key]):.3g}" if key in columns else "" for key in titles
        ]
        text.append("| " + " | ".join([*map(str, group), *means]) + " |")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    parser.add_argument(
        "--refiner", default="none", help="of all modalities, measured beside none; see mvkit list"
    )
    parser.add_argument("--refiner-epochs", type=int, default=40)
    parser.add_argument("--refiner-options", default="{}", help="others of the refiner, in JSON")
    parser.add_argument("--data", nargs="+", choices=("digits", "quadrant"), default=["digits"])
    parser.add_argument("--missing", type=float, nargs="+", default=[0.0, 0.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rows", type=int, help="rows of each split at most")
    parser.add_argument("--models", type=Path, help="a folder that keeps the base models")
    parser.add_argument("--out", type=Path, default=LINES)
    options = parser.parse_args()
    if options.what == "run":
        run(options)
    print(table(options.out))


if __name__ == "__main__":
    main()
