"""Covariates: what is known of a row beside its modalities, and is not modelled.

Axes: b rows, c numbers of a context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from mvkit.core import noise
from mvkit.core.noise import Generator
from mvkit.errors import DataError, RequestError, SpecError, within
from mvkit.registry.spec import field, one_of, positional_spec

Side = Literal["decoders", "encoders", "prior"]
Level = str | int
KEPT = 10_000  # training rows whose covariates files keep
SIDES: tuple[Side, ...] = ("decoders", "encoders", "prior")


def _levels(value: object) -> str | None:
    expected = "a list of words or of whole numbers, two at least, all different; none for numbers"
    if not isinstance(value, tuple):
        return expected
    kinds = {type(level) for level in value}
    fine = not value or kinds in ({str}, {int})
    several = not value or len(value) > 1
    return None if fine and several and len(set(value)) == len(value) else expected


def _sides(value: object) -> str | None:
    fine = isinstance(value, tuple) and value and all(side in SIDES for side in value)
    return None if fine else f"a list of some of {', '.join(map(repr, SIDES))}"


@positional_spec
class Covariate:
    """Something known of every row that the model is conditioned on: p(x, z | covariates).

    Args:
        levels: the values it can take, words or whole numbers; none: it is a number, which `fit`
            standardises by the training data.
        into: which networks see it: `decoders`, `encoders`, the `prior`.
        missing: rows that lack it: an `error`; or `average`: networks see the shares of the levels
            in training, or the mean of a number. That is an approximation.

    Example:
        >>> import mvkit
        >>> mvkit.Covariate(("A", "B")).width
        2

    Reference: Sohn, Lee and Yan, Learning Structured Output Representation using Deep Conditional
    Generative Models, NeurIPS 2015 (CVAE).
    """

    levels: tuple[Level, ...] = field(default=(), check=_levels)
    into: tuple[Side, ...] = field(default=("decoders", "encoders"), check=_sides, kw_only=True)
    missing: str = field(default="error", check=one_of("error", "average"), kw_only=True)

    @property
    def width(self) -> int:
        """Numbers that networks see of it."""
        return max(len(self.levels), 1)


CovariateLike = Covariate | Mapping[str, object] | Sequence[Level]


def as_covariates(value: object) -> dict[str, Covariate]:
    """A mapping from name to `Covariate`, its options or its levels, as checked covariates."""
    if not isinstance(value, Mapping):
        raise SpecError(f"got {value!r}; expected a mapping from name to Covariate", "covariates")
    covariates = {}
    for name, item in value.items():
        if not isinstance(name, str) or not name:
            raise SpecError(f"a covariate cannot be called {name!r}; rename it", "covariates")
        with within(f"covariates.{name}"):
            covariates[name] = _as_covariate(item)
    return dict(sorted(covariates.items()))  # files sort their keys, contexts follow the order


def into_all(covariate: Covariate) -> Covariate:
    """A covariate that goes where it did, or everywhere if it goes where it does by default."""
    if covariate.into != Covariate().into:
        return covariate
    return attrs.evolve(covariate, into=SIDES)  # type: ignore[misc]


def _as_covariate(value: object) -> Covariate:
    if isinstance(value, Covariate):
        return value
    if isinstance(value, Mapping):
        return Covariate(**value)
    if isinstance(value, list | tuple):
        return Covariate(tuple(value))
    raise SpecError(f"got {value!r}; expected a Covariate, its options, or a list of its levels")


class Conditions(nn.Module):
    """The covariates of a model, and what training told of them: what networks see of each row.

    `context` makes one vector of the covariates that a side sees: ones at their levels, and
    standardised numbers. Before `fit`, numbers are seen as they are.
    """

    centre: Tensor
    spread: Tensor
    average: Tensor
    placed: Tensor
    rows: Tensor

    def __init__(self, covariates: Mapping[str, Covariate]) -> None:
        super().__init__()
        self.covariates = dict(covariates)
        width = sum(covariate.width for covariate in covariates.values())
        average = [torch.zeros(0)]
        for covariate in covariates.values():
            share = 1 / len(covariate.levels) if covariate.levels else 0.0
            average.append(torch.full((covariate.width,), share))
        # float64, since dates and years are large beside their spread
        self.register_buffer("centre", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(width, dtype=torch.float64))
        self.register_buffer("average", torch.cat(average))
        self.register_buffer("placed", torch.tensor(False))
        self.keep(0)

    def keep(self, n: int) -> None:
        """Makes room for the covariates of n rows of training, from which `sample` draws."""
        self.register_buffer("rows", torch.zeros(n, len(self.covariates), dtype=torch.float64))

    def draw(self, n: int, generator: Generator) -> dict[str, Tensor]:
        """Covariates of n rows drawn from those of training, {name: (n,)}.

        Raises:
            RequestError: none were kept.
        """
        if not len(self.rows):
            raise RequestError(
                "sample: the covariates of no training row are known; expected values: "
                f"covariates={{{', '.join(f'{name!r}: …' for name in self.covariates)}}}"
            )
        uniform = noise.draw("covariates", (n,), self.average, generator=generator)
        index = (uniform.double() * len(self.rows)).long().clamp(max=len(self.rows) - 1)
        columns = self.rows[index].unbind(1)
        drawn = {}
        for (name, covariate), column in zip(self.covariates.items(), columns, strict=True):
            drawn[name] = column.long() if covariate.levels else column
        return drawn

    def columns(self, name: str, side: Side | None = None) -> slice:
        """Where a covariate stands in the context of a side; None: of all covariates."""
        start = 0
        for other, covariate in self.covariates.items():
            if side is not None and side not in covariate.into:
                continue
            if other == name:
                return slice(start, start + covariate.width)
            start += covariate.width
        raise KeyError(name)

    def shares(self, name: str) -> Tensor:
        """Shares of the levels of a covariate in training, (levels,)."""
        return self.average[self.columns(name)]

    def add_level(self, name: str, level: Level) -> None:
        """Gives a covariate a new level, of which training saw no row."""
        end = self.columns(name).stop
        for buffer, value in (("centre", 0.0), ("spread", 1.0), ("average", 0.0)):
            old = getattr(self, buffer)
            setattr(self, buffer, torch.cat([old[:end], old.new_tensor([value]), old[end:]]))
        covariate = self.covariates[name]
        levels = (*covariate.levels, level)
        self.covariates[name] = attrs.evolve(covariate, levels=levels)  # type: ignore[misc]

    def width(self, side: Side) -> int:
        """Numbers that a side sees of a row."""
        return sum(c.width for c in self.covariates.values() if side in c.into)

    def context(self, values: Mapping[str, Tensor], side: Side) -> Tensor | None:
        """What a side sees of rows, (b, c); None if it sees no covariate.

        Args:
            values: of every covariate, {name: (b,)}: indices of levels, -1 where missing; numbers,
                NaN where missing.
            side: `decoders`, `encoders` or `prior`.
        """
        columns = []
        start = 0
        for name, covariate in self.covariates.items():
            place = slice(start, start + covariate.width)
            start += covariate.width
            if side in covariate.into:
                columns.append(self._columns(covariate, values[name], place))
        if not columns:
            return None
        leading = torch.broadcast_shapes(*(column.shape[:-1] for column in columns))
        return torch.cat([column.expand(*leading, column.shape[-1]) for column in columns], -1)

    def _columns(self, covariate: Covariate, value: Tensor, place: slice) -> Tensor:
        """What networks see of one covariate, (b, its width)."""
        average = self.average[place]
        if covariate.levels:
            index = value.unsqueeze(-1)
            # torch's one_hot looks at values
            ones = index == torch.arange(covariate.width, device=value.device)
            return torch.where(index < 0, average, ones.to(average))
        distance = value.double().unsqueeze(-1) - self.centre[place]
        number = (distance / self.spread[place]).to(average)
        return torch.where(number.isnan(), average, number)

    def standardised(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What likelihoods are told: indices of levels, and standardised numbers, {name: (b,)}."""
        known = {}
        start = 0
        for name, covariate in self.covariates.items():
            value = values[name]
            if not covariate.levels:
                value = self._columns(covariate, value, slice(start, start + 1))[..., 0]
            known[name] = value
            start += covariate.width
        return known

    def place(self, values: Mapping[str, Tensor], *, all_rows: bool = True) -> list[str]:
        """Learns means, spreads and shares of training rows, once, and keeps some of them.

        Args:
            values: of every covariate, {name: (b,)}.
            all_rows: whether these are all rows there are, or the first of a stream.

        Returns:
            The numbers that the first rows of a stream tell nothing of.

        Raises:
            DataError: a number that is the same in all rows, or a covariate that all rows lack.
        """
        unknown: list[str] = []
        if self.placed:
            return unknown
        start = 0
        for name, covariate in self.covariates.items():
            place = slice(start, start + covariate.width)
            start += covariate.width
            value = values[name]
            known = value[value >= 0] if covariate.levels else value[~value.isnan()].double()
            if all_rows:
                _check_varies(name, known)
            elif not _varies(known):
                unknown += [] if covariate.levels else [name]
                continue
            if covariate.levels:
                shares = functional.one_hot(known, covariate.width).double().mean(0)
                self.average[place] = shares.to(self.average)
            else:
                self.centre[place] = known.mean()
                self.spread[place] = _finite(name, known.std(correction=0))
        self.placed.fill_(True)
        columns = [values[name].double() for name in self.covariates]
        rows = torch.stack(columns, 1)
        if len(rows) > KEPT:
            rows = rows[torch.arange(KEPT, device=rows.device) * len(rows) // KEPT]
        self.rows = rows.to(self.rows.device)
        return unknown

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Conditions:
        """As of every module, but that means and spreads stay in float64."""
        exact = {"centre": self.centre, "spread": self.spread, "rows": self.rows}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in exact.items():
            setattr(self, name, value.to(self.average.device))
        return self


def _finite(name: str, spread: Tensor) -> Tensor:
    if not torch.isfinite(spread):
        raise DataError(
            f"covariate {name!r}: numbers are so large that their spread is not finite; expected "
            "smaller ones; scale them"
        )
    return spread


def _varies(known: Tensor) -> bool:
    return bool((known != known[:1]).any())


def _check_varies(name: str, known: Tensor) -> None:
    if not len(known):
        raise DataError(
            f"covariate {name!r}: no training row has a value; expected some; leave it out of the "
            "model"
        )
    if not _varies(known):
        raise DataError(
            f"covariate {name!r}: all {len(known)} training rows that have it are the same, so "
            "nothing can be learnt of it; expected values that differ; leave it out of the model"
        )
