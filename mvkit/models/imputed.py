"""Imputation: what was filled in, and how sure it is.

Axes: b rows, n draws, c classes; places are the shape of a modality without its axis of classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from mvkit.errors import RequestError
from mvkit.models.multimodal import MultimodalModel

Filled = Any  # data of the kind that came in


@attrs.frozen(eq=False)
class Imputation:
    """Filled data with their uncertainty, each part of the kind that came in.

    Args:
        filled: the data, gaps filled.
        sd: standard deviations of what was filled in, 0 elsewhere; NaN for categories.
        quantiles: quantiles of what was filled in, by the share below; observed values elsewhere;
            NaN for categories.
        draws: the data filled n times at random, for multiple imputation, if asked for.
        low, high: ends of the intervals that were asked for, observed values elsewhere; NaN for
            classes; None: none were.
        sets: of modalities of classes, the sets that were asked for: arrays (b, *places, c) bool
            of the classes in them, or tables of tuples.
        coverage: by column, how many of the cells that calibrated them the intervals hold, and
            how wide they are, where they were calibrated on these data.
        model: what filled them, where it was trained for these data.
        choices: what was chosen for these data, by name.
        report: how well hidden cells were recovered, likewise.
        layouts: how the columns of each table are shared out among modalities, likewise.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (2,)}, latent_dim=1, seed=0)
        >>> table = torch.randn(30, 2)
        >>> table[0, 0] = torch.nan
        >>> imputation = mvkit.impute(model, {"a": table}, quantiles=(0.05, 0.95))
        >>> imputation.sd["a"][0, 1].item()  # an observed value
        0.0
    """

    filled: Filled
    sd: Filled
    quantiles: dict[float, Filled]
    draws: list[Filled]
    low: Filled = attrs.field(default=None, kw_only=True)
    high: Filled = attrs.field(default=None, kw_only=True)
    sets: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True)
    coverage: Any = attrs.field(default=None, kw_only=True)
    model: MultimodalModel | None = attrs.field(default=None, kw_only=True)
    choices: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True)
    report: Any = attrs.field(default=None, kw_only=True)
    layouts: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True)

    @property
    def tables(self) -> Mapping[str, Any]:
        """The filled tables by name; one that came without a name is called `table`."""
        return self.filled if isinstance(self.filled, Mapping) else {"table": self.filled}

    @property
    def table(self) -> Any:
        """The filled table, where there is one.

        Raises:
            RequestError: there are several.
        """
        tables = self.tables
        if len(tables) != 1:
            raise RequestError(
                f"Imputation.table: there are {len(tables)}, {', '.join(map(repr, tables))}; take "
                "one of .tables"
            )
        return next(iter(tables.values()))
