"""What can be asked of `mvkit.impute`."""

from __future__ import annotations

from mvkit.errors import RequestError, check_whole_number
from mvkit.models.source_blocks import is_source


def check_shares(shares: tuple[float, ...]) -> None:
    """Raises RequestError if quantiles are asked for that cannot be."""
    if any(not 0 <= share <= 1 for share in shares):
        raise RequestError(f"impute: quantiles {shares}; expected shares in [0, 1]")


def check_draws(n: int, uncertain: bool) -> int:
    """The number of draws; raises RequestError if it is none, or too small to tell uncertainty."""
    n = check_whole_number("impute: n", n, 1)
    if uncertain and n < 2:
        raise RequestError("impute: n=1; expected 2 draws at least to tell uncertainty")
    return n


def check_blocks(uncertain: bool, id: str | None, covariates: object, data: object) -> None:
    """Raises RequestError for what is not answered a block of rows at a time."""
    if uncertain:
        raise RequestError(
            "impute: quantiles, draws or intervals of rows that are filled a block at a time; "
            "expected filled values alone; give rows in memory, and no into="
        )
    if is_source(data) and (id is not None or covariates is not None):
        raise RequestError(
            f"impute: id= or covariates= of a {type(data).__name__}, which has its own; expected "
            "them for tables and arrays only; leave them out"
        )
