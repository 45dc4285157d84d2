"""Rows in whatever users have them, for answers that come back in the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.data.dataset import Rows, as_batch
from mvkit.data.row_columns import with_columns
from mvkit.data.table_columns import given_columns, read_covariates
from mvkit.data.tables import from_frames, is_table
from mvkit.data.write_tables import Frame
from mvkit.errors import DataError


def is_framed(data: Rows) -> TypeGuard[Mapping[str, Frame]]:
    """Whether data are a mapping of tables."""
    return isinstance(data, Mapping) and any(is_table(value) for value in data.values())


def is_of_arrays(data: Rows) -> bool:
    """Whether data are a mapping without tensors."""
    return isinstance(data, Mapping) and not any(isinstance(x, Tensor) for x in data.values())


def rows_of(data: Rows, id: str | None, covariates: object) -> Batch:
    """Data as a batch.

    Args:
        data: a mapping of tables or arrays, a dataset or a batch.
        id: the column of ids of tables that have them in a column.
        covariates: of the rows of a mapping, as `MultimodalDataset.from_arrays` takes them.

    Raises:
        DataError: covariates of data that have their own, or that cannot be.
    """
    batch = from_frames(data, id) if id is not None and is_framed(data) else as_batch(data)
    if covariates is None:
        return batch
    if not isinstance(data, Mapping):
        raise DataError(
            f"covariates: a {type(data).__name__} has its own; expected some for a mapping of "
            "tables or arrays only; leave covariates= out"
        )
    if is_table(covariates):
        covariates = read_covariates(covariates, id)
    with_columns(batch, given_columns(covariates), batch.data)
    return batch
