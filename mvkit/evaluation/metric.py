"""Metric: what is measured of a model on rows; EvaluationContext: the model, the rows and whatever else a metric may use.

Axes: b rows, m modalities, d latent, c classes.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.errors import DataError, RequestError, ShapeError
from mvkit.models.multimodal import MultimodalModel
from mvkit.registry.renamed import RenamedMethods

Scores = Mapping[Hashable, Tensor]
ROW = "mvkit.row"  # in `Batch.extra`: a row's number in the user's data, for messages


@attrs.frozen
class Score:
    """A line of a report.

    Args:
        metric: the metric's registered name.
        name: what was measured.
        value: the value.
        error: standard error of the mean over rows; NaN where the value is no mean.
        rows: how many rows are behind it.
        given: how many modalities were given; None where that means nothing.
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

    To implement one, decorate a subclass with `@spec` and write the two abstract methods. `score` sees a block of
    conformed rows on the model's device and returns tensors with one entry a row, NaN where a row is not scored; they
    are put together over all blocks for `summary`. All its randomness must come from `generator`, which belongs to the
    block. A `RequestError` from any method means that the metric does not fit: the report says so and goes on.
    """

    renamed = {"refusal": "incompatibility"}

    def incompatibility(self, study: EvaluationContext) -> str | None:
        """Why it does not fit the model or the data; None if it does."""
        return None

    def rows(self, study: EvaluationContext) -> Batch:
        """The rows that it scores."""
        return study.rows

    @abstractmethod
    def score(
        self, study: EvaluationContext, block: Batch, generator: torch.Generator
    ) -> dict[Any, Tensor]:
        """What is found of each row of a block, {key: (b, …)}."""

    @abstractmethod
    def summary(self, study: EvaluationContext, scores: Scores) -> list[Score]:
        """The lines of the report, from the scores of all rows."""


def mean(metric: str, name: str, values: Tensor, **options: Any) -> Score:
    """The mean of scores (b,), NaN left out, with its standard error."""
    kept = values[~torch.isnan(values)].double()
    n = len(kept)
    error = float(kept.std() / math.sqrt(n)) if n > 1 else math.nan
    return Score(metric, name, float(kept.mean()) if n else math.nan, error, n, **options)


def scatter(values: Tensor, rows: Tensor) -> Tensor:
    """Values (n, …) at the flagged rows (b,), NaN in the others, (b, …)."""
    out = values.new_full((len(rows), *values.shape[1:]), torch.nan)
    out[rows] = values
    return out


def finite(value: Tensor, block: Batch, what: str, dim: int = 0) -> Tensor:
    """The value, with rows along `dim`, if all of it is finite.

    Raises:
        DataError: that names the first row which is not.
    """
    if not torch.isfinite(value).all():
        flat = torch.isfinite(value.movedim(dim, 0)).reshape(value.shape[dim], -1).all(1)
        row = int(block.extra[ROW][int((~flat).nonzero()[0])])
        raise DataError(
            f"evaluate: {what} is not finite in row {row}; expected numbers; look at the weights, train again with a "
            "lower learning rate, or scale the data"
        )
    return value


def subset(block: Batch, names: Iterable[str], among: Iterable[str]) -> Tensor:
    """Which rows observe all of `names`, (b,) bool; `among` are the modalities in the order of the mask."""
    order = list(among)
    return block.observed[:, [order.index(name) for name in names]].all(1)


@attrs.frozen(eq=False)
class EvaluationContext:
    """What metrics look at.

    Args:
        model: the model.
        rows: conformed rows in an order of their own contents, those that observe something.
        train: rows to fit classifiers and probes on; None: half of `rows`.
        label: name of the labels in `Batch.extra`.
        classifiers: a function a modality, from (b, *shape) in the user's units to scores (b, c) or class indices (b,).
        features: a function a modality, from (b, *shape) in the user's units to (b, f).
        seed: of all randomness.
        notes: what the report has to say beside its numbers; keys of a dict, so that nothing is said twice.
    """

    model: MultimodalModel
    rows: Batch
    train: Batch | None = None
    label: str = "label"
    classifiers: Mapping[str, Callable[[Tensor], Any]] = attrs.field(factory=dict)
    features: Mapping[str, Callable[[Tensor], Any]] = attrs.field(factory=dict)
    seed: int = 0
    notes: dict[str, None] = attrs.field(factory=dict)
    _fitted: dict[str, Callable[[Tensor], Any]] = attrs.field(factory=dict, init=False)

    def note(self, text: str) -> None:
        """Something that the report says."""
        self.notes[text] = None

    def first(self, limit: int | None, metric: str) -> Batch:
        """The first `limit` rows in the order of their contents: a subset that no order of the data changes."""
        if limit is None or limit >= len(self.rows):
            return self.rows
        self.note(f"{metric}: {limit:,} of {len(self.rows):,} rows, chosen by their contents")
        return self.rows.take(slice(0, limit))

    @property
    def half(self) -> int:
        """How many rows go to fitting where there are no others."""
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
            f"{metric}: what it needs is fitted on one half of the rows and scored on the other; give train= for more"
        )
        return self.rows.take(slice(self.half, None))

    def labels(self, block: Batch) -> Tensor:
        """Class indices of the rows, (b,) on the CPU; -1 where there is none."""
        found: Tensor = block.extra[self.label].cpu()
        if found.dtype.is_floating_point:
            found = torch.where(found.isnan(), -1, found)
        if found.ndim != 1 or bool((found != found.long()).any()):
            raise ShapeError(
                f"evaluate: extra[{self.label!r}] has shape {tuple(found.shape)} and dtype {found.dtype}; expected a "
                "class index a row, -1 or NaN where there is none"
            )
        return found.long()

    def unlabelled(self) -> str | None:
        """Why labels are of no use; None if they are there."""
        if self.label not in self.rows.extra:
            return f"no labels: extra[{self.label!r}] is not in the data"
        return (
            None
            if bool((self.labels(self.rows) >= 0).any())
            else f"extra[{self.label!r}] labels no row"
        )

    def generator(self, what: str) -> torch.Generator:
        """Randomness that is a function of the seed and a name."""
        digest = hashlib.sha256(f"{self.seed}/{what}".encode()).digest()
        return torch.Generator(self.model.like.device).manual_seed(
            int.from_bytes(digest[:7], "big")
        )

    def encode(self, block: Batch, given: Iterable[str]) -> Tensor:
        """Posterior means (b, d) given modalities."""
        return finite(self.model.encode(block, list(given)), block, "the posterior mean")

    def translate(
        self, block: Batch, to: Iterable[str], given: Iterable[str], **options: Any
    ) -> dict[str, Tensor]:
        """Modalities generated from others, {name: (n, b, *shape)}, in the model's units, as those of a block."""
        made = self.model.translate(block, list(to), list(given), units="model", **options)
        return {
            name: finite(x, block, f"modality {name!r}, generated,", 1) for name, x in made.items()
        }

    def draw(
        self, n: int, sampler: str | None, generator: torch.Generator
    ) -> dict[str, Tensor] | None:
        """Rows {name: (n, *shape)} from the prior or a sampler, in the model's units; None, with a note, if not."""
        try:
            return self.model.sample(n, sampler=sampler, units="model", generator=generator)  # type: ignore[no-any-return]
        except RequestError as error:
            self.note(f"no samples: {error}")
            return None

    def classify(self, name: str, x: Tensor) -> Tensor:
        """Class indices (b,) of values of a modality (b, *shape), by the user's classifier or one fitted on the spot.

        Raises:
            ShapeError: a classifier that returns something else than (b, c) or (b,).
            DataError: one that returns what is not finite.
        """
        classify = self.classifiers.get(name)
        if classify is None:
            if name not in self._fitted:
                self._fitted[name] = fit_classifier(self, name)
            classify = self._fitted[name]
        else:
            x = self.model.modalities[name].restore(x)
        found = torch.as_tensor(classify(x)).detach().cpu()
        where = f"evaluate: the classifier of {name!r}"
        fine = found.ndim == 2 or (
            found.ndim == 1 and not (found.dtype.is_floating_point or found.dtype == torch.bool)
        )
        if not fine or len(found) != len(x):
            raise ShapeError(
                f"{where} gave {found.dtype} of shape {tuple(found.shape)} for {tuple(x.shape)}; expected scores "
                f"({len(x)}, classes) or whole numbers ({len(x)},)"
            )
        if not torch.isfinite(found).all():
            raise DataError(
                f"{where} gave values that are not finite; expected numbers; look at its weights"
            )
        return found.argmax(1) if found.ndim == 2 else found.long()


def fit_classifier(study: EvaluationContext, name: str) -> Callable[[Tensor], Any]:
    """A classifier of a modality's real values: a perceptron with one hidden layer, fitted on the study's rows."""
    from sklearn.neural_network import MLPClassifier

    rows = study.fitting
    labels = study.labels(rows) if study.label in rows.extra else torch.full((len(rows),), -1)
    known = subset(rows, [name], study.model.names) & (labels >= 0)
    if not known.any():
        raise RequestError(f"no labelled row to fit a classifier of {name!r} on")
    made = MLPClassifier((256,), max_iter=25, random_state=study.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 25 passes are enough, whatever its stopping rule says
        made.fit(_flat(rows.data[name][known]), labels[known].numpy())
    return lambda x: made.predict(_flat(x))


def _flat(x: Tensor) -> Any:
    return rearrange(x, "b ... -> b (...)").cpu().numpy()
