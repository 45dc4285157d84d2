"""Stages: which objective trains which parameters for how long.

A schedule turns a model and a number of epochs into a list of stages; `fit` trains them in turn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, cast

import attrs
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mvkit.errors import SpecError, suggest, within
from mvkit.models.model import Model
from mvkit.models.multimodal import MultimodalModel
from mvkit.parts.objectives.objective import ObjectiveLike
from mvkit.parts.priors import as_prior
from mvkit.registry import plugins
from mvkit.registry.fields import count
from mvkit.registry.spec import (
    as_part,
    converted,
    field,
    integer,
    is_spec,
    names,
    number,
    one_of,
    part,
    parts,
    positional_spec,
    spec,
)
from mvkit.training.annealing import Ramp
from mvkit.training.freezing import trainable
from mvkit.training.lr_schedules import ScheduleLike, lr_schedule, scheduler_of
from mvkit.training.opponent import Opponent, OptimizerLike, as_opponent

RampLike = str | Mapping[str, object] | Ramp
none_or_positive = one_of(None, other=integer(1))


@positional_spec
class Stage:
    """A stretch of training: one objective, one set of trained parameters, a fresh optimizer.

    Args:
        objective: what is minimised; None: the model's own.
        epochs: how long.
        trainable: globs over parameter names (`encoders.<modality>.*`, `decoders.…`,
            `aggregator.*`, `prior.*`, `cross.*`, `objectives.<key>.*`), or the weights of one
            level of a covariate, `covariates.<covariate>.<level>`; the rest is frozen and in
            evaluation mode. Globs after "!" leave out what they match: `["!encoders.a.*"]` is
            all but one encoder.
        optimizer: `adam`, `adamw`, `sgd`, or a spec.
        ramps: factors by epoch, by the path of the objective's field: `{"kl_weight": "linear"}`.
        start_from: the weights that the next stage starts from: the `best` of this one (validation
            loss with every ramp at its end value), or its `last`.
        steps: optimizer steps after which the stage ends, if its epochs have not ended it before.
        patience: epochs without a better validation loss after which it ends; None: it does not.
        lr_schedule: a class of `torch.optim.lr_scheduler` by name, or a dict of its name and
            options; it steps every epoch, with `"every": "step"` every step. `SequentialLR` and
            `ChainedScheduler` hold others in the same form: {"name": "SequentialLR",
            "schedulers": ["LinearLR", {"name": "CosineAnnealingLR", "T_max": 95}], "milestones":
            [5]}.
        clip: largest norm of all gradients together; larger ones are scaled down to it.
        accumulate: batches whose gradients make one step, as one batch of all their rows would,
            but for scales that are measured on a batch (`optimal`), and for objectives that
            couple rows: each batch measures its own, and couples its own rows.
        ema: decay of an average of the weights over steps, which is then validated, kept and used
            by later stages instead of the weights.
        place: what happens to a mixture prior before the first step. `prior`: its components are
            placed by a fit of a mixture to the codes of at most 10,000 training rows, given all
            that these have; `standard`: they all become the standard prior; None: nothing.
        opponent: what is trained against the objective, an `Opponent` or a dict of its options.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,)}, latent_dim=2, seed=0)
        >>> stages = [mvkit.Stage(epochs=1), mvkit.Stage(epochs=1, trainable=["decoders.*"])]
        >>> history = mvkit.fit(model, {"a": torch.randn(40, 3)}, stages=stages, progress=False)
        >>> history["stage"]
        [0, 1]
    """

    objective: ObjectiveLike | None = part("objective", default=None, optional=True)
    epochs: int = count(100)
    trainable: Sequence[str] = field(default=("*",), check=names)
    optimizer: OptimizerLike = part("optimizer", default="adam", kw_only=True)
    ramps: Mapping[str, RampLike] = parts("ramp", default={}, kw_only=True)
    start_from: Literal["best", "last"] = field(
        default="best", check=one_of("best", "last"), kw_only=True
    )
    steps: int | None = field(default=None, check=none_or_positive, kw_only=True)
    patience: int | None = field(default=None, check=none_or_positive, kw_only=True)
    lr_schedule: ScheduleLike = field(default=None, check=lr_schedule, kw_only=True)
    clip: float | None = field(
        default=None, check=one_of(None, other=number(above=0.0)), kw_only=True
    )
    accumulate: int = field(default=1, check=integer(1), kw_only=True)
    ema: float | None = field(
        default=None, check=one_of(None, other=number(0.0, 1.0)), kw_only=True
    )
    place: Literal["prior", "standard"] | None = field(
        default=None, check=one_of(None, "prior", "standard"), kw_only=True, quiet=True
    )
    opponent: Opponent | None = converted(as_opponent, default=None)

    def training(self, model: nn.Module) -> AbstractContextManager[list[nn.Parameter]]:
        """Inside, the model trains what the stage trains; see `trainable`."""
        rivals = self.rivals(model)
        return trainable(model, self.trainable, set(rivals.values()))

    def rivals(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters of the opponent by name, if there is one."""
        if self.opponent is None:
            return {}
        with within("opponent"):
            return self.opponent.parameters(cast(MultimodalModel, model))

    def scheduler(self, optimizer: Optimizer) -> LRScheduler | None:
        """The learning-rate schedule of an optimizer; None without one.

        Raises:
            SpecError: options that the schedule does not take.
        """
        with within("lr_schedule"):
            return scheduler_of(self.lr_schedule, optimizer)

    @property
    def schedules_steps(self) -> bool:
        """Whether the learning rate changes every step, not every epoch."""
        return isinstance(self.lr_schedule, dict) and self.lr_schedule.get("every") == "step"

    def at(self, objective: ObjectiveLike, epoch: int | None) -> ObjectiveLike:
        """The objective in an epoch, counted from 1; None: with its ramps at their end values."""
        for path, ramp in cast(dict[str, Ramp], self.ramps).items():
            factor = ramp.last() if epoch is None else ramp.at(epoch, self.epochs)
            objective = cast(ObjectiveLike, _scaled(objective, path.split("."), factor, path))
        return objective


def _scaled(value: object, path: list[str], factor: float, whole: str) -> object:
    """A spec with the number at `path` multiplied; `whole` is the path from the objective."""
    if not path:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SpecError(f"ramp {whole!r} leads to {value!r}; expected a number", "ramps")
        return value * factor
    head, *rest = path
    if isinstance(value, tuple) and head.isdigit() and int(head) < len(value):
        items = list(value)
        items[int(head)] = _scaled(items[int(head)], rest, factor, whole)
        return tuple(items)
    fields = vars(value) if is_spec(value) else {}
    if head not in fields:
        raise SpecError(
            f"ramp {whole!r} leads to no field of the objective; {suggest(head, fields)}", "ramps"
        )
    number = _scaled(fields[head], rest, factor, whole)
    return attrs.evolve(value, **{head: number})  # type: ignore[misc]


class Schedule(ABC):
    """Turns a number of epochs into stages. To implement one, write a spec with this method.

    `places_prior` says that it has a stage that places the prior: `prune_clusters`, which places
    the mixture itself, then gives its model the schedule `single`. Such a schedule asks
    `model.placed` whether a run has placed the prior before.

    Example:
        >>> from mvkit import Stage, spec
        >>> from mvkit.parts import Schedule
        >>> @spec
        ... class Halves(Schedule):
        ...     def stages(self, model, epochs):
        ...         return [Stage(epochs=epochs // 2), Stage(epochs=epochs - epochs // 2)]
        >>> [stage.epochs for stage in Halves().stages(None, 5)]
        [2, 3]
    """

    places_prior: bool = False

    @abstractmethod
    def stages(self, model: MultimodalModel, epochs: int) -> list[Stage]:
        """The stages of a model, `epochs` long in all."""


StagesLike = (
    str | Mapping[str, object] | Schedule | Stage | Sequence[Stage | Mapping[str, object]] | None
)


@spec
class Single(Schedule):
    """One stage with the model's objective; ramps may be given.

    Example:
        >>> import mvkit
        >>> from mvkit.parts import Single
        >>> model = mvkit.Model({"a": (3,)}, latent_dim=2, seed=0)
        >>> [stage.epochs for stage in Single().stages(model, 10)]
        [10]
    """

    ramps: Mapping[str, RampLike] = parts("ramp", default={})

    def stages(self, model: MultimodalModel, epochs: int) -> list[Stage]:
        return [Stage(None, epochs, ramps=self.ramps)]


@spec
class JointThenUnimodal(Schedule):
    """The joint encoder and the decoders first; then the unimodal posteriors, the rest frozen.

    Args:
        share: share of the epochs that the first stage gets.
        joint: objective of the first stage.
        unimodal: objective of the second.

    Example:
        >>> import mvkit
        >>> from mvkit.parts import JointThenUnimodal
        >>> options = {"aggregator": "joint", "schedule": JointThenUnimodal(share=0.3)}
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, **options, seed=0)
        >>> [stage.epochs for stage in JointThenUnimodal(share=0.3).stages(model, 10)]
        [3, 7]

    Reference: Vedantam et al., Generative Models of Visually Grounded Imagination, 2018,
    https://arxiv.org/abs/1705.10762.
    """

    share: float = field(default=0.5, check=number(high=1.0, above=0.0))
    joint: ObjectiveLike = part("objective", default="elbo")
    unimodal: ObjectiveLike = part(
        "objective",
        default={"name": "elbo", "condition": "unimodal", "reduce": "sum", "reconstruct": "own"},
    )

    def stages(self, model: MultimodalModel, epochs: int) -> list[Stage]:
        facts = model.aggregator.defaults
        if not facts.has_joint_encoder:
            name = plugins.name_of("aggregator", type(model.spec.aggregator))
            raise SpecError(
                "schedule 'joint_then_unimodal' needs an aggregator with trunks of its own, and "
                f"{name!r} has none; take aggregator='joint', or schedule='single'"
            )
        if epochs < 2:
            raise SpecError(
                "schedule 'joint_then_unimodal' has two stages, and so needs 2 epochs at least"
            )
        first = max(1, min(epochs - 1, round(epochs * self.share)))
        joint = ["aggregator.*", "decoders.*", "prior.*", "cross.*"]
        if any(modality.private_dim for modality in model.modalities.values()):
            joint.append("encoders.*")  # they emit the private latents that decoders learn to read
        unimodal = list(facts.unimodal)
        for objective, globs in ((self.joint, joint), (self.unimodal, unimodal)):
            if isinstance(model, Model) and model.trains_modules_of(objective):
                globs.append("objectives.*")
        return [Stage(self.joint, first, joint), Stage(self.unimodal, epochs - first, unimodal)]


@spec
class WarmupThenMixture(Schedule):
    """The standard prior first; then the mixture prior, placed by the codes, is trained too.

    Components that are placed before encoders know anything find clusters of nothing. In the first
    stage all of them are the standard prior, and stay so. A single epoch trains the mixture as it
    is.

    A mixture that was placed stays so: when a model is fitted again, also one that was loaded, it
    trains on in one stage. To warm up and place it anew, give the stages by themselves:
    `stages=[Stage(epochs=20, place="standard", trainable=["!prior.*"]), Stage(epochs=20,
    place="prior")]`.

    Args:
        share: share of the epochs that the first stage gets.

    Example:
        >>> import mvkit
        >>> from mvkit.parts import WarmupThenMixture
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, prior="mog", seed=0)
        >>> [stage.place for stage in WarmupThenMixture().stages(model, 10)]
        ['standard', 'prior']
    """

    places_prior = True

    share: float = field(default=0.5, check=number(high=1.0, above=0.0))

    def stages(self, model: MultimodalModel, epochs: int) -> list[Stage]:
        if not as_prior(model.prior).places:
            raise SpecError(
                "schedule 'warmup_then_mixture' needs a mixture prior to place, and "
                f"{model.prior_name!r} is none; take prior='mog', or schedule='single'"
            )
        if epochs < 2 or model.placed:
            return [Stage(None, epochs)]
        first = max(1, min(epochs - 1, round(epochs * self.share)))
        return [
            Stage(None, first, _all_but_the_prior(model), place="standard"),
            Stage(None, epochs - first, place="prior"),
        ]


def _all_but_the_prior(model: MultimodalModel) -> tuple[str, ...]:
    """A glob over every parameter but those of the prior."""
    prior = set(model.prior.parameters())
    path = next(name for name, parameter in model.named_parameters() if parameter in prior)
    above, _, _ = path.partition("prior.")
    return (f"!{above}prior.*",)


def as_stages(stages: StagesLike, model: MultimodalModel, epochs: int) -> list[Stage]:
    """What `fit(stages=…)` means.

    Args:
        stages: a schedule by name or spec; a stage, or a list of them; None: the model's schedule.
        model: the model to train.
        epochs: in all; a schedule shares them out.

    Raises:
        SpecError: an empty list, or what is neither a stage nor a schedule.
    """
    if stages is None:
        stages = model.spec.schedule
    if isinstance(stages, Stage):
        return [stages]
    if isinstance(stages, list | tuple):
        if not stages:
            raise SpecError(
                "got none; expected one at least; leave it out to train by the model's schedule",
                "stages",
            )
        return [_as_stage(stage) for stage in stages]
    schedule: Schedule = as_part("schedule", stages)
    return schedule.stages(model, epochs)


def with_patience(plan: Sequence[Stage], patience: int | None) -> list[Stage]:
    """Stages with a patience, in epochs, where they have none of their own; None: as they are.

    Args:
        plan: the stages.
        patience: epochs without a better validation loss.
    """
    stages = []
    for stage in plan:
        if stage.patience is None and patience is not None:
            stage = attrs.evolve(stage, patience=patience)  # type: ignore[misc]
        stages.append(stage)
    return stages


def _as_stage(value: object) -> Stage:
    if isinstance(value, Stage):
        return value
    if isinstance(value, dict):
        return Stage(**value)
    raise SpecError(f"got {value!r}; expected a Stage, or a dict of its options", "stages")
