"""Likelihood: p(x_m|z) of one modality, given what its decoder emits.

Axes: r draws, n rows.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from mvkit.core.noise import Generator
from mvkit.errors import ShapeError
from mvkit.registry.renamed import RenamedMethods


@attrs.frozen(eq=False)
class Context:
    """What a likelihood may know of the rows beside their values.

    Args:
        elements: which elements are observed, (n, *shape) bool; None: all.
        weight: how much each draw of a row counts, (r, n); None: all alike.
        exposure: how much each row was exposed to what is counted, (n,), at least 0; None: the
            modality has none.
        counted: the elements whose sum the exposure is, (n, *shape) bool, for the exposure
            `total`; None: all.
        covariates: of each row, {name: (n,)}: indices of levels, or standardised numbers.
        generator: source of randomness of draws.

    Example:
        >>> import torch
        >>> from mvkit.core import Context
        >>> Context(exposure=torch.tensor([1.0, 2.0])).exposure.tolist()
        [1.0, 2.0]
    """

    elements: Tensor | None = None
    weight: Tensor | None = None
    exposure: Tensor | None = None
    counted: Tensor | None = None
    covariates: Mapping[str, Tensor] = attrs.field(factory=dict)
    generator: Generator = None


TOTAL = "total"  # the exposure that is the sum of a row's observed counts
ALONE = Context()  # nothing is known beside the values


class Likelihood(RenamedMethods, ABC):
    """Elementwise density of a modality given decoder outputs.

    To implement one, write a spec whose `build(sizes)` returns an object with the three methods
    below (the spec itself if it has no parameters). `out` is (r, n, *shape), with one more axis of
    `params` at the end if `params` > 1; `x` is (n, *shape), zeros where unobserved. `log_prob` is
    elementwise and keeps all constants: `log_prob_sum` sums under the masks. Set `support` and
    `out_of_support` to refuse impossible values; `integers` if integers are accepted; `class_axis`
    if the last axis is one of classes, which `log_prob` sums over; `starts` if `start` does
    something (decoders then start at `first_outputs`); `takes_exposure` if `Context.exposure`
    changes what it computes, as a factor of a rate, and `takes_total` if it shares out an
    exposure `"total"`; `reparametrised` if draws have gradients with respect to `out`. What
    concerns the modality is in `sizes`: `sizes.name`, `sizes.shape`.

    Example:
        >>> import torch
        >>> from mvkit.core import Context, Modality, Sizes
        >>> from mvkit.parts import Poisson
        >>> counts = Poisson().build(Sizes.alone(Modality((3,), "poisson")))
        >>> counts.log_prob(torch.zeros(1, 2, 3), torch.ones(2, 3), Context()).shape
        torch.Size([1, 2, 3])
    """

    renamed: ClassVar = {"outside": "out_of_support", "suspicion": "sanity_warning"}
    params: int = 1
    integers: bool = False
    class_axis: bool = False
    support: str = "finite numbers"
    starts: bool = False
    takes_exposure: bool = False
    takes_total: bool = False
    reparametrised: bool = False

    @abstractmethod
    def log_prob(self, out: Tensor, x: Tensor, context: Context) -> Tensor:
        """Log-probabilities in nats, (r, n, *shape); without the last axis if `class_axis`."""

    def log_prob_sum(self, out: Tensor, x: Tensor, context: Context) -> Tensor:
        """Log-probabilities of rows, (r, n): sums of `log_prob` over the elements observed.

        Override it where sums need fewer passes than their terms.
        """
        log_px = self.log_prob(out, x, context)
        shape = x.shape[:-1] if self.class_axis else x.shape
        if log_px.shape != (len(out), *shape):
            raise ShapeError(
                f"log_prob returned {tuple(log_px.shape)}; expected {(len(out), *shape)}, "
                "elementwise"
            )
        if context.elements is not None:
            log_px = torch.where(context.elements, log_px, 0.0)
        return log_px if log_px.ndim == 2 else log_px.flatten(2).sum(-1)

    @abstractmethod
    def mean(self, out: Tensor, context: Context = ALONE) -> Tensor:
        """Means of x, (..., n, *shape), of outputs with any axes before the rows."""

    @abstractmethod
    def sample(self, out: Tensor, context: Context = ALONE) -> Tensor:
        """Draws of x by `context.generator`, shaped like the means."""

    def foreground(self, out: Tensor, context: Context = ALONE) -> Tensor:
        """The part of the means that is no background, (..., n, *shape); by default all of it."""
        return mean_of(self, out, context)

    def out_of_support(self, x: Tensor) -> Tensor:
        """Elements outside the support, shaped like x, bool."""
        return ~torch.isfinite(x)

    def outcomes(self, shape: tuple[int, ...]) -> Tensor | None:
        """All that a row can be, (n, *shape), where elements depend on one another.

        Their probabilities sum to one, which conformance checks. None: elements are independent,
        and conformance finds out what each can be.
        """
        return None

    def start(self, x: Tensor, observed: Tensor) -> None:
        """Called by `fit` before the first step if `starts`; may place parameters by the data.

        What training has moved already stays as it is.

        Args:
            x: rows of the training data, (n, *shape).
            observed: which elements are observed, (n, *shape) bool.
        """

    def first_outputs(self, mean: Tensor, spread: Tensor) -> Tensor | None:
        """Decoder outputs, (*shape) or (*shape, params), to start at for data of these moments.

        Args:
            mean: of each feature, (*shape).
            spread: standard deviation of each feature, (*shape), above 0.

        Returns:
            By default the means, where one number is decoded for each element. None: decoders
            start as they come.
        """
        return mean if self.params == 1 else None

    def add_level(self, covariate: str, shares: Tensor) -> None:
        """Called when a covariate gets a new level; numbers kept by level get one more.

        Args:
            covariate: its name.
            shares: of the old levels in what the new one begins as, (levels,).
        """

    def by_level(self, covariate: str) -> tuple[nn.Parameter, ...]:
        """Parameters that begin with an axis of the levels of a covariate, (levels, ...), which
        `fit` may train for one level alone.

        Args:
            covariate: its name.
        """
        return ()

    def sanity_warning(self, x: Tensor) -> str | None:
        """What is odd about values that are allowed, and what to do; None if nothing."""
        return None


def log_prob_sum_of(
    likelihood: Likelihood, out: Tensor, x: Tensor, context: Context, where: str
) -> Tensor:
    """Log-probabilities of rows, (r, n), also of likelihoods without `log_prob_sum`.

    Raises:
        ShapeError: it returned another shape; `where` begins the message.
    """
    own = getattr(type(likelihood), "log_prob_sum", Likelihood.log_prob_sum)
    try:
        sums: Tensor = own(likelihood, out, x, context)
    except ShapeError as error:
        raise ShapeError(f"{where}: {error}") from None
    if sums.shape != (len(out), len(x)):
        raise ShapeError(
            f"{where}: log_prob_sum returned {tuple(sums.shape)}; expected "
            f"{(len(out), len(x))}, one number for each draw of each row"
        )
    return sums


def mean_of(
    likelihood: Likelihood, out: Tensor, context: Context, *, background: bool = True
) -> Tensor:
    """Means of x, or their part that is no background; likelihoods written for an earlier version
    are told no context.
    """
    if not background:
        return likelihood.foreground(out, context)
    if asks_context(type(likelihood).mean):
        return likelihood.mean(out, context)
    return likelihood.mean(out)


def sample_of(likelihood: Likelihood, out: Tensor, context: Context) -> Tensor:
    """Draws of x; likelihoods written for an earlier version are told the generator alone."""
    if asks_context(type(likelihood).sample):
        return likelihood.sample(out, context)
    return likelihood.sample(out, context.generator)  # type: ignore[arg-type]


@cache
def asks_context(method: Callable[..., Tensor]) -> bool:
    """Whether the argument after `self` and `out` is one called `context`."""
    names = list(inspect.signature(method).parameters)
    return names[2:3] == ["context"]
