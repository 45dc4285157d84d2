"""JMVAE on binarised MNIST and labels: the joint log-likelihood of test rows during training.

    python benchmarks/jmvae_mnist.py --path ../shared/data/mnist --epochs 60

Needs `plugins/mvkit-datasets`. Suzuki et al. (2016, https://arxiv.org/abs/1611.01891) report
-86.86 nats: latent 64, MLP 512-512, 500 epochs, 1,000 importance samples. Every `--every` epochs
one line is appended to jmvae_mnist.jsonl; the run has one optimizer throughout. `--binarise each`
draws the bits of training rows anew at each access, `--cooldown 0.4` lowers the learning rate to
0 along a cosine over the last two fifths of the epochs; `mvkit bench run jmvae-mnist` does both.
Bits of test rows are drawn once.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import attrs
import torch

import mvkit
from mvkit import MultimodalDataset, recipes
from mvkit.core import noise
from mvkit.training.events import EpochFinished, Event
from mvkit.training.stages import as_stages


def parser() -> argparse.ArgumentParser:
    """The options of a run, with their defaults."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--path", default="../shared/data/mnist")
    options.add_argument("--epochs", type=int, default=60)
    options.add_argument(
        "--warmup", type=int, help="epochs of the KL ramp; default: two fifths of all"
    )
    options.add_argument(
        "--binarise", choices=["none", "threshold", "drawn", "each"], default="drawn"
    )
    options.add_argument("--batch-size", type=int, default=100)
    options.add_argument("--lr", type=float, default=1e-3)
    options.add_argument(
        "--cooldown", type=float, default=0.0, help="share of the epochs in which it falls to 0"
    )
    options.add_argument(
        "--every", type=int, default=10, help="epochs from one evaluation to the next"
    )
    options.add_argument("--rows", type=int, help="training rows; default: all")
    options.add_argument("--test-rows", type=int, default=1000)
    options.add_argument("--samples", type=int, default=1000)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    return options


def rows_of(options: argparse.Namespace) -> tuple[MultimodalDataset, mvkit.Batch]:
    """Rows to train on, and test rows whose bits were drawn, or decided, once."""
    each = options.binarise == "each"
    binarise = "drawn" if each else options.binarise
    data = mvkit.load_dataset("mnist", path=options.path, binarise=binarise)
    # rows are drawn, since other people wrote the first half of the test file than the second
    order = noise.permutation(len(data.test), noise.seeded(0))
    test = data.test.batch.take(order[: options.test_rows])
    train = data.train
    if each:
        train = mvkit.load_dataset("mnist", path=options.path, binarise="none").train
        train = train.fit_transforms({"image": {"name": "binarise", "drawn": True}})
    return train.take(slice(0, options.rows)), test


def stages_of(model: mvkit.Model, epochs: int, cooldown: float) -> list[mvkit.Stage]:
    """The model's own stages; the learning rate of the last falls to 0 at the end."""
    stages = as_stages(None, model, epochs)
    last = round(cooldown * stages[-1].epochs)
    if last:
        schedule = {
            "name": "SequentialLR",
            "schedulers": [
                {"name": "ConstantLR", "factor": 1.0},
                {"name": "CosineAnnealingLR", "T_max": last},
            ],
            "milestones": [stages[-1].epochs - last],
        }
        stages[-1] = attrs.evolve(stages[-1], lr_schedule=schedule)
    return stages


def run(options: argparse.Namespace) -> dict[str, object]:
    """Trains one model, adding lines to `options.out`; returns the last."""
    torch.set_num_threads(options.threads)
    train, test = rows_of(options)
    warmup = round(0.4 * options.epochs) if options.warmup is None else options.warmup
    model = recipes.jmvae(train.modalities, latent_dim=64, warmup=warmup, seed=options.seed)
    start = time.perf_counter()
    row: dict[str, object] = {}

    def measure(event: Event) -> None:
        if not isinstance(event, EpochFinished):
            return
        epoch = event.row["epoch"]
        if epoch % options.every and epoch != options.epochs:
            return
        said = {name: x for name, x in vars(options).items() if name not in ("path", "out")}
        row.update(said | {"warmup": warmup, "epoch": epoch})
        generator = noise.seeded(0, model.like.device)
        for name, of in {"joint": None, "image": ["image"]}.items():
            log_px = model.log_likelihood(test, of, n=options.samples, generator=generator)
            row[name] = log_px.mean().item()
        row["seconds"] = round(time.perf_counter() - start)
        print(json.dumps(row), flush=True)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")

    settings = {
        "stages": stages_of(model, options.epochs, options.cooldown),
        "batch_size": options.batch_size,
        "lr": options.lr,
        "seed": options.seed,
    }
    rows = model.conform(train)
    mvkit.fit(model, rows, **settings, device="cpu", progress=False, listeners=[measure])
    return row


if __name__ == "__main__":
    run(parser().parse_args())
