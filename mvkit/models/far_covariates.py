"""Numbers of covariates that lie far outside training, where networks extrapolate.

Axes: b rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.covariates import Conditions

FAR = 0.5  # of the range of training, beyond its ends


def warn_if_far(conditions: Conditions | None, batch: Batch, *, conformed: bool) -> None:
    """Warns once of rows whose covariates are numbers far outside training.

    Args:
        conditions: the model's covariates; None: it has none.
        batch: conformed rows.
        conformed: whether they came so, and were looked at then.
    """
    if conditions is None or conformed:
        return
    sentences = far_numbers(conditions, batch.covariates)
    if sentences:
        warnings.warn("; ".join(sentences), stacklevel=4)


def far_numbers(
    conditions: Conditions, values: Mapping[str, Tensor], where: str = "row"
) -> list[str]:
    """A sentence for each covariate of which some numbers are far outside training.

    Nothing is far before training, or where no row of training is known.

    Args:
        conditions: the model's covariates.
        values: of some of them, {name: (b,) or any shape}.
        where: what messages call an element of the values.
    """
    sentences: list[str] = []
    if not len(conditions.rows):
        return sentences
    for (name, covariate), known in zip(
        conditions.covariates.items(), conditions.rows.unbind(1), strict=True
    ):
        known = known[~known.isnan()]
        if covariate.levels or name not in values or not len(known):
            continue
        value = values[name].double().flatten().to(known.device)
        low, high = known.aminmax()
        margin = FAR * (high - low)
        far = (value < low - margin) | (value > high + margin)
        count = int(far.sum())
        if count:
            sentences.append(_sentence(name, value, far, (float(low), float(high)), where))
    return sentences


def _sentence(name: str, value: Tensor, far: Tensor, ends: tuple[float, float], where: str) -> str:
    place = int(torch.argmax(far.to(torch.uint8)))
    others = int(far.sum()) - 1
    more = f", and so are {others:,} more" if others else ""
    what = "the value" if where == "value" and len(value) == 1 else f"{where} {place}"
    return (
        f"covariate {name!r}: {what} is {value[place].item():.6g}, far outside training "
        f"({ends[0]:.6g} to {ends[1]:.6g}){more}; networks extrapolate there; check its units"
    )
