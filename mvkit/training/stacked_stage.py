"""One stage of several copies of a run at once: their weights stacked, one optimizer.

Axes: c copies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mvkit.core.loss import Loss
from mvkit.core.stacked_copies import CopiesNoise, copies_draw
from mvkit.data.pipeline import Pipeline
from mvkit.models.inference import evaluation
from mvkit.models.multimodal import MultimodalModel
from mvkit.parts.objectives.objective import ObjectiveLike
from mvkit.training.history import Row, Totals
from mvkit.training.lr_schedules import step_schedule
from mvkit.training.optimizers import OptimizerSpec, learning_rates, optimizer_of
from mvkit.training.run import Run
from mvkit.training.stacked_batches import Fields, StackedBatch, stacked_batches
from mvkit.training.step_noise import StepNoise

Values = dict[str, Tensor]


class NotStackable(Exception):
    """The copies cannot be trained in one step; the message says why."""


class StackedStage:
    """The state of a stage of several copies; each does what `StageRun` would do of it alone.

    Args:
        runs: of the copies.
        index: the number of the stage.

    Attributes:
        parameters: trained parameters by name, (c, ...).
        frozen: parameters that are not trained, in which the copies differ, by name, (c, ...).
        buffers: buffers that may change, or in which the copies differ, by name, (c, ...).
        average: averages of the trained parameters, with `ema`.
        best: the lowest validation loss of each copy.
        tied: names of parameters, and others of the same one in another module.
        weights: parameters and buffers at which it was reached, (c, ...).
        bad: a flag (): whether some loss or gradient was not finite.
    """

    def __init__(self, runs: Sequence[Run], index: int) -> None:
        self.runs = runs
        self.index = index
        self.stage = runs[0].plan[index]
        self.model = runs[0].model
        self.copies = len(runs)
        self.epoch = 0
        self.steps = 0
        self.best = [math.inf] * self.copies
        self.weights: Values = {}
        device = self.model.like.device
        self.noises = [StepNoise(run.options.seed, index, 0, device) for run in runs]
        self.asked = torch.Generator(device)
        self.numbers = torch.arange(self.copies, device=device)
        self.bad = torch.zeros((), dtype=torch.bool, device=device)
        models = [run.model for run in runs]
        trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        self.parameters = stacked_parameters(models, trained)
        self.frozen = frozen_parameters(models, trained)
        self.buffers = stacked_buffers(models)
        self.tied = tied_names(self.model)
        spec = cast(OptimizerSpec, self.stage.optimizer)
        self.optimizer = optimizer_of(spec, self.parameters, runs[0].options.lr)
        self.scheduler = self.stage.scheduler(self.optimizer)
        self.average: Values = {}
        if self.stage.ema is not None:
            self.average = _detached(self.parameters)

    @property
    def where(self) -> str:
        """The stage and the epoch, for messages."""
        return f"fit: stage {self.index}, epoch {self.epoch + 1}"

    def over(self) -> bool:
        """Whether the stage has ended."""
        return self.epoch >= self.stage.epochs or self.steps >= (self.stage.steps or math.inf)

    def objective(self, epoch: int | None) -> ObjectiveLike:
        """The objective in an epoch, counted from 1; None: with its ramps at their ends."""
        objective = self.stage.objective or self.model.spec.objective
        return self.stage.at(objective, epoch)

    def losses(
        self, batch: StackedBatch, values: Mapping[str, Tensor], objective: ObjectiveLike
    ) -> Loss:
        """Losses (c,) of all copies, with metrics (c,), at stacked weights."""
        mask, masks = batch.mask()
        trains = []
        source = CopiesNoise([noise.generator for noise in self.noises], self.asked)

        def of_copy(
            own: Values, fields: Fields, observed: Tensor, number: Tensor
        ) -> tuple[Tensor, Values, Values]:
            rows = batch.rebuilt(fields, observed)
            options = {"objective": objective, "generator": self.asked}
            with copies_draw(source, number):
                loss: Loss = functional_call(self.model, own, (rows,), options, tie_weights=False)
            trains.append(loss.trains)
            return loss.loss, loss.metrics, loss.counts

        of_rows = None if batch.shared else 0
        of_all = torch.vmap(of_copy, in_dims=(0, of_rows, masks, 0))
        weights = {**self.frozen, **self.buffers, **values}
        for name, other in self.tied:
            if name in weights:
                weights[other] = weights[name]
        try:
            loss, metrics, counts = of_all(weights, batch.fields(), mask, self.numbers)
        except Exception as error:  # whatever cannot be done to all copies at once
            raise NotStackable(_reason(error)) from error
        return Loss(loss, loss.detach(), metrics, counts, trains=all(trains))

    def gradients(self, batch: StackedBatch, objective: ObjectiveLike) -> Loss:
        """The losses of a batch of each copy, whose gradients the parameters then have."""
        loss = self.losses(batch, self.parameters, objective)
        if not (loss.trains and loss.loss.requires_grad):
            raise NotStackable(f"{self.where}: the loss has no gradient")
        try:
            loss.loss.sum().backward()  # of copies that have nothing to do with one another
        except Exception as error:  # such as too little memory for all
            raise NotStackable(_reason(error)) from error
        return loss

    def gradients_by_name(self) -> dict[str, Tensor | None]:
        """The gradients of all copies by parameter, (c, ...) each; None where there is none."""
        return {name: parameter.grad for name, parameter in self.parameters.items()}

    def train_epoch(self) -> None:
        """Trains one epoch of all copies, and adds its row to the history of each."""
        objective = self.objective(self.epoch + 1)
        totals = Totals()
        start = time.perf_counter()
        place = -1
        loaders = [run.loader for run in self.runs]
        batches = stacked_batches(self.runs, loaders, len(self.runs[0].history))
        for place, batch in enumerate(batches):
            for noise in self.noises:
                noise.begin(self.epoch, place)
            loss = self.gradients(batch, objective)
            totals.add(loss.metrics, loss.counts, batch.rows)
            self._step(loss.loss.detach())
            if self.over():
                break
        seconds = max(time.perf_counter() - start, 1e-9)
        rate = (place + 1) * self.copies * self.runs[0].options.batch_size / seconds
        self._end_epoch(place + 1, self._means(totals), rate)

    def _step(self, losses: Tensor) -> None:
        """A step of all copies at once; what is not finite is noted, and ends the attempt."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
        self.bad |= ~torch.isfinite(norms.sum() + losses.sum())
        if self.stage.clip is not None:
            total = torch.linalg.vector_norm(norms, dim=0)
            factor = (self.stage.clip / (total + 1e-6)).clamp(max=1.0)  # as torch clips
            for gradient in gradients:
                gradient.mul_(factor.reshape(-1, *(1,) * (gradient.ndim - 1)))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        if self.stage.ema is not None:
            weights = [parameter.detach() for parameter in self.parameters.values()]
            torch._foreach_lerp_([*self.average.values()], weights, 1 - self.stage.ema)
        if self.scheduler is not None and self.stage.schedules_steps:
            step_schedule(self.scheduler, self.where)

    def _end_epoch(self, batches: int, means: list[Row], rate: float) -> None:
        """Validates, updates the learning rate, and records the row of each copy."""
        rates = learning_rates(self.optimizer)
        valid = [run.valid for run in self.runs if run.valid is not None]
        validated: list[Row] = [{}] * self.copies
        if valid:
            validated = self._validate(valid)
        if self.scheduler is not None and not self.stage.schedules_steps:
            step_schedule(self.scheduler, self.where)
        for run, mean, of_valid in zip(self.runs, means, validated, strict=True):
            run.step += batches
            row: Row = {"stage": self.index, "epoch": self.epoch + 1, "step": run.step}
            run.history.rows.append(row | mean | rates | of_valid)
        self.epoch += 1
        bar = self.runs[0].bar
        bar.set_postfix({"copies": self.copies, "rows/s": f"{rate:.0f}"})
        bar.update()

    def _validate(self, loaders: Sequence[Pipeline]) -> list[Row]:
        """Means over the validation data of each copy, whose best weights are kept."""
        objective = self.objective(None)
        totals = Totals()
        current = self.average or self.parameters
        with evaluation(self.model), torch.no_grad():
            for place, batch in enumerate(stacked_batches(self.runs, loaders, 0)):
                for noise in self.noises:
                    noise.begin(-1, place)
                loss = self.losses(batch, current, objective)
                totals.add(loss.metrics, loss.counts, batch.rows)
        means = self._means(totals)
        better = [mean["loss"] < best for mean, best in zip(means, self.best, strict=True)]
        for copy, mean in enumerate(means):
            self.best[copy] = min(self.best[copy], mean["loss"])
        self._keep({**current, **self.buffers}, torch.tensor(better, device=self.numbers.device))
        return [{f"valid/{key}": value for key, value in mean.items()} for mean in means]

    def _keep(self, current: Mapping[str, Tensor], better: Tensor) -> None:
        """Keeps the weights of the copies that are better now, (c,) bool."""
        if not self.weights:
            self.weights = _detached(current)
            return
        for name, kept in self.weights.items():
            flags = better.reshape(-1, *(1,) * (kept.ndim - 1))
            kept.copy_(torch.where(flags, current[name].detach(), kept))

    def _means(self, totals: Totals) -> list[Row]:
        """Means over rows, of each copy; raises NotStackable if something is not finite."""
        if not totals.keys:
            raise NotStackable(f"{self.where}: the data have no batch")
        table = totals.sums.tolist()  # metric, sum and rows, copy
        means: list[Row] = [{} for _ in self.runs]
        for key, (sums, counts) in zip(totals.keys, table, strict=True):
            for mean, total, count in zip(means, sums, counts, strict=True):
                mean[key] = total / count if count else math.nan
        if bool(self.bad) or not all(math.isfinite(mean["loss"]) for mean in means):
            raise NotStackable(f"{self.where}: a loss or a gradient of a copy is not finite")
        return means

    def take_over(self) -> None:
        """Gives each model what its stage came to: its best, averaged or last weights."""
        values = {**self.parameters, **self.buffers, **self.average}
        if self.weights and self.stage.start_from == "best":
            values |= self.weights
        with torch.no_grad():
            for copy, run in enumerate(self.runs):
                own = tensors_of(run.model)
                for name, value in values.items():
                    own[name].copy_(value[copy])


def _reason(error: Exception) -> str:
    """What an error in the loss of all copies says, in a line."""
    if "random operation" in str(error):  # of torch.vmap
        return "modules such as Dropout draw from torch's own generators"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def stacked_parameters(
    models: Sequence[MultimodalModel], names: Sequence[str]
) -> dict[str, nn.Parameter]:
    """Parameters of several models, (c, ...) each, to be trained."""
    each = [dict(model.named_parameters()) for model in models]
    stacked = {}
    for name in names:
        values = [parameters[name].detach() for parameters in each]
        stacked[name] = nn.Parameter(torch.stack(values))
    return stacked


def frozen_parameters(models: Sequence[MultimodalModel], trained: Sequence[str]) -> Values:
    """Parameters that are not trained, in which the models differ, (c, ...) each."""
    each = [dict(model.named_parameters()) for model in models]
    values = {}
    for name in each[0]:
        tensors = [parameters[name].detach() for parameters in each]
        if name not in trained and not _alike(tensors):
            values[name] = torch.stack(tensors)
    return values


def stacked_buffers(models: Sequence[MultimodalModel]) -> Values:
    """Buffers that files keep, since these may change, and others that differ, (c, ...) each."""
    kept = models[0].state_dict(keep_vars=True)
    each = [dict(model.named_buffers()) for model in models]
    values = {}
    for name, first in each[0].items():
        tensors = [buffers[name] for buffers in each]
        changes = name in kept and first.dtype != torch.bool  # a flag is asked for its value
        if changes or not _alike(tensors):
            values[name] = torch.stack(tensors)
    return values


def tensors_of(model: MultimodalModel) -> Values:
    """The parameters and buffers of a model by name."""
    return dict([*model.named_parameters(), *model.named_buffers()])


def tied_names(model: nn.Module) -> list[tuple[str, str]]:
    """Names of parameters that several modules share: as `named_parameters` has them, and others.

    A module with several names has its parameters once.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    modules = dict(model.named_modules(remove_duplicate=False))
    pairs = []
    for other, parameter in model.named_parameters(remove_duplicate=False):
        owners = [modules[name.rpartition(".")[0]] for name in (names[parameter], other)]
        leaves = [name.rpartition(".")[2] for name in (names[parameter], other)]
        if owners[0] is not owners[1] or leaves[0] != leaves[1]:
            pairs.append((names[parameter], other))
    return pairs


def _alike(tensors: Sequence[Tensor]) -> bool:
    return all(torch.equal(tensors[0], tensor) for tensor in tensors[1:])


def _detached(values: Mapping[str, Tensor]) -> Values:
    return {name: value.detach().clone() for name, value in values.items()}
