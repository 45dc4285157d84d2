"""How well cells that were hidden from training are recovered, column by column.

Axes: n hidden cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs
import numpy as np
from numpy.typing import NDArray

from mvkit.data.column_kinds import Column
from mvkit.evaluation.guesses import DISTANCE, SQUARE, WRONG, best_guess, error_of

if TYPE_CHECKING:
    from pandas import DataFrame

Array = NDArray[np.float64]
ERRORS = {"category": WRONG, "bits": WRONG, "ordered": DISTANCE}
GAIN = 0.05  # less than this below the error of a guess counts as nothing learnt


@attrs.frozen
class Recovered:
    """How the hidden cells of one column were recovered.

    Args:
        table, column, kind: what the column is.
        cells: how many were hidden.
        measure: what `error` and `guess` are: the root mean square error of numbers, the mean
            distance in levels of ordered categories, the share that is wrong of others.
        error: of what the model says.
        guess: of one value for all: the mean, the median level, the most frequent category.
    """

    table: str
    column: str
    kind: str
    cells: int
    measure: str
    error: float
    guess: float

    @property
    def less(self) -> str:
        """The share in words of a table: a dash where a guess had no error."""
        return f"{self.gain:.0%}" if self.guess else "–"

    @property
    def gain(self) -> float:
        """Share of the error of a guess that the model takes away; NaN where that is 0."""
        return 1.0 - self.error / self.guess if self.guess else float("nan")


@attrs.frozen
class RecoveryReport:
    """How well hidden cells of all columns were recovered; prints as a table.

    Args:
        columns: in the order of the tables.
    """

    columns: tuple[Recovered, ...]

    @property
    def weak(self) -> tuple[str, ...]:
        """Columns that the others say next to nothing of: their imputed values are guesses."""
        return tuple(row.column for row in self.columns if row.cells and not row.gain > GAIN)

    def table(self) -> DataFrame:
        """One row for each column."""
        from pandas import DataFrame

        rows = [{**attrs.asdict(row), "gain": row.gain} for row in self.columns]
        return DataFrame(rows)

    def __str__(self) -> str:
        titles = ("column", "kind", "hidden", "measure", "error", "of a guess", "less by")
        lines = [titles]
        for row in self.columns:
            where = f"{row.table}.{row.column}" if row.table else row.column
            numbers = (f"{row.error:.4g}", f"{row.guess:.4g}", row.less)
            lines.append((where, row.kind, str(row.cells), row.measure, *numbers))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = []
        for line in lines:
            cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
            text.append("  ".join(cells).rstrip())
        if self.weak:
            text.append(f"hardly better than a guess: {', '.join(self.weak)}")
        return "\n".join(text)


def recovered(
    table: str, column: Column, truth: Array, said: Array, known: Array
) -> Recovered | None:
    """The errors in hidden cells of a column.

    Args:
        table: its table.
        column: what it holds.
        truth: of the hidden cells, (n,), as numbers.
        said: by the model, (n,).
        known: what training saw of the column, from which a guess is made.

    Returns:
        None where no cell was hidden, or none known.
    """
    if not len(truth) or not len(known):
        return None
    measure = ERRORS.get(column.kind, SQUARE)
    error = error_of(measure, truth, column.bounded(said))
    guess = error_of(measure, truth, best_guess(measure, known))
    return Recovered(table, column.name, column.kind, len(truth), measure, error, guess)


def report_of(
    columns: Mapping[str, list[Column]],
    tables: Mapping[str, str],
    truth: Mapping[str, Array],
    said: Mapping[str, Array],
    hidden: Mapping[str, NDArray[np.bool_]],
) -> RecoveryReport:
    """The report of all columns.

    Args:
        columns: by modality.
        tables: the table of each modality.
        truth: values (b, k) by modality, NaN where missing.
        said: what the model says, likewise.
        hidden: which cells were hidden from training, (b, k) bool.
    """
    rows = []
    for name, own in columns.items():
        for i, column in enumerate(own):
            x = truth[name][:, i]
            cells = hidden[name][:, i]
            known = x[~cells & ~np.isnan(x)]
            row = recovered(tables[name], column, x[cells], said[name][cells, i], known)
            if row is not None:
                rows.append(row)
    return RecoveryReport(tuple(rows))
