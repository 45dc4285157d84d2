"""training.optimizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mvkit.errors import suggest
from mvkit.registry.spec import field, number, one_of, spec


@spec
class Adam:
    """Adam, fused.

    Args:
        lr: learning rate; None: `fit`'s.
        betas: decay of the running means of gradients and of their squares.

    Reference: Kingma and Ba, 2015, https://arxiv.org/abs/1412.6980.
    """

    lr: float | None = field(default=None, check=one_of(None, other=number(0.0)))
    betas: tuple[float, float] = (0.9, 0.999)

    def optimizer(self, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """A fresh optimizer; its own `lr`, if any, goes before `fit`'s."""
        return torch.optim.Adam(
            parameters, lr if self.lr is None else self.lr, betas=self.betas, fused=True
        )


@spec
class AdamW:
    """AdamW, fused.

    Args:
        lr: learning rate; None: `fit`'s.
        betas: decay of the running means of gradients and of their squares.
        weight_decay: decoupled decay of the parameters.

    Reference: Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101.
    """

    lr: float | None = field(default=None, check=one_of(None, other=number(0.0)))
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = field(default=0.01, check=number(0.0))

    def optimizer(self, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """A fresh optimizer; its own `lr`, if any, goes before `fit`'s."""
        return torch.optim.AdamW(
            parameters,
            lr if self.lr is None else self.lr,
            betas=self.betas,
            weight_decay=self.weight_decay,
            fused=True,
        )


def _named(schedule: Any) -> tuple[str, dict[str, Any]]:
    options = {"name": schedule} if isinstance(schedule, str) else dict(schedule)
    options.pop("every", None)
    return str(options.pop("name", "")), options


def _lr_schedule(value: Any) -> str | None:
    """A check: a learning-rate schedule of torch by name, whose arguments are plain data."""
    if value is None:
        return None
    classes = {
        name: cls for name, cls in vars(torch.optim.lr_scheduler).items() if isinstance(cls, type)
    }
    known = {
        name
        for name, cls in classes.items()
        if issubclass(cls, torch.optim.lr_scheduler.LRScheduler)
    }
    known -= {"LRScheduler", "_LRScheduler"}
    expected = (
        "None, or a class of torch.optim.lr_scheduler by name, alone or in a dict with its options"
    )
    if not isinstance(value, str | dict) or (
        isinstance(value, dict) and value.get("every", "epoch") not in EVERY
    ):
        return f"{expected}; 'every' is 'epoch' or 'step'"
    name = _named(value)[0]
    return None if name in known else f"{expected}; {suggest(name, known)}"


EVERY = ("epoch", "step")
