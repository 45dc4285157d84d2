"""Reconstruction and imputation: errors, likeness of pictures, coverage of intervals.

Axes: n draws, b rows, l levels.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator

import torch
from einops import rearrange, reduce
from torch import Generator, Tensor

from mvkit.core import blocks
from mvkit.core.batch import Batch
from mvkit.core.raw_values import full_precision
from mvkit.data.moments import Moments
from mvkit.evaluation.joined_rows import blocks_of
from mvkit.evaluation.metric import (
    EvaluationContext,
    Metric,
    Score,
    Scores,
    mean,
    observes_all,
    observes_any,
    scatter,
)
from mvkit.registry.fields import count, optional_count
from mvkit.registry.spec import spec

Names = tuple[str, ...]
LEVELS = (0.5, 0.8, 0.95)
ALONE = "one modality: there is no other to impute it from"


def present(block: Batch, name: str) -> Tensor:
    """Which elements of a modality are observed, (b, *shape); without the axis of classes."""
    elements = block.elements or {}
    if name in elements:
        return elements[name]
    return torch.ones_like(block.data[name], dtype=torch.bool)


def likeness(a: Tensor, b: Tensor, span: float) -> Tensor:
    """Structural similarity of pictures (b, c, h, w), (b,), in windows of 11 pixels, or what fits.

    `span` is the difference of their largest and smallest possible values.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    sigma = min(1.5, ((min(a.shape[-2:]) - 1) // 2) / 3.5)
    similarity = structural_similarity_index_measure(
        a, b, sigma=sigma, data_range=span, reduction="none"
    )
    return similarity.reshape(len(a))  # type: ignore[union-attr]


class Accuracy(Metric):
    """How near generated values are to the real ones: what reconstruction and imputation share.

    Values are decoder means at the posterior's mean, in the model's units: standardised, if a
    transform does so. Every row is scored on the elements that it observes. R² is one minus the
    squared error over that of the elements' means.
    """

    title: str

    @abstractmethod
    def given(self, names: Names, name: str) -> Names:
        """The modalities to generate `name` from."""

    def score(self, context: EvaluationContext, block: Batch, generator: Generator) -> Scores:
        scores: Scores = {}
        for name in context.model.names:
            given = self.given(context.model.names, name)
            known = observes_all(block, [name]) & observes_any(block, given)
            unscored = context.model.like.new_full((len(block),), torch.nan)
            for key in _measures(context, name):
                scores[name, key] = unscored
            if known.any():
                rows = block.take(known)
                samples = context.translate(
                    rows, [name], given, latent="mean", generator=generator
                )
                errors = _compare(context, name, samples[name][0], rows)
                for key, values in errors.items():
                    scores[name, key] = scatter(values, known)
        return scores

    def summary(self, context: EvaluationContext, scores: Scores) -> Iterator[Score]:
        """Accuracies of classes; means of errors over observed elements."""
        for name in context.model.names:
            given = len(self.given(context.model.names, name))
            if (name, "right") in scores:
                yield mean(self.title, f"{name}, accuracy", scores[name, "right"], given=given)
                continue
            numbers = scores[name, "numbers"].double()
            known = ~numbers.isnan()
            if not known.any():
                context.note(f"{self.title}: no row has {name!r} and what it is generated from")
                continue
            n = numbers[known]
            weight = n / n.mean()
            errors = {}
            for key in ("mse", "mae"):
                values = scores[name, key][known].double() * weight
                errors[key] = mean(self.title, f"{name}, {key.upper()}", values, given=given)
            yield from errors.values()
            spread = self._spread(context, name, known)
            share = 1 - errors["mse"].value / spread if spread else math.nan
            yield Score(self.title, f"{name}, R²", share, rows=len(n), given=given)
            if (name, "ssim") in scores:
                yield mean(self.title, f"{name}, SSIM", scores[name, "ssim"], given=given)

    def _spread(self, context: EvaluationContext, name: str, known: Tensor) -> float:
        """Mean squared deviation of the scored elements from the elements' means."""
        total: Moments | None = None
        for block in blocks_of(self.rows(context).take(known.cpu())):
            x = block.data[name].double()
            seen = torch.where(present(block, name), x, torch.nan)
            moments = Moments.of(seen.reshape(len(x), -1))
            total = moments if total is None else total.merged(moments)
        if total is None:
            return 0.0
        return float(total.squares.sum() / total.count.sum())


def _measures(context: EvaluationContext, name: str) -> list[str]:
    """What is measured of a modality: `right`, of classes; errors, and `ssim` of pictures."""
    if context.model.schema.likelihoods[name].class_axis:
        return ["right"]
    shape = context.model.modalities[name].shape
    picture = len(shape) == 3 and min(shape[1:]) >= 3
    return ["mse", "mae", "numbers"] + ["ssim"] * picture


def _compare(
    context: EvaluationContext, name: str, values: Tensor, rows: Batch
) -> dict[str, Tensor]:
    """Measures (b,) of generated values."""
    measures = _measures(context, name)
    values = full_precision(values)
    x = full_precision(rows.data[name])
    counted = present(rows, name)
    if "right" in measures:
        if counted.ndim == x.ndim:
            counted = counted.all(-1)
        same = (values.argmax(-1) == x.argmax(-1)).to(x.dtype)
        right = torch.where(counted, same, torch.nan)
        return {"right": right.reshape(len(x), -1).nanmean(1)}
    flags = counted.reshape(len(x), -1)
    off = torch.where(counted, values - x, 0.0).reshape(len(x), -1)
    n = flags.sum(1).to(x.dtype)
    errors = {"mse": off.square().sum(1) / n, "mae": off.abs().sum(1) / n, "numbers": n}
    if "ssim" in measures:
        similarity = likeness(values, x, _span(context, name))
        errors["ssim"] = torch.where(flags.all(1), similarity, torch.nan)
    return errors


def _span(context: EvaluationContext, name: str) -> float:
    """The largest real value of a modality less the smallest."""
    if name not in context.spans:
        low, high = math.inf, -math.inf
        for block in blocks_of(context.rows.take(observes_all(context.rows, [name]))):
            x = block.data[name][present(block, name)]
            low = min(low, float(x.min()))
            high = max(high, float(x.max()))
        context.spans[name] = max(high - low, 1e-12)
    return context.spans[name]


@spec
class Reconstruction(Accuracy):
    """Errors of each modality generated from all that a row has; of classes, accuracy.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
        >>> rows = {"a": torch.randn(60, 3), "b": torch.randn(60, 2)}
        >>> report = mvkit.evaluate(model, rows, ["reconstruction"])
        >>> report.scores[0].name
        'a, MSE'

    Reference: Wang, Bovik, Sheikh and Simoncelli, Image Quality Assessment, 2004,
    https://doi.org/10.1109/TIP.2003.819861 (structural similarity).
    """

    title = "reconstruction"

    def given(self, names: Names, name: str) -> Names:
        return names


@spec
class Imputation(Accuracy):
    """Errors of each modality generated from the others; of classes, accuracy.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
        >>> rows = {"a": torch.randn(60, 3), "b": torch.randn(60, 2)}
        >>> report = mvkit.evaluate(model, rows, ["imputation"])
        >>> report.scores[0].name
        'a, MSE'

    Reference: Wu and Goodman, 2018, https://arxiv.org/abs/1802.05335.
    """

    title = "imputation"

    def incompatibility(self, context: EvaluationContext) -> str | None:
        return None if len(context.model.names) > 1 else ALONE

    def given(self, names: Names, name: str) -> Names:
        return tuple(other for other in names if other != name)


@spec
class Calibration(Metric):
    """Coverage of central intervals of imputations.

    That is the share of real values inside the intervals of 50, 80 and 95 %. Draws of latents and
    of the likelihood, given the other modalities. An interval is bounded by the i-th smallest and
    the i-th largest draw, i the nearest to (n + 1) (1 - level) / 2: n = 199 bounds the three
    levels exactly.

    Args:
        n: draws.
        limit: rows at most; None: all.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
        >>> rows = {"a": torch.randn(60, 3), "b": torch.randn(60, 2)}
        >>> report = mvkit.evaluate(model, rows, ["calibration"])
        >>> report.scores[0].name
        'a, 50% intervals hold'

    Reference: Gneiting, Balabdaoui and Raftery, Probabilistic Forecasts, Calibration and
    Sharpness, 2007, https://doi.org/10.1111/j.1467-9868.2007.00587.x.
    """

    n: int = count(199, low=39)
    limit: int | None = optional_count(1000)

    def incompatibility(self, context: EvaluationContext) -> str | None:
        if len(context.model.names) < 2:
            return ALONE
        return None if _continuous(context) else "no modality with continuous values"

    def rows(self, context: EvaluationContext) -> Batch:
        return context.first(self.limit, "calibration")

    def score(self, context: EvaluationContext, block: Batch, generator: Generator) -> Scores:
        scores: Scores = {}
        for name in _continuous(context):
            others = context.others(name)
            known = observes_all(block, [name]) & observes_any(block, others)
            rows = block.take(known)
            numbers = self.n * context.model.modalities[name].numbers
            size = blocks.block_size(numbers, blocks.RECONSTRUCTED)
            inside = [context.model.like.new_zeros(0, len(LEVELS) + 1)]
            for part in blocks.block_slices(len(rows), size):
                inside.append(self._inside(context, name, rows.take(part), generator))
            scores[name] = scatter(torch.cat(inside), known)
        return scores

    def _inside(
        self, context: EvaluationContext, name: str, rows: Batch, generator: Generator
    ) -> Tensor:
        """How many observed elements each interval holds, and how many there are, (b, l + 1)."""
        options = {"n": self.n, "sample": True, "generator": generator}
        samples = context.translate(rows, [name], context.others(name), **options)[name]
        x = rows.data[name]
        counted = present(rows, name)
        below = (samples < x).sum(0)
        above = (samples > x).sum(0)
        columns = []
        for level in LEVELS:
            least = round((self.n + 1) * (1 - level) / 2)
            columns.append((below >= least) & (above >= least) & counted)
        flags = torch.stack([*columns, counted], 1)
        return reduce(flags.to(full_precision(x).dtype), "b l ... -> b l", "sum")

    def summary(self, context: EvaluationContext, scores: Scores) -> Iterator[Score]:
        given = len(context.model.names) - 1
        for name in _continuous(context):
            known = scores[name][~scores[name][:, 0].isnan()]
            if not len(known):
                continue
            n = rearrange(known[:, -1], "b -> b 1")
            shares = known[:, :-1] / n.mean()
            for level, share in zip(LEVELS, shares.unbind(1), strict=True):
                title = f"{name}, {level:.0%} intervals hold"
                yield mean("calibration", title, share, given=given)


def _continuous(context: EvaluationContext) -> list[str]:
    """The modalities with continuous values."""
    likelihoods = context.model.schema.likelihoods
    return [name for name, likelihood in likelihoods.items() if not likelihood.integers]
