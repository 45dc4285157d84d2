"""Tables of mixed columns as rows that a model takes, and a model's values as such tables.

Axes: b rows of all tables together, k columns of a modality.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from mvkit.core.batch import Batch
from mvkit.core.modality import Modality
from mvkit.core.noise import seeded
from mvkit.data.column_kinds import Column
from mvkit.data.dataset import MultimodalDataset
from mvkit.data.table_layout import TableLayout
from mvkit.errors import DataError
from mvkit.models.multimodal import MultimodalModel

if TYPE_CHECKING:
    from pandas import DataFrame

    Frames = Mapping[str, DataFrame]

Moves = Mapping[str, np.ndarray]  # (b, k) by modality, in the user's units

LEVEL_DRAWS = 101  # of ordered categories, whose median is taken


@attrs.frozen(eq=False)
class MixedRows:
    """Tables and how their columns are shared out among modalities.

    Args:
        frames: the tables, ids as their index.
        layouts: by table.
        data: all rows of all tables, as a model takes them.
    """

    frames: Frames
    layouts: dict[str, TableLayout]
    data: MultimodalDataset

    @classmethod
    def of(cls, frames: Frames, layouts: Mapping[str, TableLayout]) -> MixedRows:
        """The rows of tables, aligned by their ids.

        Raises:
            DataError: no column that a model could learn from.
        """
        tables: dict[str, DataFrame] = {}
        modalities: dict[str, Modality] = {}
        for name, layout in layouts.items():
            tables |= layout.split(frames[name])
            modalities |= layout.modalities()
        if not tables:
            raise DataError(
                "tables: no column can be learnt from: all are constant, empty or text; expected "
                "numbers or categories; give kinds= if they are"
            )
        data = MultimodalDataset.from_tables(tables, modalities=modalities)
        return cls(frames, dict(layouts), data)

    @property
    def columns(self) -> dict[str, list[Column]]:
        """What the columns of each modality hold."""
        columns = {}
        for layout in self.layouts.values():
            for group, names in layout.groups.items():
                columns[group] = [layout.column(name) for name in names]
        return columns

    @property
    def ids(self) -> list[Hashable]:
        """The ids of all rows."""
        ids: list[Hashable] = self.data.ids.tolist()
        return ids

    def filled(self, values: Frames, *, replace: bool = False) -> dict[str, DataFrame]:
        """The tables with values of the modalities' tables in their gaps; see `join`."""
        tables = {}
        for name, layout in self.layouts.items():
            frame = self.frames[name]
            own = {group: values[group].loc[frame.index] for group in layout.groups}
            tables[name] = layout.join(frame, own, replace=replace)
        return tables

    def tables_of(self, values: Mapping[str, np.ndarray]) -> dict[str, DataFrame]:
        """Values (b, k) by modality, categories as numbers, as the tables that `split` returns."""
        from pandas import DataFrame

        tables = {}
        for group, columns in self.columns.items():
            x: Any = values[group]
            if columns[0].kind == "category":
                words = np.array([*columns[0].levels, None], dtype=object)
                x = words[x.astype(int)]
            names = [column.name for column in columns]
            tables[group] = DataFrame(x, index=self.ids, columns=names)
        return tables


def predicted(
    model: MultimodalModel,
    batch: Batch,
    columns: Mapping[str, list[Column]],
    seed: int,
    moves: Moves | None = None,
) -> dict[str, np.ndarray]:
    """What a model expects of every cell, (b, k) by modality in the user's units: means of numbers
    and of bits, medians of ordered categories, the most probable of others.

    Args:
        model: the model.
        batch: the rows.
        columns: what the columns of each modality hold.
        seed: of the draws whose medians are taken.
        moves: what is added to numbers, see `mvkit.tables.neighbours`; None: nothing.
    """
    options: dict[str, Any] = {"latent": "mean", "empty": "prior", "generator": seeded(seed)}
    names = list(columns)
    ordered = [name for name in names if columns[name][0].kind == "ordered"]
    values = {}
    for name, x in model.translate(batch, names, **options).items():
        values[name] = x[0].double().numpy()
    if ordered:
        draws = model.translate(batch, ordered, n=LEVEL_DRAWS, sample=True, **options)
        for name, x in draws.items():
            values[name] = x.median(0).values.double().numpy()
    return _moved(values, moves)


def drawn(
    model: MultimodalModel,
    batch: Batch,
    columns: Mapping[str, list[Column]],
    n: int,
    seed: int,
    moves: Moves | None = None,
) -> list[dict[str, np.ndarray]]:
    """All cells drawn n times at random, (b, k) by modality in the user's units.

    Arguments are those of `predicted`.
    """
    options: dict[str, Any] = {"empty": "prior", "sample": True, "generator": seeded(seed)}
    draws = []
    for _ in range(n):
        values = model.translate(batch, list(columns), n=1, **options)
        draw = {name: x[0].double().numpy() for name, x in values.items()}
        draws.append(_moved(draw, moves))
    return draws


def _moved(values: dict[str, np.ndarray], moves: Moves | None) -> dict[str, np.ndarray]:
    """Values with what is added to those of some modalities."""
    if moves is None:
        return values
    return {name: x + moves[name] if name in moves else x for name, x in values.items()}
