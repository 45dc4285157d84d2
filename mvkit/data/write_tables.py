"""Numbers written back into tables: the same kind, index and columns.

Axes: b rows of all modalities together, k columns, d latent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mvkit.core.modality import Modality
from mvkit.core.raw_values import as_tensor
from mvkit.data.align import library
from mvkit.data.object_columns import with_objects
from mvkit.data.tables import frame_of, numbers_of
from mvkit.errors import ShapeError

if TYPE_CHECKING:
    from pandas import DataFrame, Index, Series

Array = np.ndarray
Bools = NDArray[np.bool_]
Ids = Sequence[Hashable]
Words = Sequence[str]
BITS: dict[str, object] = {"True": True, "False": False}
Kind = Any  # a dtype of pandas or numpy
Frame = Any  # a DataFrame or a Series of pandas or polars


@runtime_checkable
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
    own_type: bool = True,
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
        own_type: whether new values are rounded where a column holds whole numbers or bits, so
            that it keeps its dtype; else it becomes one of floats.
    """
    from pandas import DataFrame

    frame = frame_of("", like, id) if columns is None else _blank(ids, like, id, columns)
    kinds = frame.dtypes.to_dict()
    if whole:
        frame = _with_rows(frame, ids)
    places = {id: i for i, id in enumerate(ids)}
    rows = [places[id] for id in frame.index]
    values = values[rows]
    if changed is None:
        frame = DataFrame(values, index=frame.index, columns=frame.columns)
    elif words:
        frame = _with_words(frame, values, changed[rows], words, kinds)
    elif changed[rows].any():
        frame = _with_numbers(frame, values, changed[rows], kinds if own_type else {})
    return as_before(frame, like, id)


def _blank(ids: Ids, like: Frame, id: str | None, columns: Ids) -> DataFrame:
    """A table of NaN with these ids and columns."""
    from pandas import DataFrame

    frame = DataFrame(np.nan, index=range(len(ids)), columns=columns)
    frame.index = _index(ids, [id] if id is not None else like.index.names)
    return frame


def _index(ids: Ids, names: Sequence[Hashable]) -> Index:
    """An index of ids; tuples become as many levels as there are names."""
    from pandas import Index, MultiIndex

    if len(names) > 1:
        return MultiIndex.from_tuples(ids, names=names)
    return Index(ids, name=names[0], tupleize_cols=False)


def _with_rows(frame: DataFrame, ids: Ids) -> DataFrame:
    """The table with the rows of all ids, NaN or NA where it has none.

    Whole numbers and bits go to dtypes that have gaps, where they stay exact.
    """
    nullable = {}
    for name, kind in frame.dtypes.items():
        if isinstance(kind, np.dtype) and kind.kind in "iu":
            nullable[name] = kind.name.replace("i", "I").replace("u", "U")
        elif isinstance(kind, np.dtype) and kind.kind == "b":
            nullable[name] = "boolean"
    return frame.astype(nullable).reindex(_index(ids, frame.index.names))


def _with_numbers(
    frame: DataFrame, values: Array, changed: Bools, kinds: Mapping[Hashable, Kind]
) -> DataFrame:
    """The table with numbers in the cells that changed; columns without any keep their type.

    Columns that are whole numbers, bits, decimals or objects in `kinds` keep it too.
    """
    from pandas import DataFrame, concat

    names = frame.columns.tolist()
    dtypes = frame.dtypes.tolist()
    touched = np.logical_or.reduce(changed)
    pieces = [frame.loc[:, ~touched]]
    blocks: dict[object, list[int]] = {}
    rounded: dict[int, object] = {}
    for i in touched.nonzero()[0].tolist():
        kind = dtypes[i]
        before = kinds.get(names[i])
        if before is not None and before.kind in "iub":
            rounded[i] = _rounded(frame.iloc[:, i].array, values[:, i], changed[:, i], before)
        elif before is not None and before.kind == "O":
            rounded[i] = with_objects(frame.iloc[:, i], values[:, i], changed[:, i])
        else:
            floats = kind if kind.kind == "f" else np.dtype(np.float64)
            blocks.setdefault(floats, []).append(i)
    if rounded:
        columns = DataFrame(rounded, frame.index)
        columns.columns = frame.columns[list(rounded)]
        pieces.append(columns)
    for kind, places in blocks.items():
        old = frame.iloc[:, places]
        new = np.where(changed[:, places], values[:, places], numbers_of(old))
        pieces.append(DataFrame(new, old.index, old.columns).astype(kind))
    return concat(pieces, axis=1)[names]


def _rounded(old: Series, values: Array, changed: Bools, kind: Kind) -> object:
    """Whole numbers or bits, an array of pandas, with new values (b,) of its dtype before."""
    from pandas import array

    new = values[changed]
    if kind.kind == "b":
        new = new > 0.5
    else:
        limits = np.iinfo(getattr(kind, "numpy_dtype", getattr(kind, "subtype", kind)))
        new = np.array([min(max(round(x), limits.min), limits.max) for x in new.tolist()])
    sparse = type(old).__name__ == "SparseArray"  # which takes no new values
    column = np.array(old) if sparse else old.copy()
    column[changed] = new
    return column if column.dtype == kind else array(column, dtype=kind)


def _with_words(
    frame: DataFrame, values: Array, changed: Bools, words: Words, kinds: Mapping[Hashable, Kind]
) -> DataFrame:
    """The table with words in the cells that changed; None where a value is NaN."""
    from pandas import CategoricalDtype, DataFrame

    codes = np.where(np.isnan(values), len(words), values).astype(int)
    new = np.array([*words, None], dtype=object)[codes]
    columns = {}
    for i, name in enumerate(frame.columns):
        old = frame[name]
        fill = _with_categories if isinstance(old.dtype, CategoricalDtype) else _with_texts
        columns[name] = fill(old, new[:, i], changed[:, i], kinds[name])
    return DataFrame(columns, frame.index, frame.columns)


def _with_texts(old: Series, texts: Array, changed: Bools, kind: Kind) -> Series:
    """A column of text, days or other objects with new ones where it changed.

    A word becomes the value that it stands for elsewhere in the column, whose dtype before, or
    else its own, it keeps if that holds all values.
    """
    from pandas import Series
    from pandas.api.types import is_numeric_dtype

    gaps = old.isna()
    places = {str(value): value for value, gap in zip(old, gaps, strict=True) if not gap}
    values = old.astype(object).tolist()
    for row in changed.nonzero()[0].tolist():
        text = texts[row]
        if text is not None and text not in places:
            places[text] = _category(text, list(places.values()))
        values[row] = None if text is None else places[text]
    column = Series(values, old.index, name=old.name)
    worded = any(isinstance(value, str) for value in values)
    for own in dict.fromkeys([old.dtype, kind]):
        if not (worded and is_numeric_dtype(own)):
            with contextlib.suppress(ValueError, TypeError):
                column = Series(values, old.index, dtype=own, name=old.name)
    return column


def _with_categories(old: Series, texts: Array, changed: Bools, _: Kind) -> Series:
    """A column of categories with new ones where it changed, which are called by their text.

    Its dtype stays, unless a word is none of its categories: that is added at their end.
    """
    from pandas import Categorical, CategoricalDtype, Series

    categories = old.cat.categories.tolist()
    places = {str(category): i for i, category in enumerate(categories)}
    for i, category in enumerate(categories):
        if type(category) is int:  # which models of old knew as floats
            places.setdefault(str(float(category)), i)
    codes = old.cat.codes.to_numpy(dtype=np.int64, copy=True)
    kind = old.dtype
    for text in texts[changed]:
        if text is not None and text not in places:
            places[text] = len(categories)
            categories.append(_category(text, categories))
            kind = CategoricalDtype(categories, old.cat.ordered)
    codes[changed] = [places.get(text, -1) for text in texts[changed]]
    return Series(Categorical.from_codes(codes, dtype=kind), old.index, name=old.name)


def _category(text: str, others: Sequence[Any]) -> object:
    """A value from its text, of the type of the others if they have one in common."""
    types = {type(category) for category in others}
    with contextlib.suppress(ValueError, TypeError, ArithmeticError):
        if types and types <= {int, float, bool}:
            return _spelt(text)
        if len(types) == 1:
            return types.pop()(text)
    return text


def _spelt(word: str) -> object:
    """The number or the bit that a word spells."""
    if word in BITS:
        return BITS[word]
    number = float(word)
    return int(number) if number.is_integer() else number


def as_before(frame: DataFrame, like: Frame, id: str | None) -> Frame:
    """A pandas table with ids in its index as the kind of table that `like` is."""
    if library(like) == "polars":
        import polars

        table = polars.from_pandas(frame.reset_index(names=id))
        for name, kind in like.schema.items():
            if kind in (polars.Enum, polars.Date, polars.Decimal):  # which pandas does not know
                with contextlib.suppress(polars.exceptions.PolarsError):
                    table = table.cast({name: kind})
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
            blank = DataFrame(np.nan, frame.index, frame.columns)
            everywhere = np.ones(flat.shape, bool)
            frame = _with_words(blank, flat, everywhere, words, blank.dtypes.to_dict())
        tables[name] = frame
    return tables
