"""PolyMNIST at 28 x 28: coherence, likelihood and Fréchet distances, beside what was published.

    python benchmarks/polymnist.py --path ../shared/data --minutes 100            # a CPU's night
    python benchmarks/polymnist.py --path ../shared/data --device cuda --minutes 10 --rows 55000 \
        --channels 32 64 128 --batch 256
    python benchmarks/polymnist.py --table

The folder has `mnist` and `polymnist_backgrounds`; needs plugins/mvkit-datasets. `--minutes` are for
all recipes together: two thirds of them train, for as many epochs as a timed start says, the rest
measures. With `--epochs` and `--runs FOLDER` a run that was stopped resumes. Adds lines to
polymnist.jsonl, one for each recipe and sampler; a sampler whose package is not installed is skipped.

Latents, β and likelihood are as published; networks are three strided convolutions a side, and the
photograph of `m2` is another one. Classes and features are those of small convolutional judges that
are fitted here, 128 features each: published Fréchet distances rest on Inception's features, so that
the two cannot be compared but by their order.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import torch
from mvkit_datasets.composed import PolyMNIST
from torch import Tensor, nn

import mvkit
from mvkit import recipes
from mvkit.data.datasets import Splits
from mvkit.evaluation.frechet import frechet_distance
from mvkit.parts import Conv

LINES = Path(__file__).with_suffix(".jsonl")
FEATURES = 128
FLOW = "mvkit-diffusion/latent_flow"
SAMPLERS: dict[str, dict[str, object]] = {
    "none": {},
    "gmm": {"name": "gmm", "components": 10},
    FLOW: {"name": FLOW, "steps": 3000},
}
SETTINGS: dict[str, dict[str, object]] = {
    "mopoe": {"latent_dim": 512, "beta": 2.5},
    "mvtcae": {"latent_dim": 512},
    "mmvaeplus": {"latent_dim": 32, "private_dim": 32, "beta": 2.5, "samples": 1},
    "cmvae": {"latent_dim": 32, "private_dim": 32, "beta": 2.5, "samples": 1, "clusters": 40},
}
# The column "Paper" of the table in "Reproducibility statement" of MultiVae's documentation,
# https://github.com/AgatheSenellart/MultiVae, docs/source/readme.md at commit 12109df, which quotes
# the papers that are named here. Percentages of coherence given 1, 2, 3 and 4 pictures for the first
# two; what else the numbers are is said there in these words.
PUBLISHED = {
    "mopoe": ("coherences 66/77/81/83", "https://arxiv.org/abs/2105.02470"),
    "mvtcae": (
        "coherences 69/77/83/86",
        "https://proceedings.neurips.cc/paper/2021/hash/"
        "65a99bb7a3115fdede20da98b08a370f-Abstract.html",
    ),
    "mmvaeplus": ("coherence/FID 86.9/92.81", "https://openreview.net/forum?id=sdQGxouELX"),
    "cmvae": ("coherences 89.7/78.1", "https://openreview.net/forum?id=k5THrhXDV3"),
}
Line = dict[str, object]


class Judge(nn.Module):
    """A classifier of pictures (b, 3, 28, 28), whose last layer but one has features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Conv().encoder((3, 28, 28), FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (b, 10)."""
        return self.head(self.body(x))

    def features(self, x: Tensor) -> Tensor:
        """Features (b, 128)."""
        return self.body(x)


def fitted_judge(x: Tensor, label: Tensor, passes: int, device: str) -> Judge:
    """A judge of one modality's real pictures."""
    torch.manual_seed(0)
    judge = Judge().to(device)
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3)
    for _ in range(passes):
        for rows in torch.randperm(len(x)).split(128):
            scores = judge(x[rows].to(device))
            loss = nn.functional.cross_entropy(scores, label[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return judge.eval().requires_grad_(False)


def on(device: str, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function, of values on any device."""
    return lambda x: function(x.to(device)).cpu()


def real_rows(data: Splits, judges: dict[str, Judge], device: str) -> Line:
    """Judges on real test rows, and the Fréchet distance of as many training rows."""
    test, train = data.test.batch, data.train.batch
    classes, distances = [], []
    for name, judge in judges.items():
        features = on(device, judge.features)
        classes.append(on(device, judge)(test.data[name]).argmax(1))
        other = train.data[name][: len(test)]
        distances.append(frechet_distance(features(test.data[name]), features(other)))
    shown = torch.stack(classes)
    right = (shown == test.extra["label"]).double()
    return {
        "given 1": float(right.mean()),
        "unconditional": float((shown == shown[0]).all(0).double().mean()),
        "Fréchet": sum(distances) / len(distances),
    }


def model_of(recipe: str, data: Splits, options: argparse.Namespace) -> mvkit.Model:
    """An untrained model with convolutions."""
    network = Conv(channels=tuple(options.channels))
    modalities = {}
    for name, modality in data.modalities.items():
        modalities[name] = attrs.evolve(modality, encoder=network, decoder=network)
    build = getattr(recipes, recipe)
    model: mvkit.Model = build(modalities, seed=options.seed, **SETTINGS[recipe])
    return model


def epochs_in(recipe: str, data: Splits, seconds: float, options: argparse.Namespace) -> int:
    """How many epochs fit, by the time that some batches take."""
    few = data.train.batch.take(slice(0, min(len(data.train), 12 * options.batch)))
    model = model_of(recipe, data, options)
    settings = {"batch_size": options.batch, "device": options.device, "progress": False}
    mvkit.fit(model, few, epochs=1, seed=0, **settings)  # the first steps are slower
    start = time.perf_counter()
    mvkit.fit(model, few, epochs=1, seed=0, **settings)
    epoch = (time.perf_counter() - start) * len(data.train) / len(few)
    return max(2, int(seconds / epoch))  # two: some recipes have two stages


def run(
    recipe: str,
    data: Splits,
    judges: dict[str, Judge],
    seconds: float,
    options: argparse.Namespace,
) -> list[Line]:
    """Trains one model in about so many seconds; writes and returns a line of each sampler."""
    epochs = options.epochs or epochs_in(recipe, data, seconds, options)
    start = time.perf_counter()
    cpu = time.process_time()
    model = model_of(recipe, data, options)
    settings = {"batch_size": options.batch, "device": options.device, "progress": False}
    if options.runs:
        settings["checkpoint"] = options.runs / recipe
    mvkit.fit(model, data.train, epochs=epochs, seed=options.seed, **settings)
    line: Line = {"recipe": recipe, "seed": options.seed, "rows": len(data.train)}
    line |= {"epochs": epochs, "batch": options.batch, "channels": options.channels}
    line |= {"test": len(data.test), "device": options.device}
    line["seconds"] = round(time.perf_counter() - start)
    line["CPU seconds"] = round(time.process_time() - cpu)
    lines = []
    fitted = []
    for sampler in options.samplers:
        if sampler != "none":
            try:
                mvkit.fit_sampler(model, data.train, SAMPLERS[sampler], seed=options.seed)
            except mvkit.UnknownComponent:
                print(f"skipped: sampler {sampler!r} is not installed")
                continue
        fitted.append(sampler)
        own = line | {"sampler": sampler} | measured(model, sampler, data, judges, options)
        write(options.out, own)
        lines.append(own)
    if options.refiner != "none":
        line |= refined(model, data, options)
        for sampler in fitted:
            own = line | {"sampler": sampler}
            own |= measured(model, sampler, data, judges, options, refine=True)
            write(options.out, own)
            lines.append(own)
    if options.runs:
        mvkit.save(model, options.runs / f"{recipe}.safetensors")
    return lines


def refined(model: mvkit.Model, data: Splits, options: argparse.Namespace) -> Line:
    """Fits the refiner of every modality; what it took."""
    cpu = time.process_time()
    settings = {"epochs": options.refiner_epochs, "batch_size": options.batch, "progress": False}
    settings["precision"] = options.refiner_precision
    refiner = {"name": options.refiner, "channels": list(options.refiner_channels)}
    refiner |= json.loads(options.refiner_options)
    mvkit.fit_refiner(model, data.train, refiner=refiner, seed=options.seed, **settings)
    seconds = round(time.process_time() - cpu)
    return {
        "refiner": options.refiner,
        "refiner epochs": options.refiner_epochs,
        "refiner channels": options.refiner_channels,
        "refiner options": options.refiner_options,
        "refiner precision": options.refiner_precision,
        "CPU seconds of refiners": seconds,
    }


def measured(
    model: mvkit.Model,
    sampler: str,
    data: Splits,
    judges: dict[str, Judge],
    options: argparse.Namespace,
    refine: bool = False,
) -> Line:
    """The measures of a model on test rows that depend on the sampler, or without one, all."""
    device = options.device
    settings = {
        "classifiers": {name: on(device, judge) for name, judge in judges.items()},
        "features": {name: on(device, judge.features) for name, judge in judges.items()},
        "sampler": sampler if sampler == FLOW else None,  # the other one knows no condition
        "refine": refine,
        "progress": False,
    }
    drawn = "prior" if sampler == "none" else sampler
    coherence = {"name": "coherence", "sets": "cyclic", "sampler": drawn}
    metrics = [coherence, {"name": "frechet", "sampler": None if sampler == "none" else sampler}]
    if sampler == "none" and not refine:
        queries = [[list(data.modalities), []]]
        metrics += [{"name": "likelihood", "queries": queries, "limit": 500, "n": options.draws}]
    report = mvkit.evaluate(model, data.test, metrics, **settings)
    line: Line = {}
    title = "unconditional" if sampler == "none" else f"unconditional, {sampler}"
    line["unconditional"] = report[f"coherence/{title}"]
    line["Fréchet"] = _mean(report, "samples", judges)
    if sampler != "gmm":
        for n in range(1, len(judges)):
            line[f"given {n}"] = report[f"coherence/given {n}"]
        line["Fréchet given 4"] = _mean(report, "given all others", judges)
    if sampler == "none" and not refine:
        line["log p(all)"] = report["likelihood/log p(all)"]
        means = mvkit.evaluate(model, data.test, [coherence | {"latent": "mean"}], **settings)
        for n in (1, 4):
            line[f"given {n}, means"] = means[f"coherence/given {n}"]
    return line


def _mean(report: mvkit.Report, kind: str, judges: dict[str, Judge]) -> float:
    values = [report[f"frechet/{name}, {kind}"] for name in judges]
    return sum(values) / len(values)


def table(path: Path) -> str:
    """The lines that are there in Markdown, and what was published of their recipes."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    titles = list(dict.fromkeys(key for line in lines for key in line))
    text = ["| " + " | ".join([*titles, "published"]) + " |", "|---" * (len(titles) + 1) + "|"]
    for line in lines:
        values = [line.get(title, "") for title in titles]
        shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        published = ", ".join(PUBLISHED.get(line["recipe"], ()))
        text.append("| " + " | ".join([*shown, published]) + " |")
    return "\n".join(text)


def write(path: Path, line: Line) -> None:
    """Adds a line."""
    print(json.dumps(line, ensure_ascii=False), flush=True)
    with path.open("a") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def parser() -> argparse.ArgumentParser:
    """The options of a run, with their defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", type=Path, default=Path("../shared/data"))
    parser.add_argument("--recipes", nargs="+", choices=SETTINGS, default=["mopoe", "cmvae"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=100.0, help="for all, about")
    parser.add_argument("--epochs", type=int, help="of each, whatever time it takes")
    parser.add_argument("--rows", type=int, default=10_000, help="of train, at most")
    parser.add_argument("--test", type=int, default=2_000, help="rows of test, at most")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--runs", type=Path, help="a folder of checkpoints and trained models")
    parser.add_argument(
        "--draws", type=int, default=100, help="importance samples of a likelihood"
    )
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--refiner", default="none", help="of all modalities; see mvkit list")
    parser.add_argument("--refiner-epochs", type=int, default=12)
    parser.add_argument("--refiner-channels", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--refiner-precision", default="float32", help="of its training, or bf16")
    parser.add_argument("--refiner-options", default="{}", help="others of the refiner, in JSON")
    parser.add_argument("--passes", type=int, default=5, help="of judges over the rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=LINES)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    return parser


def prepared(options: argparse.Namespace) -> tuple[Splits, dict[str, Judge]]:
    """The rows that are taken, and a judge of each modality."""
    data = PolyMNIST(path=str(options.path), rows=max(options.rows, options.test)).load()
    test = attrs.evolve(data.test, batch=data.test.batch.take(slice(0, options.test)))
    train = attrs.evolve(data.train, batch=data.train.batch.take(slice(0, options.rows)))
    judges = {}
    for name, x in train.batch.data.items():
        judges[name] = fitted_judge(x, train.labels, options.passes, options.device)
    return attrs.evolve(data, train=train, test=test), judges


def main() -> None:
    options = parser().parse_args()
    if options.table:
        print(table(options.out))
        return
    start = time.perf_counter()
    data, judges = prepared(options)
    about = {"recipe": "real rows", "seed": 0, "sampler": "none", "rows": len(data.train)}
    write(options.out, about | real_rows(data, judges, options.device))
    left = 60 * options.minutes - (time.perf_counter() - start)
    for recipe in options.recipes:
        seconds = max(0.0, 2 / 3 * left / len(options.recipes))
        run(recipe, data, judges, seconds, options)
    print(table(options.out))


if __name__ == "__main__":
    main()
