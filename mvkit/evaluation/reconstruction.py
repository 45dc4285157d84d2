"""Reconstruction and imputation: errors in the units of the data, likeness of pictures, coverage of intervals.

Axes: n draws, b rows.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.evaluation.metric import EvaluationContext, Metric, Score, Scores, mean, scatter, subset
from mvkit.registry.spec import field, integer, one_of, spec

LEVELS = (0.5, 0.8, 0.95)
MEMORY = 2**26  # bytes that the draws of a block of rows may take


def present(block: Batch, name: str) -> Tensor:
    """Which elements of a modality count, shaped like its values or, with classes, without their axis."""
    shown = (block.elements or {}).get(name)
    x = block.data[name]
    return torch.ones(x.shape, dtype=torch.bool, device=x.device) if shown is None else shown


def likeness(a: Tensor, b: Tensor, span: float) -> Tensor:
    """Structural similarity of pictures (b, c, h, w) whose values span so much, (b,); windows of 11, or what fits."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    sigma = min(1.5, ((min(a.shape[-2:]) - 1) // 2) / 3.5)
    made = structural_similarity_index_measure(
        a, b, sigma=sigma, data_range=span, reduction="none"
    )
    return made.reshape(len(a))  # type: ignore[union-attr]


class Accuracy(Metric):
    """How near generated values are to the real ones: what reconstruction and imputation share.

    Values are decoder means at the posterior's mean, in the model's units: standardised, if a transform does so.
    Every row is scored on the elements that it observes. R² is one minus the squared error over that of the elements'
    means.
    """

    called: str

    @abstractmethod
    def given(self, names: tuple[str, ...], name: str) -> tuple[str, ...]:
        """The modalities to generate `name` from."""

    def score(
        self, study: EvaluationContext, block: Batch, generator: torch.Generator
    ) -> dict[Any, Tensor]:
        """See `Metric.score`."""
        found: dict[Any, Tensor] = {}
        names = study.model.names
        for name in names:
            given = self.given(names, name)
            has = subset(block, [name], names) & block.hide(given).observed.any(1)
            rows, (classes, picture) = block.take(has), _kind(study, name)
            for key in (
                ("right",)
                if classes
                else ("mse", "mae", "numbers", *(("ssim",) if picture else ()))
            ):
                found[name, key] = study.model.like.new_full((len(block),), torch.nan)
            if not len(rows):
                continue
            made = study.translate(rows, [name], given, latent="mean", generator=generator)[name][
                0
            ]
            for key, values in self._compare(study, name, made, rows).items():
                found[name, key] = scatter(values, has)
        return found

    def _compare(
        self, study: EvaluationContext, name: str, made: Tensor, rows: Batch
    ) -> dict[str, Tensor]:
        """Scores (b,) of generated values."""
        x, counted, (classes, picture) = rows.data[name], present(rows, name), _kind(study, name)
        if classes:
            right = torch.where(
                counted.all(-1) if counted.ndim == x.ndim else counted, _same(made, x), torch.nan
            )
            return {"right": right.reshape(len(x), -1).nanmean(1)}
        off = torch.where(counted, made - x, 0.0).reshape(len(x), -1)
        n = counted.reshape(len(x), -1).sum(1).to(x.dtype)
        found = {"mse": off.square().sum(1) / n, "mae": off.abs().sum(1) / n, "numbers": n}
        if picture:
            values = likeness(made, x, self._span(study, name))
            found["ssim"] = torch.where(counted.reshape(len(x), -1).all(1), values, torch.nan)
        return found

    @staticmethod
    def _span(study: EvaluationContext, name: str) -> float:
        """What the real values of a modality span."""
        rows = study.rows.take(subset(study.rows, [name], study.model.names))
        x = rows.data[name][present(rows, name)]
        return max(float(x.max() - x.min()), 1e-12)

    def summary(self, study: EvaluationContext, scores: Scores) -> list[Score]:
        """See `Metric.summary`; errors are means over observed elements."""
        found = []
        for name in study.model.names:
            given = len(self.given(study.model.names, name))
            if (name, "right") in scores:
                found.append(
                    mean(self.called, f"{name}, accuracy", scores[name, "right"], given=given)
                )
                continue
            known = ~scores[name, "numbers"].isnan()
            if not known.any():
                study.note(f"{self.called}: no row has {name!r} and what it is generated from")
                continue
            n = scores[name, "numbers"][known].double()
            weight = n / n.mean()
            for key in ("mse", "mae"):
                values = scores[name, key][known].double() * weight
                found.append(mean(self.called, f"{name}, {key.upper()}", values, given=given))
            spread = self._spread(study, name, known)
            share = 1 - found[-2].value / spread if spread else float("nan")
            found.append(Score(self.called, f"{name}, R²", share, rows=len(n), given=given))
            if (name, "ssim") in scores:
                found.append(mean(self.called, f"{name}, SSIM", scores[name, "ssim"], given=given))
        return found

    def _spread(self, study: EvaluationContext, name: str, known: Tensor) -> float:
        """Mean squared deviation of the elements that were scored from the elements' means."""
        rows = self.rows(study).take(known.cpu())
        counted, x = present(rows, name), rows.data[name].double()
        centre = x.sum(0) / counted.sum(0).clamp(min=1)  # absent elements hold zeros
        return float(torch.where(counted, (x - centre).square(), 0.0).sum() / counted.sum())


def _kind(study: EvaluationContext, name: str) -> tuple[bool, bool]:
    """Whether a modality holds classes, and whether it is a picture."""
    classes, shape = (
        study.model.schema.likelihoods[name].class_axis,
        study.model.modalities[name].shape,
    )
    return classes, len(shape) == 3 and not classes and min(shape[1:]) >= 3


def _same(made: Tensor, x: Tensor) -> Tensor:
    return (made.argmax(-1) == x.argmax(-1)).to(x.dtype)


@spec
class Reconstruction(Accuracy):
    """Errors of each modality generated from all that the row has, itself included; of classes, accuracy.

    Reference: Wang, Bovik, Sheikh and Simoncelli, Image Quality Assessment, 2004,
    https://doi.org/10.1109/TIP.2003.819861 (structural similarity).
    """

    called = "reconstruction"

    def given(self, names: tuple[str, ...], name: str) -> tuple[str, ...]:
        """See `Accuracy.given`."""
        return names


@spec
class Imputation(Accuracy):
    """Errors of each modality generated from the others; of classes, accuracy.

    Reference: Wu and Goodman, 2018, https://arxiv.org/abs/1802.05335.
    """

    called = "imputation"

    def incompatibility(self, study: EvaluationContext) -> str | None:
        """See `Metric.refusal`."""
        return (
            None
            if len(study.model.names) > 1
            else "one modality: there is no other to impute it from"
        )

    def given(self, names: tuple[str, ...], name: str) -> tuple[str, ...]:
        """See `Accuracy.given`."""
        return tuple(k for k in names if k != name)


@spec
class Calibration(Metric):
    """Coverage of central intervals of imputations: the share of real values in those of 50, 80 and 95 %.

    Draws of latents and of the likelihood, given the other modalities. An interval lies between the i-th smallest and
    the i-th largest draw, i the nearest to (n + 1) (1 - level) / 2: n = 199 bounds the three levels exactly.

    Args:
        n: draws.
        limit: rows at most; None: all.

    Reference: Gneiting, Balabdaoui and Raftery, Probabilistic Forecasts, Calibration and Sharpness, 2007,
    https://doi.org/10.1111/j.1467-9868.2007.00587.x.
    """

    n: int = field(default=199, check=integer(39))
    limit: int | None = field(default=1000, check=one_of(None, other=integer(1)))

    def incompatibility(self, study: EvaluationContext) -> str | None:
        """See `Metric.refusal`."""
        if len(study.model.names) < 2:
            return "one modality: there is no other to impute it from"
        return None if self._names(study) else "no modality with continuous values"

    @staticmethod
    def _names(study: EvaluationContext) -> list[str]:
        return [name for name, one in study.model.schema.likelihoods.items() if not one.integers]

    def rows(self, study: EvaluationContext) -> Batch:
        """See `Metric.rows`."""
        return study.first(self.limit, "calibration")

    def score(
        self, study: EvaluationContext, block: Batch, generator: torch.Generator
    ) -> dict[Any, Tensor]:
        """See `Metric.score`."""
        found: dict[Any, Tensor] = {}
        for name in self._names(study):
            others = [k for k in study.model.names if k != name]
            has = subset(block, [name], study.model.names) & block.hide(others).observed.any(1)
            rows = block.take(has)
            size = max(1, MEMORY // (4 * self.n * study.model.modalities[name].numbers))
            inside = [
                self._inside(study, name, rows.take(slice(start, start + size)), others, generator)
                for start in range(0, len(rows), size)
            ]
            each = torch.cat(inside) if inside else study.model.like.new_zeros(0, len(LEVELS) + 1)
            found[name] = scatter(each, has)
        return found

    def _inside(
        self,
        study: EvaluationContext,
        name: str,
        rows: Batch,
        given: list[str],
        generator: torch.Generator,
    ) -> Tensor:
        """Observed elements inside each interval, and how many there are, (b, levels + 1)."""
        made = study.translate(rows, [name], given, n=self.n, sample=True, generator=generator)[
            name
        ]
        x, counted = rows.data[name], present(rows, name)
        below, above = (made < x).sum(0), (made > x).sum(0)
        columns = []
        for level in LEVELS:
            least = round((self.n + 1) * (1 - level) / 2)
            columns.append((below >= least) & (above >= least) & counted)
        return reduce(torch.stack([*columns, counted], 1).to(x.dtype), "b l ... -> b l", "sum")

    def summary(self, study: EvaluationContext, scores: Scores) -> list[Score]:
        """See `Metric.summary`."""
        found = []
        for name in self._names(study):
            known = scores[name][~scores[name][:, 0].isnan()]
            inside, n = known[:, :-1], rearrange(known[:, -1], "b -> b 1")
            if not len(known):
                continue
            for level, share in zip(LEVELS, (inside / n.mean()).unbind(1), strict=True):
                title = f"{name}, {level:.0%} intervals hold"
                found.append(mean("calibration", title, share, given=len(study.model.names) - 1))
        return found
