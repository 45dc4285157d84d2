"""Sensitivity of pooled estimates to values that are missing not at random: delta adjustment.

Axes: m completed tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mvkit.core.figures import colour_of, legend_of, plain_text
from mvkit.errors import DataError, RequestError, suggest
from mvkit.evaluation.pooling import pool

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame, Series

DELTAS = (-1.0, -0.5, 0.0, 0.5, 1.0)
Analysis = Callable[[Any], object]


def sensitivity(
    data: DataFrame,
    completed: Iterable[DataFrame],
    analysis: Analysis,
    *,
    columns: Iterable[object] | None = None,
    deltas: Iterable[float] = DELTAS,
    level: float = 0.95,
) -> DataFrame:
    """Pooled estimates as if missing values were larger, or smaller, than they were imputed.

    Each imputed value is moved by δ standard deviations of the observed values of its column. How
    far δ may go from 0 before a conclusion falls says how much it rests on values being missing at
    random. `mvkit.plots.sensitivity` draws it.

    Args:
        data: the table with its gaps, of pandas.
        completed: the table completed m times, such as `Imputation.draws`.
        analysis: from a completed table to what `mvkit.pool` takes of a fit.
        columns: those whose imputed values move; None: all columns of numbers with gaps.
        deltas: δ, in standard deviations.
        level: share that the intervals are to hold.

    Returns:
        What `mvkit.pool` returns for each δ, with δ in a column `delta` before it, and the
        coefficient in another.

    Raises:
        RequestError: a column that there is not, or that holds no numbers.
        DataError: completed tables of other rows than the data.

    Example:
        >>> import pandas
        >>> data = pandas.DataFrame({"x": [1.0, 3.0, None]})
        >>> completed = [data.fillna(1.5), data.fillna(2.5)]
        >>> table = sensitivity(data, completed, lambda t: (t["x"].mean(), 0.1), deltas=[0, 1.5])
        >>> table["estimate"].round(3).tolist()
        [2.0, 2.707]

    Reference: van Buuren, Flexible Imputation of Missing Data, 2018, section 9.2,
    https://stefvanbuuren.name/fimd/.
    """
    import pandas as pd

    tables = list(completed)
    moved = _moved_columns(data, columns)
    for i, table in enumerate(tables):
        if not table.index.equals(data.index):
            raise DataError(
                f"sensitivity: completed table {i} has other rows than the data; expected the "
                "same index; give the table that was imputed"
            )
    pieces = []
    for delta in deltas:
        fits = [analysis(shifted(data, table, moved, float(delta))) for table in tables]
        pooled = pool(fits, level=level)
        pooled.insert(0, "coefficient", pooled.index)
        pooled.insert(0, "delta", float(delta))
        pieces.append(pooled)
    return pd.concat(pieces, ignore_index=True)


def shifted(
    data: DataFrame, completed: DataFrame, columns: Sequence[object], delta: float
) -> DataFrame:
    """A completed table whose imputed values are moved by δ deviations of the observed ones.

    Args:
        data: the table with its gaps.
        completed: the same, gaps filled.
        columns: those whose values move; whole numbers become floats there.
        delta: δ.
    """
    table = completed.copy()
    for name in columns:
        observed = _numbers(data[name])
        gap = np.isnan(observed)
        values = _numbers(completed[name])
        deviation = np.std(observed[~gap], ddof=1) if (~gap).sum() > 1 else 0.0
        table[name] = np.where(gap, values + delta * deviation, values)
    return table


def _moved_columns(data: DataFrame, columns: Iterable[object] | None) -> list[object]:
    """Columns of numbers, those asked for, or all that have gaps."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    numeric = []
    for name, kind in data.dtypes.items():
        if is_numeric_dtype(kind) and not is_bool_dtype(kind):
            numeric.append(name)
    if columns is None:
        gaps = [name for name in numeric if data[name].isna().any()]
        if not gaps:
            raise RequestError(
                "sensitivity: no column of numbers has gaps; expected one at least, whose imputed "
                "values can move"
            )
        return gaps
    chosen = list(columns)
    for name in chosen:
        if name not in numeric:
            known = suggest(str(name), map(str, numeric))
            raise RequestError(f"sensitivity: no column of numbers {name!r}; {known}")
    return chosen


def _numbers(column: Series) -> np.ndarray:
    """A column as floats, NaN where missing."""
    values: np.ndarray = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return values


def draw_sensitivity(ax: Axes, table: DataFrame, coefficients: Iterable[object] | None) -> Axes:
    """Estimates and intervals by δ; see `mvkit.plots.sensitivity`."""
    known = dict.fromkeys(table["coefficient"])
    chosen = list(known if coefficients is None else coefficients)
    handles = {}
    for i, name in enumerate(chosen):
        if name not in known:
            raise RequestError(
                f"sensitivity: no coefficient {name!r}; {suggest(str(name), map(str, known))}"
            )
        lines: Mapping[str, Any] = table[table["coefficient"] == name].sort_values("delta")
        colour = colour_of(i)
        ax.fill_between(lines["delta"], lines["low"], lines["high"], color=colour, alpha=0.2)
        label = plain_text(str(name))
        options: dict[str, Any] = {"marker": ".", "color": colour, "label": label}
        (line,) = ax.plot(lines["delta"], lines["estimate"], **options)
        handles[str(name)] = line
    ax.axhline(0.0, color="0.6", linewidth=1)
    ax.set(xlabel="δ: imputed values moved, in standard deviations", ylabel="pooled estimate")
    if handles:
        legend_of(ax, handles)
    return ax
