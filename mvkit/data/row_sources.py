"""What a pipeline reads rows from, whatever it was given."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from mvkit.core.batch import Batch
from mvkit.core.validation import Schema
from mvkit.data.dataset import MultimodalDataset, as_batch
from mvkit.data.sources import Items, Loaded, Source, Stream, kind_of_items
from mvkit.errors import DataError, ShapeError, suggest


def as_rows(rows: object, schema: Schema | None) -> Batch | Source | Stream | Loaded:
    """Rows in memory, by index, in a stream, or batches."""
    if isinstance(rows, Items | Stream) and schema is not None:
        for name in rows.names:
            if name not in schema.names:
                raise ShapeError(
                    f"Pipeline: unknown modality {name!r}; {suggest(name, schema.names)}"
                )
        return attrs.evolve(rows, names=schema.names)
    if isinstance(rows, Batch | MultimodalDataset | Mapping):
        return as_batch(rows).to("cpu")
    if isinstance(rows, Source | Stream | Loaded):
        return rows
    kind = kind_of_items(rows)
    if kind is None:
        return as_batch(rows)  # type: ignore[arg-type]  # refuses it
    if schema is None:
        raise DataError(
            f"Pipeline: a {type(rows).__name__} holds items, but which keys are modalities? Give "
            f"schema=model.schema, or {kind.__name__}(rows, names) of mvkit.data.sources"
        )
    return kind(rows, schema.names)
