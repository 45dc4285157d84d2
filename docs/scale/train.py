"""Trains a model of pictures of digits. The same file serves one process and many machines:

python train.py · torchrun train.py · SLURM · Kubernetes · Ray · Spark (see docs/scale.md)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import mvkit


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, or resumes what is in the folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", default="run", help="of the run, seen by all machines")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=128, help="of all processes together")
    options = parser.parse_args(arguments)

    data = mvkit.load_dataset("polydigits", missing=0.3)
    model = mvkit.Model(data.modalities, latent_dim=16, aggregator="mopoe", prior="mog", seed=0)
    mvkit.fit(
        model,
        data.train[: options.rows],
        validation=0.1,
        epochs=options.epochs,
        batch_size=options.batch_size,
        checkpoint=options.folder,
    )


if __name__ == "__main__":
    main()
