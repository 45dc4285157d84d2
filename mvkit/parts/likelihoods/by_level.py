"""Numbers of likelihoods that there are for each level of a covariate.

Axes: n rows, l levels, then the shape of the modality.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mvkit.core.likelihood import Context
from mvkit.core.modality import Sizes
from mvkit.errors import RequestError, SpecError

BY_LEVEL = "feature_and_level"


def check_names_level(by: str, level: str, levels: int) -> None:
    """Raises SpecError unless a covariate is named where numbers are by its levels, and only
    there.
    """
    if bool(level) != (by == BY_LEVEL) or (levels and not level):
        raise SpecError(
            f"by={by!r} with level={level!r} and levels={levels}; expected a covariate's name as "
            "level= with by='feature_and_level', and neither otherwise",
            "level",
        )


def levels_of(level: str, levels: int, sizes: Sizes) -> int:
    """How many levels a covariate has; 0: numbers are by no level.

    Args:
        level: its name; empty: none.
        levels: as the spec says; 0: as the model says.
        sizes: the model's.

    Raises:
        SpecError: a covariate that the model does not have, or that has other levels.
    """
    known = sizes.levels.get(level, 0)
    if level and not (levels or known):
        raise SpecError(
            f"no covariate {level!r} with levels in the model; expected one of "
            f"{[name for name, number in sizes.levels.items() if number]}, or levels=",
            "level",
        )
    if levels and known and levels != known:
        raise SpecError(
            f"got {levels}, and covariate {level!r} has {known}; leave it out", "levels"
        )
    return levels or known


def of_rows(table: Tensor, level: str, context: Context, where: str) -> Tensor:
    """The numbers of rows (n, *shape), of a table (l, *shape) by level.

    Rows whose level is missing get the mean of all levels.

    Args:
        table: numbers by level.
        level: the covariate.
        context: what is known of the rows.
        where: the likelihood and what the numbers are, for messages.

    Raises:
        RequestError: nobody says which level rows have.
    """
    if level not in context.covariates:
        raise RequestError(
            f"{where} is by the level of {level!r}, which the rows lack; expected an index per "
            "row; give it among the covariates"
        )
    index = context.covariates[level].long()
    missing = (index < 0).reshape(*index.shape, *[1] * (table.ndim - 1))
    return torch.where(missing, table.mean(0), table[index.clamp(min=0)])


def grown(table: nn.Parameter, shares: Tensor) -> nn.Parameter:
    """A table (l, *shape) with one more level, the mean of the others by shares (l,)."""
    old = table.detach()
    row = torch.tensordot(shares.to(old), old, 1)
    return nn.Parameter(torch.cat([old, row.unsqueeze(0)]), requires_grad=table.requires_grad)
