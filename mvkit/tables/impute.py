"""`mvkit.impute`: with a model, or of tables without one.

Axes: b rows, k columns of a modality.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs
import numpy as np

from mvkit.data.align import library
from mvkit.data.dataset import MultimodalDataset
from mvkit.data.files import read_files
from mvkit.data.missing import raw_values
from mvkit.data.table_layout import TableLayout, layout_of, observing
from mvkit.data.tables import check_lengths, frame_of, is_table
from mvkit.data.write_tables import as_before
from mvkit.errors import DataError, RequestError, check_option, check_whole_number
from mvkit.models import imputation
from mvkit.models.calibration import check_level
from mvkit.models.conformal import Weights
from mvkit.models.ensemble import Ensemble
from mvkit.models.imputed import Imputation
from mvkit.models.model import Model
from mvkit.models.multimodal import MultimodalModel
from mvkit.tables.choices import choose
from mvkit.tables.neighbours import moves_of
from mvkit.tables.recovery import RecoveryReport, report_of
from mvkit.tables.rows import MixedRows, Moves, drawn, predicted
from mvkit.tables.uncertainty import TableIntervals, calibrated, completed, fitted
from mvkit.training.multiple import IMPROPER, impute_multiply

if TYPE_CHECKING:
    from pandas import DataFrame

ALONE = "table"  # what a table that is given alone is called
Tables = Any  # a table, a path, or a mapping from name to table or path


def impute(model: object, data: object = None, **options: Any) -> Any:
    """Data with gaps filled: by a model, or, of tables without one, by one that is trained here.

    * `impute(model, data, …)`: the data, or an `Imputation` where uncertainty is asked for; see
      `mvkit.models.imputation.impute`; with `m=`, completed m times, see
      `mvkit.training.multiple.impute_multiply`.
    * `impute(tables, …)`: always an `Imputation`; see `mvkit.tables.impute.impute_tables`.

    Args:
        model: a model; or tables: one, or several by name, of pandas or polars, or paths of files.
        data: what a model fills.
        options: of either.

    Raises:
        RequestError: data without a model, or a model without data.

    Example:
        >>> import numpy, pandas, mvkit
        >>> columns = {"age": [31, 64, None, 47] * 5, "site": ["A", "B", "A", None] * 5}
        >>> imputation = mvkit.impute(pandas.DataFrame(columns), choices={"epochs": 2})
        >>> imputation.table.isna().to_numpy().any().item(), imputation.choices["kinds"]
        (False, {'age': 'count', 'site': 'category'})
    """
    if isinstance(model, MultimodalModel | Ensemble):
        if data is None:
            raise RequestError("impute: a model without data; expected impute(model, data)")
        if "m" in options:
            return impute_multiply(model, cast(Any, data), **options)
        return imputation.impute(model, cast(Any, data), **options)
    if data is not None:
        # says what is wrong with the model
        return imputation.impute(cast(Any, model), cast(Any, data), **options)
    return impute_tables(model, **options)


def impute_tables(
    tables: Tables,
    *,
    id: str | None = None,
    kinds: Mapping[str, Any] | None = None,
    choices: Mapping[str, object] | None = None,
    draws: int = 0,
    m: int = 0,
    refit: bool = True,
    intervals: float | None = None,
    weights: Weights = "odds",
    missingness: object = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Imputation:
    """Tables with gaps filled by a model that is chosen and trained for them.

    Columns are told apart by their dtypes and values (`mvkit.data.column_kinds.column_of`), shared
    out among modalities by kind (`mvkit.data.table_layout.TableLayout`), and a model is trained
    to predict hidden cells from the others (`recipes.masked`); numbers are moved by its errors in
    rows that are alike (`mvkit.tables.neighbours`). What comes back has the same index,
    columns and dtypes. No gap is left but in columns of free text and in those that hold nothing.

    Args:
        tables: a table of pandas or polars, or the path of a CSV, TSV or Parquet file; or several
            by name, which are aligned by their ids.
        id: the column of ids of tables that have them in a column.
        kinds: of columns that are something else than they look like, {column: kind}; of several
            tables {table: {column: kind}}.
        choices: what to take instead of what is chosen; see `mvkit.tables.choices.choose`.
        draws: of the tables filled at random, for `Imputation.draws`.
        m: complete the tables m times, for `Imputation.draws`, each time by a model that is
            trained on a bootstrap of the rows: for analyses that `mvkit.pool` pools.
        refit: whether m models are trained; without it, all draws are those of one, which is
            quick and improper, as a warning says.
        intervals: a share such as 0.9, which intervals of numbers and ordered categories,
            `Imputation.low` and `.high`, and sets of others, `.sets`, are to hold; calibrated on
            cells hidden from training, see `mvkit.calibrate`. They hold it where cells are missing
            completely at random, or at random given the other cells of their rows; where values
            are missing because of what they are, nothing is promised, with `missingness` too.
            `.coverage` says how they did.
        weights: of the cells that calibrate intervals: their `odds` to be missing, as learnt from
            the other cells of their rows, or all `equal`, which takes cells to be missing
            completely at random.
        missingness: why numbers are missing, such as `self`: large ones, or small ones; see
            `mvkit.available("missingness")`. None: at random.
        seed: of the weights, of what is hidden and of all noise.
        progress: show a bar; None: on a terminal only.

    Raises:
        DataError: tables that cannot be aligned or read, or values that are not of their kind.
        RequestError: a choice that there is not, or that cannot be.
    """
    draws = check_whole_number("impute: draws", draws, 0)
    m = _check_several(m, draws, refit)
    level = None if intervals is None else check_level("impute: intervals", intervals)
    check_option("impute: weights", weights, "odds", "equal")
    given = _by_name(tables)
    frames = _frames(given, id)
    layouts = _layouts(frames, kinds, alone=not isinstance(tables, Mapping))
    rows = MixedRows.of(frames, layouts)
    chosen = choose(len(rows.data), choices)
    if missingness is not None:  # rows that are alike in what is known are not in what is missing
        chosen["neighbours"] = 0
    shown = rows.data.with_missing(chosen["held_out"], of="elements", seed=seed)
    known = shown.take(observing(rows.data.batch))
    model, training = fitted(known, rows.columns, chosen, seed, progress, missingness)
    n = chosen["neighbours"]
    held_out = moves_of(model, shown.batch, rows.columns, n, seed)
    report = _recovery(rows, training, model, seed, held_out)
    moves = moves_of(model, rows.data.batch, rows.columns, n, seed)
    values = predicted(model, rows.data.batch, rows.columns, seed, moves)
    like = _Likeness(tables, given, id)
    filled = like.restored(rows.filled(rows.tables_of(values)))
    if m and refit:
        samples = completed(rows, chosen, m, seed, progress, missingness)
    else:
        samples = iter(drawn(model, rows.data.batch, rows.columns, m or draws, seed, moves))
    tables_drawn = [like.restored(rows.filled(rows.tables_of(sample))) for sample in samples]
    more: dict[str, Any] = {}
    if level is not None:
        bounds = calibrated(model, rows, shown, level, weights, seed, held_out, values)
        more = _intervals(bounds, like)
    stated = {**chosen, "seed": seed, "kinds": _kinds(layouts, alone=like.alone)}
    stated |= {} if missingness is None else {"missingness": missingness}
    about: dict[str, Any] = {"model": model, "choices": stated, "report": report}
    return Imputation(filled, None, {}, tables_drawn, layouts=layouts, **about, **more)


def _check_several(m: int, draws: int, refit: bool) -> int:
    """The number of completed tables; warns of draws that ignore what weights may be.

    Raises:
        RequestError: a number that cannot be, or draws beside it.
    """
    check_option("impute: refit", refit, True, False)
    if not m:
        return 0
    m = check_whole_number("impute: m", m, 2)
    if draws:
        raise RequestError(f"impute: draws={draws} beside m={m}; expected one of them")
    if not refit:
        warnings.warn(IMPROPER.format(m=m), stacklevel=4)
    return m


def _intervals(bounds: TableIntervals, like: _Likeness) -> dict[str, Any]:
    """What an `Imputation` holds of intervals, in the kind of tables that came in."""
    ends: dict[str, Any] = {"low": like.restored(bounds.low), "high": like.restored(bounds.high)}
    sets = bounds.sets[ALONE] if like.alone else bounds.sets
    return {**ends, "sets": sets, "coverage": bounds.coverage}


def _by_name(tables: Tables) -> dict[str, object]:
    """Tables or paths by name.

    Raises:
        DataError: something else, or none.
    """
    if isinstance(tables, Mapping):
        if not tables:
            raise DataError("impute: no tables; expected one at least")
        return dict(tables)
    if is_table(tables) or isinstance(tables, str | os.PathLike):
        return {ALONE: tables}
    raise DataError(
        f"impute: got {type(tables).__name__}; expected a model and data, or without a model a "
        "table of pandas or polars, a path, or a mapping from name to table or path"
    )


def _frames(given: Mapping[str, object], id: str | None) -> dict[str, DataFrame]:
    """The tables as pandas tables whose index holds the ids."""
    files = {}
    for name, table in given.items():
        if isinstance(table, str | os.PathLike):
            files[name] = table
    if files and len(files) < len(given):
        raise DataError("impute: paths among tables; expected only one of the two; read them all")
    if files:
        frames = read_files(files, id)
    else:
        frames = {}
        for name, table in given.items():
            numbered = _numbered(table) if id is None and len(given) == 1 else table
            frames[name] = frame_of(name, numbered, id)
    check_lengths(frames)
    return frames


def _numbered(table: Any) -> Any:
    """A polars table that needs no ids as one of pandas, whose rows are numbered."""
    if library(table) != "polars":
        return table
    return frame_of("table", table.with_row_index("row number"), "row number")


def _layouts(
    frames: Mapping[str, DataFrame], kinds: Mapping[str, Any] | None, *, alone: bool
) -> dict[str, TableLayout]:
    given = {ALONE: kinds or {}} if alone else dict(kinds or {})
    for name in given:
        if name not in frames:
            raise RequestError(
                f"impute: kinds of {name!r}, which is no table; expected "
                f"{{table: {{column: kind}}}}, tables being {', '.join(map(repr, frames))}"
            )
    layouts = {}
    for name, frame in frames.items():
        prefix = "" if len(frames) == 1 else name
        where = f"tables[{name!r}]"
        layouts[name] = layout_of(frame, kinds=given.get(name), name=prefix, where=where)
    return layouts


def _kinds(layouts: Mapping[str, TableLayout], *, alone: bool) -> dict[str, Any]:
    """The kinds of columns as `impute` takes them."""
    if alone:
        return layouts[ALONE].kinds
    return {name: layout.kinds for name, layout in layouts.items()}


def _recovery(
    rows: MixedRows, training: MultimodalDataset, model: Model, seed: int, moves: Moves
) -> RecoveryReport:
    """The report of the cells that were hidden from training."""
    kept = observing(rows.data.batch)
    whole = rows.data.take(kept)
    truth = {}
    hidden = {}
    for name in rows.columns:
        x = whole.batch.data[name].double().numpy()
        seen = raw_values(training.batch, name, training.modalities).numpy()
        truth[name] = x
        hidden[name] = np.isnan(seen) & ~np.isnan(x)
    own = {name: move[kept.numpy()] for name, move in moves.items()}
    said = predicted(model, training.batch, rows.columns, seed, own)
    tables: dict[str, str] = {}
    for table, layout in rows.layouts.items():
        tables |= dict.fromkeys(layout.groups, table if len(rows.layouts) > 1 else "")
    return report_of(rows.columns, tables, truth, said, hidden)


@attrs.frozen(eq=False)
class _Likeness:
    """What came in, so that the same comes back.

    Args:
        tables: as given.
        by_name: tables or paths by name.
        id: the column of ids.
    """

    tables: Tables
    by_name: Mapping[str, object]
    id: str | None

    @property
    def alone(self) -> bool:
        """Whether one table came, and not by name."""
        return not isinstance(self.tables, Mapping)

    def restored(self, frames: Mapping[str, DataFrame]) -> Any:
        """Filled pandas tables as what came in; paths become pandas tables."""
        restored = {}
        for name, frame in frames.items():
            restored[name] = self._restored(frame, self.by_name[name])
        return restored[ALONE] if self.alone else restored

    def _restored(self, frame: DataFrame, like: Any) -> Any:
        if isinstance(like, str | os.PathLike):
            return frame if self.id is None else frame.reset_index()
        if library(like) == "polars" and self.id is None:
            return as_before(frame, like.with_row_index("row number"), "row number").drop(
                "row number"
            )
        return as_before(frame, like, self.id)
