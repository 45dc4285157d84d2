"""Predictions of numbers, moved by what the model missed in rows that are alike.

Axes: b rows, d donors, q rows that are asked for, k columns of all modalities, j columns of a
modality, f features, n neighbours, c classes of a column, 1 of numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor

from mvkit.core.batch import Batch, conform
from mvkit.core.blocks import block_slices
from mvkit.core.cells import cells_of, only_cells
from mvkit.core.noise import permutation, seeded
from mvkit.data.column_kinds import Column
from mvkit.models.multimodal import MultimodalModel

Values = dict[str, Tensor]

MOST_COLUMNS = 200  # of more, each of which is predicted once, nothing is moved
DONORS = 6000  # rows that a column is moved by, at most
TRIED = 2048  # rows on which it is measured how much columns hang on each other
JUDGED = 1024  # donors that say how much of a move is kept
SHOWN = 0.7  # share of the columns that a row shows while it is measured
AT_ONCE = 1024  # rows whose distances are held at a time


@attrs.frozen
class Place:
    """Where a column is: its modality, and the number of the column there."""

    modality: str
    column: int

    def of(self, values: Values) -> Tensor:
        """The column's values, (b, c)."""
        x = values[self.modality][:, self.column]
        return x if x.ndim > 1 else rearrange(x, "b -> b 1")


class Neighbours:
    """Rows that a model was trained on, which say where it errs.

    A network smooths: it predicts a cell from what holds for all rows. Here the prediction of a
    number is moved by the mean error of the model in the same column of the n rows that are most
    alike, weighted by d⁻⁴ of their distance d. The errors are those of predictions from the other
    columns. Distances are of rows with filled gaps; columns count by how far the prediction moves
    when they take another row's value, gaps or not. Of the move that share is kept that would have
    been best for donors by their own neighbours, less two standard errors of it: none, where rows
    that are alike say nothing.

    Args:
        model: trained on the rows.
        batch: the rows as the model takes them, each once.
        names: modalities whose columns are numbers.
        n: neighbours of a row.
        seed: of the choice of donors.

    Reference: residuals of neighbours, as in regression kriging, Hengl, Heuvelink and Rossiter,
    2007, https://doi.org/10.1016/j.cageo.2007.05.001; distances by what a model's predictions
    hang on, Radhakrishnan et al., 2024, https://doi.org/10.1126/science.adi5639.
    """

    def __init__(
        self, model: MultimodalModel, batch: Batch, names: Sequence[str], n: int, seed: int
    ) -> None:
        self.model = model
        self.batch = conform(batch, model.schema)
        self.names = list(names)
        self.n = n
        self.seed = seed
        self.places: list[Place] = []
        for name in model.names:
            columns = cells_of(self.batch, name).shape[1]
            self.places += [Place(name, column) for column in range(columns)]

    def moves(self, batch: Batch | None = None) -> dict[str, np.ndarray]:
        """What to add to predictions of missing numbers, (b, j) by modality, in the user's units;
        0 elsewhere.

        Args:
            batch: rows to predict; None: those that the model was trained on.
        """
        batch = self.batch if batch is None else conform(batch, self.model.schema)
        moves = {name: torch.zeros_like(batch.data[name]) for name in self.names}
        if self.n and self.names and len(self.places) <= MOST_COLUMNS:
            self._fill(moves, batch)
        scaled = {}
        for name, move in moves.items():  # numbers are standardised, which is a line
            modality = self.model.modalities[name]
            nothing = torch.zeros_like(move).double()
            scaled[name] = (modality.restore(move.double()) - modality.restore(nothing)).numpy()
        return scaled

    def _fill(self, moves: Values, batch: Batch) -> None:
        """Writes the moves of each column with gaps, in the model's units."""
        reliance = self._reliance()
        donors = _features(self._filled(self.batch), self.places)
        rows = donors
        if batch is not self.batch:
            rows = _features(self._filled(batch), self.places)
        for number, place in enumerate(self.places):
            if place.modality not in moves:
                continue
            gaps = ~cells_of(batch, place.modality)[:, place.column]
            known = self._donors(place)
            if not gaps.any() or len(known) <= self.n:
                continue
            weights = reliance[:, number]
            scaled = _weighted([x[known] for x in donors], weights)
            errors = self._errors(place, known)
            kept = _kept(scaled, errors, self.n)
            asked = _weighted([x[gaps] for x in rows], weights)
            move = kept * nearest_mean(asked, scaled, errors, self.n)
            moves[place.modality][gaps, place.column] = move

    def _predict(self, batch: Batch, names: Sequence[str]) -> Values:
        options: dict[str, Any] = {"latent": "mean", "empty": "prior", "units": "model"}
        generator = seeded(self.seed, self.model.like.device)
        values = self.model.translate(batch, list(names), generator=generator, **options)
        return {name: x[0] for name, x in values.items()}

    def _filled(self, batch: Batch) -> Values:
        """All cells: what is observed, else what is predicted."""
        filled = {}
        for name, x in self._predict(batch, self.model.names).items():
            filled[name] = torch.where(batch.present(name), batch.data[name], x)
        return filled

    def _donors(self, place: Place) -> Tensor:
        """Rows that observe a column, in random order, (d,)."""
        known = cells_of(self.batch, place.modality)[:, place.column].nonzero()[:, 0]
        return known[permutation(len(known), seeded(self.seed))[:DONORS]]

    def _errors(self, place: Place, donors: Tensor) -> Tensor:
        """What the prediction of a column from the others lacks in donors, (d,)."""
        rows = self.batch.take(donors)
        shown = {name: cells_of(rows, name).clone() for name in rows.data}
        shown[place.modality][:, place.column] = False
        predicted = self._predict(only_cells(rows, shown), [place.modality])
        return (place.of(rows.data) - place.of(predicted))[:, 0]

    def _reliance(self) -> Tensor:
        """How far the prediction of each column moves when column k takes another row's value,
        beside the other columns that do, (k, k); rows of it are the columns that change.
        """
        generator = seeded(self.seed)
        rows = self.batch.take(permutation(len(self.batch), generator)[:TRIED])
        shown = {}
        for name in rows.data:
            cells = cells_of(rows, name)
            order = permutation(cells.numel(), generator).reshape(cells.shape)
            shown[name] = cells & (order < SHOWN * cells.numel())
        batch = only_cells(rows, shown)
        before = self._predict(batch, self.names)
        moved = torch.zeros(len(self.places), len(self.places))
        for number, place in enumerate(self.places):
            seen = shown[place.modality][:, place.column].nonzero()[:, 0]
            others = seen[permutation(len(seen), generator)]
            x = batch.data[place.modality].clone()
            x[seen, place.column] = x[others, place.column]
            changed = attrs.evolve(batch, data={**batch.data, place.modality: x})
            after = self._predict(changed, self.names)
            for name in self.names:
                gaps = ~shown[name][seen]
                change = ((after[name] - before[name])[seen].abs() * gaps).sum(0)
                columns = [other.modality == name for other in self.places]
                moved[number, torch.tensor(columns)] = change / gaps.sum(0).clamp(min=1)
        moved.fill_diagonal_(0.0)
        return moved / moved.square().mean(0).sqrt().clamp(min=torch.finfo(moved.dtype).tiny)


def moves_of(
    model: MultimodalModel,
    batch: Batch,
    columns: Mapping[str, list[Column]],
    n: int,
    seed: int,
    donors: Batch | None = None,
) -> dict[str, np.ndarray]:
    """How missing numbers of rows of tables are moved by their neighbours, (b, j) by modality; see
    `Neighbours`.

    Args:
        model: trained on the rows, or on most of them.
        batch: the rows.
        columns: what the columns of each modality hold.
        n: neighbours of a row.
        seed: of the choice of donors.
        donors: rows whose neighbours they are; None: these.
    """
    numbers = [name for name, own in columns.items() if own[0].numeric]
    if donors is None:
        return Neighbours(model, batch, numbers, n, seed).moves()
    return Neighbours(model, donors, numbers, n, seed).moves(batch)


def _features(values: Values, places: Sequence[Place]) -> list[Tensor]:
    """Values of each column, (b, c)."""
    return [place.of(values) for place in places]


def _weighted(columns: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Columns beside each other, (b, f), each times its weight."""
    scaled = [x * weight for x, weight in zip(columns, weights, strict=True)]
    return torch.cat(scaled, 1)


def _kept(donors: Tensor, errors: Tensor, n: int) -> Tensor:
    """The share of a move that is best for donors, less two standard errors, from 0 to 1, ()."""
    own = errors[:JUDGED]
    move = nearest_mean(donors[:JUDGED], donors, errors, n, themselves=True)
    norm = move.square().sum().clamp(min=torch.finfo(move.dtype).tiny)
    share = (move * own).sum() / norm
    doubt = (move.square() * (own - share * move).square()).sum().sqrt() / norm
    return (share - 2 * doubt).clamp(0.0, 1.0)


def nearest_mean(
    rows: Tensor, donors: Tensor, values: Tensor, n: int, *, themselves: bool = False
) -> Tensor:
    """Means of values over the n donors that are nearest to each row, by distance⁻⁴, (q,).

    Args:
        rows: (q, f).
        donors: (d, f), more than n.
        values: of the donors, (d,).
        n: donors of a row.
        themselves: the rows are the first donors, and none is its own neighbour.
    """
    means = []
    for block in block_slices(len(rows), AT_ONCE):
        distance = torch.cdist(rows[block], donors)
        if themselves:
            own = torch.arange(len(distance))
            distance[own, block.start + own] = torch.inf
        nearest, index = distance.topk(n, largest=False)
        square = nearest.square()
        square = square + 0.01 * square[:, -1:] + torch.finfo(square.dtype).eps
        share = square**-2
        total = reduce(share, "q n -> q", "sum")
        means.append(reduce(share * values[index], "q n -> q", "sum") / total)
    return torch.cat(means) if means else values[:0]
