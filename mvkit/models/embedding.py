"""Embedding, returned in the user's container.

Axes: b rows, d latent.
"""

from __future__ import annotations

from typing import Any

from mvkit.core.raw_values import full_precision
from mvkit.data import write_tables
from mvkit.data.dataset import Rows
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
) -> Any:
    """Posterior means of the rows, (b, d).

    A table with their ids for tables, an array for arrays, else a tensor.

    Args:
        model: trained.
        data: see `impute`; or a `Source`, such as rows on disk, which is gone through in blocks.
        given: modalities to look at; None: all that each row has.
        id: the column of ids of tables that have them in a column.
        covariates: see `impute`.
        empty: rows with none of them: `error`, or the mean of the `prior`.

    Example:
        >>> import pandas, mvkit
        >>> model = mvkit.Model({"a": (1,)}, latent_dim=2, seed=0)
        >>> table = pandas.DataFrame({"x": [1.0, 2.0]}, index=["p", "q"])
        >>> mvkit.embed(model, {"a": table}).index.tolist()
        ['p', 'q']
    """
    check_model(model, "embed")
    if is_source(data) and id is None and covariates is None:  # which have covariates of their own
        return model.encode(data, given, empty=empty)
    raw = rows_of(data, id, covariates)
    z = model.encode(raw, given, empty=empty)
    values = full_precision(z).cpu().numpy()
    if is_framed(data):
        like = next(iter(data.values()))
        return write_tables.embedding(values, raw.extra["id"].tolist(), like, id)
    return values if is_of_arrays(data) else z
