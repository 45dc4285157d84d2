"""Search spaces: what a field may be, and configurations with a field at a dotted path replaced."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any

import attrs
import optuna

from mvkit.errors import SpecError, suggest
from mvkit.registry.spec import is_spec, to_dict


class Domain(ABC):
    """What a field may be. To implement one, write these two methods."""

    @abstractmethod
    def suggest(self, trial: optuna.trial.BaseTrial, path: str) -> Any:
        """A value for a trial, under the field's path."""

    @abstractmethod
    def examples(self) -> tuple[Any, ...]:
        """Values that the field must accept: every choice, or both ends of a range."""


class Choice(Domain):
    """One of several values: names of parts, dicts with options, specs, numbers.

    Example:
        >>> Choice("standard", {"name": "mog", "components": 20}).labels
        ['standard', '{"name": "mog", "components": 20}']
    """

    def __init__(self, *options: Any) -> None:
        if not options:
            raise SpecError("Choice() has nothing to choose from; give it one value at least")
        self.options = options
        plain = bool | int | float | str | None
        self.labels = [
            o if isinstance(o, plain) else json.dumps(to_dict(o)) for o in options
        ]  # what a storage holds
        if len(set(map(repr, self.labels))) < len(options):
            raise SpecError(
                f"Choice{options!r} has the same value twice; expected different ones; leave one out"
            )

    def suggest(self, trial: optuna.trial.BaseTrial, path: str) -> Any:
        return self.options[self.labels.index(trial.suggest_categorical(path, self.labels))]

    def examples(self) -> tuple[Any, ...]:
        return self.options


@attrs.frozen
class _Range(Domain):
    low: Any
    high: Any

    def __attrs_post_init__(self) -> None:
        if not self.low <= self.high:
            raise SpecError(
                f"{self!r}: {self.low!r} is above {self.high!r}; give the lower end first"
            )

    def examples(self) -> tuple[Any, ...]:
        return self.low, self.high


@attrs.frozen
class Int(_Range):
    """A whole number from `low` to `high`; `log`: small ones as likely as large ones."""

    log: bool = attrs.field(default=False, kw_only=True)

    def suggest(self, trial: optuna.trial.BaseTrial, path: str) -> int:
        return trial.suggest_int(path, self.low, self.high, log=self.log)


@attrs.frozen
class Float(_Range):
    """A number from `low` to `high`."""

    def suggest(self, trial: optuna.trial.BaseTrial, path: str) -> float:
        return trial.suggest_float(path, self.low, self.high)


@attrs.frozen
class LogFloat(_Range):
    """A number from `low` to `high`, its logarithm uniform."""

    def suggest(self, trial: optuna.trial.BaseTrial, path: str) -> float:
        return trial.suggest_float(path, self.low, self.high, log=True)


class Nowhere(SpecError):
    """A path that leads to no field."""


def fields(value: Any) -> dict[str, Any]:
    """What a configuration holds one level down, by name."""
    if is_spec(value):
        return {a.name: getattr(value, a.name) for a in attrs.fields(type(value))}
    if isinstance(value, dict):
        return value
    return (
        {str(i): item for i, item in enumerate(value)} if isinstance(value, tuple | list) else {}
    )


def replaced(value: Any, path: str, new: Any) -> Any:
    """A copy of nested specs, dicts and lists with the field at a dotted path replaced, and checked by its spec.

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
        return attrs.evolve(value, **{head: inner})
    changed = {**known, head: inner}
    return changed if isinstance(value, dict) else type(value)(changed.values())
