"""Numbers written back into tables: the same kind, index and columns.

Axes: b rows of all modalities together, k columns, d latent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from mvkit.core.validation import as_tensor
from mvkit.data.tables import frame_of, library
from mvkit.errors import ShapeError


@attrs.frozen(eq=False)
class Cells:
    """What to write into a table.

    Args:
        values: (b, k).
        changed: which are new, (b, k) bool.
        ids: the ids of the rows.
        names: names of the columns, where they are known.
        words: the words that values number, if any.
    """

    values: NDArray[Any]
    changed: NDArray[np.bool_]
    ids: Sequence[Any]
    names: Sequence[str] = ()
    words: Sequence[str] = ()


def written(
    cells: Cells,
    table: Any,
    like: Any,
    id: str | None,
    *,
    whole: bool = False,
    plain: bool = False,
) -> Any:
    """A table with new values in the cells that changed, of the same kind, index and columns.

    Args:
        cells: the values.
        table: the table; None: a new one of the kind of `like`.
        like: a table that came with it.
        id: the column of ids of both.
        whole: whether to give it the rows of all ids.
        plain: whether to write all values, as plain numbers.
    """
    import pandas

    if table is None:
        columns: list[Any] = list(cells.names) or list(range(cells.values.shape[1]))
        frame = pandas.DataFrame(np.nan, index=cells.ids, columns=columns)
        frame.index.name = id if id is not None else like.index.name
    else:
        frame = frame_of("", table, id)
        frame = frame.reindex(pandas.Index(cells.ids, name=frame.index.name)) if whole else frame
    place = {one: i for i, one in enumerate(cells.ids)}
    rows = [place[one] for one in frame.index]
    values, changed = cells.values[rows], cells.changed[rows]
    if plain:
        frame = pandas.DataFrame(values, index=frame.index, columns=frame.columns)
    elif cells.words:
        frame = _with_words(frame, values, changed, cells.words)
    elif changed.any():
        frame = _with_numbers(frame, values, changed)
    return _as_before(frame, like if table is None else table, id)


def _with_numbers(frame: Any, values: NDArray[Any], changed: NDArray[np.bool_]) -> Any:
    """The table with numbers in the cells that changed; columns without any keep their type."""
    import pandas

    touched: NDArray[np.bool_] = np.any(changed, axis=0)
    pieces = [frame.loc[:, ~touched]]
    kinds = [kind if kind.kind == "f" else np.dtype(np.float64) for kind in frame.dtypes]
    for kind in dict.fromkeys(kind for kind, new in zip(kinds, touched, strict=True) if new):
        here = touched & np.array([one == kind for one in kinds])
        old = frame.loc[:, here]
        new = np.where(
            changed[:, here], values[:, here], old.to_numpy(dtype=np.float64, na_value=np.nan)
        )
        pieces.append(pandas.DataFrame(new, index=frame.index, columns=old.columns).astype(kind))
    return pandas.concat(pieces, axis=1)[frame.columns.tolist()]


def _with_words(
    frame: Any, values: NDArray[Any], changed: NDArray[np.bool_], words: Sequence[str]
) -> Any:
    """The table with words in the cells that changed; None where a value is NaN."""
    import pandas

    said = np.array([*words, None], dtype=object)[
        np.where(np.isnan(values), len(words), values).astype(int)
    ]
    made = {}
    for i, column in enumerate(frame.columns):
        old = frame[column]
        made[column] = pandas.Series(
            np.where(changed[:, i], said[:, i], old.astype(object)), index=frame.index
        )
        if isinstance(old.dtype, pandas.CategoricalDtype):
            every = list(dict.fromkeys([*old.cat.categories, *words]))
            made[column] = made[column].astype(pandas.CategoricalDtype(every, old.cat.ordered))
    return pandas.DataFrame(made, index=frame.index, columns=frame.columns)


def _as_before(frame: Any, like: Any, id: str | None) -> Any:
    """A pandas table with ids in its index as the kind of table that came, ids where they stood."""
    if library(like) == "polars":
        import polars

        made = polars.from_pandas(frame.reset_index(names=id))
        return made.select(_in_place(like.columns, made.columns))
    if id is not None and like.index.name != id:
        frame = frame.reset_index()
        frame = frame[_in_place(like.columns, frame.columns)]
    return frame.iloc[:, 0] if type(like).__name__ == "Series" else frame


def _in_place(before: Iterable[Any], columns: Iterable[Any]) -> list[Any]:
    """Columns in the order that they had before, new ones last."""
    now, old = list(columns), list(before)
    return [c for c in old if c in now] + [c for c in now if c not in old]


def as_tables(
    model: Any, made: Mapping[str, Any], ids: Sequence[Any] | None = None
) -> dict[str, Any]:
    """What a model gave back in the user's units, as pandas tables with the names of the features and categories.

    Args:
        model: the model.
        made: {name: (b, k)}, as of `sample` and `decode`, or (n, b, k), as of `translate`: rows are then (draw, id).
        ids: of the rows; None: their numbers.

    Raises:
        ShapeError: a modality whose rows are no vectors.

    Example:
        >>> import torch, mvkit
        >>> model = mvkit.Model({"a": mvkit.Modality((2,), features=("age", "height"))}, latent_dim=1, seed=0)
        >>> mvkit.as_tables(model, model.sample(3))["a"].columns.tolist()
        ['age', 'height']
    """
    import pandas

    tables = {}
    for name, x in made.items():
        modality = model.modalities[name]
        values = as_tensor(x, f"as_tables[{name!r}]").detach().cpu().numpy()
        if len(modality.raw_shape) != 1 or values.ndim not in (2, 3):
            raise ShapeError(
                f"as_tables: {name!r} has shape {values.shape}; expected (b, k) or (n, b, k); leave it out"
            )
        own = list(range(values.shape[-2])) if ids is None else list(ids)
        index = pandas.Index(own)
        if values.ndim == 3:
            index = pandas.MultiIndex.from_product([range(len(values)), own], names=["draw", "id"])
        flat = values.reshape(-1, values.shape[-1])
        columns = list(modality.features) or list(range(flat.shape[1]))
        words = modality.transform[0].words if modality.transform else ()
        frame = pandas.DataFrame(flat, index=index, columns=columns)
        tables[name] = (
            _with_words(frame, flat, np.ones(flat.shape, dtype=bool), words) if words else frame
        )
    return tables


def embedding(z: NDArray[Any], ids: Sequence[Any], like: Any, id: str | None) -> Any:
    """Latents (b, d) as a table with ids, columns z0, z1, …"""
    names = [f"z{i}" for i in range(z.shape[1])]
    empty = Cells(z, np.ones(z.shape, dtype=bool), ids, names)
    return written(empty, None, like.to_frame() if type(like).__name__ == "Series" else like, id)
