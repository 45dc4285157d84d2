"""Training history: one row of metrics per epoch, and the sums from which a row is computed."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from mvkit.errors import DataError
from mvkit.models.ensemble import Ensemble
from mvkit.training.distributed import ProcessGroup, Sums
from mvkit.training.loss_curves import losses

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, float]


@attrs.frozen(eq=False)
class History:
    """Metrics by epoch: each row has stage, epoch, step, lr, metrics and `valid/…` metrics.

    Args:
        rows: one per epoch.
        notes: what was otherwise when the run resumed: more epochs, another device, and so on.
        verdict: what the run came to.
        ensemble: the models of a run from several seeds, whose rows have a column `seed`.

    Example:
        >>> History([{"stage": 0, "epoch": 1, "loss": 2.0}])["loss"]
        [2.0]
    """

    rows: list[Row] = attrs.field(factory=list)
    notes: list[str] = attrs.field(factory=list)
    verdict: list[str] = attrs.field(factory=list)
    ensemble: Ensemble | None = None

    def __getitem__(self, key: str) -> list[float]:
        return [row.get(key, math.nan) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        lines = [f"History({len(self)} epochs)"]
        for row in self.rows[-5:]:
            shown = [key for key in row if "/" not in key.removeprefix("valid/")]
            lines.append(", ".join(f"{key} {row[key]:.4g}" for key in shown))
        return "\n".join([*lines, *self.notes, *self.verdict])

    @property
    def columns(self) -> list[str]:
        """Every key that some row has, in order of first appearance."""
        return list(dict.fromkeys(itertools.chain.from_iterable(self.rows)))

    def plot(self, *, terms: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
        """Axes with the loss and the bound by epoch; options as of `mvkit.plots.losses`."""
        return losses(self, terms=terms, ax=ax)

    def to_jsonl(self, start: int = 0) -> str:
        """One JSON object per line, from row `start` on; NaN and infinity become null."""
        return "".join(f"{json.dumps(_finite(row))}\n" for row in self.rows[start:])

    def to_csv(self) -> str:
        """A header and one line per epoch; missing, NaN and infinite metrics are empty."""
        columns = self.columns
        return f"{csv_lines([columns])}{self.to_csv_rows(columns)}"

    def to_csv_rows(self, columns: Sequence[str], start: int = 0) -> str:
        """The lines of `to_csv` of the rows from `start` on, without the header.

        Args:
            columns: the keys to write; they hold every key of these rows.
            start: number of the first row.
        """
        lines = []
        for row in self.rows[start:]:
            cells = _finite(row)
            lines.append([cells.get(key) for key in columns])
        return csv_lines(lines)


def csv_lines(rows: Iterable[Sequence[object]]) -> str:
    """Rows of cells as lines of CSV; None is empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _finite(row: Row) -> dict[str, float | None]:
    """A row with None in place of NaN and infinity."""
    return {key: value if math.isfinite(value) else None for key, value in row.items()}


class Totals:
    """Sums of metrics over the rows of an epoch; the device is waited for only at the end."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.sums = torch.zeros(0, 2)  # of each metric: sum over rows, number of rows

    def add(
        self,
        metrics: dict[str, Tensor],
        counts: dict[str, Tensor],
        rows: int,
        skip: Tensor | None = None,
    ) -> None:
        """Adds the metrics of one batch of `rows` rows.

        Args:
            metrics: means over rows, each (), of copies that train in one step (c,).
            counts: the number of rows behind a metric, likewise; missing: all rows of the batch.
            rows: the number of rows of the batch.
            skip: a flag () that leaves the batch out; None: it counts.
        """
        if not metrics:
            return
        means = torch.stack([mean.to(torch.float64) for mean in metrics.values()])
        every = torch.full_like(means[0], rows)
        numbers = [counts[key].to(torch.float64) if key in counts else every for key in metrics]
        number = torch.stack(numbers)
        if skip is not None:
            number = torch.where(skip, 0.0, number)
        total = torch.where(number > 0, means * number, 0.0)
        self._add(list(metrics), torch.stack([total, number], 1))

    def _add(self, keys: list[str], sums: Tensor) -> None:
        """Adds sums and numbers of rows, (n, 2) or (n, 2, c), of metrics that may be new."""
        if keys == self.keys:
            self.sums = self.sums + sums
            return
        new = [key for key in keys if key not in self.keys]
        places = {key: place for place, key in enumerate([*self.keys, *new])}
        whole = sums.new_zeros(len(places), *sums.shape[1:])
        if self.keys:
            whole[: len(self.keys)] = self.sums
        for key, pair in zip(keys, sums, strict=True):
            whole[places[key]] += pair
        self.keys = list(places)
        self.sums = whole

    def pairs(self) -> Sums:
        """Sum and number of rows of each metric; waits for the device."""
        return dict(zip(self.keys, map(tuple, self.sums.tolist()), strict=True))

    def restore(self, pairs: Mapping[str, Iterable[float]], like: Tensor) -> None:
        """Puts back what `pairs` returned, on the device of `like`."""
        self.keys = list(pairs)
        table = [tuple(pair) for pair in pairs.values()]
        self.sums = torch.tensor(table, dtype=torch.float64, device=like.device).reshape(-1, 2)

    def means(self, group: ProcessGroup) -> Row:
        """Mean of each metric over the rows of all processes."""
        if not self.keys:
            raise DataError(
                "fit: the loader returned no batch; expected at least one per epoch; "
                "check that it is not used up"
            )
        means = {}
        for key, (total, count) in group.pooled(self.pairs()).items():
            means[key] = total / count if count else math.nan
        return means
