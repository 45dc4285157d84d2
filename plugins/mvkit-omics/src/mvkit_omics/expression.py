"""Latents, denoised expression, and what rows lack imputed with intervals.

Axes: n draws, b rows, d latent, f features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import attrs
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mvkit.errors import RequestError, check_option, check_whole_number, suggest
from mvkit.models.multimodal import MultimodalModel, check_model
from mvkit_omics.asking import (
    Asked,
    Covariates,
    Data,
    DataLike,
    Dense,
    Given,
    asked,
    block_of,
    encoded,
    feature_names,
    row_names,
    rows_of,
)

Of = Literal["counts", "mean"]


def latents(
    model: MultimodalModel,
    data: DataLike,
    given: Given = None,
    *,
    empty: Literal["error", "prior"] = "error",
) -> pd.DataFrame:
    """Posterior means of cells, a table (b, d) with their ids.

    Args:
        model: trained.
        data: cells: a dataset, a batch or a mapping of arrays.
        given: modalities to look at; None: all that each cell has.
        empty: cells with none of them: `error`, or the mean of the `prior`.
    """
    check_model(model, "latents")
    rows = rows_of(data)
    if given is not None and not isinstance(given, str):
        given = tuple(given)
    z = encoded(model, rows, given, empty=empty)
    columns = [f"z{i}" for i in range(z.shape[1])]
    return pd.DataFrame(z.numpy(), index=row_names(rows), columns=columns)


def denoised(
    model: MultimodalModel,
    data: DataLike,
    modality: str | None = None,
    *,
    given: Given = None,
    covariates: Covariates = None,
    exposure: float | None = 1.0,
    n: int | None = 10,
    features: Iterable[str] | None = None,
    background: bool = False,
    empty: Literal["error", "prior"] = "error",
    seed: int = 0,
) -> pd.DataFrame:
    """Denoised expression of cells, as if they were of other batches if wanted, a table (b, f).

    Means of the likelihood at draws of z ~ q(z|x_given), averaged over draws and over the
    covariates that are stated: E_z [mean over levels of f(z, level)].

    Args:
        model: trained.
        data: cells: a dataset, a batch or a mapping of arrays.
        modality: what is decoded; None: the model's only one.
        given: modalities to look at; None: all that each cell has.
        covariates: what cells are decoded as, {name: level, list of levels, or "all"}; the average
            is over them, each counting the same. None: the cells' own. Encoders see the cells'
            own.
        exposure: what the means are for, where the modality has an exposure: 1 for shares, 1e4
            for counts in ten thousand; None: the cell's own.
        n: draws of z; None: z is the posterior's mean.
        features: those wanted, by name; None: all.
        background: whether means hold the background of `foreground_background`.
        empty: cells with none of what is given: `error`, or decoded from the `prior`.
        seed: of the draws.
    """
    question = asked(
        "denoised",
        model,
        modality,
        covariates,
        given=given,
        exposure=exposure,
        background=background,
        empty=empty,
        seed=seed,
    )
    columns, places = _picked(model, question.modality, features)
    draws = 1 if n is None else check_whole_number("denoised: n", n, 1)
    options: dict[str, Any] = {"n": draws, "latent": "mean" if n is None else "draw"}

    def means(block: Dense, start: int) -> Tensor:
        return question.means(block, start, **options).mean(0)[:, places]

    rows = rows_of(data)
    values = _by_blocks(rows, question.block_rows(draws), means)
    return pd.DataFrame(values, index=row_names(rows), columns=columns)


def _picked(
    model: MultimodalModel, modality: str, features: Iterable[str] | None
) -> tuple[pd.Index, Tensor | slice]:
    """Names of the wanted features, and where they stand."""
    every = feature_names(model, modality)
    if features is None:
        return every, slice(None)
    names = [features] if isinstance(features, str) else list(features)
    for name in names:
        if name not in every:
            raise RequestError(
                f"denoised: no feature {name!r} in {modality!r}; "
                f"{suggest(str(name), map(str, every))}"
            )
    return pd.Index(names), torch.as_tensor(every.get_indexer(names))


def _by_blocks(rows: Data, size: int, function: Any) -> np.ndarray[Any, Any]:
    """What a function of a block and its first row returns, (..., b, f), for all rows."""
    pieces = []
    for start in range(0, len(rows), size):
        pieces.append(function(block_of(rows, slice(start, start + size)), start).cpu())
    return torch.cat(pieces, -2).numpy()


@attrs.frozen(eq=False)
class Imputed:
    """A modality imputed, with its uncertainty; tables (b, f).

    Args:
        mean: means.
        sd: standard deviations.
        quantiles: by the share below.
    """

    mean: pd.DataFrame
    sd: pd.DataFrame
    quantiles: dict[float, pd.DataFrame]

    def interval(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The smallest and the largest of the quantiles."""
        return self.quantiles[min(self.quantiles)], self.quantiles[max(self.quantiles)]


def imputed(
    model: MultimodalModel,
    data: DataLike,
    modality: str,
    given: Given = None,
    *,
    of: Of = "counts",
    quantiles: Iterable[float] = (0.05, 0.95),
    covariates: Covariates = None,
    exposure: float | None = None,
    n: int = 200,
    background: bool = True,
    empty: Literal["error", "prior"] = "error",
    seed: int = 0,
) -> Imputed:
    """A modality imputed from others, such as proteins from RNA, with intervals.

    Draws of z ~ q(z|x_given), and of the likelihood, for each of the covariates that are stated;
    means are those of the likelihood, which vary less.

    Args:
        model: trained.
        data: cells: a dataset, a batch or a mapping of arrays.
        modality: what is imputed.
        given: modalities to look at; None: all others.
        of: what deviations and quantiles are of: `counts`, as they would be measured, or their
            `mean`, which is known better.
        quantiles: shares in [0, 1].
        covariates: see `denoised`; draws of several levels are taken together.
        exposure: where the modality has one: a number; None: what the cell tells, else the median
            of training.
        n: draws for each level, 2 at least.
        background: whether they hold the background of `foreground_background`; counts do.
        empty: cells with none of what is given: `error`, or imputed from the `prior`.
        seed: of the draws.
    """
    check_option("imputed: of", of, "counts", "mean")
    n = check_whole_number("imputed: n", n, 2)
    shares = _checked_shares(quantiles)
    if of == "counts" and not background:
        raise RequestError(
            "imputed: background=False and of='counts'; expected of='mean', since what is "
            "measured holds the background"
        )
    check_model(model, "imputed")
    if given is None:
        given = tuple(name for name in model.names if name != modality)
    options: dict[str, Any] = {"given": given, "exposure": exposure, "background": background}
    options |= {"empty": empty, "seed": seed}
    question = asked("imputed", model, modality, covariates, **options)

    def statistics(block: Dense, start: int) -> Tensor:
        return _statistics(question, block, start, n, of, shares)

    rows = rows_of(data)
    size = question.block_rows(2 * n * len(question.levels))
    values = _by_blocks(rows, size, statistics)
    index = row_names(rows)
    columns = feature_names(model, question.modality)
    tables = [pd.DataFrame(table, index=index, columns=columns) for table in values]
    return Imputed(tables[0], tables[1], dict(zip(shares, tables[2:], strict=True)))


def _statistics(
    question: Asked, block: Dense, start: int, n: int, of: Of, shares: tuple[float, ...]
) -> Tensor:
    """Mean, deviation and quantiles of the rows of a block, (2 + quantiles, b, f)."""
    means = torch.cat([*question.at_levels(block, start, n=n)]).double()
    draws = means
    if of == "counts":
        draws = torch.cat([*question.at_levels(block, start, n=n, sample=True)]).double()
    statistics = [means.mean(0), draws.std(0)]
    ordered = draws.sort(0).values  # torch.quantile takes 16 million numbers at most
    for share in shares:
        place = share * (len(ordered) - 1)
        low = ordered[math.floor(place)]
        statistics.append(low.lerp(ordered[math.ceil(place)], place - math.floor(place)))
    return torch.stack(statistics)


def _checked_shares(quantiles: Iterable[float]) -> tuple[float, ...]:
    shares = tuple(quantiles)
    if not shares or any(not 0 <= share <= 1 for share in shares):
        raise RequestError(f"imputed: quantiles={shares}; expected shares in [0, 1], one at least")
    return shares
