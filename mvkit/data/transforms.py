"""Transforms between the user's units and the model's: specs that hold what they were fitted to.

They stand on `Modality(transform=…)`, hence in the model's file, as plain numbers. Data stay raw; `conform` goes
forward, and what a model gives back goes through the inverse. Densities are in the model's units: no Jacobian is added.
Axes: b rows.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from typing import Any

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.modality import Modality
from mvkit.errors import DataError, SpecError
from mvkit.registry.renamed import RenamedMethods
from mvkit.registry.spec import as_part, field, flag, number, numbers, one_of, spec

MOST = 200_000  # numbers that a JSON header can well hold


class Transform(RenamedMethods, ABC):
    """An elementwise step from the user's units to the model's.

    To implement one, decorate a subclass with `@spec` and write `forward` and `inverse`; if it learns numbers, `fit`
    too, which returns a spec that holds them, and `ready`. Set `likelihood` if its values need one; `classes` if it
    adds a class axis at the end; `drawn` if values are probabilities of bits to draw in training; `support` and
    `out_of_support` to refuse values that cannot be. `words` are the categories that numbers stand for.
    """

    renamed = {"outside": "out_of_support"}
    likelihood: str | None = None
    classes: bool = False
    drawn: bool = False
    support: str = "finite numbers"

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Values (..., *shape) in the model's units."""

    @abstractmethod
    def inverse(self, x: Tensor) -> Tensor:
        """Values in the user's units again."""

    def fit(self, x: Tensor, names: tuple[str, ...], where: str) -> Transform:
        """Itself fitted to rows x (b, *shape), NaN where missing; `names` of features and `where` are for messages."""
        return self

    def out_of_support(self, x: Tensor) -> Tensor:
        """Elements that it cannot take, bool, shaped like x."""
        return ~torch.isfinite(x)

    def before(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of rows that end in `shape`."""
        return shape

    @property
    def ready(self) -> bool:
        """Whether it was fitted, or needs no fitting."""
        return True

    @property
    def words(self) -> tuple[str, ...]:
        """Words that values number, if they stand for words."""
        return ()


def _shape(value: Any) -> str | None:
    fine = value is None or (isinstance(value, tuple) and all(type(n) is int for n in value))
    return None if fine else "a shape"


@spec
class Standardise(Transform):
    """x ↦ (x - mean) / sd, over the observed values of the training data.

    A feature that is constant or never observed keeps scale 1, with a warning.

    Args:
        over: `feature`: each element of a row its own mean and sd; `all`: one pair for the modality, as pictures want.
        mean, scale, shape: what it was fitted to.

    Example:
        >>> import torch
        >>> Standardise().fit(torch.tensor([[0.0], [2.0], [torch.nan]]), (), "x").forward(torch.tensor([[4.0]]))
        tensor([[3.]])
    """

    over: str = field(default="feature", check=one_of("feature", "all"))
    mean: tuple[float, ...] = field(default=(), check=numbers)
    scale: tuple[float, ...] = field(default=(), check=numbers)
    shape: tuple[int, ...] | None = field(default=None, check=_shape)

    def fit(self, x: Tensor, names: tuple[str, ...], where: str) -> Standardise:
        shape = tuple(x.shape[1:]) if self.over == "feature" else ()
        if math.prod(shape) > MOST:
            raise DataError(
                f"{where}: standardise would hold {math.prod(shape)} means; expected {MOST} at most; take "
                "{'name': 'standardise', 'over': 'all'}"
            )
        flat = x.reshape(len(x), -1).double() if shape else x.reshape(-1, 1).double()
        seen = ~torch.isnan(flat)
        count = seen.sum(0).clamp(min=1)
        mean = torch.where(seen, flat, 0.0).sum(0) / count
        scale = (torch.where(seen, flat - mean, 0.0).square().sum(0) / count).sqrt()
        # equal values may differ from their rounded mean
        low, high = (torch.where(seen, flat, end) for end in (math.inf, -math.inf))
        constant = low.amin(0) >= high.amax(0)
        if constant.any():
            first = int(constant.nonzero()[0])
            called = repr(names[first]) if names else f"number {first}"
            warnings.warn(
                f"{where}: {int(constant.sum())} features are constant or never observed, such as {called}; they keep "
                "scale 1; drop them if they should not count",
                stacklevel=4,
            )
        scale = torch.where(constant, 1.0, scale)
        return attrs.evolve(
            self, mean=tuple(mean.tolist()), scale=tuple(scale.tolist()), shape=shape
        )  # type: ignore[misc]

    def _like(self, values: tuple[float, ...], x: Tensor) -> Tensor:
        return torch.tensor(values, dtype=x.dtype, device=x.device).reshape(self.shape or ())

    def forward(self, x: Tensor) -> Tensor:
        return (x - self._like(self.mean, x)) / self._like(self.scale, x)

    def inverse(self, x: Tensor) -> Tensor:
        return x * self._like(self.scale, x) + self._like(self.mean, x)

    @property
    def ready(self) -> bool:
        return self.shape is not None

    def __repr__(self) -> str:
        return f"Standardise(over={self.over!r}{', fitted' if self.ready else ''})"


@spec
class Log1p(Transform):
    """x ↦ log(1 + x), for counts and other numbers above -1 with a long tail."""

    support = "numbers above -1, as log1p takes; shift them, or leave log1p out"

    def forward(self, x: Tensor) -> Tensor:
        return torch.log1p(x)

    def inverse(self, x: Tensor) -> Tensor:
        return torch.expm1(x)

    def out_of_support(self, x: Tensor) -> Tensor:
        return ~(torch.isfinite(x) & (x > -1))


def _categories(value: Any) -> str | None:
    kinds = {isinstance(one, str) for one in value} if isinstance(value, tuple) else set()
    fine = isinstance(value, tuple) and len(kinds) < 2 and len(set(value)) == len(value)
    return None if fine else "different numbers, or different words"


@spec
class OneHot(Transform):
    """Categories to classes on a new last axis, (..., *shape) ↦ (..., *shape, C); the inverse is the most probable one.

    Args:
        categories: what it was fitted to: numbers, or words (values then are their numbers, 0 to C - 1).
    """

    likelihood = "categorical"
    classes = True
    categories: tuple[float | str, ...] = field(default=(), check=_categories)

    def fit(self, x: Tensor, names: tuple[str, ...], where: str) -> OneHot:
        found = x[~torch.isnan(x)].unique().tolist()
        if len(found) > MOST or not found:
            raise DataError(
                f"{where}: {len(found)} categories; expected 1 to {MOST}; leave one_hot out"
            )
        return self if self.categories else attrs.evolve(self, categories=tuple(found))  # type: ignore[misc]

    def _values(self, x: Tensor) -> Tensor:
        values = range(len(self.categories)) if self.words else self.categories
        return torch.tensor(list(values), dtype=x.dtype, device=x.device)

    def forward(self, x: Tensor) -> Tensor:
        return (rearrange(x, "... -> ... 1") == self._values(x)).to(x.dtype)

    def inverse(self, x: Tensor) -> Tensor:
        return self._values(x)[x.argmax(-1)]

    def out_of_support(self, x: Tensor) -> Tensor:
        return ~torch.isin(x, self._values(x))

    def before(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[:-1]

    @property
    def ready(self) -> bool:
        return bool(self.categories)

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(one for one in self.categories if isinstance(one, str))

    @property
    def support(self) -> str:  # type: ignore[override]
        """What it takes."""
        shown = ", ".join(map(repr, self.categories[:8])) + (
            ", …" if len(self.categories) > 8 else ""
        )
        return f"one of the categories of training, {shown}; relabel it"

    def __repr__(self) -> str:
        return f"OneHot({len(self.categories)} categories)"


@spec
class Binarise(Transform):
    """Bits: x > threshold; or drawn with probability x at each access in training.

    Drawn bits are a function of the generator of the loss, so of (seed, epoch) and the place of the row. Outside
    training the probabilities stay: their log-likelihood is the mean over the draws.

    Args:
        threshold: above it is 1.
        drawn: take values in [0, 1] as probabilities.

    Reference: Burda, Grosse and Salakhutdinov, 2016, https://arxiv.org/abs/1509.00519 (drawn).
    """

    likelihood = "bernoulli"
    threshold: float = field(default=0.5, check=number())
    drawn: bool = field(default=False, check=flag)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.drawn else (x > self.threshold).to(x.dtype)

    def inverse(self, x: Tensor) -> Tensor:
        return x

    def out_of_support(self, x: Tensor) -> Tensor:
        return ~((x >= 0) & (x <= 1)) if self.drawn else ~torch.isfinite(x)


def fitted(name: str, modality: Modality, x: Tensor, wanted: Any) -> Modality:
    """A modality that sees its raw values x (b, *shape), NaN where missing, through transforms fitted to them.

    Its likelihood becomes that of the transforms where they need one, and normal where it cannot take their values.

    Raises:
        DataError: a value that a transform cannot take, with row and column.
    """
    if any(step.words for step in modality.transform):
        raise SpecError(
            "its values number words, which one_hot takes already; leave it out",
            f"fit_transforms.{name}",
        )
    where, seen = f"data[{name!r}]", ~torch.isnan(x)
    steps: list[Any] = []
    _refuse(
        torch.isinf(x),
        x,
        modality,
        where,
        "is not finite; expected finite numbers; correct it, or make it NaN",
    )
    for one in wanted if isinstance(wanted, list | tuple) else [wanted]:
        try:
            step: Any = as_part("transform", one)
        except SpecError as error:
            raise error.within(f"fit_transforms.{name}") from None
        if steps and steps[-1].classes:
            raise SpecError(
                "one_hot comes last; put the others before it", f"fit_transforms.{name}"
            )
        step = step.fit(x, modality.features, where)
        _refuse(
            step.out_of_support(x) & seen,
            x,
            modality,
            where,
            f"cannot be taken by {step!r}; expected {step.support}",
        )
        x = step.forward(torch.where(seen, x, 0.0))
        x = x if step.classes else torch.where(seen, x, torch.nan)
        steps.append(step)
    likelihood = next(
        (step.likelihood for step in reversed(steps) if step.likelihood), modality.likelihood
    )
    if likelihood is modality.likelihood:
        live = as_part("likelihood", likelihood).build(None)
        taken = not live.class_axis and not bool((live.out_of_support(x) & seen).any())
        likelihood = likelihood if taken else "normal"
    shape = tuple(x.shape[1:])
    return attrs.evolve(modality, shape=shape, likelihood=likelihood, transform=tuple(steps))  # type: ignore[misc]


def _refuse(bad: Tensor, x: Tensor, modality: Modality, where: str, what: str) -> None:
    if bad.any():
        row, *place = bad.nonzero()[0].tolist()
        at = (
            f"column {modality.features[place[0]]!r}"
            if modality.features
            else f"element {tuple(place)}"
        )
        raise DataError(f"{where}: row {row}, {at}: {x[(row, *place)].item()} {what}")
