"""Numbers written back into tables: the same kind, index and columns.

Axes: b rows of all modalities together, k columns, d latent.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mvkit.core.modality import Modality
from mvkit.core.raw_values import as_tensor
from mvkit.data.align import library
from mvkit.data.tables import frame_of
from mvkit.errors import ShapeError

if TYPE_CHECKING:
    from pandas import DataFrame

Array = np.ndarray
Bools = NDArray[np.bool_]
Ids = Sequence[Hashable]
Words = Sequence[str]
Frame = Any  # a DataFrame or a Series of pandas or polars


class HasModalities(Protocol):
    """What has modalities: a model or a dataset."""

    @property
    def modalities(self) -> Mapping[str, Modality]: ...


def words_of(modality: Modality) -> Words:
    """The words that a modality's values number, if any."""
    return modality.transform[0].words if modality.transform else ()


def written(
    values: Array,
    changed: Bools | None,
    ids: Ids,
    like: Frame,
    *,
    id: str | None,
    columns: Ids | None = None,
    words: Words = (),
    whole: bool = False,
) -> Frame:
    """A table with new values in the cells that changed, of the same kind, index and columns.

    Args:
        values: (b, k), in the order of the table's columns.
        changed: which are new, (b, k); None: write all values, as plain numbers.
        ids: the ids of the rows of `values`.
        like: the table.
        id: the column of ids of the table; None: its index.
        columns: of a new table, of the kind of `like`; None: write into `like`.
        words: the words that values number, if any.
        whole: whether to give the table the rows of all ids.
    """
    from pandas import DataFrame, Index

    if columns is None:
        frame = frame_of("", like, id)
    else:
        frame = DataFrame(np.nan, index=ids, columns=columns)
        frame.index.name = like.index.name if id is None else id
    if whole:
        frame = frame.reindex(Index(ids, name=frame.index.name))
    places = {id: i for i, id in enumerate(ids)}
    rows = [places[id] for id in frame.index]
    values = values[rows]
    if changed is None:
        frame = DataFrame(values, index=frame.index, columns=frame.columns)
    elif words:
        frame = _with_words(frame, values, changed[rows], words)
    elif changed[rows].any():
        frame = _with_numbers(frame, values, changed[rows])
    return _as_before(frame, like, id)


def _with_numbers(frame: DataFrame, values: Array, changed: Bools) -> DataFrame:
    """The table with numbers in the cells that changed; columns without any keep their type."""
    from pandas import DataFrame, concat

    kinds = [kind if kind.kind == "f" else np.dtype(np.float64) for kind in frame.dtypes]
    touched = np.logical_or.reduce(changed)
    pieces = [frame.loc[:, ~touched]]
    for kind in dict.fromkeys(kinds):
        columns = touched & [own == kind for own in kinds]
        old = frame.loc[:, columns]
        numbers = old.to_numpy(dtype=np.float64, na_value=np.nan)
        new = np.where(changed[:, columns], values[:, columns], numbers)
        pieces.append(DataFrame(new, old.index, old.columns).astype(kind))
    return concat(pieces, axis=1)[frame.columns.tolist()]


def _with_words(frame: DataFrame, values: Array, changed: Bools, words: Words) -> DataFrame:
    """The table with words in the cells that changed; None where a value is NaN."""
    from pandas import CategoricalDtype, DataFrame, Series

    codes = np.where(np.isnan(values), len(words), values).astype(int)
    new = np.array([*words, None], dtype=object)[codes]
    columns = {}
    for i, name in enumerate(frame.columns):
        old = frame[name]
        texts = np.where(changed[:, i], new[:, i], old.astype(object))
        columns[name] = Series(texts, frame.index)
        if isinstance(old.dtype, CategoricalDtype):
            categories = dict.fromkeys([*old.cat.categories, *words])
            kind = CategoricalDtype(list(categories), old.cat.ordered)
            columns[name] = columns[name].astype(kind)
    return DataFrame(columns, frame.index, frame.columns)


def _as_before(frame: DataFrame, like: Frame, id: str | None) -> Frame:
    """A pandas table with ids in its index as the kind of table that `like` is."""
    if library(like) == "polars":
        import polars

        table = polars.from_pandas(frame.reset_index(names=id))
        return table.select(_in_order(table.columns, like.columns))
    if type(like).__name__ == "Series" and frame.shape[1] == 1:
        return frame.iloc[:, 0]
    if id is not None and like.index.name != id:
        frame = frame.reset_index()
        frame = frame[_in_order(frame.columns, like.columns)]
    return frame


def _in_order(columns: Iterable[Hashable], before: Iterable[Hashable]) -> list[Hashable]:
    """Columns in the order that they had before, new ones last."""
    places = {name: i for i, name in enumerate(before)}
    return sorted(columns, key=lambda name: places.get(name, len(places)))


def embedding(z: Array, ids: Ids, like: Frame, id: str | None) -> Frame:
    """Latents (b, d) as a table with ids, columns z0, z1, …"""
    columns = [f"z{i}" for i in range(z.shape[1])]
    like = like.to_frame() if type(like).__name__ == "Series" else like
    return written(z, np.ones(z.shape, bool), ids, like, id=id, columns=columns)


def as_tables(
    model: HasModalities, made: Mapping[str, Tensor], ids: Ids | None = None
) -> dict[str, DataFrame]:
    """What a model returned in the user's units, as pandas tables.

    Columns are called by the names of the features, and categories by their words.

    Args:
        model: the model.
        made: {name: (b, k)}, as of `sample` and `decode`, or (n, b, k), as of `translate`: rows
            are then (draw, id).
        ids: of the rows; None: their numbers.

    Raises:
        ShapeError: a modality whose rows are no vectors.

    Example:
        >>> import torch, mvkit
        >>> features = mvkit.Modality((2,), features=("age", "height"))
        >>> model = mvkit.Model({"a": features}, latent_dim=1, seed=0)
        >>> mvkit.as_tables(model, model.sample(3))["a"].columns.tolist()
        ['age', 'height']
    """
    from pandas import DataFrame, Index, MultiIndex

    tables = {}
    for name, x in made.items():
        modality = model.modalities[name]
        values = as_tensor(x, f"as_tables[{name!r}]").detach().cpu().numpy()
        if len(modality.raw_shape) != 1 or values.ndim not in (2, 3):
            raise ShapeError(
                f"as_tables: {name!r} has shape {values.shape}; expected (b, k) or (n, b, k); "
                "leave it out"
            )
        rows = list(range(values.shape[-2]) if ids is None else ids)
        index = Index(rows)
        if values.ndim == 3:
            index = MultiIndex.from_product([range(len(values)), rows], names=["draw", "id"])
        flat = values.reshape(-1, values.shape[-1])
        frame = DataFrame(flat, index, modality.features or range(flat.shape[1]))
        words = words_of(modality)
        if words:
            frame = _with_words(frame, flat, np.ones(flat.shape, bool), words)
        tables[name] = frame
    return tables
