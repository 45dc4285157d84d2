"""pool: estimates from several completed tables as one, by Rubin's rules.

Axes: m fits, k coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mvkit.errors import DataError, RequestError

if TYPE_CHECKING:
    from pandas import DataFrame

Numbers = NDArray[np.float64]
Names = list[Hashable]

EXPECTED = (
    "a fitted model with params, bse (or cov_params) and df_resid, a pair (estimate, variance), "
    "a triple (estimate, variance, df), or a table with columns estimate, std_error or variance, "
    "and df"
)


@runtime_checkable
class WithErrors(Protocol):
    """A fitted model as statsmodels returns it: coefficients and their standard errors."""

    params: Any
    bse: Any
    df_resid: Any


@runtime_checkable
class WithCovariance(Protocol):
    """A fitted model that has the covariance of its coefficients instead."""

    params: Any
    cov_params: Any
    df_resid: Any


@attrs.frozen(eq=False)
class Coefficients:
    """What one completed table says.

    Args:
        names: of the coefficients.
        estimate: their values, (k,).
        variance: their squared standard errors, (k,).
        df: degrees of freedom that the complete data leave, (k,); infinite: a large sample.
    """

    names: Names
    estimate: Numbers
    variance: Numbers
    df: Numbers


def pool(fits: Iterable[object], *, level: float = 0.95) -> DataFrame:
    """Estimates of several completed tables as one, by Rubin's rules.

    Of m fits with estimates Q_i and variances U_i: estimate Q̄ = mean Q_i, variance
    T = Ū + (1 + 1/m) B, where B is the variance of the Q_i. Intervals are Student's t with the
    degrees of freedom of Barnard and Rubin, which never exceed those of the complete data.

    Args:
        fits: an analysis of each completed table, two at least: a fitted model with `params`,
            `bse` (or `cov_params`) and `df_resid`, as of statsmodels; a pair (estimate, variance)
            or a triple (estimate, variance, df) of numbers, arrays (k,), mappings or pandas
            Series, where a variance may be a covariance (k, k); or a table with columns
            `estimate`, `std_error` or `variance`, and perhaps `df`. Without df, the complete data
            are taken to be many. Of df that differ, the smallest counts.
        level: share that the intervals are to hold.

    Returns:
        A table with a row for each coefficient: estimate, std_error, df, low, high,
        missing_information, the share of what the complete data would tell that is missing; 0
        where all fits agree.

    Raises:
        DataError: fewer than two fits, coefficients that differ, numbers that are not finite, or
            negative variances.
        RequestError: a level that is no share.

    Example:
        >>> import mvkit
        >>> table = mvkit.pool([(1.0, 0.2), (1.4, 0.2), (1.2, 0.2)])
        >>> table.round(3).iloc[0].tolist()
        [1.2, 0.503, 45.125, 0.186, 2.214, 0.243]

    Reference: Rubin, Multiple Imputation for Nonresponse in Surveys, 1987,
    https://doi.org/10.1002/9780470316696; Barnard and Rubin, Small-sample degrees of freedom with
    multiple imputation, 1999, https://doi.org/10.1093/biomet/86.4.948.
    """
    if not 0 < level < 1:
        raise RequestError(f"pool: level={level!r}; expected a share between 0 and 1")
    return _table(_alike([_coefficients(i, fit) for i, fit in enumerate(fits)]), level)


def _table(coefficients: list[Coefficients], level: float) -> DataFrame:
    """Rubin's rules on fits of the same coefficients."""
    import pandas as pd
    from scipy import stats

    m = len(coefficients)
    estimates = np.stack([fit.estimate for fit in coefficients])
    within = np.stack([fit.variance for fit in coefficients]).mean(0)
    complete_df = np.stack([fit.df for fit in coefficients]).min(0)
    between = (1 + 1 / m) * estimates.var(0, ddof=1)
    total = within + between
    df = degrees_of_freedom(within, between, complete_df, m)
    estimate = estimates.mean(0)
    error = np.sqrt(total)
    reach = stats.t.ppf((1 + level) / 2, df) * error
    columns = {
        "estimate": estimate,
        "std_error": error,
        "df": df,
        "low": estimate - reach,
        "high": estimate + reach,
        "missing_information": missing_information(within, between, df),
    }
    return pd.DataFrame(columns, index=coefficients[0].names)


def degrees_of_freedom(within: Numbers, between: Numbers, complete_df: Numbers, m: int) -> Numbers:
    """Degrees of freedom of Barnard and Rubin, (k,).

    1/ν = 1/ν_m + 1/ν_obs, with ν_m = (m - 1)/λ², ν_obs = (1 - λ) ν_c (ν_c + 1)/(ν_c + 3) and the
    share λ of the variance that is between the tables.

    Args:
        within: mean of the variances, Ū, (k,).
        between: (1 + 1/m) B, (k,).
        complete_df: those of complete data, ν_c, (k,).
        m: number of tables.
    """
    total = within + between
    share = np.divide(between, total, out=np.zeros_like(total), where=total > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        large_sample = (m - 1) / share**2
        observed = (1 - share) * complete_df / (1 + 2 / (complete_df + 1))
        observed = np.where(np.isinf(complete_df), np.inf, observed)
        return np.asarray(1 / (1 / large_sample + 1 / observed))


def missing_information(within: Numbers, between: Numbers, df: Numbers) -> Numbers:
    """Rubin's share of missing information, (r + 2/(ν + 3))/(r + 1) with r = between/within, (k,).

    Args:
        within: mean of the variances, (k,).
        between: (1 + 1/m) B, (k,).
        df: degrees of freedom, (k,).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = between / within
        share = (ratio + 2 / (df + 3)) / (ratio + 1)
    share = np.where(within > 0, share, 1.0)
    return np.where(between > 0, share, 0.0)


def _alike(coefficients: list[Coefficients]) -> list[Coefficients]:
    """The fits, if they are enough and of the same coefficients."""
    if len(coefficients) < 2:
        raise DataError(
            f"pool: got {len(coefficients)} of fits; expected two at least, of tables that were "
            "imputed separately, such as those of draws=True"
        )
    first = coefficients[0].names
    for i, fit in enumerate(coefficients):
        if fit.names != first:
            raise DataError(
                f"pool: fit {i} has coefficients {fit.names}, and fit 0 {first}; expected the "
                "same analysis of every table, with the same levels of categories"
            )
    return coefficients


def _coefficients(i: int, fit: object) -> Coefficients:
    """What fit `i` says, from whatever it is."""
    if isinstance(fit, WithErrors):
        names, estimate = _named(i, fit.params)
        error = _numbers(i, fit.bse, names)
        return _checked(i, names, estimate, error**2, fit.df_resid)
    if isinstance(fit, WithCovariance):
        names, estimate = _named(i, fit.params)
        return _checked(i, names, estimate, _numbers(i, fit.cov_params(), names), fit.df_resid)
    if isinstance(fit, tuple | list) and len(fit) in (2, 3):
        names, estimate = _named(i, fit[0])
        df = fit[2] if len(fit) == 3 else math.inf
        return _checked(i, names, estimate, _numbers(i, fit[1], names), df)
    return _from_table(i, fit)


def _from_table(i: int, fit: Any) -> Coefficients:
    """What a pandas table says, a row for each coefficient."""
    columns = list(fit.columns) if _is_frame(fit) else []
    if "estimate" not in columns or not {"variance", "std_error"} & {*columns}:
        raise DataError(f"pool: fit {i}: got {_kind(fit, columns)}; expected {EXPECTED}")
    names, estimate = _named(i, fit["estimate"])
    if "variance" in columns:
        variance = _finite(i, fit["variance"])
    else:
        variance = _finite(i, fit["std_error"]) ** 2
    df = fit["df"] if "df" in columns else math.inf
    return _checked(i, names, estimate, variance, df)


def _is_frame(fit: object) -> bool:
    import pandas as pd

    return isinstance(fit, pd.DataFrame)


def _is_series(values: object) -> bool:
    import pandas as pd

    return isinstance(values, pd.Series)


def _kind(fit: object, columns: list[str]) -> str:
    """How a message names what was given for a fit."""
    if _is_frame(fit):
        return f"a table with columns {columns}"
    return type(fit).__name__


def _named(i: int, values: Any) -> tuple[Names, Numbers]:
    """Names and values of coefficients; those of arrays are numbered."""
    if isinstance(values, Mapping):
        return list(values), _finite(i, list(values.values()))
    numbers = _finite(i, values)
    if numbers.ndim > 1:
        raise DataError(f"pool: fit {i}: estimates have shape {numbers.shape}; expected one axis")
    numbers = np.atleast_1d(numbers)
    if _is_series(values):
        return list(values.index), numbers
    return list(range(len(numbers))), numbers


def _numbers(i: int, values: Any, names: Names) -> Numbers:
    """Values as finite numbers, in the order of the coefficients if they have names."""
    if isinstance(values, Mapping) and {*values} == {*names}:
        values = [values[name] for name in names]
    if _is_series(values) and {*values.index} == {*names}:
        values = values.loc[names]
    return _finite(i, values)


def _finite(i: int, values: ArrayLike) -> Numbers:
    """Raises DataError for what is no number, or not finite."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"pool: fit {i}: got {values!r}; expected numbers") from None
    if not np.isfinite(numbers).all():
        raise DataError(
            f"pool: fit {i}: got {numbers}; expected finite numbers; see whether the analysis of "
            "this table converged"
        )
    return numbers


def _checked(
    i: int, names: Names, estimate: Numbers, variance: Numbers, df: ArrayLike
) -> Coefficients:
    """Coefficients whose variances, or covariance (k, k), and degrees of freedom fit them."""
    k = len(estimate)
    if variance.shape == (k, k) and variance.ndim == 2:
        variance = variance.diagonal()
    variance = np.atleast_1d(variance)
    if variance.shape != (k,):
        raise DataError(
            f"pool: fit {i}: {k} estimates with variances of shape {variance.shape}; expected "
            f"({k},), or a covariance ({k}, {k})"
        )
    if (variance < 0).any():
        raise DataError(f"pool: fit {i}: variances {variance}; expected none below 0")
    freedom = np.asarray(df, dtype=np.float64)
    if freedom.shape not in ((), (k,)) or not (freedom > 0).all():
        raise DataError(
            f"pool: fit {i}: df {df!r}; expected a number above 0, or one for each of {k} "
            "estimates"
        )
    return Coefficients(names, estimate, variance, np.broadcast_to(freedom, (k,)))
