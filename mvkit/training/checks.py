"""What is refused before the first step: stages that could not be trained to their end."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from mvkit.data.lengths import known_length
from mvkit.data.pipeline import Pipeline
from mvkit.errors import RequestError, SpecError, within
from mvkit.models import refiners
from mvkit.models.added_levels import PREFIX
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.objective_modules import every_objective
from mvkit.registry import plugins
from mvkit.training.lr_schedules import check_rates, pieces, unreached
from mvkit.training.optimizers import OptimizerSpec, group_names, optimizer_of
from mvkit.training.placing import check_placing
from mvkit.training.stages import Stage


def check_plan(
    plan: Sequence[Stage], model: MultimodalModel, loader: Pipeline, lr: float, *, validated: bool
) -> None:
    """Raises an error that names the first stage that could not be trained to its end.

    Args:
        plan: the stages.
        model: the model to train.
        loader: batches to train on.
        lr: the learning rate of optimizers without one.
        validated: whether there are data to validate on.

    Raises:
        SpecError: `trainable` that leads to no parameters; a learning-rate schedule that needs
            what it does not get, or ends before its stage; a prior that cannot be placed.
        RequestError: patience without validation; a stream that is to place a prior.
    """
    for index, stage in enumerate(plan):
        if stage.patience is not None and not validated:
            raise RequestError(
                f"fit: stage {index} has patience={stage.patience}, but nothing to judge by; "
                "give validation="
            )
        check_placing(stage, index, model, loader)
        with within(f"stages.{index}"):
            _check_opponent(stage, model, lr)
        with stage.training(model) as parameters:
            if not parameters:
                reason = f"stage {index} trains {stage.trainable}, which has no parameters"
                raise SpecError(reason, "trainable")
            optimizer = _optimizer(stage, index, model, lr)
            _check_decay(stage, optimizer)
            batches = known_length(loader)
            with within(f"stages.{index}"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # no optimizer steps here
                with within("lr_schedule"):
                    check_rates(stage.lr_schedule, group_names(optimizer))
                _check_schedule(stage, stage.scheduler(optimizer), batches)
            _warn_of_milestones(stage, index, batches)


def _check_opponent(stage: Stage, model: MultimodalModel, lr: float) -> None:
    """Raises SpecError for an opponent whose parameters or optimizer cannot be had."""
    parameters = stage.rivals(model)
    if stage.opponent is not None:
        with within("opponent.optimizer"):
            optimizer_of(cast(OptimizerSpec, stage.opponent.optimizer), parameters, lr)


def _optimizer(stage: Stage, index: int, model: MultimodalModel, lr: float) -> Optimizer:
    """A fresh optimizer of a stage, whose parameters alone have gradients now."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with within(f"stages.{index}.optimizer"):
        return optimizer_of(cast(OptimizerSpec, stage.optimizer), trained, lr)


def _warn_of_milestones(stage: Stage, index: int, batches: int | None) -> None:
    """Warns of schedules that never get their turn."""
    steps = _steps(stage, batches)
    for milestone in unreached(stage.lr_schedule, steps):
        unit = "steps" if stage.schedules_steps else "epochs"
        warnings.warn(
            f"fit: stage {index}: lr_schedule: milestone {milestone} is not reached in {steps} "
            f"{unit}; the schedules after it never begin; take a smaller one, or more {unit}",
            stacklevel=6,
        )


def adopt_objectives(plan: Sequence[Stage], model: MultimodalModel, seed: int) -> None:
    """Makes what the objectives of all stages train a part of the model.

    Args:
        plan: the stages.
        model: the model to train.
        seed: of their initial weights.

    Raises:
        RequestError: an objective that holds parameters itself.
        SpecError: two objectives of one key whose modules differ.
    """
    for index, stage in enumerate(plan):
        _check_objective(stage.objective or model.spec.objective, index)
        _check_needs(stage, index, model)
        if stage.objective is not None:
            with within(f"stages.{index}"):
                model.adopt(stage.objective, seed=seed)
                refiners.adopt(model, model.build_objective(stage.objective), seed)
        if stage.opponent is not None:
            _check_objective(stage.opponent.objective, index)
            with within(f"stages.{index}.opponent"):
                model.adopt(stage.opponent.objective, seed=seed)


def _check_decay(stage: Stage, optimizer: Optimizer) -> None:
    """Raises SpecError for weight decay where a level is trained alone: it moves all levels."""
    levels = [glob for glob in stage.trainable if glob.startswith(PREFIX)]
    if levels and any(group.get("weight_decay") for group in optimizer.param_groups):
        raise SpecError(
            f"{levels[0]!r} trains a level alone, and the optimizer's weight_decay moves the "
            "others too; expected none; take 'adam'",
            "optimizer",
        )


def _check_objective(objective: object, index: int) -> None:
    """Raises RequestError if an objective holds parameters, which nobody trains or saves."""
    held: dict[str, object] = dict(vars(objective)) if hasattr(objective, "__dict__") else {}
    if isinstance(objective, nn.Module):
        held = dict(objective.named_parameters())
    names = []
    for name, value in held.items():
        module = isinstance(value, nn.Module) and next(value.parameters(), None) is not None
        if module or isinstance(value, nn.Parameter):
            names.append(name)
    if names:
        raise RequestError(
            f"fit: the objective {type(objective).__name__} of stage {index} holds parameters "
            f"({', '.join(names)}), which are neither trained nor saved; make them in its method "
            "`modules`, and take them from model.trained(self)"
        )


def _check_needs(stage: Stage, index: int, model: MultimodalModel) -> None:
    """Raises SpecError if an objective needs an opponent, and the stage has none."""
    if stage.opponent is not None:
        return
    with within(f"stages.{index}"):
        objective = model.build_objective(stage.objective or model.spec.objective)
        for part in every_objective(objective):
            if part.needs_opponent:
                raise SpecError(
                    f"{part!r} works against an opponent, and the stage has none; expected one; "
                    "give the stage opponent=, such as {'objective': {'name': 'adversary', "
                    "'side': 'tell'}}",
                    "opponent",
                )


class Gradients:
    """Whether the batches of a stage have gradients, so that it trains something.

    A batch may have none: because no row of it counts, or because none of its rows observes what
    the stage trains.
    """

    def __init__(self) -> None:
        self.some = False
        self.lacking = False

    def note(self, trains: bool, counts: Mapping[str, Tensor]) -> None:
        """Notes a batch by whether its objective has a gradient, and how many rows count in its
        metrics.
        """
        if trains:
            self.some = True
        elif not self.lacking:
            some_count = any(bool((count > 0).any()) for count in counts.values())
            self.lacking = some_count or not counts

    def check(self, objective: object, where: str) -> None:
        """Raises RequestError, after an epoch in which rows counted and no batch had a gradient.

        Args:
            objective: of the stage.
            where: the stage and the epoch.
        """
        if self.some or not self.lacking:
            return
        kind = type(objective)
        name = plugins.name_of("objective", kind) or kind.__name__
        raise RequestError(
            f"{where}: the loss of the objective {name!r} depends on none of the parameters that "
            "the stage trains, so that nothing is trained; expected one with a gradient; add it "
            f"to another, as {{'name': 'sum', 'terms': ['elbo', {name!r}]}}, or train other "
            "parameters"
        )


def _check_schedule(stage: Stage, scheduler: LRScheduler | None, batches: int | None) -> None:
    """Raises SpecError if a fresh schedule cannot be stepped as often as its stage steps it."""
    if scheduler is None:
        return
    if isinstance(scheduler, ReduceLROnPlateau):
        if stage.schedules_steps:
            raise SpecError(
                "ReduceLROnPlateau looks at the loss of an epoch, and has 'every': 'step'; "
                "expected 'every': 'epoch'; leave 'every' out",
                "lr_schedule",
            )
        return
    for piece, steps in pieces(scheduler, _steps(stage, batches)):
        if isinstance(piece, OneCycleLR) and steps is not None and steps > piece.total_steps:
            unit = "steps" if stage.schedules_steps else "epochs"
            raise SpecError(
                f"OneCycleLR ends after {piece.total_steps} {unit}, and the stage has {steps}; "
                f"expected as many at least; take total_steps={steps}",
                "lr_schedule",
            )
    try:
        scheduler.step()
    except (TypeError, ValueError) as error:
        name = type(scheduler).__name__
        raise SpecError(f"{name} cannot be stepped: {error}", "lr_schedule") from None


def _steps(stage: Stage, batches: int | None) -> int | None:
    """How often a stage steps its schedule at most; None where that is unknown."""
    if batches is None:
        return stage.steps if stage.schedules_steps else stage.epochs
    per_epoch = math.ceil(batches / stage.accumulate)
    if stage.schedules_steps:
        return min(stage.epochs * per_epoch, stage.steps or math.inf)  # type: ignore[return-value]
    if stage.steps is None:
        return stage.epochs
    return min(stage.epochs, math.ceil(stage.steps / per_epoch))
