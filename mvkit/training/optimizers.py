"""Optimizers as parts, and learning-rate schedules by the names of torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from mvkit.errors import SpecError, suggest
from mvkit.registry.fields import factor
from mvkit.registry.spec import field, number, one_of, spec

ScheduleLike = str | Mapping[str, object] | None
none_or_rate = one_of(None, other=number(0.0))


class OptimizerSpec(Protocol):
    """The spec of an optimizer."""

    def optimizer(self, parameters: list[nn.Parameter], lr: float) -> Optimizer:
        """A fresh optimizer; its own `lr`, if any, takes precedence over `fit`'s."""
        ...


@spec
class Adam:
    """Adam, fused.

    Args:
        lr: learning rate; None: `fit`'s.
        betas: decay of the running means of gradients and of their squares.

    Reference: Kingma and Ba, 2015, https://arxiv.org/abs/1412.6980.
    """

    lr: float | None = field(default=None, check=none_or_rate)
    betas: tuple[float, float] = (0.9, 0.999)

    def optimizer(self, parameters: list[nn.Parameter], lr: float) -> Optimizer:
        """A fresh optimizer; its own `lr`, if any, takes precedence over `fit`'s."""
        rate = lr if self.lr is None else self.lr
        return torch.optim.Adam(parameters, rate, betas=self.betas, fused=True)


@spec
class AdamW:
    """AdamW, fused.

    Args:
        lr: learning rate; None: `fit`'s.
        betas: decay of the running means of gradients and of their squares.
        weight_decay: decoupled decay of the parameters.

    Reference: Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101.
    """

    lr: float | None = field(default=None, check=none_or_rate)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = factor(0.01)

    def optimizer(self, parameters: list[nn.Parameter], lr: float) -> Optimizer:
        """A fresh optimizer; its own `lr`, if any, takes precedence over `fit`'s."""
        rate = lr if self.lr is None else self.lr
        return torch.optim.AdamW(
            parameters, rate, betas=self.betas, weight_decay=self.weight_decay, fused=True
        )


def lr_schedule(value: object) -> str | None:
    """A check: a learning-rate schedule of torch by name, whose arguments are plain data."""
    if value is None:
        return None
    expected = (
        "None, or a class of torch.optim.lr_scheduler by name, alone or in a dict with its options"
    )
    options = {"name": value} if isinstance(value, str) else value
    if not isinstance(options, dict) or options.get("every", "epoch") not in ("epoch", "step"):
        return f"{expected}; 'every' is 'epoch' or 'step'"
    name = str(options.get("name", ""))
    known = set(lr_scheduler.__all__) - {"LRScheduler"}  # the base class
    return None if name in known else f"{expected}; {suggest(name, known)}"


def step_schedule(scheduler: lr_scheduler.LRScheduler, where: str) -> None:
    """Steps a learning-rate schedule; raises SpecError, which says where, after its end."""
    try:
        with warnings.catch_warnings():
            # said of a schedule that resumes at the end of an epoch, and of skipped steps
            warnings.filterwarnings("ignore", "Detected call of .lr_scheduler.step", UserWarning)
            scheduler.step()
    except ValueError as error:
        name = type(scheduler).__name__
        raise SpecError(
            f"{where}: {name} ended before its stage: {error}; make it longer, or give the stage "
            "fewer epochs or steps",
            "lr_schedule",
        ) from None
