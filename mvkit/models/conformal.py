"""Intervals and sets of what is filled in, calibrated on cells whose values are known.

Split conformal prediction: cells that were observed, and that neither training nor the imputation
has seen, say by how much a model's own intervals are too narrow or too wide.

Axes: n draws, b rows, c classes; places are the shape of a modality without its axis of classes.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.batch import Batch, conform
from mvkit.core.cells import cells_of
from mvkit.core.noise import Generator
from mvkit.core.raw_values import full_precision
from mvkit.data.dataset import Rows
from mvkit.data.user_rows import rows_of
from mvkit.errors import DataError, RequestError, check_option, check_whole_number
from mvkit.models.calibration import Calibration, check_level
from mvkit.models.cell_odds import learn_odds
from mvkit.models.conformal_scores import calibration_of, smallest_set
from mvkit.models.ensemble import Ensemble, check_models, draws_of_each
from mvkit.models.imputed_spread import restored
from mvkit.models.inference import Empty
from mvkit.models.multimodal import MultimodalModel
from mvkit.parts.likelihoods.discrete import has_classes

Tensors = dict[str, Tensor]
Weights = Literal["odds", "equal"]
AnyModel = MultimodalModel | Ensemble


def calibrate(
    model: AnyModel,
    shown: Rows,
    full: Rows,
    *,
    level: float = 0.9,
    n: int = 200,
    id: str | None = None,
    covariates: object = None,
    empty: Empty = "error",
    weights: Weights = "odds",
    generator: Generator = None,
) -> Calibration:
    """What cells that are hidden in `shown`, and known in `full`, say of a model's intervals.

    Intervals of `impute(model, data, intervals=calibration)` then hold the share `level` of the
    missing values of each column, whatever the model, where three things are so: the model has
    seen neither these nor the cells hidden here, in training too; the rows are alike; and

    * **missing completely at random**: cells are missing as those here are hidden. So hide cells
      of the data at random, train on what is left, calibrate, and impute; or take rows that the
      model was not trained on, with gaps like those of the data. The share is then exact, as an
      average over calibrations too: of n cells between `level` and level + 1/(n + 1).
    * **missing at random**: it depends on other cells of the row that are known. Cells hidden at
      random are then unlike the missing ones, so known cells are weighted by how much likelier
      such a cell is to be missing, which logistic regressions learn from the gaps of `full`; see
      `mvkit.models.cell_odds.CellOdds`. The share is as good as these: of columns whose gaps
      depend on nothing they say nothing, and all weights are 1, as without gaps in `full`.
    * **missing not at random**: it depends on the missing value itself. Nothing is promised, since
      no known cell tells what such values are.

    Scores are those of conformalised quantile regression, in deviations of the model's draws, of
    whole numbers the distance from their mean, and the improbability of the true class; a column
    has the ⌈(n + 1) level⌉-th smallest, or where cells are weighted, each cell the quantile of the
    weighted scores and its own, which lies at infinity. So a cell that is much likelier to be
    missing than all known ones has an infinite interval, and a set of all classes; a warning says
    how many. Covariates have no part in weights.

    Args:
        model: trained; or an ensemble.
        shown: rows with gaps, as the model is to see them.
        full: the same rows, in which some of these gaps are filled with their true values.
        level: share that intervals are to hold.
        n: draws of each row.
        id: the column of ids of tables that have them in a column.
        covariates: see `impute`.
        empty: rows of `shown` that observe nothing: `error`, or filled from the `prior`.
        weights: of known cells: their `odds` to be missing, or all `equal`.
        generator: source of randomness.

    Raises:
        DataError: other rows in `full`, or no cell that only `full` has.
        RequestError: a level that is no share, or other weights.

    Example:
        >>> import numpy as np, mvkit
        >>> model = mvkit.Model({"a": (2,)}, latent_dim=1, seed=0)
        >>> full = {"a": np.random.default_rng(0).normal(size=(200, 2))}
        >>> shown = {"a": full["a"].copy()}
        >>> shown["a"][:100, 0] = np.nan
        >>> shown["a"][100:, 1] = np.nan
        >>> calibration = mvkit.calibrate(model, shown, full)
        >>> calibration.frame()["cells"].tolist()
        [100, 100]
        >>> filled = mvkit.impute(model, shown, intervals=calibration)
        >>> bool((filled.low["a"] <= filled.high["a"]).all())
        True

    Reference: Romano, Patterson and Candès, Conformalized Quantile Regression, 2019,
    https://arxiv.org/abs/1905.03222; Sadinle, Lei and Wasserman, Least Ambiguous Set-Valued
    Classifiers with Bounded Error Levels, 2019, https://arxiv.org/abs/1609.00451; Tibshirani,
    Barber, Candès and Ramdas, Conformal Prediction under Covariate Shift, 2019,
    https://arxiv.org/abs/1904.06019.
    """
    check_models(model, "calibrate")
    plain = Intervals(check_level("calibrate: level", level))
    n = check_whole_number("calibrate: n", n, 2)
    check_option("calibrate: weights", weights, "odds", "equal")
    seen = conform(rows_of(shown, id, covariates), model.schema, compact=True)
    known = conform(rows_of(full, id, covariates), model.schema, compact=True)
    hidden = _hidden(model, seen, known)
    names = tuple(hidden)
    each = draws_of_each(model, n)

    def statistics(block: Batch) -> Tensors:
        options: dict[str, Any] = {"n": each, "empty": empty, "generator": generator}
        values: Tensors = {}
        samples = model.translate(block, names, units="model", sample=True, **options)
        means = model.translate(block, names, units="model", **options)
        for name in names:
            own = plain.own(model, name, samples[name], means[name])
            values |= {f"{key}/{name}": x.cpu() for key, x in own.items()}
        return values

    values = model.in_blocks(statistics, seen, dim=1)
    known = known.to("cpu").expanded()
    said: dict[str, Tensors] = {name: {} for name in names}
    for path, x in values.items():
        key, _, name = path.partition("/")
        said[name][key] = x[0]
    learnt = learn_odds(known, hidden) if weights == "odds" else None
    features = {name: model.modalities[name].features for name in names}
    about: dict[str, Any] = {"level": plain.level, "n": n, "features": features}
    return calibration_of(known, hidden, said, learnt, **about)


@attrs.frozen(eq=False)
class Intervals:
    """How intervals and sets are made of draws and means in the model's units.

    Args:
        level: share that they are to hold.
        calibration: of which corrections come; None: the model's own intervals.
    """

    level: float
    calibration: Calibration | None = None

    def own(self, model: AnyModel, name: str, x: Tensor, mean: Tensor) -> Tensors:
        """What the model itself says of one modality.

        Args:
            model: the model.
            name: the modality.
            x: draws, (n, b, *shape).
            mean: means at draws of the latents, (n, b, *shape).

        Returns:
            Of numbers low, high and sd, (1, b, *shape), of whole ones their centre too; of classes
            their probabilities p, (1, b, *places, c).
        """
        likelihood = model.schema.likelihoods[name]
        if has_classes(likelihood):
            p = mean.mean(0, keepdim=True)
            return {"p": p if likelihood.class_axis else torch.stack([1 - p, p], -1)}
        ends = [(1 - self.level) / 2, (1 + self.level) / 2]
        quantiles = np.quantile(full_precision(x).cpu().numpy(), ends, axis=0, method="weibull")
        low, high = torch.from_numpy(quantiles).to(x)
        low, high = rearrange(low, "... -> 1 ..."), rearrange(high, "... -> 1 ...")
        own = {"low": low, "high": high, "sd": x.std(0, keepdim=True)}
        # quantiles of whole numbers are tied with them, so that no correction makes them narrower
        return {**own, "centre": x.mean(0, keepdim=True)} if likelihood.integers else own

    def of(self, model: AnyModel, rows: Batch, samples: Tensors, means: Tensors) -> Tensors:
        """Ends `low/…` and `high/…` (1, b, *raw_shape) in the user's units, and of modalities of
        classes sets `set/…` (1, b, *places, c) bool, whose ends are NaN.
        """
        values = {}
        scores = {} if self.calibration is None else self.calibration.limits(rows)
        for name, x in samples.items():
            own = self.own(model, name, x, means[name])
            score = scores.get(name)
            if "p" in own:
                values[f"set/{name}"] = self._set(own["p"], score)
                nothing = torch.full_like(restored(model, name, x[:1]), torch.nan)
                values |= {f"low/{name}": nothing, f"high/{name}": nothing}
                continue
            low, high = own["low"], own["high"]
            if score is not None and self.calibration is not None:
                floor = self.calibration.floor[name]
                low, high = _corrected(own, score.to(x), floor.to(x))
            values[f"low/{name}"] = restored(model, name, low)
            values[f"high/{name}"] = restored(model, name, high)
        return values

    def _set(self, p: Tensor, score: Tensor | None) -> Tensor:
        """Which classes are in a set, (..., c) bool, the most probable one always."""
        best = torch.zeros_like(p, dtype=torch.bool).scatter(-1, p.argmax(-1, keepdim=True), True)
        if score is None:
            return smallest_set(p, self.level)
        return best | (1 - p <= rearrange(score.to(p), "... -> ... 1"))


def _corrected(own: Tensors, score: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """The ends of a calibrated interval, of whole numbers whole."""
    low, high = own.get("centre", own["low"]), own.get("centre", own["high"])
    reach = score * torch.maximum(own["sd"], floor)
    middle = (low + high) / 2  # of intervals that shrink to less than nothing
    low, high = torch.minimum(low - reach, middle), torch.maximum(high + reach, middle)
    if "centre" not in own:
        return low, high
    inner_low, inner_high = low.ceil(), high.floor()
    none = inner_low > inner_high
    nearest = middle.round()
    return torch.where(none, nearest, inner_low), torch.where(none, nearest, inner_high)


def intervals_of(model: AnyModel, intervals: float | Calibration | None) -> Intervals | None:
    """How intervals are made: the model's own at a level, or calibrated ones; None: not at all.

    Raises:
        RequestError: a level that is no share, or a calibration of other modalities.
    """
    if intervals is None:
        return None
    if not isinstance(intervals, Calibration):
        return Intervals(check_level("impute: intervals", intervals))
    for name, score in intervals.score.items():
        places = _places(model, name) if name in model.names else None
        if places != tuple(score.shape):
            raise RequestError(
                f"impute: intervals of {name!r} with columns {tuple(score.shape)}, and the model "
                f"has {places or 'no such modality'}; expected the model that was calibrated"
            )
    return Intervals(intervals.level, intervals)


def bounds_of(
    intervals: Intervals | None, model: AnyModel, rows: Batch, samples: Tensors, means: Tensors
) -> Tensors:
    """What `Intervals.of` returns; nothing where no intervals are asked for."""
    return {} if intervals is None else intervals.of(model, rows, samples, means)


def _places(model: AnyModel, name: str) -> tuple[int, ...]:
    shape = model.modalities[name].shape
    return shape[:-1] if model.schema.likelihoods[name].class_axis else shape


def _hidden(model: AnyModel, seen: Batch, known: Batch) -> Tensors:
    """Where values are known and not shown, {name: (b, *places) bool}, of modalities with some."""
    if len(seen) != len(known):
        raise DataError(
            f"calibrate: {len(seen)} rows shown and {len(known)} in full; expected the same rows "
            "twice, with more gaps in the first"
        )
    hidden = {}
    for name in model.names:
        places = cells_of(known, name) & ~cells_of(seen, name)
        if places.any():
            hidden[name] = places.cpu()
    if not hidden:
        raise DataError(
            "calibrate: no cell is known in `full` and hidden in `shown`; expected some in each "
            "column; hide some, such as by dataset.with_missing(0.1, of='elements')"
        )
    return hidden
