"""Every error that mvkit raises.

The form of a message: where: what is wrong; what was expected; what to do.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import numbers
from collections.abc import Iterable, Iterator


class MvkitError(Exception):
    """Base of all errors of mvkit.

    Example:
        >>> import mvkit
        >>> issubclass(mvkit.DataError, mvkit.MvkitError)
        True
    """


class SpecError(MvkitError, ValueError):
    """A part, an option or a combination of parts that cannot be built.

    Args:
        reason: what is wrong, what was expected, what to do.
        path: where it is, as dotted field names (`prior.components`).

    Example:
        >>> import mvkit
        >>> try:
        ...     mvkit.Model({"a": (2,)}, prior={"name": "mog", "components": 0})
        ... except mvkit.SpecError as error:
        ...     print(error.path)
        model.prior.components
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason

    def within(self, name: str) -> SpecError:
        """The same error one level further out."""
        return type(self)(self.reason, f"{name}.{self.path}" if self.path else name)


@contextlib.contextmanager
def within(path: str) -> Iterator[None]:
    """Inside, the path of a SpecError starts at `path`."""
    try:
        yield
    except SpecError as error:
        raise error.within(path) from None


class UnknownComponent(SpecError, LookupError):
    """A name that no registered part has.

    Example:
        >>> import mvkit
        >>> try:
        ...     mvkit.Model({"a": (2,)}, aggregator="mopo")
        ... except mvkit.UnknownComponent as error:
        ...     print(error)
        model.aggregator: unknown aggregator 'mopo'; did you mean 'mopoe'?
    """


class AmbiguousComponent(SpecError, LookupError):
    """A bare name that several packages offer.

    Example:
        >>> import mvkit
        >>> issubclass(mvkit.AmbiguousComponent, mvkit.SpecError)
        True
    """


class ShapeError(MvkitError, ValueError):
    """A tensor whose shape or dtype does not fit.

    Example:
        >>> import mvkit, torch
        >>> try:
        ...     mvkit.Model({"a": (2,)}, seed=0).encode({"a": torch.rand(3, 5)})
        ... except mvkit.ShapeError as error:
        ...     print(error)
        batch.data['a']: rows of shape (5,); expected (2,); reshape them
    """


class DataError(MvkitError, ValueError):
    """Values, masks or rows that cannot be what they claim to be.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (2,)}, seed=0)
        >>> try:
        ...     model.encode({"a": torch.full((3, 2), torch.inf)})
        ... except mvkit.DataError as error:
        ...     print(error)
        batch.data['a']: row 0, element (0,): inf cannot be taken; expected finite numbers
    """


class NothingObserved(DataError):
    """A row that has none of what was asked for.

    Args:
        row: its number.
        given: the modalities that were asked for; empty: any.
        called: how the message adds the row's id; empty: it has none.
    """

    def __init__(self, row: int, given: str = "", called: str = "") -> None:
        what = "nothing"
        remedy = "leave the row out"
        if given:
            what = f"none of the given modalities ({given})"
            remedy = "give empty='prior' to answer from the prior, or leave the row out"
        super().__init__(
            f"batch: row {row}{called} observes {what}; expected one modality at least; {remedy}"
        )
        self.row = row
        self.given = given
        self.called = called


class NonFiniteError(DataError):
    """A loss or a gradient in training that is not finite.

    Example:
        >>> import mvkit
        >>> issubclass(mvkit.NonFiniteError, mvkit.DataError)
        True
    """


class RequestError(MvkitError, ValueError):
    """A question that this model cannot answer.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (2,)}, seed=0)
        >>> try:
        ...     model.encode({"a": torch.rand(3, 2)}, given=["c"])
        ... except mvkit.RequestError as error:
        ...     print(error)
        given: unknown modality 'c'; known: 'a'
    """


class CheckpointError(MvkitError, ValueError):
    """A file that cannot be loaded, or a model that cannot be saved.

    Example:
        >>> import pathlib, tempfile, mvkit
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> size = path.write_bytes(b"junk")
        >>> try:
        ...     mvkit.load(path)
        ... except mvkit.CheckpointError as error:
        ...     print(str(error).replace(str(path), "model"))
        model: truncated, or no checkpoint; 4 bytes; take another copy
    """


class RankError(MvkitError, RuntimeError):
    """A process of a run that failed, or did not answer in time, as the others are told.

    Example:
        >>> from mvkit.errors import MvkitError, RankError
        >>> issubclass(RankError, MvkitError)
        True
    """


class PluginError(MvkitError, RuntimeError):
    """Problems of installed packages, raised where `MVKIT_PLUGINS_STRICT=1` asks for it."""


def suggest(name: str, options: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest valid one, or all of them."""
    options = sorted(options)
    lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    if near:
        return f"did you mean {lower[near[0]]!r}?"
    return f"known: {', '.join(map(repr, options))}" if options else "there are none"


def bad_option(name: str, value: object, *choices: object) -> RequestError:
    """The error of an option whose value is none of the choices."""
    return RequestError(f"{name}={value!r}; expected {' or '.join(map(repr, choices))}")


def check_option(name: str, value: object, *choices: object) -> None:
    """Raises RequestError, which names the option, unless its value is one of the choices."""
    if value not in choices:
        raise bad_option(name, value, *choices)


def check_whole_number(name: str, value: object, low: int | None = None) -> int:
    """The value as an int; raises RequestError unless it is a whole number of at least `low`."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        number = int(value)
        if low is None or number >= low:
            return number
    least = "" if low is None else f" of at least {low}"
    raise RequestError(f"{name}={value!r}; expected a whole number{least}")


def check_number(name: str, value: object, low: float = 0.0) -> float:
    """The value as a float; raises RequestError unless it is finite and at least `low`."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        if low <= number < math.inf:
            return number
    raise RequestError(f"{name}={value!r}; expected a number of at least {low:g}")
