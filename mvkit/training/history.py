"""What a run came to: sums of an epoch's metrics, and the history, a row an epoch."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import attrs
import torch
from torch import Tensor

from mvkit.errors import DataError
from mvkit.training.distributed import ProcessGroup


@attrs.frozen(eq=False)
class History:
    """What happened, a row an epoch: stage, epoch, step, lr, metrics, `valid/…` metrics.

    Example:
        >>> History([{"stage": 0, "epoch": 1, "loss": 2.0}])["loss"]
        [2.0]
    """

    rows: list[dict[str, float]] = attrs.field(factory=list)

    def __getitem__(self, key: str) -> list[float]:
        return [row.get(key, math.nan) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        lines = [
            ", ".join(f"{key} {value:.4g}" for key, value in row.items() if "/" not in key)
            for row in self.rows
        ]
        return "\n".join([f"History({len(self)} epochs)", *lines[-5:]])

    @property
    def columns(self) -> list[str]:
        """Every key that some row has, in order of first appearance."""
        return list(dict.fromkeys(key for row in self.rows for key in row))

    def plot(self, **options: Any) -> Any:
        """Axes with the loss and the bound over epochs; options as of `mvkit.plots.losses`."""
        from mvkit.training.loss_curves import losses

        return losses(self, **options)

    def to_jsonl(self) -> str:
        """A JSON object a line; what is no number is null."""
        return "".join(
            json.dumps(dict(zip(row, finite(row.values()), strict=True))) + "\n"
            for row in self.rows
        )

    def to_csv(self) -> str:
        """A header and a line an epoch, empty where an epoch lacks a metric or it is no number."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(
            ["" if v is None else v for v in finite(row.get(k) for k in self.columns)]
            for row in self.rows
        )
        return text.getvalue()


def finite(values: Any) -> list[Any]:
    """The values, None for those that are no finite number."""
    return [
        None if isinstance(value, float) and not math.isfinite(value) else value
        for value in values
    ]


class Totals:
    """Means of metrics over the rows behind them, without waiting for the device before the end."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def add(
        self,
        metrics: dict[str, Tensor],
        counts: dict[str, Tensor],
        rows: int,
        unless: Tensor | None = None,
    ) -> None:
        """What a batch of so many rows came to, unless a flag () says that it does not count."""
        for key, value in metrics.items():
            count = counts.get(key, torch.full_like(value, rows)).to(torch.float64)
            if unless is not None:
                count = torch.where(unless, 0.0, count)
            value = torch.where(count > 0, value.to(torch.float64) * count, 0.0)
            self.sums[key] = self.sums[key] + value if key in self.sums else value
            self.counts[key] = self.counts[key] + count if key in self.counts else count

    def pairs(self) -> dict[str, tuple[float, float]]:
        """Sum and number of rows of each metric; the one place that waits for the device."""
        if not self.sums:
            return {}
        table = torch.stack(
            [torch.stack([*self.sums.values()]), torch.stack([*self.counts.values()])]
        ).tolist()
        return dict(zip(self.sums, zip(*table, strict=True), strict=True))

    def restore(self, pairs: dict[str, Any], like: Tensor) -> None:
        """Go on from what `pairs` gave."""
        for key, (total, count) in pairs.items():
            self.sums[key] = torch.tensor(total, dtype=torch.float64, device=like.device)
            self.counts[key] = torch.tensor(count, dtype=torch.float64, device=like.device)

    def means(self, ranks: ProcessGroup) -> dict[str, float]:
        """What was added by all processes, divided by the rows behind it."""
        if not self.sums:
            raise DataError(
                "fit: the loader gave no batch; expected one at least an epoch; check that it is not used up"
            )
        pairs = ranks.pooled(self.pairs())
        return {key: total / count if count else math.nan for key, (total, count) in pairs.items()}
