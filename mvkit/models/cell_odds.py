"""How much likelier cells are to be missing than to be known and hidden, learnt from the rows.

Axes: b rows, f features, c columns of all modalities, k features of one column, s folds; places
are the shape of a modality without its axis of classes.
"""

from __future__ import annotations

from statistics import NormalDist

import attrs
import torch
from einops import einsum, rearrange
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.cells import cells_of, flat_cells
from mvkit.models.row_features import RowFeatures

FOLDS = 5
FEWEST = 10  # cells of either sort, and of known cells that share a gap with missing ones
MOST = 8  # features of one column
CHANCE = 0.05  # that a column whose gaps depend on nothing gets a feature
RIDGE = 1.0  # precision of the normal prior of slopes
ROWS = 4096  # that odds are learnt from
FEWEST_ROWS = 100  # of a table that is too large to take all
NUMBERS = 2**25  # that a block of features may hold
PRODUCTS = 5e9  # of features and gaps, a few seconds
Tensors = dict[str, Tensor]
Slopes = dict[int, tuple[Tensor, Tensor]]  # by column: features (k,), intercept and slopes


@attrs.frozen(eq=False)
class CellOdds:
    """How much likelier a cell with such a row is among the missing than among the hidden ones.

    P(missing | row) / (P(known | row) P(hidden | known, row)), up to a factor for each column, by
    logistic regressions for each column: of whether cells are missing, and of whether the known
    ones were hidden, which depends on nothing where cells are hidden at random. They take what
    the other cells of a row hold and which of them are missing, where that correlates with the
    answer beyond chance, 8 features at most. Gaps that (almost) no known cell shares are left
    out: no weight makes known cells like those. Nothing is learnt of more than some 4,000 columns
    with gaps.

    Args:
        places: {name: (*places)}.
        features: of rows.
        missing: regressions of what is missing, with intercept and slopes (s, k + 1) of each fold.
        hidden: likewise of what was hidden among the known.
    """

    places: dict[str, tuple[int, ...]]
    features: RowFeatures
    missing: Slopes
    hidden: Slopes

    @property
    def columns(self) -> set[int]:
        """Columns whose cells have not all the same weight."""
        return self.missing.keys() | self.hidden.keys()

    @property
    def names(self) -> set[str]:
        """Modalities with such columns."""
        names = set()
        first = 0
        for name, places in self.places.items():
            number = torch.Size(places).numel()
            if self.columns.intersection(range(first, first + number)):
                names.add(name)
            first += number
        return names

    def of(self, batch: Batch, folds: Tensor | None = None) -> Tensors:
        """Weights of all cells of conformed rows, by modality (b, *places) in float64.

        Args:
            batch: the rows.
            folds: which fold learnt nothing of a row, (b,); None, or -1: the mean of all folds.
        """
        batch = batch.to("cpu").expanded()
        if folds is None:
            folds = torch.full((len(batch),), -1)
        rows = max(1, NUMBERS // len(self.features.columns))
        weights = []
        for start in range(0, len(batch), rows):
            x = self.features.of(batch.take(slice(start, start + rows)))
            weights.append(self._weights(x, folds[start : start + rows]))
        numbers = [torch.Size(places).numel() for places in self.places.values()]
        pieces = torch.cat(weights).split(numbers, 1)
        by_name = {}
        for (name, places), piece in zip(self.places.items(), pieces, strict=True):
            by_name[name] = piece.reshape(-1, *places)
        return by_name

    def _weights(self, x: Tensor, folds: Tensor) -> Tensor:
        """Weights (b, c) of rows with features (b, f)."""
        number = sum(torch.Size(places).numel() for places in self.places.values())
        weights = x.new_ones(len(x), number)
        for column, slopes in self.missing.items():
            weights[:, column] = _logits(x, slopes, folds).exp()
        for column, slopes in self.hidden.items():
            weights[:, column] /= _logits(x, slopes, folds).sigmoid()
        return weights


def learn_odds(known: Batch, hidden: Tensors) -> tuple[CellOdds, Tensors] | None:
    """Odds of the cells of rows, and the weights of these rows by folds that learnt nothing of
    them; None where nothing says that cells of one column differ.

    Args:
        known: conformed rows with their known values, on the CPU, one-hot.
        hidden: which known cells were hidden, {name: (b, *places) bool}.
    """
    lacking, chosen, places = [], [], {}
    for name in known.data:
        gap = ~cells_of(known, name)
        places[name] = tuple(gap.shape[1:])
        lacking.append(flat_cells(gap))
        chosen.append(flat_cells(hidden.get(name, torch.zeros_like(gap))))
    missing, picked = torch.cat(lacking, 1), torch.cat(chosen, 1)
    columns = ((missing.sum(0) >= FEWEST) & picked.any(0)).nonzero()[:, 0]
    features = RowFeatures.of_rows(known)
    number = _number_of_rows(len(known), len(features.columns), len(columns))
    if not number:
        return None
    rows = torch.linspace(0, len(known) - 1, number, dtype=torch.float64).long()
    missing, picked = missing[rows][:, columns], picked[rows][:, columns]
    x = features.of(known.take(rows))
    odds = _regressions(x, features, columns, missing, torch.ones_like(missing))
    shares = _regressions(x, features, columns, picked, ~missing)
    if not odds and not shares:
        return None
    learnt = CellOdds(places, features, odds, shares)
    folds = torch.full((len(known),), -1)
    folds[rows] = torch.arange(number) % FOLDS
    return learnt, learnt.of(known, folds)


def _number_of_rows(b: int, f: int, c: int) -> int:
    """How many of b rows odds are learnt from; 0 where there is nothing to learn, or so many
    features and columns that too few rows would be left.
    """
    if not c:
        return 0
    number = min(b, ROWS, NUMBERS // f, int(PRODUCTS / (f * c)))
    return number if number >= min(b, FEWEST_ROWS) else 0


def _regressions(
    x: Tensor, features: RowFeatures, columns: Tensor, target: Tensor, among: Tensor
) -> Slopes:
    """Regressions of the columns that correlate with some feature of other columns.

    Args:
        x: features, (b, f).
        features: what they are.
        columns: numbers of the columns, (c,).
        target: what is to be told of their cells, (b, c) bool.
        among: among which of these, (b, c) bool.
    """
    limit = NormalDist().inv_cdf(1 - CHANCE / (2 * x.shape[1]))
    strength = _strength(x.float(), features, columns, target & among, among)
    slopes = {}
    for i in (strength > limit).any(0).nonzero()[:, 0].tolist():
        strongest = strength[:, i].topk(min(MOST, len(strength)))
        index = strongest.indices[strongest.values > limit]
        rows = among[:, i]
        folds = torch.arange(len(x))[rows] % FOLDS
        own = x[rows][:, index]
        slopes[int(columns[i])] = (index, _by_fold(own, target[rows, i].double(), folds))
    return slopes


def _strength(
    x: Tensor, features: RowFeatures, columns: Tensor, target: Tensor, among: Tensor
) -> Tensor:
    """By how many standard errors features correlate with targets, (f, c); 0 of those of the
    column itself, of gaps that too few other cells share, and of columns with too few cells.
    """
    y, chosen = target.to(x), among.to(x)
    count = chosen.sum(0).clamp(min=1)
    share = y.sum(0) / count
    total = einsum(x, chosen, "b f, b c -> f c")
    square = einsum(x.square(), chosen, "b f, b c -> f c") / count
    both = einsum(x, y, "b f, b c -> f c")
    variance = (square - (total / count).square()) * share * (1 - share)
    correlation = (both - total * share) / count / variance.clamp(min=1e-12).sqrt()
    own = rearrange(features.columns, "f -> f 1") == columns
    lonely = rearrange(features.gaps, "f -> f 1") & (total - both < FEWEST)
    few = (y.sum(0) < FEWEST) | ((chosen - y).sum(0) < FEWEST)
    return torch.where(own | lonely | few, 0.0, correlation.abs() * count.sqrt())


def _by_fold(x: Tensor, y: Tensor, folds: Tensor) -> Tensor:
    """Intercept and slopes learnt from the other folds, for each, (s, k + 1)."""
    slopes = []
    for fold in range(FOLDS):
        others = folds != fold
        slopes.append(logistic(x[others], y[others]))
    return torch.stack(slopes)


def logistic(x: Tensor, y: Tensor) -> Tensor:
    """Intercept and slopes (k + 1,) of a logistic regression with a normal prior of the slopes.

    By Newton's steps, halved where they overshoot.

    Args:
        x: features, (b, k).
        y: answers, (b,), 0 or 1.
    """
    design = torch.cat([torch.ones_like(x[:, :1]), x], 1)
    prior = torch.full((design.shape[1],), RIDGE, dtype=x.dtype)
    prior[0] = 1e-3  # where all answers are the same, the intercept stays finite
    slopes = torch.zeros_like(prior)
    for _ in range(50):
        p = (design @ slopes).sigmoid()
        gradient = (y - p) @ design - prior * slopes
        if gradient.abs().max() < 1e-6:
            break
        curvature = einsum(design, p * (1 - p), design, "b k, b, b j -> k j") + prior.diag()
        step = torch.linalg.solve(curvature, gradient)
        height = _log_posterior(design, y, prior, slopes)
        while _log_posterior(design, y, prior, slopes + step) < height - 1e-9 * height.abs():
            step = step / 2
        slopes = slopes + step
    return slopes


def _log_posterior(design: Tensor, y: Tensor, prior: Tensor, slopes: Tensor) -> Tensor:
    logits = design @ slopes
    likelihood = y * logits - torch.nn.functional.softplus(logits)
    return likelihood.sum() - 0.5 * (prior * slopes.square()).sum()


def _logits(x: Tensor, slopes: tuple[Tensor, Tensor], folds: Tensor) -> Tensor:
    """Logits (b,) of one column, of each row by its fold."""
    index, by_fold = slopes
    every = torch.cat([by_fold, by_fold.mean(0, keepdim=True)])  # -1 is the last one
    own = every[folds]
    return own[:, 0] + einsum(x[:, index], own[:, 1:], "b k, b k -> b")
