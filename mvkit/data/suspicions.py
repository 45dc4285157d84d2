"""What is odd about training data that are allowed, in sentences that say what to do.

Numbers far from the scale that a fixed one expects, and codes for missing values, such as -999.

Axes: n rows, k features of a modality (all its elements, in order).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.likelihood import Likelihood
from mvkit.core.modality import Modality
from mvkit.core.validation import Schema
from mvkit.parts.likelihoods import LocationScale, Positive, StudentTLikelihood

ELEMENTS = 2**22  # of a modality, looked at
FEWEST = 64  # rows looked at, however wide they are
FAR = 10.0  # scales: numbers beyond that are not what the scale expects
VERY_FAR = 100.0  # likewise, where the numbers themselves are as small as networks like them
REPEATED = 0.01  # share of the rows that a code stands in, at least
MOSTLY = 0.9  # share of the rows beyond which a value is no code
APART = 5.0  # deviations of the other values between them and a code
ROUNDING = 1e-12  # of a mean: features that vary less are constant
OTHERS = 10  # other values, at least, and three different ones


def _codes() -> list[float]:
    """Numbers that people write where there is none: repeated digits, and ends of integers."""
    codes = [-1.0, -9.0]
    for digit in "789":
        for length in range(2, 7):
            number = float(digit * length)
            codes += [-number, number]
    for bits in (16, 32):
        codes += [-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1, 2.0**bits - 1]
    return codes


CODES = torch.tensor(_codes(), dtype=torch.float64)


@attrs.frozen(eq=False)
class Features:
    """Values of one modality, one column per feature.

    Args:
        name: the modality.
        values: (n, k), anything where they are not present.
        present: which of them are observed, (n, k) bool.
        shape: of a row.
        names: of the features, if they have some.
    """

    name: str
    values: Tensor
    present: Tensor
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()

    def called(self, place: int) -> str:
        """What messages call a feature."""
        if len(self.names) == self.values.shape[1]:
            return f"column {self.names[place]!r}"
        if len(self.shape) == 1:
            return f"column {place}"
        index = torch.unravel_index(torch.tensor(place), self.shape)
        return f"element {tuple(int(i) for i in index)}"


def suspicions(rows: Batch, schema: Schema, modalities: Mapping[str, Modality]) -> list[str]:
    """Sentences about the first rows of training data; none where nothing is odd.

    Categories and bits are not looked at.

    Args:
        rows: conformed to the schema.
        schema: the model's.
        modalities: likewise.
    """
    sentences: list[str] = []
    for name, likelihood in schema.likelihoods.items():
        if likelihood.integers or likelihood.class_axis:
            continue
        count = max(FEWEST, ELEMENTS // max(1, math.prod(schema.shapes[name])))
        x = rows.data[name][:count]
        present = rows.present(name)[:count]
        seen = _features(name, x, present, schema)
        raw = modalities[name].restore(x)
        if raw.shape == x.shape:
            sentences += _about_codes(_features(name, raw, present, schema))
        sentences += _about_scale(seen, likelihood, x)
    return sentences


def _features(name: str, x: Tensor, present: Tensor, schema: Schema) -> Features:
    values = rearrange(x, "n ... -> n (...)")
    seen = rearrange(present, "n ... -> n (...)")
    return Features(name, values, seen, tuple(x.shape[1:]), schema.features.get(name, ()))


def _fixed_scale(likelihood: Likelihood) -> float | None:
    """The scale that a likelihood was given as a number; None: it has none, or it is trained."""
    if not isinstance(likelihood, LocationScale | StudentTLikelihood):
        return None
    scale = likelihood.scale
    return scale.value if isinstance(scale, Positive) and scale.log is None else None


def _about_scale(features: Features, likelihood: Likelihood, x: Tensor) -> Iterator[str]:
    """A sentence where the data are far from the scale that their likelihood was given."""
    scale = _fixed_scale(likelihood)
    if scale is None or likelihood.sanity_warning(x) is not None:  # it says so itself
        return
    mean, variance = _moments(features)
    varies = variance > (ROUNDING * mean).square()
    size = torch.where(varies, (mean.square() + variance).sqrt(), 0.0)
    largest = int(size.argmax())
    most = float(size[largest])
    deviation = float(variance.max().sqrt())
    remedy = (
        f"standardise it (dataset.fit_transforms({{{features.name!r}: 'standardise'}})), or "
        "take a likelihood with scale='trained'"
    )
    if most > VERY_FAR * scale or most > FAR * max(scale, 1.0):
        yield (
            f"data[{features.name!r}]: {features.called(largest)} has mean "
            f"{float(mean[largest]):.4g} and sd {float(variance[largest].sqrt()):.4g}, far from "
            f"what a likelihood with the fixed scale {scale:g} expects, so that it outweighs all "
            f"else; {remedy}"
        )
    # a latent pays for itself only if it explains more variance than the likelihood calls noise
    elif 0 < deviation < scale / FAR and float(variance.sum()) < scale**2:
        widest = int(variance.argmax())
        yield (
            f"data[{features.name!r}]: the largest sd of a feature is {deviation:.4g} "
            f"({features.called(widest)}), which a likelihood with the fixed scale {scale:g} "
            f"takes for noise, so that nothing is learnt from it; {remedy}"
        )


def _moments(features: Features) -> tuple[Tensor, Tensor]:
    """Mean and variance of the observed values of each feature, (k,); 0 where there are none."""
    values = torch.where(features.present, features.values, 0.0).double()
    count = features.present.sum(0).clamp(min=1)
    mean = values.sum(0) / count
    residual = torch.where(features.present, values - mean, 0.0)
    return mean, residual.square().sum(0) / count


def _about_codes(features: Features) -> Iterator[str]:
    """A sentence where values look like codes for missing ones."""
    lowest = torch.where(features.present, features.values, math.inf).amin(0)
    highest = torch.where(features.present, features.values, -math.inf).amax(0)
    suspects = (_is_code(lowest) | _is_code(highest)).nonzero()[:, 0].tolist()
    descriptions = []
    codes = set()
    for place in suspects:
        column = features.values[features.present[:, place], place].double()
        for code, count, low, high in _codes_of(column):
            codes.add(code)
            descriptions.append(
                f"{features.called(place)} holds {code:g} in {count} of {len(column)} rows, far "
                f"from its other values ({low:.4g} to {high:.4g})"
            )
    if not descriptions:
        return
    more = f", and {len(descriptions) - 1} more like it" if len(descriptions) > 1 else ""
    listed = ", ".join(f"{code:g}" for code in sorted(codes))
    yield (
        f"data[{features.name!r}]: {descriptions[0]}{more}; it looks like a code for a missing "
        f"value, and is trained on as a number; write NaN in its place "
        f"(table.replace([{listed}], numpy.nan)), or give missing= where it is observed"
    )


def _is_code(values: Tensor) -> Tensor:
    """Which values are numbers that people write where there is none."""
    values = values.double()
    whole = values.round()
    # transforms leave the last digits open
    near = (values - whole).abs() <= 1e-5 * whole.abs().clamp(min=1)
    return near & torch.isin(whole, CODES.to(values.device))


def _codes_of(column: Tensor) -> Iterator[tuple[float, int, float, float]]:
    """Codes in the values (n,) of a feature: code, rows, and the range of the other values."""
    rounded = torch.where(_is_code(column), column.round(), column)
    values, counts = rounded.unique(return_counts=True)
    least = max(2, math.ceil(REPEATED * len(column)))
    candidate = _is_code(values) & (counts >= least)
    others = rounded[~torch.isin(rounded, values[candidate])]
    if len(others) < OTHERS or len(others.unique()) < 3:
        return
    low, high = float(others.min()), float(others.max())
    gap = APART * float(others.std())
    for code, count in zip(values[candidate].tolist(), counts[candidate].tolist(), strict=True):
        outside = low - code >= gap or code - high >= gap
        most = 0.5 if code == -1 else MOSTLY  # the background of many pictures
        if outside and count <= most * len(column):
            yield code, count, low, high
