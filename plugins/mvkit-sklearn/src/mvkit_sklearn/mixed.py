"""Tables of columns of every kind: words, categories, whole numbers, yes and no, days.

Axes: b rows, k columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from sklearn.utils.validation import check_array

import mvkit
from mvkit import DataError, Modality, RequestError, SpecError
from mvkit.data.table_layout import TableLayout, layout_of, observing
from mvkit.data.tables import frame_of
from mvkit.data.write_tables import as_before
from mvkit.registry import as_part
from mvkit_sklearn.building import NORMAL, Arrays
from mvkit_sklearn.stored import AnyModel

if TYPE_CHECKING:
    from pandas import DataFrame

AUTO = "auto"
ROW = "row number"  # of tables of polars, which have no index
KindsLike = str | Mapping[str, str] | None


def given_kinds(kinds: KindsLike) -> dict[str, str]:
    """The kinds that the user states, by column.

    Raises:
        SpecError: something else than "auto" or a mapping.
    """
    if kinds == AUTO:
        return {}
    if isinstance(kinds, Mapping):
        return dict(kinds)
    raise SpecError(
        f"got {kinds!r}; expected 'auto', a mapping from column to kind, such as "
        "{'grade': 'ordered'}, or None for columns of numbers alone",
        "kinds",
    )


def is_polars(X: Any) -> bool:
    """Whether a table is one of polars, which is not imported for it."""
    return type(X).__module__.partition(".")[0] == "polars"


def frame_from(X: Any) -> DataFrame:
    """A table of pandas or polars, or an array (b, k), as one of pandas.

    Raises:
        TypeError, ValueError: as scikit-learn raises them of what is no table.
    """
    from pandas import DataFrame

    if isinstance(X, DataFrame):
        return X
    if is_polars(X):
        return frame_of("X", X.with_row_index(ROW), ROW)
    values = check_array(X, dtype=None, ensure_all_finite="allow-nan")
    names = [f"x{i}" for i in range(values.shape[1])]
    return DataFrame(values, columns=names).infer_objects()


def like_before(filled: DataFrame, X: Any) -> Any:
    """A filled table as the kind of table, or array, that X is."""
    from pandas import DataFrame

    if isinstance(X, DataFrame):
        return filled
    if is_polars(X):
        return as_before(filled, X.with_row_index(ROW), ROW).drop(ROW)
    return filled.to_numpy(dtype=np.asarray(X).dtype)


def layout_from(frame: DataFrame, kinds: KindsLike) -> TableLayout:
    """How the columns are shared out among modalities.

    Raises:
        DataError: no column that a model can learn from, or values that are not of their kind.
    """
    layout = layout_of(frame, kinds=given_kinds(kinds), where="X")
    if not layout.groups:
        few = " (1 sample)" if len(frame) == 1 else ""
        raise DataError(
            f"X: no column can be learnt from: all are constant, empty or text{few}; expected "
            "numbers or categories; give kinds= if they are"
        )
    return layout


def rows_of(
    frame: DataFrame, layout: TableLayout, modalities: Mapping[str, Modality]
) -> mvkit.MultimodalDataset:
    """The rows of a table as a model of the modalities takes them."""
    return mvkit.MultimodalDataset.from_tables(layout.split(frame), modalities=modalities)


def training_rows(
    frame: DataFrame, layout: TableLayout, network: Mapping[str, Any]
) -> mvkit.MultimodalDataset:
    """The rows that observe something, with transforms fitted to them.

    Args:
        frame: the table.
        layout: how its columns are shared out.
        network: of encoders and decoders.
    """
    numbers = {}
    modalities = {}
    for name, modality in layout.modalities().items():
        options: dict[str, Any] = {"encoder": network, "decoder": network}
        if layout.column(layout.groups[name][0]).numeric:
            options["likelihood"] = as_part("likelihood", NORMAL)
            numbers[name] = "standardise"
        modalities[name] = attrs.evolve(modality, **options)  # type: ignore[misc]
    return observed_rows(frame, layout, modalities).fit_transforms(numbers)


def observed_rows(
    frame: DataFrame, layout: TableLayout, modalities: Mapping[str, Modality]
) -> mvkit.MultimodalDataset:
    """The rows of a table that observe something."""
    rows = rows_of(frame, layout, modalities)
    return rows.take(observing(rows.batch))


def check_layout(model: AnyModel, layout: TableLayout) -> None:
    """Raises RequestError unless a trained model is of the modalities of a layout."""
    if list(model.names) != list(layout.groups):
        raise RequestError(
            f"trained: a model of {', '.join(map(repr, model.names))}, and the columns make "
            f"{', '.join(map(repr, layout.groups))}; expected the same; give kinds= of those that "
            "are something else than they look like"
        )
    for name, modality in layout.modalities().items():
        own = model.modalities[name]
        if own.features != modality.features or own.shape != modality.shape:
            raise RequestError(
                f"trained: modality {name!r} has the columns {own.features} with values of shape "
                f"{own.shape}, and X {modality.features} of {modality.shape}; expected the same; "
                "train anew"
            )


def filled_frame(frame: DataFrame, layout: TableLayout, answers: Arrays) -> DataFrame:
    """The table with what a model expects in its gaps.

    Args:
        frame: with gaps.
        layout: how its columns are shared out.
        answers: by modality, (b, k); of categories the numbers of their levels.
    """
    from pandas import DataFrame

    tables = {}
    for group, names in layout.groups.items():
        values: Any = answers[group]
        column = layout.column(names[0])
        if column.kind == "category":
            words = np.array(column.levels, dtype=object)
            values = words[values.astype(int)]
        tables[group] = DataFrame(values, index=frame.index, columns=list(names))
    return layout.join(frame, tables)
