"""Where parameters start that training data place, and what a run came to: before and after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from mvkit.core.batch import Batch
from mvkit.core.decoding import Decoder
from mvkit.core.likelihood import Likelihood
from mvkit.data.align import library
from mvkit.data.pipeline import Pipeline, as_pipeline
from mvkit.data.sources import Source
from mvkit.models.multimodal import MultimodalModel
from mvkit.training.history import History
from mvkit.training.verdict import verdict_of

ROWS = 1024  # looked at


def start_likelihoods(model: MultimodalModel, data: object) -> None:
    """Lets likelihoods place their parameters by the first rows of whatever `fit` takes.

    Streams and loaders, whose first rows may not come again, are left alone.
    """
    likelihoods = _likelihoods(model)
    first = _first_rows(model, data) if likelihoods else None
    if first is None:
        return
    for name, rows in zip(first.data, first.observed_rows, strict=True):
        if name in likelihoods and (rows is None or len(rows)):
            x, observed = _values(first, name)
            if rows is not None:
                x, observed = x.index_select(0, rows), observed.index_select(0, rows)
            likelihoods[name].start(x, observed)


def judge(model: MultimodalModel, data: object, history: History) -> None:
    """Writes into the history what the run came to, going by the first rows of some data."""
    last = max((row.get("stage", 0) for row in history.rows), default=0)
    rows = [row for row in history.rows if row.get("stage", 0) == last]
    key = "valid/loss" if any("valid/loss" in row for row in rows) else "loss"
    losses = [row[key] for row in rows if key in row]
    history.verdict[:] = verdict_of(model, _first_rows(model, data), losses)


def _first_rows(model: MultimodalModel, data: object) -> Batch | None:
    """The first rows of whatever `fit` takes, conformed; None where they may not come again."""
    if not _can_be_read_twice(data):
        return None
    batches = as_pipeline(data, model.schema, batch_size=ROWS, shuffle=False)
    return next(iter(batches), None)


def _likelihoods(model: MultimodalModel) -> dict[str, Likelihood]:
    """Those of the data that place parameters; a stack's are of its bottom."""
    bottom = getattr(model, "bottom", model)
    likelihoods = {}
    for name, decoder in cast(nn.ModuleDict, bottom.decoders).items():
        if isinstance(decoder, Decoder) and decoder.likelihood.starts:
            likelihoods[name] = decoder.likelihood
    return likelihoods


def _values(batch: Batch, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of a modality, and which elements are observed, (b, *shape) both."""
    x = batch.data[name]
    if batch.elements is None or name not in batch.elements:
        return x, torch.ones_like(x, dtype=torch.bool)
    return x, batch.elements[name].expand(x.shape)


def _can_be_read_twice(data: object) -> bool:
    if isinstance(data, IterableDataset):
        return False
    rows = isinstance(data, Mapping | Source | Dataset | Pipeline)
    return rows or library(data) in ("numpy", "pandas", "polars") or not isinstance(data, Iterable)
