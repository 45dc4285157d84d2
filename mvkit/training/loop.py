"""The loop: one stage of a run, epoch by epoch and batch by batch, from wherever it stopped."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mvkit.core.all_rows import shared_rows
from mvkit.core.batch import Batch
from mvkit.core.loss import Loss
from mvkit.data.pipeline import Pipeline
from mvkit.errors import NonFiniteError
from mvkit.models.inference import evaluation
from mvkit.models.penalties import nonfinite_penalties
from mvkit.parts.objectives.objective import ObjectiveLike
from mvkit.training import run_folder
from mvkit.training.checks import Gradients
from mvkit.training.events import CheckpointSaved, EpochFinished, NonFinite, StageStarted
from mvkit.training.history import Row, Totals
from mvkit.training.lr_schedules import step_schedule
from mvkit.training.micro_batch import MicroBatch
from mvkit.training.nonfinite import Guard, locate, nonfinite_gradients, remedy_of
from mvkit.training.opponent_run import OpponentRun
from mvkit.training.optimizers import OptimizerSpec, learning_rates, optimizer_of
from mvkit.training.placing import place_prior
from mvkit.training.run import Run
from mvkit.training.run_folder import Json, State
from mvkit.training.step import EagerSteps, Steps
from mvkit.training.step_noise import StepNoise

# the numbers that say where a stage stands
PLACE = ("epoch", "batch", "steps", "best", "stale", "skipped")


def train_stage(run: Run, index: int, state: State | None) -> None:
    """Trains all epochs of a stage that are left; then the model holds its best or last weights.

    Args:
        run: the run.
        index: the number of the stage.
        state: where to resume; None: at the beginning of the stage.
    """
    model, stage = run.model, run.plan[index]
    place_prior(run, index, state)
    model.train()
    opponent = None if stage.opponent is None else OpponentRun(run, index)
    with stage.training(model):
        training = StageRun(run, index, opponent)
        if state is not None:
            training.restore(state)
        if not training.over():
            run.listeners.tell(StageStarted(index, stage))
        while not training.over():
            training.train_epoch()
    if training.weights and stage.start_from == "best":
        model.load_state_dict(training.weights)
    elif training.average:
        model.load_state_dict(training.average, strict=False)


class StageRun:
    """The state of a stage during training.

    Args:
        run: the run it belongs to.
        index: its number.
        opponent: what is trained against it, if anything.

    Attributes:
        epoch, batch, steps: epochs done; batches done in the current epoch; optimizer steps done.
        best, stale, weights: lowest validation loss, epochs since then, and its weights.
        parameters: trained parameters by name.
        average: averages of the trained parameters by name, with `ema`.
        totals, skipped: metrics of this epoch so far; steps skipped in it.
        accumulated: batches whose gradients wait for the step.
        gathered: what gathers rows, if the objective couples them and processes share them.
    """

    def __init__(self, run: Run, index: int, opponent: OpponentRun | None = None) -> None:
        self.run = run
        self.opponent = opponent
        self.index = index
        self.stage = run.plan[index]
        self.epoch = 0
        self.batch = 0
        self.steps = 0
        self.best = math.inf
        self.stale = 0
        self.skipped = 0
        self.totals = Totals()
        self.weights: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}
        self.accumulated: list[MicroBatch] = []
        self.device = run.model.like.device
        self.parameters = {n: p for n, p in run.model.named_parameters() if p.requires_grad}
        spec = cast(OptimizerSpec, self.stage.optimizer)
        self.optimizer = optimizer_of(spec, self.parameters, run.options.lr)
        self.scheduler = self.stage.scheduler(self.optimizer)
        self.eager = EagerSteps(run.group.parallel(run.model))
        self.stepping: Steps = self.eager
        self.programs = run.programs(accumulates=self.stage.accumulate > 1)
        self.gathered = run.group.gathered_rows(run.model, self._objective(None))
        mode = run.options.on_nonfinite
        alone = opponent is None
        self.guard: Guard[list[MicroBatch]] = Guard(
            run.model, self.optimizer, mode, at_once=not alone
        )
        self.noise = StepNoise(run.options.seed, index, run.group.rank, self.device)
        self.gradients = Gradients()
        if self.stage.ema is not None:
            self.average = _copies(self.parameters, self.device)

    @property
    def where(self) -> str:
        """The stage and the epoch, for messages."""
        return f"fit: stage {self.index}, epoch {self.epoch + 1}"

    def over(self) -> bool:
        """Whether the stage has ended."""
        stage = self.stage
        if self.run.stopped or self.epoch >= stage.epochs:
            return True
        no_better = self.stale >= (stage.patience or math.inf)
        return no_better or self.steps >= (stage.steps or math.inf)

    def _objective(self, epoch: int | None) -> ObjectiveLike:
        objective = self.stage.objective or self.run.model.spec.objective
        return self.stage.at(objective, epoch)

    def train_epoch(self) -> None:
        """Trains one epoch, or what is left of it."""
        run = self.run
        objective = self._objective(self.epoch + 1)
        settled = self._objective(self.epoch + 2) == objective  # no ramp moves it on
        self.stepping = self.programs if self.programs and settled else self.eager
        first = self.batch
        start = time.perf_counter()
        for batch in self._batches(first):
            due = self._add_gradient(batch, objective)
            self.batch += 1
            if len(self.accumulated) == self.stage.accumulate:
                self._step()
            if due and not self.accumulated:
                self._save()
                run.raise_if_interrupted(run.step + self.batch)
            if self.over():
                break
        if self.accumulated:
            self._step()
        if first == 0 and not run.stopped:
            self._check_gradients(objective)
        self._report(self.guard.poll())
        seconds = max(time.perf_counter() - start, 1e-9)
        rate = (self.batch - first) * run.options.batch_size / seconds
        self._end_epoch(self._row(), rate)

    def _row(self) -> Row:
        """What the epoch came to in training."""
        step = self.run.step + self.batch
        row: Row = {"stage": self.index, "epoch": self.epoch + 1, "step": step}
        row |= self._means(self.totals)
        row |= learning_rates(self.optimizer)
        if self.skipped:
            row["skipped"] = self.skipped
        if self.opponent is not None:
            row |= self.opponent.row()
        return row

    def _batches(self, first: int) -> Iterator[Batch]:
        """The batches of the epoch from number `first` on, on which an opponent steps before."""
        batches = self.run.batches(self.run.loader, len(self.run.history), first)
        if self.opponent is None:
            return batches
        return self.opponent.before(batches, self.epoch, first, self._stop)

    def _check_gradients(self, objective: ObjectiveLike) -> None:
        """Raises RequestError if nothing was trained in an epoch with rows that count."""
        self.gradients.check(objective, self.where)
        if self.opponent is not None:
            self.opponent.check_gradients(self.where)

    def _end_epoch(self, row: Row, rate: float) -> None:
        """Validates, updates the learning rate, and records the row; `rate` in rows per second."""
        run = self.run
        run.group.synchronise_buffers(run.model)
        if run.valid is not None:
            row |= self._validate(run.valid)
        if not self.stage.schedules_steps:
            if isinstance(self.scheduler, ReduceLROnPlateau):
                self.scheduler.step(row.get("valid/loss", row["loss"]))
            elif self.scheduler is not None:
                step_schedule(self.scheduler, self.where)
        run.history.rows.append(row)
        run.step += self.batch
        self.epoch += 1
        self.batch = 0
        self.skipped = 0
        self.totals = Totals()
        keys = [key for key in row if key.endswith("bound") or key == "valid/loss"]
        shown = {key.replace("valid/", "valid_"): row[key] for key in keys}
        run.bar.set_postfix({**shown, "rows/s": f"{rate:.0f}"})
        run.bar.update()
        if run.writable is not None:
            run.writable.history(run.history)
        self._save()
        run.listeners.tell(EpochFinished(row, run.step))
        run.pooled(0)
        run.raise_if_interrupted(run.step)

    def _all_rows(self) -> AbstractContextManager[None]:
        """Inside, objectives that couple rows see those of all processes, which all take part."""
        return contextlib.nullcontext() if self.gathered is None else shared_rows(self.gathered)

    def _add_gradient(self, batch: Batch, objective: ObjectiveLike) -> bool:
        """Adds a batch's gradient, weighted by its rows; returns whether a checkpoint is due."""
        group = self.run.group
        if not self.accumulated:  # a bad step is undone with all of its batches
            self.guard.snapshot()
        with self.noise.at(self.epoch, self.batch) as generator, self._all_rows():
            step = self.stepping(batch, objective, generator)
        rows, due = self.run.pooled(len(batch))
        self.gradients.note(step.trains, step.counts)
        total = rows if self.stage.accumulate == 1 else 1.0
        weight: Tensor | float = len(batch) * group.count / total
        if group.count > 1:  # a non-finite loss reaches every process with the gradients
            weight = torch.where(torch.isfinite(step.loss), weight, torch.nan)
        step.add_gradient(weight)
        micro = MicroBatch(batch, self.batch, step.loss, step.metrics, step.counts, rows)
        self.accumulated.append(micro)
        return due

    def _step(self) -> None:
        """An optimizer step, skipped if the loss or a gradient is not finite."""
        accumulated, stage = self.accumulated, self.stage
        parameters = self.parameters.values()
        gradients = [p.grad for p in parameters if p.grad is not None]
        if stage.accumulate > 1 and gradients:
            torch._foreach_div_(gradients, sum(micro.rows for micro in accumulated))
        if stage.clip is not None:
            nn.utils.clip_grad_norm_(parameters, stage.clip)
        loss = torch.stack([micro.loss for micro in accumulated]).sum()
        bad, bad_steps = self.guard.step(loss, gradients, accumulated)
        self._report(bad_steps)
        for micro in accumulated:
            self.totals.add(micro.metrics, micro.counts, len(micro.batch), skip=bad)
        self.accumulated = []
        self.optimizer.zero_grad()
        self.steps += 1
        if stage.ema is not None:
            weights = [parameter.detach() for parameter in parameters]
            torch._foreach_lerp_([*self.average.values()], weights, 1 - stage.ema)
        if self.scheduler is not None and stage.schedules_steps:
            step_schedule(self.scheduler, self.where)

    def _report(self, bad_steps: list[list[MicroBatch]]) -> None:
        """Counts steps that were not finite, or ends the run with a report of the first."""
        run = self.run
        if run.options.on_nonfinite == "skip":
            self.skipped += len(bad_steps)
            return
        if not bad_steps:
            return
        batches = bad_steps[0]
        what = nonfinite_penalties(run.model, run.model.training_rows or 1)
        terms = filter(None, () if what else map(self._located, batches))
        what = what or ", ".join(terms) or nonfinite_gradients(self.parameters)
        what = what or "the loss of another process"
        self._stop(what, batches[-1].place + 1)

    def _stop(self, what: str, batch: int) -> None:
        """Ends the run, after what is not finite in a batch, counted from 1."""
        text = f"{self.where}, batch {batch}: not finite: {what}"
        self.run.listeners.tell(NonFinite(text))
        path = self._write("nonfinite.safetensors")
        if path is not None:
            text += f"; the state before it is in {path}"
        remedy = remedy_of(self.run.model.like.dtype)
        raise NonFiniteError(f"{text}; expected finite numbers; {remedy}")

    def _located(self, micro: MicroBatch) -> str:
        """The terms and rows of a batch that are not finite."""
        objective = self._objective(self.epoch + 1)

        def evaluate(batch: Batch) -> Loss:
            return self._loss(batch, objective, self.epoch, micro.place)

        return locate(micro.batch, self.run.rows_of(micro.place), evaluate)

    def _loss(self, batch: Batch, objective: ObjectiveLike, *place: int) -> Loss:
        """The loss of a batch with the noise of its place."""
        with self.noise.at(*place) as generator:
            loss: Loss = self.run.model(batch, objective=objective, generator=generator)
        return loss

    def _means(self, totals: Totals) -> Row:
        """The means over the rows of all processes, if the loss among them is finite."""
        means = totals.means(self.run.group)
        if not math.isfinite(means["loss"]):
            bad = ", ".join(key for key, value in means.items() if not math.isfinite(value))
            raise NonFiniteError(
                f"{self.where}: not finite: {bad}; expected finite numbers; "
                "scale the data, or lower the learning rate"
            )
        return means

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        model = self.run.model
        own = {name: self.parameters[name].detach().clone() for name in self.average}
        model.load_state_dict(self.average, strict=False)
        yield
        model.load_state_dict(own, strict=False)

    def _validate(self, valid: Pipeline) -> Row:
        """Means over the validation data, with the same noise each time; keeps the best."""
        run = self.run
        objective = self._objective(None)
        totals = Totals()
        with self._averaged(), evaluation(run.model), torch.no_grad():
            for place, batch in enumerate(run.batches(valid, 0, 0)):
                with self._all_rows():
                    loss = self._loss(batch, objective, -1, place)
                totals.add(loss.metrics, loss.counts, len(batch))
            means = self._means(totals)
            self.stale += 1
            if means["loss"] < self.best:
                self.best = means["loss"]
                self.stale = 0
                self.weights = _copies(run.model.state_dict(), self.device)
                if run.writable is not None:
                    run.writable.write_model("best", run.model, self.weights)
        return {f"valid/{key}": value for key, value in means.items()}

    def state(self) -> State:
        """The complete state of the run, for a checkpoint."""
        optimizer, tensors = run_folder.optimizer_state(self.optimizer, self.parameters)
        tensors |= {f"best/{name}": value for name, value in self.weights.items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        place: Json = {name: getattr(self, name) for name in PLACE}
        place["optimizer"] = optimizer
        place["scheduler"] = None
        if self.scheduler is not None:
            place["scheduler"] = run_folder.plain_state(self.scheduler)
        sums = self.run.group.pooled(self.totals.pairs())
        place["totals"] = list(sums.items())  # the file sorts keys
        if self.opponent is not None:
            place["opponent"], of_opponent = self.opponent.state()
            tensors |= of_opponent
        return self.run.state(self.index, place, tensors)

    def restore(self, state: State) -> None:
        """Puts back what `state` returned."""
        place = state.place
        for name in PLACE:
            setattr(self, name, place[name])
        tensors = state.part("optimizer/")
        run_folder.restore_optimizer(self.optimizer, self.parameters, place["optimizer"], tensors)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(place["scheduler"])
        self.weights = _copies(state.part("best/"), self.device)
        average = state.part("average/")
        in_order = {name: average[name] for name in self.average}
        self.average = _copies(in_order, self.device)
        sums = self.run.group.first_has(place["totals"])
        self.totals.restore(sums, self.run.model.like)
        if self.opponent is not None:
            self.opponent.restore(place["opponent"], state.part("opponent/optimizer/"))

    def _save(self) -> None:
        """Writes a checkpoint, if the run keeps any."""
        self.run.saved = time.monotonic()
        path = self._write()
        if path is not None:
            self.run.listeners.tell(CheckpointSaved(path, self.run.step + self.batch))

    def _write(self, name: str | None = None) -> Path | None:
        """Writes the state of the run; returns the path, in the process that writes it."""
        run = self.run
        if run.folder is None:
            return None
        state = self.state()  # in every process, because it pools their sums
        if run.writable is None:
            return None
        return run.writable.save(run.model, state, run.step + self.batch, name)


def _copies(values: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies of tensors by name, without gradients."""
    return {name: value.detach().to(device, copy=True) for name, value in values.items()}
