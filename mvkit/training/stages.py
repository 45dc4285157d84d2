"""Stages: which objective trains which parameters for how long; and what they are made of.

A schedule turns a model and a number of epochs into a list of stages; the list is data, and `fit` goes through it.
"""

from __future__ import annotations

import contextlib
import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import torch
from torch import nn

from mvkit.errors import SpecError, suggest
from mvkit.models.multimodal import MultimodalModel
from mvkit.registry.spec import (
    as_part,
    field,
    integer,
    names,
    number,
    one_of,
    part,
    parts,
    positional_spec,
    spec,
)
from mvkit.training.optimizers import _lr_schedule, _named


@positional_spec
class Stage:
    """A stretch of training with one objective, one set of trained parameters and a fresh optimizer.

    Args:
        objective: what is minimised; None: the model's own.
        epochs: how long.
        trainable: globs over parameter names (`encoders.<modality>.*`, `decoders.…`, `aggregator.*`, `prior.*`,
            `cross.*`); the rest is frozen and in evaluation mode.
        optimizer: `adam`, `adamw`, or a spec.
        ramps: factors over the stage's epochs, by the path of the objective's field: `{"kl_weight": "linear"}`.
        start_from: what the next stage starts from: this one's `best` weights (validation loss with every ramp at its
            end value) or its `last`.
        steps: steps of the optimizer after which the stage ends, if its epochs have not ended it before.
        patience: epochs without a better validation loss after which it ends; None: it goes on.
        lr_schedule: a class of `torch.optim.lr_scheduler` by name, or a dict of its name and options; it steps every
            epoch, with `"every": "step"` every step.
        clip: largest norm of all gradients together; larger ones are scaled down to it.
        accumulate: batches whose gradients make one step, as one batch of all their rows would.
        ema: decay of an average of the weights over steps, which is validated, kept and carried on instead of them.
    """

    objective: Any = part("objective", default=None, optional=True)
    epochs: int = field(default=100, check=integer(1))
    trainable: tuple[str, ...] = field(default=("*",), check=names)
    optimizer: Any = part("optimizer", default="adam", kw_only=True)
    ramps: dict[str, Any] = parts("ramp", default={}, kw_only=True)
    start_from: str = field(default="best", check=one_of("best", "last"), kw_only=True)
    steps: int | None = field(default=None, check=one_of(None, other=integer(1)), kw_only=True)
    patience: int | None = field(default=None, check=one_of(None, other=integer(1)), kw_only=True)
    lr_schedule: Any = field(default=None, check=_lr_schedule, kw_only=True)
    clip: float | None = field(
        default=None, check=one_of(None, other=number(above=0.0)), kw_only=True
    )
    accumulate: int = field(default=1, check=integer(1), kw_only=True)
    ema: float | None = field(
        default=None, check=one_of(None, other=number(0.0, 1.0)), kw_only=True
    )

    def scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """The learning-rate schedule of an optimizer, None without one."""
        if self.lr_schedule is None:
            return None
        name, options = _named(self.lr_schedule)
        try:
            return getattr(torch.optim.lr_scheduler, name)(optimizer, **options)
        except (TypeError, ValueError) as error:
            raise SpecError(f"{name}: {error}", "lr_schedule") from None

    @property
    def schedules_steps(self) -> bool:
        """Whether the learning rate changes every step, not every epoch."""
        return isinstance(self.lr_schedule, dict) and self.lr_schedule.get("every") == "step"

    def at(self, objective: Any, epoch: int | None) -> Any:
        """The objective with its ramped fields in an epoch counted from 1; None: at their end values."""
        for path, ramp in self.ramps.items():
            factor = ramp.last() if epoch is None else ramp.at(epoch, self.epochs)
            objective = _scaled(objective, path.split("."), factor, path)
        return objective


def _scaled(value: Any, path: list[str], factor: float, whole: str) -> Any:
    """A spec with the number at a path multiplied."""
    head, *rest = path
    if isinstance(value, tuple) and head.isdigit() and int(head) < len(value):
        items = list(value)
        items[int(head)] = _scaled(items[int(head)], rest, factor, whole)
        return tuple(items)
    fields = {a.name for a in attrs.fields(type(value))} if attrs.has(type(value)) else set()
    if head not in fields:
        raise SpecError(
            f"ramp {whole!r} leads to no field of the objective; {suggest(head, fields)}", "ramps"
        )
    inner = getattr(value, head)
    if not rest and isinstance(inner, bool | str | tuple | dict | None):
        raise SpecError(f"ramp {whole!r} leads to {inner!r}; expected a number", "ramps")
    return attrs.evolve(
        value, **{head: _scaled(inner, rest, factor, whole) if rest else inner * factor}
    )


@contextlib.contextmanager
def trainable(model: nn.Module, globs: Iterable[str]) -> Iterator[list[nn.Parameter]]:
    """Trains only the parameters that match, inside; restores everything on exit.

    Modules whose parameters are all frozen are in evaluation mode, so that no statistic or dropout moves.

    Raises:
        SpecError: a glob that names no group of parameters.
    """
    globs = tuple(globs)
    groups = _groups(model)
    for glob in globs:
        if not any(fnmatch.fnmatchcase(name, glob) for name in groups):
            tops = sorted({group.partition(".")[0] for group in groups})
            raise SpecError(
                f"trainable={glob!r} matches no parameter; groups are {tops}", "trainable"
            )
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    named = {
        n: p for n, p in model.named_parameters() if before[p]
    }  # what a user froze stays frozen
    chosen = {
        n: p for n, p in named.items() if any(fnmatch.fnmatchcase(n, glob) for glob in globs)
    }
    modes = {module: module.training for module in model.modules()}
    picked = {id(parameter) for parameter in chosen.values()}
    try:
        for parameter in before:
            parameter.requires_grad_(id(parameter) in picked)
        for module in model.modules():
            own = list(module.parameters())
            if own and not any(id(parameter) in picked for parameter in own):
                module.eval()
        yield list(chosen.values())
    finally:
        for parameter, flag in before.items():
            parameter.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode


def _groups(model: nn.Module) -> set[str]:
    """Names of parameters and, so that a group without any counts too, of the groups themselves."""
    found = {name for name, _ in model.named_parameters()}
    for name, child in model.named_children():
        found.add(f"{name}.")
        found.update(f"{name}.{inner}." for inner, _ in child.named_children())
    found |= {f"{name}." for name in ("encoders", "decoders", "aggregator", "prior", "cross")}
    return {
        name for name in found if "samplers" not in name.split(".")
    }  # fitted afterwards, by `fit_sampler`


class Schedule(ABC):
    """Turns a number of epochs into stages. To implement one, write a spec with this method."""

    @abstractmethod
    def stages(self, model: MultimodalModel, epochs: int) -> list[Stage]:
        """The stages of a model, `epochs` long in all."""


@spec
class Single(Schedule):
    """One stage with the model's objective; ramps may be given."""

    ramps: dict[str, Any] = parts("ramp", default={})

    def stages(self, model: MultimodalModel, epochs: int) -> list[Stage]:
        return [Stage(None, epochs, ramps=self.ramps)]


@spec
class JointThenUnimodal(Schedule):
    """The joint encoder and the decoders first; then the unimodal posteriors, the rest frozen.

    Args:
        share: share of the epochs that the first stage gets.
        joint: objective of the first stage.
        unimodal: objective of the second.

    Reference: Vedantam et al., MultimodalModel Models of Visually Grounded Imagination, 2018,
    https://arxiv.org/abs/1705.10762.
    """

    share: float = field(default=0.5, check=number(high=1.0, above=0.0))
    joint: Any = part("objective", default="elbo")
    unimodal: Any = part(
        "objective",
        default={"name": "elbo", "condition": "unimodal", "reduce": "sum", "reconstruct": "own"},
    )

    def stages(self, model: MultimodalModel, epochs: int) -> list[Stage]:
        if not model.aggregator.defaults.has_joint_encoder:
            raise SpecError(
                f"schedule 'joint_then_unimodal' needs an aggregator with trunks of its own, and "
                f"{type(model.spec.aggregator).__name__!r} has none; take aggregator='joint', or schedule='single'"
            )
        if epochs < 2:
            raise SpecError(
                "schedule 'joint_then_unimodal' has two stages, and so needs 2 epochs at least"
            )
        first = max(1, min(epochs - 1, round(epochs * self.share)))
        rest: tuple[str, ...] = ("aggregator.*", "decoders.*", "prior.*", "cross.*")
        if any(modality.private_dim for modality in model.modalities.values()):
            rest = (
                *rest,
                "encoders.*",
            )  # which emit the private latents that decoders learn to read
        return [
            Stage(self.joint, first, rest),
            Stage(self.unimodal, epochs - first, model.aggregator.defaults.unimodal),
        ]


def as_stages(stages: Any, model: MultimodalModel, epochs: int) -> list[Stage]:
    """What `fit(stages=…)` means: a schedule by name or spec, a list of stages, or None for the model's schedule."""
    if stages is None:
        stages = model.spec.schedule
    if isinstance(stages, Stage):
        stages = [stages]
    if isinstance(stages, list | tuple):
        for stage in stages:
            if not isinstance(stage, Stage | dict):
                raise SpecError(
                    f"got {stage!r}; expected a Stage, or a dict of its options", "stages"
                )
        return [stage if isinstance(stage, Stage) else Stage(**stage) for stage in stages]
    made: Schedule = as_part("schedule", stages)
    return made.stages(model, epochs)
