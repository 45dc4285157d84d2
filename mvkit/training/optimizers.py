"""Optimizers as parts, with learning rates by groups of parameters."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from mvkit.errors import SpecError, suggest
from mvkit.registry.fields import factor, switch
from mvkit.registry.spec import field, number, one_of, spec

none_or_rate = one_of(None, other=number(0.0))
Group = dict[str, Any]  # parameters, and options of their own, as torch takes them
Parameters = list[nn.Parameter] | list[Group]

FUSED = ("cpu", "cuda", "mps", "xpu")  # devices with fused kernels
GLOB = "glob"  # in a group: which one it is


class OptimizerSpec(Protocol):
    """The spec of an optimizer."""

    def optimizer(self, parameters: list[nn.Parameter], lr: float) -> Optimizer:
        """A fresh optimizer; its own `lr`, if any, takes precedence over `fit`'s."""
        ...


class Grouped(ABC):
    """The spec of an optimizer that takes groups of parameters, each with a rate of its own.

    To implement one, give a spec the field `groups: … = rates()`, and hand what `optimizer` is
    given on to an optimizer of torch.
    """

    groups: Mapping[str, float]

    @abstractmethod
    def optimizer(self, parameters: Parameters, lr: float) -> Optimizer:
        """A fresh optimizer; its own `lr`, if any, takes precedence over `fit`'s."""


def _rates(value: object) -> str | None:
    """A check: a dict of learning rates."""
    rate = number(0.0)
    fine = isinstance(value, dict) and all(rate(v) is None for v in value.values())
    return None if fine else "a dict from globs over names of parameters to learning rates"


def rates() -> Any:
    """A field: learning rates by glob; files leave it out where there are none."""
    return field(default={}, check=_rates, quiet=True)


@spec
class Adam(Grouped):
    """Adam, fused where the device has such a kernel.

    Args:
        lr: learning rate; None: `fit`'s.
        betas: decay of the running means of gradients and of their squares.
        groups: learning rates of parameters by globs over their names, `{"encoders.*": 1e-4}`; the
            first that matches counts, the rest has `lr`.

    Example:
        >>> import mvkit
        >>> from mvkit.parts import Adam
        >>> mvkit.Stage(epochs=5, optimizer=Adam(lr=0.01)).optimizer.lr
        0.01

    Reference: Kingma and Ba, 2015, https://arxiv.org/abs/1412.6980.
    """

    lr: float | None = field(default=None, check=none_or_rate)
    betas: tuple[float, float] = (0.9, 0.999)
    groups: Mapping[str, float] = rates()

    def optimizer(self, parameters: Parameters, lr: float) -> Optimizer:
        """A fresh optimizer; its own `lr`, if any, takes precedence over `fit`'s."""
        rate = lr if self.lr is None else self.lr
        return torch.optim.Adam(parameters, rate, betas=self.betas, fused=can_fuse(parameters))


@spec
class AdamW(Grouped):
    """AdamW, fused where the device has such a kernel.

    Args:
        lr: learning rate; None: `fit`'s.
        betas: decay of the running means of gradients and of their squares.
        weight_decay: decoupled decay of the parameters.
        groups: learning rates by globs, as of `adam`.

    Example:
        >>> import mvkit
        >>> from mvkit.parts import AdamW
        >>> mvkit.Stage(epochs=5, optimizer=AdamW(lr=0.01)).optimizer.lr
        0.01

    Reference: Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101.
    """

    lr: float | None = field(default=None, check=none_or_rate)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = factor(0.01)
    groups: Mapping[str, float] = rates()

    def optimizer(self, parameters: Parameters, lr: float) -> Optimizer:
        """A fresh optimizer; its own `lr`, if any, takes precedence over `fit`'s."""
        rate = lr if self.lr is None else self.lr
        fused = can_fuse(parameters)
        return torch.optim.AdamW(
            parameters, rate, betas=self.betas, weight_decay=self.weight_decay, fused=fused
        )


@spec
class SGD(Grouped):
    """Stochastic gradient descent, with momentum if wanted.

    Args:
        lr: learning rate; None: `fit`'s.
        momentum: decay of the running sum of gradients that is stepped along; 0: the gradient.
        nesterov: whether the gradient counts once more beside that sum.
        weight_decay: times the parameters is added to their gradient.
        groups: learning rates by globs, as of `adam`.

    Example:
        >>> import mvkit
        >>> from mvkit.parts import SGD
        >>> mvkit.Stage(epochs=5, optimizer=SGD(lr=0.01)).optimizer.lr
        0.01

    Reference: Sutskever, Martens, Dahl and Hinton, On the Importance of Initialization and
    Momentum in Deep Learning, 2013, https://proceedings.mlr.press/v28/sutskever13.html.
    """

    lr: float | None = field(default=None, check=none_or_rate)
    momentum: float = factor(0.0)
    nesterov: bool = switch(False)
    weight_decay: float = factor(0.0)
    groups: Mapping[str, float] = rates()

    def __attrs_post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise SpecError(
                "got True with momentum=0; expected a momentum above 0, such as 0.9", "nesterov"
            )

    def optimizer(self, parameters: Parameters, lr: float) -> Optimizer:
        """A fresh optimizer; its own `lr`, if any, takes precedence over `fit`'s."""
        rate = lr if self.lr is None else self.lr
        # not fused: such a step, skipped as the first, would leave its sum uninitialised
        return torch.optim.SGD(
            parameters,
            rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


def can_fuse(parameters: Parameters) -> bool:
    """Whether torch has fused kernels for the device of these parameters, or of their groups."""
    every: list[nn.Parameter] = []
    for item in parameters:
        every += item["params"] if isinstance(item, dict) else [item]
    return all(parameter.device.type in FUSED for parameter in every)


def optimizer_of(
    spec: OptimizerSpec | Grouped, parameters: Mapping[str, nn.Parameter], lr: float
) -> Optimizer:
    """A fresh optimizer of parameters by name, with the groups that its spec asks for, if any.

    Args:
        spec: of the optimizer.
        parameters: the trained parameters by name.
        lr: learning rate where the spec has none.

    Raises:
        SpecError: a glob of the spec that is the first to match none of them.
    """
    if not isinstance(spec, Grouped):
        return spec.optimizer([*parameters.values()], lr)
    if not spec.groups:
        return spec.optimizer([*parameters.values()], lr)
    return spec.optimizer(_groups(spec.groups, parameters), lr)


def _groups(rates: Mapping[str, float], parameters: Mapping[str, nn.Parameter]) -> list[Group]:
    """Parameters by the first glob that matches their name; those without one come first."""
    members: dict[str, list[nn.Parameter]] = {"": [], **{glob: [] for glob in rates}}
    for name, parameter in parameters.items():
        matching = (glob for glob in rates if fnmatch.fnmatchcase(name, glob))
        members[next(matching, "")].append(parameter)
    groups: list[Group] = []
    if members[""]:
        groups.append({"params": members[""]})
    for glob, rate in rates.items():
        if not members[glob]:
            _refuse(glob, parameters)
        groups.append({"params": members[glob], "lr": rate, GLOB: glob})
    return groups


def _refuse(glob: str, names: Mapping[str, nn.Parameter]) -> None:
    """Raises SpecError for a glob that no parameter follows."""
    if any(fnmatch.fnmatchcase(name, glob) for name in names):
        reason = f"{glob!r} matches only parameters of groups before it; put it before them"
    else:
        groups = {name.partition(".")[0] for name in names}
        hint = suggest(glob, [f"{group}.*" for group in groups])
        reason = f"{glob!r} matches no parameter that the stage trains; {hint}"
    raise SpecError(f"{reason}; expected one at least", "groups")


def group_names(optimizer: Optimizer) -> list[str]:
    """What the groups of an optimizer are called: their globs; `rest`: those of no glob."""
    return [group.get(GLOB, "rest") for group in optimizer.param_groups]


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """The rate of an optimizer's first group as `lr`, and of each glob as `lr/<glob>`."""
    rates = {"lr": optimizer.param_groups[0]["lr"]}
    for group in optimizer.param_groups:
        if GLOB in group:
            rates[f"lr/{group[GLOB]}"] = group["lr"]
    return rates
