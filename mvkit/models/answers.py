"""Answers of several models to one question, put together.

Axes: e models, n draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import attrs
import torch
from einops import rearrange
from torch import Tensor

Answer = TypeVar("Answer", Tensor, dict[str, Tensor])


@attrs.frozen(eq=False)
class Answers(Generic[Answer]):
    """What the models of an ensemble answer to one question.

    Args:
        each: the answers, in the order of the models.
        mean: their mean.
        sd: how far they differ: their standard deviation; NaN of one model alone.
    """

    each: tuple[Answer, ...]
    mean: Answer
    sd: Answer


def over_models(answers: Sequence[Answer], function: Callable[[Tensor], Tensor]) -> Answer:
    """A function of the stacked answers (e, …) of all models."""
    first = answers[0]
    if isinstance(first, Tensor):
        return function(torch.stack(list(answers)))
    values = {}
    for name in first:
        pieces = [answer[name] for answer in answers]
        values[name] = function(torch.stack(pieces))
    return values


def stacked(answers: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The answers of all models, (e, …) by name."""
    return over_models(answers, lambda x: x)


def spread(x: Tensor) -> Tensor:
    """The standard deviation over the first axis; NaN of one value."""
    return x.std(0) if len(x) > 1 else torch.full_like(x[0], torch.nan)


def in_turns(draws: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Draws (n, …) of each model as ((n e), …): a first of each, a second of each, and so on."""
    values = {}
    for name in draws[0]:
        turns = torch.stack([answer[name] for answer in draws], 1)
        values[name] = rearrange(turns, "n e ... -> (n e) ...")
    return values
