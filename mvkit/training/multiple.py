"""Multiple imputation: completed data from models that were fitted to bootstraps of the rows.

Axes: b rows, m completed data sets.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from mvkit.core import noise
from mvkit.core.batch import conform
from mvkit.data.dataset import Rows
from mvkit.data.user_rows import rows_of
from mvkit.errors import RequestError, check_option, check_whole_number
from mvkit.models.copies import fresh_copy
from mvkit.models.ensemble import Ensemble
from mvkit.models.imputation import impute
from mvkit.models.imputed import Filled, Imputation
from mvkit.models.multimodal import MultimodalModel
from mvkit.training.fit import fit

IMPROPER = (
    "impute: refit=False: all {m} completed tables come from one fitted model, as if its weights "
    "were known (improper imputation): pooled standard errors are too small; take refit=True, or "
    "do not pool them"
)


def impute_multiply(
    model: MultimodalModel | Ensemble,
    data: Rows,
    m: int,
    *,
    refit: bool = True,
    fit_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> Imputation:
    """The data completed m times, for analyses that `mvkit.pool` pools.

    Each time a copy of the model starts from its specs and is fitted to a bootstrap of the rows,
    as many of them drawn with replacement, and gaps are drawn from it. So completed data differ by
    what the model's weights may be, too, and not only by what it says of each row.

    Args:
        model: a trained model, which fills the means; its spec gives the copies.
        data: what it was fitted to.
        m: number of completed data sets.
        refit: whether to fit copies; without it all are drawn from the model itself, which is
            quick and improper, as a warning says.
        fit_options: how copies are fitted: options of `mvkit.fit`, such as `epochs`, with which
            the model itself was.
        seed: of bootstraps, weights and draws.
        options: others of `mvkit.impute`.

    Returns:
        An `Imputation` with m `draws`.

    Raises:
        RequestError: a model that has no fresh copy, or options that cannot be.

    Reference: Rubin, Multiple Imputation for Nonresponse in Surveys, 1987,
    https://doi.org/10.1002/9780470316696; Honaker and King, What to Do about Missing Values in
    Time-Series Cross-Section Data, 2010, https://doi.org/10.1111/j.1540-5907.2010.00447.x (by
    bootstraps).
    """
    m = check_whole_number("impute: m", m, 2)
    check_option("impute: refit", refit, True, False)
    for name in ("draws", "generator"):
        if options.pop(name, None) is not None:
            raise RequestError(f"impute: {name} beside m={m}; expected one of them; leave it out")
    generator = noise.seeded(seed, model.like.device)
    quantiles = options.pop("quantiles", ())
    imputation: Imputation = impute(
        model, data, quantiles=quantiles, generator=generator, **options
    )
    if refit:
        fitting = dict(fit_options or {})
        draws = list(refitted_draws(model, data, m, seed, fitting, options))
    else:
        warnings.warn(IMPROPER.format(m=m), stacklevel=3)
        draws = list(drawn_data(model, data, m, generator, options))
    return attrs.evolve(imputation, draws=draws)


def drawn_data(
    model: MultimodalModel | Ensemble,
    data: Rows,
    m: int,
    generator: torch.Generator,
    options: Mapping[str, Any],
) -> list[Filled]:
    """The data filled m times at random by one model."""
    own = {key: value for key, value in options.items() if key not in ("n", "intervals")}
    draws: list[Filled] = impute(
        model, data, n=max(m, 2), draws=True, generator=generator, **own
    ).draws
    return draws[:m]


def refitted_draws(
    model: MultimodalModel | Ensemble,
    data: Rows,
    m: int,
    seed: int,
    fitting: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Iterator[Filled]:
    """The data filled by each of m copies, in turn."""
    if isinstance(model, Ensemble):
        raise RequestError(
            "impute: an ensemble with refit=True; expected one model, whose copies are fitted; "
            "take one of its members, or refit=False"
        )
    raw = rows_of(data, options.get("id"), options.get("covariates"))
    known = conform(raw, model.schema, compact=True).observed.any(1).nonzero()[:, 0].cpu()
    for number in range(m):
        own_seed = noise.seed_of(seed, number)
        copy = fresh_copy(model, own_seed)
        rows = raw.take(known[bootstrap(len(known), own_seed)])
        fit(copy, rows, **{"seed": own_seed, "progress": False, **fitting})
        copy.to(model.like.device)
        yield from drawn_data(copy, data, 1, noise.seeded(own_seed, copy.like.device), options)


def bootstrap(b: int, seed: int) -> Tensor:
    """Positions of b rows drawn with replacement, (b,)."""
    like = torch.zeros((), dtype=torch.float64)
    uniform = noise.draw("choice/bootstrap", (b,), like, generator=noise.seeded(seed))
    return (uniform * b).long().clamp(max=b - 1)
