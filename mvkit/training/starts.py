"""Where parameters start that training data place: before the first step of a run."""

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

ROWS = 1024  # looked at


def start_likelihoods(model: MultimodalModel, data: object) -> None:
    """Lets likelihoods place their parameters by the first rows of whatever `fit` takes.

    Streams and loaders, whose first rows may not come again, are left alone.
    """
    likelihoods = _likelihoods(model)
    if not likelihoods or not _can_be_read_twice(data):
        return
    first = next(iter(as_pipeline(data, model.schema, batch_size=ROWS, shuffle=False)), None)
    if first is None:
        return
    for name, rows in zip(first.data, first.observed_rows, strict=True):
        if name in likelihoods and (rows is None or len(rows)):
            x, observed = _values(first, name)
            if rows is not None:
                x, observed = x.index_select(0, rows), observed.index_select(0, rows)
            likelihoods[name].start(x, observed)


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
