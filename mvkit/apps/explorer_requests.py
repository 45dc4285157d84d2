"""What the page of the explorer asks for, read from JSON and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import attrs

from mvkit.errors import RequestError, check_whole_number, suggest
from mvkit.models.calibration import check_level

LEVEL = 0.9  # of intervals, where none is asked for
LARGEST_SEED = 2**53  # that JavaScript tells from its neighbours
FARTHEST = 100.0  # that a latent is moved
Check = Callable[[str, object], Any]


@attrs.frozen
class Asked:
    """What is asked for of a row.

    Args:
        row: the row by its id, or by its number where rows have none.
        number: its place among the rows instead.
        given: the modalities that are ticked; None: all that the row has.
        hidden: of these, features that are not ticked, by modality.
        sampler: where latents come from instead of the posterior.
        cluster: of the prior, from which new rows are drawn instead.
        refine: whether refiners draw the modalities that have one.
        covariates: those that are not the row's own, by name.
        dim: the dimension of the latent that is moved; None: none is.
        shift: how far.
        level: share that intervals are to hold.
        seed: of the draws.
    """

    row: str | None = None
    number: int | None = None
    given: tuple[str, ...] | None = None
    hidden: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    sampler: str | None = None
    cluster: int | None = None
    refine: bool = False
    covariates: Mapping[str, object] = attrs.field(factory=dict)
    dim: int | None = None
    shift: float = 0.0
    level: float = LEVEL
    seed: int = 0

    @classmethod
    def of(cls, plain: Mapping[str, object]) -> Asked:
        """A request from its JSON; what is not said is as by default.

        Raises:
            RequestError: an option that there is not, or a value that cannot be.
        """
        values = {}
        for name, value in plain.items():
            if name not in CHECKS:
                raise RequestError(f"explore: unknown option {name!r}; {suggest(name, CHECKS)}")
            values[name] = CHECKS[name](f"explore: {name}", value)
        return cls(**values)


def _text(where: str, value: object) -> str:
    if isinstance(value, str):
        return value
    raise RequestError(f"{where}: got {value!r}; expected text")


def _flag(where: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise RequestError(f"{where}: got {value!r}; expected true or false")


def _number(where: str, value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and abs(cast(float, value)) <= FARTHEST:
        return float(cast(float, value))
    raise RequestError(f"{where}: got {value!r}; expected a number from -100 to 100")


def _whole(where: str, value: object) -> int:
    number = check_whole_number(where, value, 0)
    if number > LARGEST_SEED:
        raise RequestError(f"{where}: got {number}; expected a whole number up to {LARGEST_SEED}")
    return number


def _names(where: str, value: object) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise RequestError(f"{where}: got {value!r}; expected a list of names")


def _names_by_name(where: str, value: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise RequestError(f"{where}: got {value!r}; expected lists of features by modality")
    return {name: _names(f"{where}.{name}", names) for name, names in value.items()}


def _values_by_name(where: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise RequestError(f"{where}: got {value!r}; expected values by name")
    for name, item in value.items():
        if not isinstance(item, str | int | float) or isinstance(item, bool):
            raise RequestError(f"{where}.{name}: got {item!r}; expected a word or a number")
    return value


def _optional(check: Check) -> Check:
    """A check that lets None through."""
    return lambda where, value: None if value is None else check(where, value)


CHECKS: dict[str, Check] = {
    "row": _optional(_text),
    "number": _optional(_whole),
    "given": _optional(_names),
    "hidden": _names_by_name,
    "sampler": _optional(_text),
    "cluster": _optional(_whole),
    "refine": _flag,
    "covariates": _values_by_name,
    "dim": _optional(_whole),
    "shift": _number,
    "level": check_level,
    "seed": _whole,
}
