"""JMVAE on binarised MNIST and labels: the joint log-likelihood of test rows during training.

    python benchmarks/jmvae_mnist.py --path ../shared/data/mnist --epochs 60

Needs `plugins/mvkit-datasets`. Suzuki et al. (2016, https://arxiv.org/abs/1611.01891) report
-86.86 nats: latent 64, MLP 512-512, 500 epochs, 1,000 importance samples. Every `--every` epochs
one line is appended to jmvae_mnist.jsonl; the run has one optimizer throughout.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import mvkit
from mvkit import recipes
from mvkit.core import noise
from mvkit.training.events import EpochFinished, Event


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", default="../shared/data/mnist")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument(
        "--warmup", type=int, help="epochs of the KL ramp; default: two fifths of all"
    )
    parser.add_argument("--binarise", choices=["none", "threshold", "drawn"], default="drawn")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--every", type=int, default=10, help="epochs from one evaluation to the next"
    )
    parser.add_argument("--rows", type=int, help="training rows; default: all")
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = mvkit.load_dataset("mnist", path=options.path, binarise=options.binarise)
    warmup = round(0.4 * options.epochs) if options.warmup is None else options.warmup
    model = recipes.jmvae(data.modalities, latent_dim=64, warmup=warmup, seed=options.seed)
    # rows are drawn, since other people wrote the first half of the test file than the second
    order = noise.permutation(len(data.test), noise.seeded(0))
    test = data.test.batch.take(order[: options.test_rows])
    start = time.perf_counter()

    def measure(event: Event) -> None:
        if not isinstance(event, EpochFinished):
            return
        epoch = event.row["epoch"]
        if epoch % options.every and epoch != options.epochs:
            return
        row = {name: value for name, value in vars(options).items() if name != "path"}
        row |= {"warmup": warmup, "epoch": epoch}
        generator = noise.seeded(0, model.like.device)
        for name, of in {"joint": None, "image": ["image"]}.items():
            log_px = model.log_likelihood(test, of, n=options.samples, generator=generator)
            row[name] = log_px.mean().item()
        row["seconds"] = round(time.perf_counter() - start)
        print(json.dumps(row), flush=True)
        with Path(__file__).with_suffix(".jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    rows = model.conform(data.train.batch.take(slice(0, options.rows)))
    settings = {
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "lr": options.lr,
        "seed": options.seed,
    }
    mvkit.fit(model, rows, **settings, device="cpu", listeners=[measure])


if __name__ == "__main__":
    main()
