"""Search spaces: what a field may be, and configurations with one field replaced by its path."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import attrs
from optuna.trial import BaseTrial

from mvkit.errors import SpecError, suggest
from mvkit.registry.spec import is_spec, to_dict

Label = bool | int | float | str | None  # what a storage holds


class Domain(ABC):
    """What a field may be. To implement one, write these two methods."""

    @abstractmethod
    def suggest(self, trial: BaseTrial, path: str) -> object:
        """A value for a trial, under the field's path."""

    @abstractmethod
    def examples(self) -> tuple[object, ...]:
        """Values that the field must accept: every choice, or both ends of a range."""


class Choice(Domain):
    """One of several values: names of parts, dicts with options, specs, numbers.

    Example:
        >>> Choice("standard", {"name": "mog", "components": 20}).labels
        ['standard', '{"name": "mog", "components": 20}']
    """

    def __init__(self, *options: object) -> None:
        if not options:
            raise SpecError("Choice() has nothing to choose from; give it at least one value")
        self.options = options
        self.labels = [_label(option) for option in options]
        if len(set(map(repr, self.labels))) < len(options):
            raise SpecError(
                f"Choice{options!r} has the same value twice; expected different ones; "
                "leave one out"
            )

    def suggest(self, trial: BaseTrial, path: str) -> object:
        label = trial.suggest_categorical(path, self.labels)
        return self.options[self.labels.index(label)]

    def examples(self) -> tuple[object, ...]:
        return self.options


def _label(option: object) -> Label:
    return option if isinstance(option, Label) else json.dumps(to_dict(option))


@attrs.frozen
class Range(Domain):
    """A number between two ends, in steps or by a distribution that subclasses choose."""

    low: float
    high: float

    def __attrs_post_init__(self) -> None:
        if not self.low <= self.high:
            raise SpecError(
                f"{self!r}: {self.low!r} is above {self.high!r}; give the lower end first"
            )

    def examples(self) -> tuple[object, ...]:
        return self.low, self.high


@attrs.frozen
class Int(Range):
    """A whole number from `low` to `high`; `log`: small ones as likely as large ones."""

    low: int
    high: int
    log: bool = attrs.field(default=False, kw_only=True)

    def suggest(self, trial: BaseTrial, path: str) -> int:
        return trial.suggest_int(path, self.low, self.high, log=self.log)


@attrs.frozen
class Float(Range):
    """A number from `low` to `high`."""

    def suggest(self, trial: BaseTrial, path: str) -> float:
        return trial.suggest_float(path, self.low, self.high)


@attrs.frozen
class LogFloat(Range):
    """A number from `low` to `high`, its logarithm uniform."""

    def suggest(self, trial: BaseTrial, path: str) -> float:
        return trial.suggest_float(path, self.low, self.high, log=True)


class Nowhere(SpecError):
    """A path that leads to no field."""


def fields(value: object) -> Mapping[str, object]:
    """What a configuration holds one level down, by name."""
    if is_spec(value):
        return attrs.asdict(value, recurse=False)
    if isinstance(value, tuple | list):
        return {str(i): item for i, item in enumerate(value)}
    return value if isinstance(value, dict) else {}


def replaced(value: Any, path: str, new: object) -> Any:
    """A copy of nested specs, dicts and lists with the field at a dotted path replaced.

    Raises:
        Nowhere: no such field; the message says which there are.
        SpecError: the field does not take the value.
    """
    head, _, rest = path.partition(".")
    known = fields(value)
    if head not in known:
        what = f"{type(value).__name__} has no {head!r}" if is_spec(value) else f"no {head!r} here"
        raise Nowhere(f"{what}; {suggest(head, known)}", head)
    try:
        inner = replaced(known[head], rest, new) if rest else new
    except SpecError as error:
        raise error.within(head) from None
    if is_spec(value):
        return attrs.evolve(value, **{head: inner})  # type: ignore[misc]
    changed = {**known, head: inner}
    return changed if isinstance(value, dict) else type(value)(changed.values())
