"""Rows filled a block at a time, for what is larger than memory.

Axes: b rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.blocks import block_slices
from mvkit.core.modality import Modality
from mvkit.core.raw_values import full_precision
from mvkit.data.align import as_list
from mvkit.data.joined_batches import joined_batches
from mvkit.data.shards import save_shards
from mvkit.data.sources import Source
from mvkit.data.table_files import Columns, FilePath, TableFile, table_file
from mvkit.data.write_tables import HasModalities, words_of
from mvkit.errors import MvkitError, RequestError
from mvkit.models.source_blocks import is_source, raw_blocks

Fill = Callable[[Batch], Batch]  # of a block of raw rows


def filled_in_blocks(
    fill: Fill, model: HasModalities, rows: Batch | Source, size: int, into: FilePath | None
) -> Batch | Path:
    """Rows filled, `size` at a time: one batch of them, or where they were written.

    Args:
        fill: fills a block; blocks come in order, so that its noise is that of all rows at once.
        model: says what the modalities are.
        rows: raw.
        size: rows of a block.
        into: a file that ends in .parquet, .csv or .h5ad; or a folder of shards; None: return a
            batch.

    Raises:
        RequestError: a table of rows that are no vectors.
        OSError: what cannot be written.
    """
    with _blocks(rows, size) as blocks:
        filled = _filled(fill, blocks, size)
        if into is None:
            return joined_batches(list(filled))
        if not Path(into).suffix:
            save_shards(filled, into, _kinds(model, rows), levels=getattr(rows, "levels", None))
            return Path(into)
        with table_file(into, "impute") as table:
            for batch in filled:
                _write(table, batch, model.modalities)
    return Path(into)


@contextlib.contextmanager
def _blocks(rows: Batch | Source, size: int) -> Iterator[Iterator[tuple[int, Batch]]]:
    """Raw rows, `size` at a time, with the number of the first of them."""
    if is_source(rows):
        with raw_blocks(rows, size) as blocks:
            yield blocks
    else:
        batch: Any = rows
        yield ((part.start, batch.take(part)) for part in block_slices(len(batch), size))


def _filled(fill: Fill, blocks: Iterable[tuple[int, Batch]], size: int) -> Iterator[Batch]:
    for start, block in blocks:
        try:
            yield fill(block)
        except MvkitError as error:
            error.add_note(f"in rows {start} to {start + size - 1} of the data")
            raise


def _kinds(model: HasModalities, rows: object) -> dict[str, Modality]:
    """The modalities of filled rows in the order of the model: as the rows say, if they do."""
    own: Mapping[str, Modality] = {}
    if isinstance(rows, HasModalities):
        own = rows.modalities
    return {name: own.get(name, modality) for name, modality in model.modalities.items()}


def _write(table: TableFile, batch: Batch, modalities: Mapping[str, Modality]) -> None:
    """Adds rows to a table: their ids, and the features of each modality."""
    columns: dict[str, Any] = {}
    if "id" in batch.extra:
        columns["id"] = as_list(batch.extra["id"])
    for name, x in batch.data.items():
        own = _columns(name, x, modalities[name], alone=len(batch.data) == 1)
        columns.update(own)
    table.write(columns)


def _columns(name: str, x: Tensor, modality: Modality, *, alone: bool) -> Columns:
    """The columns of a modality, called by its features, and by its own name where there are
    others.
    """
    values = full_precision(x).cpu().numpy()
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2:
        raise RequestError(
            f"impute: {name!r} has rows of shape {values.shape[1:]}, which no table holds; "
            "expected vectors; give into= a folder, which becomes one of shards, or leave the "
            "modality out of the rows"
        )
    if modality.features and len(modality.features) == values.shape[1]:
        features: Iterable[object] = modality.features
    else:
        features = range(values.shape[1])
    words = words_of(modality)
    columns = {}
    for feature, column in zip(features, values.T, strict=True):
        called = str(feature) if alone else f"{name}.{feature}"
        columns[called] = np.array(words, dtype=object)[column.astype(int)] if words else column
    return columns
