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
from mvkit.models.cells import as_columns, present
from mvkit.models.row_features import RowFeatures

FOLDS = 5
FEWEST = 10  # cells of either sort, and of known cells that share a gap with missing ones
MOST = 8  # features of one column
CHANCE = 0.05  # that a column whose gaps depend on nothing gets a feature
RIDGE = 1.0  # precision of the normal prior of slopes
ROWS = 4096  # that odds are learnt from
NUMBERS = 2**25  # that a block of features may hold
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
    out: no weight makes known cells like those.

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
        gap = ~present(known, name)
        places[name] = tuple(gap.shape[1:])
        lacking.append(as_columns(gap))
        chosen.append(as_columns(hidden.get(name, torch.zeros_like(gap))))
    missing, picked = torch.cat(lacking, 1), torch.cat(chosen, 1)
    features = RowFeatures.of_rows(known)
    number = min(len(known), ROWS, max(FEWEST, NUMBERS // len(features.columns)))
    rows = torch.linspace(0, len(known) - 1, number, dtype=torch.float64).long()
    missing, picked = missing[rows], picked[rows]
    asked = picked.any(0)
    x = features.of(known.take(rows))
    all_rows = torch.ones_like(missing)
    odds = _regressions(x, features, missing, all_rows & asked)
    lacks_some = missing.sum(0) >= FEWEST
    shares = _regressions(x, features, picked, ~missing & asked & lacks_some)
    if not odds and not shares:
        return None
    learnt = CellOdds(places, features, odds, shares)
    folds = torch.full((len(known),), -1)
    folds[rows] = torch.arange(number) % FOLDS
    return learnt, learnt.of(known, folds)


def _regressions(x: Tensor, features: RowFeatures, target: Tensor, among: Tensor) -> Slopes:
    """Regressions of the columns that correlate with some feature of other columns.

    Args:
        x: features, (b, f).
        features: what they are.
        target: what is to be told, (b, c) bool.
        among: among which cells, (b, c) bool.
    """
    limit = NormalDist().inv_cdf(1 - CHANCE / (2 * x.shape[1]))
    slopes = {}
    step = max(1, NUMBERS // x.shape[1])
    for first in range(0, target.shape[1], step):
        part = slice(first, first + step)
        strength = _strength(x, features, first, target[:, part], among[:, part])
        for i in (strength > limit).any(0).nonzero()[:, 0].tolist():
            column = first + i
            strongest = strength[:, i].topk(min(MOST, len(strength)))
            index = strongest.indices[strongest.values > limit]
            rows = among[:, column]
            folds = torch.arange(len(x))[rows] % FOLDS
            own = x[rows][:, index]
            slopes[column] = (index, _by_fold(own, target[rows, column].double(), folds))
    return slopes


def _strength(
    x: Tensor, features: RowFeatures, first: int, target: Tensor, among: Tensor
) -> Tensor:
    """By how many standard errors features correlate with targets, (f, c); 0 of those of the
    column itself, of gaps that too few other cells share, and of columns with too few cells.
    """
    target = target & among
    others = (among & ~target).double()
    y, chosen = target.double(), among.double()
    count = chosen.sum(0)
    share = y.sum(0) / count.clamp(min=1)
    mean = einsum(x, chosen, "b f, b c -> f c") / count.clamp(min=1)
    square = einsum(x.square(), chosen, "b f, b c -> f c") / count.clamp(min=1)
    both = einsum(x, y, "b f, b c -> f c") / count.clamp(min=1)
    variance = (square - mean.square()) * share * (1 - share)
    correlation = (both - mean * share) / variance.clamp(min=1e-12).sqrt()
    columns = first + torch.arange(target.shape[1])
    own = rearrange(features.columns, "f -> f 1") == columns
    shared = einsum(x, others, "b f, b c -> f c") >= FEWEST
    few = (y.sum(0) < FEWEST) | (others.sum(0) < FEWEST)
    left_out = own | (rearrange(features.gaps, "f -> f 1") & ~shared) | few
    return torch.where(left_out, 0.0, correlation.abs() * count.sqrt())


def _by_fold(x: Tensor, y: Tensor, folds: Tensor) -> Tensor:
    """Intercept and slopes learnt from the other folds, for each, (s, k + 1)."""
    slopes = []
    for fold in range(FOLDS):
        others = folds != fold
        slopes.append(logistic(x[others], y[others]))
    return torch.stack(slopes)


def logistic(x: Tensor, y: Tensor) -> Tensor:
    """Intercept and slopes (k + 1,) of a logistic regression with a normal prior of the slopes.

    Each step maximises a quadratic bound that touches the likelihood (Böhning and Lindsay, 1988),
    so that none overshoots, however well the answers are told.

    Args:
        x: features, (b, k).
        y: answers, (b,), 0 or 1.
    """
    design = torch.cat([torch.ones_like(x[:, :1]), x], 1)
    prior = torch.full((design.shape[1],), RIDGE, dtype=x.dtype)
    prior[0] = 1e-3  # where all answers are the same, the intercept stays finite
    bound = einsum(design, design, "b k, b j -> k j") / 4 + prior.diag()
    factor = torch.linalg.cholesky(bound)
    slopes = torch.zeros_like(prior)
    for _ in range(500):
        residuals = y - (design @ slopes).sigmoid()
        gradient = residuals @ design - prior * slopes
        if gradient.abs().max() < 1e-6:
            break
        step = torch.cholesky_solve(rearrange(gradient, "k -> k 1"), factor)
        slopes = slopes + rearrange(step, "k 1 -> k")
    return slopes


def _logits(x: Tensor, slopes: tuple[Tensor, Tensor], folds: Tensor) -> Tensor:
    """Logits (b,) of one column, of each row by its fold."""
    index, by_fold = slopes
    every = torch.cat([by_fold, by_fold.mean(0, keepdim=True)])  # -1 is the last one
    own = every[folds]
    return own[:, 0] + einsum(x[:, index], own[:, 1:], "b k, b k -> b")
