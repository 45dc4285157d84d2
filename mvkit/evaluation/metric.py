"""Metric: what is measured of a model on rows; EvaluationContext: what metrics look at.

Axes: e models, b rows, n rows of a subset or draws, m modalities, d latent, c classes, f features.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import attrs
import torch
from einops import rearrange
from torch import Generator, Tensor

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.raw_values import full_precision
from mvkit.errors import DataError, RequestError, ShapeError
from mvkit.evaluation.labels import NONE, Classes
from mvkit.evaluation.perceptron import Perceptron, fit_perceptron
from mvkit.models.ensemble import Ensemble, draws_of_each
from mvkit.models.multimodal import MultimodalModel
from mvkit.registry.renamed import RenamedMethods

Scores = dict[Any, Tensor]  # keys are the metric's own
Function = Callable[[Tensor], object]  # from (b, *shape): a classifier, or a network of features
ROW = "mvkit.row"  # in `Batch.extra`: a row's number in the user's data, for messages


@attrs.frozen
class Score:
    """One line of a report.

    Args:
        metric: the metric's registered name.
        name: what was measured.
        value: the value.
        error: standard error of the mean over rows; NaN where the value is no mean.
        rows: number of rows behind it.
        given: number of modalities that were given; None where that means nothing.
        detail: left out when a report is printed.
    """

    metric: str
    name: str
    value: float
    error: float = math.nan
    rows: int = 0
    given: int | None = None
    detail: bool = False


class Metric(RenamedMethods, ABC):
    """Something measured of a model.

    To implement one, decorate a subclass with `@spec` and write the two abstract methods. `score`
    sees a block of conformed rows on the model's device and returns tensors with one entry per
    row, NaN where a row is not scored; those of all blocks are concatenated for `summary`. All its
    randomness must come from `generator`, which belongs to the block. A `RequestError` from any
    method means that the metric does not fit: the report notes it and continues with the rest.

    Example:
        >>> import mvkit
        >>> from mvkit.parts import Latents
        >>> issubclass(Latents, mvkit.Metric)
        True
    """

    renamed: ClassVar = {"refusal": "incompatibility"}

    def incompatibility(self, context: EvaluationContext) -> str | None:
        """Why the metric does not fit the model or the data; None if it does."""
        return None

    def rows(self, context: EvaluationContext) -> Batch:
        """The rows that it scores."""
        return context.rows

    @abstractmethod
    def score(self, context: EvaluationContext, block: Batch, generator: Generator) -> Scores:
        """Scores of each row of a block, {key: (b, …)}."""

    @abstractmethod
    def summary(self, context: EvaluationContext, scores: Scores) -> Iterable[Score]:
        """The lines of the report, from the scores of all rows."""


def mean(
    metric: str, name: str, values: Tensor, *, given: int | None = None, detail: bool = False
) -> Score:
    """The mean of scores (b,), NaN left out, with its standard error."""
    kept = values[~torch.isnan(values)].double()
    n = len(kept)
    value = float(kept.mean()) if n else math.nan
    error = float(kept.std() / math.sqrt(n)) if n > 1 else math.nan
    return Score(metric, name, value, error, n, given, detail)


def scatter(values: Tensor, rows: Tensor) -> Tensor:
    """Values (n, …) at the flagged rows (b,), NaN in the others, (b, …)."""
    out = values.new_full((len(rows), *values.shape[1:]), torch.nan)
    out[rows] = values
    return out


def without_nan(values: Tensor) -> Tensor:
    """Which rows of values (b, f) hold no NaN, (b,) bool."""
    return ~values.isnan().any(1)


def finite(value: Tensor, block: Batch, what: str, dim: int = 0) -> Tensor:
    """The value, with rows along `dim`, if all of it is finite.

    Raises:
        DataError: that names the first row which is not.
    """
    if not torch.isfinite(value).all():
        by_row = torch.isfinite(value.movedim(dim, 0)).reshape(value.shape[dim], -1)
        first = int((~by_row.all(1)).nonzero()[0])
        row = int(block.extra[ROW][first])
        raise DataError(
            f"evaluate: {what} is not finite in row {row}; expected finite numbers; look at the "
            "weights, train again with a lower learning rate, or scale the data"
        )
    return value


def observes_all(block: Batch, names: Iterable[str]) -> Tensor:
    """Which rows observe all of the modalities `names`, (b,) bool."""
    wanted = set(names)
    return block.hide(wanted).observed.sum(1) == len(wanted)


def observes_any(block: Batch, names: Iterable[str]) -> Tensor:
    """Which rows observe at least one of the modalities `names`, (b,) bool."""
    return block.hide(names).observed.any(1)


@attrs.frozen(eq=False)
class EvaluationContext:
    """What metrics look at.

    Args:
        model: the model, or an ensemble, which is measured as the mixture of its models.
        rows: conformed rows that observe something, in an order that their contents decide.
        train: rows to fit classifiers and probes on; None: half of `rows`.
        label: name of the labels in `Batch.extra`.
        classifiers: by modality, functions from (b, *shape) in the user's units to scores (b, c)
            or class indices (b,).
        features: by modality, functions from (b, *shape) in the user's units to (b, f).
        seed: of all randomness.
        notes: what the report says beside its numbers; keys of a dict, so that each is said once.
        sampler: what draws the latents of modalities that are generated; None: the posterior.
        refined: modalities that their refiners draw.
        fits_features: whether features are those of classifiers that are fitted, in place of
            `features`.
    """

    model: MultimodalModel | Ensemble
    rows: Batch
    train: Batch | None = None
    label: str = "label"
    classifiers: Mapping[str, Function] = attrs.field(factory=dict)
    features: Mapping[str, Function] = attrs.field(factory=dict)
    seed: int = 0
    notes: dict[str, None] = attrs.field(factory=dict)
    sampler: str | None = None
    refined: tuple[str, ...] = ()
    fits_features: bool = False
    spans: dict[str, float] = attrs.field(factory=dict, init=False)  # of modalities' values
    _fitted: dict[str, Perceptron] = attrs.field(factory=dict, init=False)

    @property
    def one_model(self) -> MultimodalModel:
        """The model, for what is measured of latents.

        Raises:
            RequestError: an ensemble.
        """
        if isinstance(self.model, Ensemble):
            raise self.model.latents_of_each()
        return self.model

    def note(self, text: str) -> None:
        """Adds a note to the report."""
        self.notes[text] = None

    def others(self, *names: str) -> tuple[str, ...]:
        """All modalities but `names`."""
        return tuple(name for name in self.model.names if name not in names)

    def first(self, limit: int | None, metric: str) -> Batch:
        """The first `limit` rows, a subset that does not depend on the order of the data."""
        if limit is None or limit >= len(self.rows):
            return self.rows
        self.note(f"{metric}: {limit:,} of {len(self.rows):,} rows, chosen by their contents")
        return self.rows.take(slice(0, limit))

    @property
    def half(self) -> int:
        """Number of rows to fit on where there are no others."""
        return len(self.rows) // 2

    @property
    def fitting(self) -> Batch:
        """Rows that classifiers and probes are fitted on."""
        return self.rows.take(slice(0, self.half)) if self.train is None else self.train

    def held(self, metric: str) -> Batch:
        """Rows that nothing was fitted on."""
        if self.train is not None:
            return self.rows
        self.note(
            f"{metric}: what it needs is fitted on one half of the rows and scored on the other; "
            "give train= for more"
        )
        return self.rows.take(slice(self.half, None))

    @cached_property
    def classes(self) -> Classes:
        """The classes of all rows, those that things are fitted on included."""
        batches = [self.rows] if self.train is None else [self.rows, self.train]
        return Classes.of(
            *(self._numbers(batch) for batch in batches if self.label in batch.extra)
        )

    def labels(self, block: Batch) -> Tensor:
        """Class indices of the rows, (b,) on the CPU; -1 where there is none."""
        if self.label not in block.extra:
            return torch.full((len(block),), NONE)
        return self.classes.indices(self._numbers(block))

    def _numbers(self, block: Batch) -> Tensor:
        """Labels as they were given, (b,) on the CPU."""
        labels: Tensor = block.extra[self.label].cpu()
        if not labels.is_floating_point():
            labels = labels.long()
        known = labels[~labels.isnan()] if labels.is_floating_point() else labels
        if labels.ndim != 1 or bool((known != known.long()).any()):
            raise ShapeError(
                f"evaluate: extra[{self.label!r}] has shape {tuple(labels.shape)} and dtype "
                f"{labels.dtype}; expected one class index or word per row, NaN or None where "
                "there is none"
            )
        return labels

    def unlabelled(self) -> str | None:
        """Why there are no labels to use; None if there are."""
        if self.label not in self.rows.extra:
            return f"no labels: extra[{self.label!r}] is not in the data"
        if not bool((self.labels(self.rows) >= 0).any()):
            return f"extra[{self.label!r}] labels no row"
        if NONE in self.classes.values:
            self.note(
                f"extra[{self.label!r}]: -1 is a class like any other; give NaN where a row has "
                "none"
            )
        return None

    def generator(self, what: str) -> Generator:
        """Randomness that is a function of the seed and a name."""
        seed = noise.seed_of_name(self.seed, what)
        return noise.seeded(seed, self.model.like.device)

    def encode(self, block: Batch, given: Iterable[str]) -> Tensor:
        """Posterior means (b, d) given modalities."""
        return finite(self.one_model.encode(block, given), block, "the posterior mean")

    def translate(
        self, block: Batch, to: Iterable[str], given: Iterable[str], **options: Any
    ) -> dict[str, Tensor]:
        """Modalities generated from others, {name: (n, b, *shape)}, in the model's units.

        Args:
            block: conformed rows.
            to: wanted modalities.
            given: modalities to look at.
            options: of `model.translate`, such as `n`, `latent`, `sample` and `generator`. With
                `latent="mean"` the values of an ensemble are the means over its models.
        """
        if self.sampler is not None:
            options["sampler"] = self.sampler
        wanted = tuple(to)
        options["refine"] = tuple(name for name in self.refined if name in wanted)
        n = options.pop("n", 1)
        samples = self.model.translate(
            block, wanted, given, draws_of_each(self.model, n), units="model", **options
        )
        if isinstance(self.model, Ensemble):
            samples = _of_mixture(samples, n, averaged=options.get("latent") == "mean")
        for name, values in samples.items():
            finite(values, block, f"modality {name!r}, generated,", 1)
        return samples

    def draw(self, n: int, sampler: str | None, generator: Generator) -> dict[str, Tensor] | None:
        """Rows {name: (n, *shape)} from the prior or a sampler, in the model's units.

        None, with a note, where the model has no such samples.
        """
        try:
            return self.model.sample(
                n, sampler=sampler, refine=self.refined, units="model", generator=generator
            )
        except RequestError as error:
            self.note(f"no samples: {error}")
            return None

    def perceptron(self, name: str) -> Perceptron:
        """A classifier of a modality in the model's units, fitted when it is first needed."""
        if name not in self._fitted:
            self._fitted[name] = fit_classifier(self, name)
        return self._fitted[name]

    def classify(self, name: str, x: Tensor) -> Tensor:
        """Class indices (b,) of values of a modality (b, *shape) in the model's units.

        Taken by the user's classifier, or by one that is fitted when it is first needed.

        Raises:
            ShapeError: a classifier that returns something else than (b, c) or (b,).
            DataError: a classifier that returns non-finite values.
        """
        classifier = self.classifiers.get(name)
        if classifier is not None:
            x = full_precision(self.model.modalities[name].restore(x))
        else:
            classifier = self.perceptron(name)
        scores = torch.as_tensor(classifier(x)).detach().cpu()
        _check_classes(scores, x, f"evaluate: the classifier of {name!r}")
        if scores.ndim == 2:
            return scores.argmax(1)
        # the user's classifier says classes as the labels do, a fitted one says their indices
        return self.classes.indices(scores) if name in self.classifiers else scores.long()


def _of_mixture(samples: dict[str, Tensor], n: int, *, averaged: bool) -> dict[str, Tensor]:
    """Values {name: (n, b, *shape)} of a mixture, from those of its models in turn, (k, b, …).

    Averaged, they are means over the models; else row i has the draws from the i-th on, so that
    every model has its share in few draws too.
    """
    values = {}
    for name, x in samples.items():
        if averaged:
            values[name] = x.mean(0, keepdim=True).expand(n, *x.shape[1:])
            continue
        row = torch.arange(x.shape[1], device=x.device)
        draw = torch.arange(n, device=x.device)
        values[name] = x[(rearrange(draw, "n -> n 1") + row) % len(x), row]
    return values


def _check_classes(scores: Tensor, x: Tensor, where: str) -> None:
    """Raises an error unless a classifier returned scores (b, c) or class indices (b,) of x."""
    whole = not scores.dtype.is_floating_point and scores.dtype != torch.bool
    fits = scores.ndim == 2 or (scores.ndim == 1 and whole)
    if not fits or len(scores) != len(x):
        raise ShapeError(
            f"{where} returned {scores.dtype} of shape {tuple(scores.shape)} for "
            f"{tuple(x.shape)}; expected scores ({len(x)}, classes) or whole numbers ({len(x)},)"
        )
    if not torch.isfinite(scores).all():
        raise DataError(
            f"{where} returned values that are not finite; expected finite numbers; look at its "
            "weights"
        )


def fit_classifier(context: EvaluationContext, name: str) -> Perceptron:
    """A classifier of a modality's real values, fitted on the rows of the evaluation."""
    rows = context.fitting
    labels = context.labels(rows)
    known = observes_all(rows, [name]) & (labels >= 0)
    if not known.any():
        raise RequestError(f"no labelled row to fit a classifier of {name!r} on")
    if len(labels[known].unique()) < 2:
        raise RequestError(f"needs rows of two classes to fit a classifier of {name!r} on")
    return fit_perceptron(rows.data[name][known], labels[known], seed=context.seed)
