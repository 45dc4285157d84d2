"""Trains a model of what is measured of rows. The same file serves one process and many machines:

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
    parser.add_argument("--rows", type=int, help="of the data, the first ones; else all")
    parser.add_argument("--batch-size", type=int, default=128, help="of all processes together")
    parser.add_argument(
        "--table",
        action="append",
        metavar="NAME=FILE",
        help="a modality in a file, Parquet or CSV, with a column id; else pictures of digits",
    )
    options = parser.parse_args(arguments)

    if options.table:
        files = dict(table.split("=", 1) for table in options.table)
        rows = mvkit.MultimodalDataset.from_files(files, id="id")
        modalities = rows.modalities
    else:
        data = mvkit.load_dataset("polydigits", missing=0.3)
        rows, modalities = data.train, data.modalities
    model = mvkit.Model(modalities, latent_dim=16, aggregator="mopoe", prior="mog", seed=0)
    mvkit.fit(
        model,
        rows[: options.rows],
        validation=0.1,
        epochs=options.epochs,
        batch_size=options.batch_size,
        checkpoint=options.folder,
    )


if __name__ == "__main__":
    main()
