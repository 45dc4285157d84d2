"""Embedding, returned in the user's container.

Axes: b rows, d latent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.raw_values import full_precision
from mvkit.data import write_tables
from mvkit.data.align import as_list
from mvkit.data.dataset import Rows
from mvkit.data.table_files import FilePath, table_file
from mvkit.data.user_rows import is_framed, is_of_arrays, rows_of
from mvkit.models.inference import Empty, Names
from mvkit.models.multimodal import MultimodalModel, check_model
from mvkit.models.source_blocks import is_source


def embed(
    model: MultimodalModel,
    data: Rows,
    given: Names = None,
    *,
    id: str | None = None,
    covariates: object = None,
    empty: Empty = "error",
    into: FilePath | None = None,
) -> Any:
    """Posterior means of the rows, (b, d).

    A table with their ids for tables, an array for arrays, else a tensor; or the path of a file
    that they are written into, a block of rows at a time.

    Args:
        model: trained.
        data: see `impute`; or a `Source`, such as rows on disk, which is gone through in blocks.
        given: modalities to look at; None: all that each row has.
        id: the column of ids of tables that have them in a column.
        covariates: see `impute`.
        empty: rows with none of them: `error`, or the mean of the `prior`.
        into: a file that ends in .parquet or .csv, with the columns `id`, if rows have ids, and
            `z0`, `z1`, …; or in .h5ad, where `X` has them (needs h5py). It appears under its name
            when all of it is written. None: return them.

    Raises:
        RequestError: a file that ends otherwise, or in .h5ad where h5py is not installed.
        OSError: a file that cannot be written.

    Example:
        >>> import pandas, mvkit
        >>> model = mvkit.Model({"a": (1,)}, latent_dim=2, seed=0)
        >>> table = pandas.DataFrame({"x": [1.0, 2.0]}, index=["p", "q"])
        >>> mvkit.embed(model, {"a": table}).index.tolist()
        ['p', 'q']
    """
    check_model(model, "embed")
    if into is not None:
        rows = data if is_source(data) and id is None and covariates is None else None
        return _written(model, rows or rows_of(data, id, covariates), given, empty, into)
    if is_source(data) and id is None and covariates is None:  # which have covariates of their own
        return model.encode(data, given, empty=empty)
    raw = rows_of(data, id, covariates)
    z = model.encode(raw, given, empty=empty)
    values = full_precision(z).cpu().numpy()
    if is_framed(data):
        like = next(iter(data.values()))
        return write_tables.embedding(values, raw.extra["id"].tolist(), like, id)
    return values if is_of_arrays(data) else z


def _written(
    model: MultimodalModel, rows: Rows, given: Names, empty: Empty, into: FilePath
) -> Path:
    """The file with the posterior means of rows."""
    with table_file(into, "embed") as table:

        def write(block: Batch) -> Tensor:
            z = model.encode(block, given, empty=empty)
            ids = block.extra.get("id")
            columns = {} if ids is None else {"id": as_list(ids)}
            values = full_precision(z).cpu().numpy()
            table.write({**columns, **{f"z{i}": column for i, column in enumerate(values.T)}})
            return z[:0]

        model.in_blocks(write, rows)
    return Path(into)
