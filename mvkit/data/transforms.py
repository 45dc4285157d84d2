"""Transforms between the user's units and the model's: specs that hold what they were fitted to.

They are stored in `Modality(transform=…)`, hence in the model's file, as plain numbers. Data stay
raw; `conform` goes forward, and what a model returns goes through the inverse. Densities are in
the model's units: no Jacobian is added. Axes: b rows.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol, Self

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.modality import PartLike
from mvkit.data.moments import Moments
from mvkit.errors import DataError
from mvkit.registry.fields import choice, switch
from mvkit.registry.renamed import RenamedMethods
from mvkit.registry.spec import field, number, numbers, spec

MOST = 200_000  # numbers that a JSON header can well hold
Names = tuple[str, ...]
Numbers = tuple[float, ...]
Shape = tuple[int, ...]
Steps = PartLike | Sequence[PartLike]  # a transform, or several, first to last


class Learner(Protocol):
    """What a transform learns from, block by block."""

    def add(self, x: Tensor) -> None:
        """Looks at rows x (b, *shape), NaN where missing."""
        ...

    def fitted(self) -> Transform:
        """The transform, fitted to all rows that were added."""
        ...


class Transform(RenamedMethods, ABC):
    """An elementwise step from the user's units to the model's.

    To implement one, decorate a subclass with `@spec` and write `forward` and `inverse`; if it
    learns numbers, `fit` too, which returns a spec that holds them, and `ready`; and `learner`, if
    it can learn them from rows that are not in memory together. Set `likelihood`
    if its values need one; `classes` if it adds a class axis at the end; `drawn` if values are
    probabilities of bits to draw in training; `invertible = False` if nothing brings its values
    back, so that nobody mixes them with the user's; `support` and `out_of_support` to refuse
    values that cannot be. `words` are the categories that numbers stand for.

    Example:
        >>> import torch
        >>> from mvkit import spec
        >>> from mvkit.parts import Transform
        >>> @spec
        ... class Halve(Transform):
        ...     def forward(self, x):
        ...         return x / 2
        ...     def inverse(self, x):
        ...         return x * 2
        >>> Halve().inverse(Halve().forward(torch.ones(2))).tolist()
        [1.0, 1.0]
    """

    renamed: ClassVar = {"outside": "out_of_support"}
    likelihood: str | None = None
    classes: bool = False
    drawn: bool = False
    invertible: bool = True
    support: str = "finite numbers"

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Values (..., *shape) in the model's units."""

    @abstractmethod
    def inverse(self, x: Tensor) -> Tensor:
        """Values in the user's units again."""

    def fit(self, x: Tensor, names: Names, where: str) -> Self:
        """Itself fitted to rows x (b, *shape), NaN where missing.

        Args:
            x: raw values.
            names: names of the features, for messages.
            where: how messages call the data.
        """
        return self

    def learner(self, names: Names, where: str) -> Learner | None:
        """What learns the same as `fit` from one block of rows after another; None: cannot."""
        return None

    def out_of_support(self, x: Tensor) -> Tensor:
        """Elements that it cannot take, bool, shaped like x."""
        return ~torch.isfinite(x)

    def before(self, shape: Shape) -> Shape:
        """The shape of rows that end in `shape`."""
        return shape

    @property
    def ready(self) -> bool:
        """Whether it was fitted, or needs no fitting."""
        return True

    @property
    def words(self) -> Names:
        """Words that values number, if they stand for words."""
        return ()


def _shape(value: object) -> str | None:
    if value is None:
        return None
    fine = isinstance(value, tuple) and all(type(n) is int for n in value)
    return None if fine else "a shape"


def _rounding(variance: Tensor, mean: Tensor, count: Tensor) -> Tensor:
    """The largest variance (k,) that rounding alone can make of `count` equal values.

    The bound of scikit-learn (`_is_constant_feature`), after Chan, Golub and LeVeque, 1983,
    Algorithms for computing the sample variance, https://doi.org/10.2307/2683386.
    """
    epsilon = torch.finfo(torch.float64).eps
    return count * epsilon * variance + (count * mean * epsilon).square()


@spec
class Standardise(Transform):
    """x ↦ (x - mean) / sd, over the observed values of the training data.

    A feature that is never observed, or constant but for rounding, keeps scale 1, with a warning.

    Args:
        over: `feature`: each element of a row its own mean and sd; `all`: one pair for the
            modality, as pictures want.
        mean, scale, shape: what it was fitted to.

    Example:
        >>> import torch
        >>> fitted = Standardise().fit(torch.tensor([[0.0], [2.0], [torch.nan]]), (), "x")
        >>> fitted.forward(torch.tensor([[4.0]]))
        tensor([[3.]])
    """

    over: str = choice("feature", "all")
    mean: Numbers = field(default=(), check=numbers)
    scale: Numbers = field(default=(), check=numbers)
    shape: Shape | None = field(default=None, check=_shape)

    def fit(self, x: Tensor, names: Names, where: str) -> Self:
        flat = x.reshape(-1, self._columns(tuple(x.shape[1:]), where)).double()
        seen = ~torch.isnan(flat)
        count = seen.sum(0).clamp(min=1)
        mean = torch.where(seen, flat, 0.0).sum(0) / count
        variance = torch.where(seen, flat - mean, 0.0).square().sum(0) / count
        # equal values may differ from their rounded mean
        low = torch.where(seen, flat, math.inf).amin(0)
        high = torch.where(seen, flat, -math.inf).amax(0)
        moments = Moments(count, mean, variance * count, low, high)
        return self._fitted(moments, tuple(x.shape[1:]), names, where)

    def learner(self, names: Names, where: str) -> Learner:
        return _Standardising(self, names, where)

    def _columns(self, shape: Shape, where: str) -> int:
        """How many means it holds of rows of a shape; raises DataError for too many."""
        columns = math.prod(shape) if self.over == "feature" else 1
        if columns > MOST:
            raise DataError(
                f"{where}: standardise would hold {columns} means; expected {MOST} at most; take "
                "{'name': 'standardise', 'over': 'all'}"
            )
        return columns

    def _fitted(self, moments: Moments, shape: Shape, names: Names, where: str) -> Self:
        """Itself with means and deviations of rows of a shape."""
        count = moments.count.clamp(min=1)
        variance = moments.squares / count
        mean = moments.mean
        constant = (moments.low >= moments.high) | (variance <= _rounding(variance, mean, count))
        if constant.any():
            first = int(constant.nonzero()[0])
            called = repr(names[first]) if names else f"number {first}"
            warnings.warn(
                f"{where}: {int(constant.sum())} features are constant or never observed, such as "
                f"{called}; they keep scale 1; drop them if they should not count",
                stacklevel=5,
            )
        scale = torch.where(constant, 1.0, variance.sqrt())
        numbers = {"mean": tuple(mean.tolist()), "scale": tuple(scale.tolist())}
        own = shape if self.over == "feature" else ()
        return attrs.evolve(self, shape=own, **numbers)  # type: ignore[misc]

    def _like(self, values: Numbers, x: Tensor) -> Tensor:
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


class _Standardising:
    """Means and deviations of all rows, block by block."""

    def __init__(self, step: Standardise, names: Names, where: str) -> None:
        self.step = step
        self.names = names
        self.where = where
        self.shape: Shape | None = None
        self.moments: Moments | None = None

    def add(self, x: Tensor) -> None:
        self.shape = tuple(x.shape[1:])
        moments = Moments.of(x.reshape(-1, self.step._columns(self.shape, self.where)))
        self.moments = moments if self.moments is None else self.moments.merged(moments)

    def fitted(self) -> Transform:
        if self.moments is None or self.shape is None:
            raise DataError(f"{self.where}: no row was added; expected one at least; add some")
        return self.step._fitted(self.moments, self.shape, self.names, self.where)


@spec
class Log1p(Transform):
    """x ↦ log(1 + x), for counts and other numbers above -1 with a long tail.

    Example:
        >>> import torch
        >>> from mvkit.parts import Log1p
        >>> Log1p().inverse(Log1p().forward(torch.tensor([0.0, 3.0]))).tolist()
        [0.0, 3.0]
    """

    support = "numbers above -1, as log1p takes; shift them, or leave log1p out"

    def forward(self, x: Tensor) -> Tensor:
        return torch.log1p(x)

    def inverse(self, x: Tensor) -> Tensor:
        return torch.expm1(x)

    def out_of_support(self, x: Tensor) -> Tensor:
        return ~(torch.isfinite(x) & (x > -1))


def _categories(value: object) -> str | None:
    if isinstance(value, tuple):
        kinds = {isinstance(category, str) for category in value}
        if len(kinds) < 2 and len(set(value)) == len(value):
            return None
    return "different numbers, or different words"


@spec
class OneHot(Transform):
    """Categories to classes on a new last axis, (..., *shape) ↦ (..., *shape, C).

    The inverse is the most probable category.

    Args:
        categories: what it was fitted to: numbers, or words (values then are their numbers, 0 to
            C - 1).

    Example:
        >>> import mvkit, torch
        >>> batch = mvkit.Batch({"a": torch.tensor([[1.0], [3.0]])})
        >>> rows = mvkit.MultimodalDataset(batch, {"a": mvkit.Modality((1,))})
        >>> rows.fit_transforms({"a": "one_hot"}).modalities["a"].shape
        (1, 2)
    """

    likelihood = "categorical"
    classes = True
    categories: tuple[float | str, ...] = field(default=(), check=_categories)

    def fit(self, x: Tensor, names: Names, where: str) -> Self:
        learner = _Categories(self, where)
        learner.add(x)
        return learner.fitted()  # type: ignore[return-value]

    def learner(self, names: Names, where: str) -> Learner:
        return _Categories(self, where)

    def _values(self, x: Tensor) -> Tensor:
        values = range(len(self.categories)) if self.words else self.categories
        return torch.tensor(list(values), dtype=x.dtype, device=x.device)

    def forward(self, x: Tensor) -> Tensor:
        return (rearrange(x, "... -> ... 1") == self._values(x)).to(x.dtype)

    def inverse(self, x: Tensor) -> Tensor:
        return self._values(x)[x.argmax(-1)]

    def out_of_support(self, x: Tensor) -> Tensor:
        return ~torch.isin(x, self._values(x))

    def before(self, shape: Shape) -> Shape:
        return shape[:-1]

    @property
    def ready(self) -> bool:
        return bool(self.categories)

    @property
    def words(self) -> Names:
        return tuple(category for category in self.categories if isinstance(category, str))

    @property
    def support(self) -> str:  # type: ignore[override]
        """What it takes."""
        shown = ", ".join(map(repr, self.categories[:8]))
        if len(self.categories) > 8:
            shown += ", …"
        return f"one of the categories of training, {shown}; relabel it"

    def __repr__(self) -> str:
        return f"OneHot({len(self.categories)} categories)"


class _Categories:
    """The categories of all rows, block by block."""

    def __init__(self, step: OneHot, where: str) -> None:
        self.step = step
        self.where = where
        self.known = torch.empty(0, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        new = x[~torch.isnan(x)].unique().double()
        self.known = torch.cat([self.known, new]).unique()

    def fitted(self) -> Transform:
        categories = self.known.tolist()
        if not 0 < len(categories) <= MOST:
            raise DataError(
                f"{self.where}: {len(categories)} categories; expected 1 to {MOST}; leave one_hot "
                "out"
            )
        if self.step.categories:
            return self.step
        return attrs.evolve(self.step, categories=tuple(categories))  # type: ignore[misc]


@spec
class Binarise(Transform):
    """Bits: x > threshold; or drawn with probability x at each access in training.

    Drawn bits are a function of the generator of the loss, so of (seed, epoch) and the place of
    the row. Outside training the probabilities stay: their log-likelihood is the mean over the
    draws.

    Args:
        threshold: above it is 1.
        drawn: take values in [0, 1] as probabilities.

    Example:
        >>> import torch
        >>> from mvkit.parts import Binarise
        >>> Binarise().forward(torch.tensor([0.2, 0.8])).tolist()
        [0.0, 1.0]

    Reference: Burda, Grosse and Salakhutdinov, 2016, https://arxiv.org/abs/1509.00519 (drawn).
    """

    likelihood = "bernoulli"
    threshold: float = field(default=0.5, check=number())
    drawn: bool = switch(False)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.drawn else (x > self.threshold).to(x.dtype)

    def inverse(self, x: Tensor) -> Tensor:
        return x

    @property
    def invertible(self) -> bool:  # type: ignore[override]
        """Whether values stay as they are: a threshold leaves nothing of them but bits."""
        return self.drawn

    def out_of_support(self, x: Tensor) -> Tensor:
        return ~((x >= 0) & (x <= 1)) if self.drawn else ~torch.isfinite(x)
