"""What `impute` chooses for tables that come without a model: a plain mapping, each entry of which
can be given instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch

from mvkit import recipes
from mvkit.core.modality import Modality
from mvkit.data.column_kinds import Column
from mvkit.data.dataset import MultimodalDataset
from mvkit.data.missing import raw_values
from mvkit.errors import RequestError, check_number, check_whole_number, suggest
from mvkit.models.model import Model
from mvkit.training.stages import Stage

Choices = dict[str, Any]
Knots = tuple[tuple[float, ...], ...]

STEPS = 3600  # of the optimizer, for as many rows as ENOUGH
ENOUGH = 6500  # rows; fewer take fewer steps, since they are learnt by heart
MOST_KNOTTED = 200  # columns of one modality; of more, plain values are seen
HELD_OUT = 200  # cells of a column, which tell well enough how it is recovered


def choose(rows: int, given: Mapping[str, object] | None = None) -> Choices:
    """What to train on so many rows.

    * `width`, `blocks`, `dropout_rate`: of the network that all columns go through.
    * `latent_dim`: how many numbers a row becomes.
    * `pieces`: into how many numbers are cut at their quantiles; 0: they are seen as they are.
    * `low`, `high`: shares of a row's cells that are hidden in training; see the objective
      `masked`.
    * `epochs`: 3,600 steps, fewer for less than 6,500 rows (by the power 3/4 of their share);
      `batch_size`: a twelfth of the rows, 16 to 256; `lr`, `weight_decay`: of AdamW, with one
      cycle of the learning rate.
    * `held_out`: the share of cells that is never trained on, and reported: 200 of each column,
      but 2 to 10 per cent.
    * `neighbours`: how many rows that are alike move the prediction of a number, see
      `mvkit.tables.neighbours`; 0: none.

    Args:
        rows: of all tables together.
        given: choices of the caller.

    Raises:
        RequestError: a choice that there is not, or a value that it cannot have.
    """
    batch_size = min(256, max(16, 2 ** round(math.log2(max(rows, 1) / 12))))
    steps = STEPS * min(1.0, rows / ENOUGH) ** 0.75
    epochs = round(steps / math.ceil(rows / batch_size))
    choices: Choices = {
        "width": 256,
        "blocks": 3,
        "dropout_rate": 0.1,
        "latent_dim": 64,
        "pieces": 16,
        "low": 0.1,
        "high": 0.5,
        "epochs": max(1, epochs),
        "batch_size": batch_size,
        "lr": 2e-3,
        "weight_decay": 0.01,
        "held_out": min(0.1, max(0.02, HELD_OUT / max(rows, 1))),
        "neighbours": 20,
    }
    for name, value in (given or {}).items():
        if name not in choices:
            raise RequestError(f"impute: no choice {name!r}; {suggest(name, choices)}")
        where = f"impute: choices[{name!r}]"
        if isinstance(choices[name], int):
            low = 0 if name in ("pieces", "blocks", "neighbours") else 1
            choices[name] = check_whole_number(where, value, low)
        else:
            choices[name] = check_number(where, value)
    return choices


def model_of(
    data: MultimodalDataset, columns: Mapping[str, Sequence[Column]], choices: Choices, seed: int
) -> Model:
    """A fresh model of a dataset of tables: `recipes.masked` with what was chosen.

    Args:
        data: the rows to train on; numbers are standardised.
        columns: what the columns of each modality hold.
        choices: from `choose`.
        seed: of the initial weights.
    """
    modalities = {}
    for name, modality in data.modalities.items():
        modalities[name] = _with_networks(name, modality, data, columns[name], choices["pieces"])
    names = ("width", "blocks", "dropout_rate", "low", "high")
    options = {name: choices[name] for name in names}
    return recipes.masked(modalities, choices["latent_dim"], seed=seed, **options)


def stage_of(rows: int, choices: Choices) -> Stage:
    """How a model of so many rows is trained."""
    steps = choices["epochs"] * math.ceil(rows / choices["batch_size"])
    cycle = {"name": "OneCycleLR", "max_lr": choices["lr"], "total_steps": steps + 1}
    return Stage(
        epochs=choices["epochs"],
        optimizer={"name": "adamw", "lr": choices["lr"], "weight_decay": choices["weight_decay"]},
        lr_schedule={**cycle, "pct_start": 0.1, "every": "step"},
        clip=5.0,
    )


def _with_networks(
    name: str, modality: Modality, data: MultimodalDataset, columns: Sequence[Column], pieces: int
) -> Modality:
    """The modality with an encoder that sees which of its columns a row has."""
    encoder: dict[str, object] = {"name": "tabular", "blocks": 0}
    if columns[0].kind == "category":
        return attrs.evolve(modality, encoder=encoder, decoder="linear")  # type: ignore[misc]
    if pieces and len(columns) <= MOST_KNOTTED:
        encoder["knots"] = _knots(name, modality, data, columns, pieces)
    networks = {"encoder": encoder, "decoder": "linear", "indicator": True}
    return attrs.evolve(modality, **networks)  # type: ignore[misc]


def _knots(
    name: str, modality: Modality, data: MultimodalDataset, columns: Sequence[Column], pieces: int
) -> Knots:
    """Where the numbers of each column are cut: at quantiles, or between ordered levels."""
    values = raw_values(data.batch, name, data.modalities).double()
    missing = values.isnan()
    for step in modality.transform:
        values = step.forward(values)
    values[missing] = torch.nan
    knots = []
    for column, x in zip(columns, values.numpy().T, strict=True):
        if column.kind == "ordered":
            edges = np.arange(max(2, len(column.levels)), dtype=np.float64)
        elif column.kind == "bits":
            edges = np.array([0.0, 1.0])
        else:
            edges = np.unique(np.quantile(x[~np.isnan(x)], np.linspace(0.0, 1.0, pieces + 1)))
        knots.append(tuple(edges.tolist()) if len(edges) > 1 else (edges[0] - 1.0, edges[0] + 1.0))
    return tuple(knots)
