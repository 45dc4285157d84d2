"""The loop: one stage of a run, batch by batch, from wherever it stands."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.data.pipeline import Pipeline
from mvkit.errors import NonFiniteError, SpecError
from mvkit.models.inference import evaluation
from mvkit.parts.objectives.objective import Objective
from mvkit.training import run_folder
from mvkit.training.events import CheckpointSaved, EpochFinished, NonFinite, StageStarted
from mvkit.training.history import Totals
from mvkit.training.nonfinite import Guard, locate, nonfinite_gradients
from mvkit.training.run import Run
from mvkit.training.run_folder import State
from mvkit.training.stages import Stage, trainable

PLACE = (
    "epoch",
    "batch",
    "steps",
    "best",
    "stale",
    "skipped",
)  # the numbers that say where a stage stands


@attrs.frozen(eq=False)
class Seen:
    """A batch whose gradient was added, and what it came to.

    Args:
        batch, place: the batch, and its number in the epoch.
        objective: what it was measured by.
        loss, metrics, counts: its loss () and metrics.
        rows: its rows in all processes together.
    """

    batch: Batch
    place: int
    objective: Objective
    loss: Tensor
    metrics: dict[str, Tensor]
    counts: dict[str, Tensor]
    rows: float


@attrs.define(eq=False)
class StageRun:
    """One stage on its way.

    Args:
        run: the run it belongs to.
        index: its number.
        stage: what it is.
        epoch, batch, steps: epochs done; batches done in the epoch that goes on; steps of the optimizer done.
        best, stale, weights: lowest validation loss, epochs since then, and the weights that had it.
        average: averaged weights by name, with `ema`.
        totals, skipped: what this epoch came to so far; steps left out in it.
        pending: batches whose gradients wait for the step.
    """

    run: Run
    index: int
    stage: Stage
    epoch: int = 0
    batch: int = 0
    steps: int = 0
    best: float = math.inf
    stale: int = 0
    weights: dict[str, Tensor] | None = None
    average: dict[str, Tensor] = attrs.field(factory=dict)
    totals: Totals = attrs.field(factory=Totals)
    skipped: int = 0
    pending: list[Seen] = attrs.field(factory=list)
    named: dict[str, Tensor] = attrs.field(factory=dict, init=False)
    optimizer: Any = attrs.field(default=None, init=False)
    scheduler: Any = attrs.field(default=None, init=False)
    module: nn.Module = attrs.field(init=False)
    guard: Guard = attrs.field(init=False)
    generator: torch.Generator = attrs.field(init=False)

    def through(self, state: State | None) -> None:
        """All epochs that are left; afterwards the model holds the stage's best or last weights."""
        model = self.run.model
        model.train()
        with trainable(model, self.stage.trainable) as parameters:
            self._prepare(parameters)
            if state is not None:
                self._restore(state)
            self.run.listeners.tell(StageStarted(self.index, self.stage))
            while not self._over():
                self._epoch()
        if self.weights is not None and self.stage.start_from == "best":
            model.load_state_dict(self.weights)
        elif self.average:
            model.load_state_dict(self.average, strict=False)

    def _prepare(self, parameters: list[nn.Parameter]) -> None:
        if not parameters:
            raise SpecError(
                f"stage {self.index} trains {self.stage.trainable}, which has no parameters",
                "trainable",
            )
        chosen = {id(p) for p in parameters}
        self.named = {name: p for name, p in self.run.model.named_parameters() if id(p) in chosen}
        self.optimizer = self.stage.optimizer.optimizer(
            list(self.named.values()), self.run.options.lr
        )
        self.scheduler = self.stage.scheduler(self.optimizer)
        self.module = self.run.ranks.parallel(self.run.model)
        self.guard = Guard(self.run.model, self.optimizer, self.run.options.on_nonfinite)
        self.generator = torch.Generator(self.run.model.like.device)
        if self.stage.ema is not None:
            self.average = {name: p.detach().clone() for name, p in self.named.items()}

    def _over(self) -> bool:
        ended = self.epoch >= self.stage.epochs or self.steps >= (self.stage.steps or math.inf)
        return ended or self.stale >= (self.stage.patience or math.inf)

    def _objective(self, epoch: int | None) -> Objective:
        made: Objective = self.stage.at(
            self.stage.objective or self.run.model.spec.objective, epoch
        )
        return made

    def _epoch(self) -> None:
        run, stage = self.run, self.stage
        objective, started, before = (
            self._objective(self.epoch + 1),
            time.perf_counter(),
            self.batch,
        )
        for batch in run.batches(run.loader, len(run.history), self.batch):
            due = self._batch(batch, objective)
            self.batch += 1
            if len(self.pending) == stage.accumulate:
                self._update()
            if due and not self.pending:
                self._save()
            if self.steps >= (stage.steps or math.inf):
                break
        if self.pending:
            self._update()
        self._report(self.guard.look())
        rate = (
            (self.batch - before)
            * run.options.batch_size
            / max(time.perf_counter() - started, 1e-9)
        )
        row: dict[str, float] = {
            "stage": self.index,
            "epoch": self.epoch + 1,
            "step": run.step + self.batch,
        }
        row |= self._finite(self.totals.means(run.ranks))
        row |= {"lr": self.optimizer.param_groups[0]["lr"]} | (
            {"skipped": self.skipped} if self.skipped else {}
        )
        self._end_epoch(row, rate)

    def _end_epoch(self, row: dict[str, float], rate: float) -> None:
        """Validates, moves the learning rate, keeps the books."""
        run = self.run
        if run.valid is not None:
            row |= self._validate(run.valid)
        if self.scheduler is not None and not self.stage.schedules_steps:
            plateau = isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            self.scheduler.step(*((row.get("valid/loss", row["loss"]),) if plateau else ()))
        run.history.rows.append(row)
        run.step += self.batch
        self.epoch, self.batch, self.totals, self.skipped = self.epoch + 1, 0, Totals(), 0
        shown = {
            k.replace("valid/", "valid_"): v
            for k, v in row.items()
            if k.endswith("bound") or k == "valid/loss"
        }
        run.bar.set_postfix(shown | {"rows/s": f"{rate:.0f}"})
        run.bar.update()
        if run.folder is not None and run.ranks.first:
            run.folder.history(run.history)
        self._save()
        run.listeners.tell(EpochFinished(row, run.step))

    def _seed(self, *keys: int) -> None:
        """Noise and dropout as a function of seed, stage, epoch, batch and process."""
        seed = noise.seed_of(self.run.options.seed, self.index, *keys, self.run.ranks.rank)
        self.generator.manual_seed(seed)
        torch.default_generator.manual_seed(seed)
        if self.generator.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _batch(self, batch: Batch, objective: Objective) -> bool:
        """Adds a batch's gradient, as its rows weigh among those of all processes; whether a checkpoint is due."""
        ranks = self.run.ranks
        self._seed(self.epoch, self.batch)
        if (
            not self.pending
        ):  # what a bad step is put back to is the state before all of its batches
            self.guard.hold()
        loss, metrics, counts = self.module(batch, objective, self.generator)
        rows, due = ranks.sums(len(batch), self.run.due())
        if loss.requires_grad:  # not if no row of the batch counts
            factor = len(batch) * ranks.count / (rows if self.stage.accumulate == 1 else 1.0)
            if (
                ranks.count > 1
            ):  # a loss that is no number reaches every process with the gradients
                (loss * torch.where(torch.isfinite(loss.detach()), factor, torch.nan)).backward()
            else:
                (loss if factor == 1 else loss * factor).backward()
        self.pending.append(
            Seen(batch, self.batch, objective, loss.detach(), metrics, counts, rows)
        )
        return due > 0

    def _update(self) -> None:
        """A step of the optimizer, unless something is no number."""
        pending, stage = self.pending, self.stage
        gradients = [p.grad for p in self.named.values() if p.grad is not None]
        if stage.accumulate > 1 and gradients:
            torch._foreach_div_(gradients, sum(one.rows for one in pending))
        if stage.clip is not None:
            nn.utils.clip_grad_norm_(self.named.values(), stage.clip)
        bad, found = self.guard.step(
            torch.stack([one.loss for one in pending]).sum(), gradients, pending
        )
        self._report(found)
        for one in pending:
            self.totals.add(one.metrics, one.counts, len(one.batch), unless=bad)
        self.pending = []
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        if self.average and stage.ema is not None:
            torch._foreach_lerp_(
                [*self.average.values()], [p.detach() for p in self.named.values()], 1 - stage.ema
            )
        if self.scheduler is not None and stage.schedules_steps:
            self.scheduler.step()

    def _report(self, found: list[list[Seen]]) -> None:
        """What to do about steps that were no numbers."""
        if not found:
            return
        if self.run.options.on_nonfinite == "skip":
            self.skipped += len(found)
            return
        seen = found[0]
        terms = [self._culprits(one) for one in seen]
        what = (
            ", ".join(filter(None, terms))
            or nonfinite_gradients(self.named)
            or "the loss of another process"
        )
        text = f"fit: stage {self.index}, epoch {self.epoch + 1}, batch {seen[-1].place + 1}: not finite: {what}"
        folder = self.run.folder
        self.run.listeners.tell(NonFinite(text))
        if folder is not None and self.run.ranks.first:
            path = folder.save(
                self.run.model, self.state(), self.run.step + self.batch, "nonfinite.safetensors"
            )
            text += f"; the state before it is in {path}"
        raise NonFiniteError(
            f"{text}; expected numbers; scale the data, lower the learning rate, or clip gradients"
        )

    def _culprits(self, seen: Seen) -> str:
        def evaluate(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            self._seed(self.epoch, seen.place)
            found = self.run.model(batch, objective=seen.objective, generator=self.generator)
            return found.loss, found.metrics

        return locate(seen.batch, self.run.rows_of(seen.place), evaluate)

    def _finite(self, means: dict[str, float]) -> dict[str, float]:
        """The means, if the loss among them is a number."""
        if not math.isfinite(means["loss"]):
            bad = [key for key, value in means.items() if not math.isfinite(value)]
            raise NonFiniteError(
                f"fit: stage {self.index}, epoch {self.epoch + 1}: not finite: {', '.join(bad)}; expected numbers; "
                "scale the data, or lower the learning rate"
            )
        return means

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in the model's place, inside."""
        held = {name: self.named[name].detach().clone() for name in self.average}
        self._put(self.average)
        yield
        self._put(held)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.named[name].copy_(value)

    def _validate(self, valid: Pipeline) -> dict[str, float]:
        """Means over the validation data, the same noise each time; notes the best weights."""
        run, objective, totals = self.run, self._objective(None), Totals()
        with self._averaged(), evaluation(run.model), torch.no_grad():
            for place, batch in enumerate(run.batches(valid, 0, 0)):
                self._seed(-1, place)
                found = run.model(batch, objective=objective, generator=self.generator)
                totals.add(found.metrics, found.counts, len(batch))
            means = self._finite(totals.means(run.ranks))
            self.stale += 1
            if means["loss"] < self.best:
                self.best, self.stale = means["loss"], 0
                self.weights = {
                    name: value.detach().clone() for name, value in run.model.state_dict().items()
                }
                if run.folder is not None and run.ranks.first:
                    run.folder.best(run.model, self.weights)
        return {f"valid/{key}": value for key, value in means.items()}

    def state(self) -> State:
        """All that this run is now."""
        plain, tensors = run_folder.optimizer_state(self.optimizer, list(self.named))
        tensors |= {f"best/{name}": value for name, value in (self.weights or {}).items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        place: dict[str, Any] = {name: getattr(self, name) for name in PLACE}
        scheduler = None if self.scheduler is None else run_folder.plain_state(self.scheduler)
        totals = list(self.run.ranks.pooled(self.totals.pairs()).items())  # the file sorts keys
        place |= {"optimizer": plain, "scheduler": scheduler, "totals": totals}
        return self.run.state(self.index, place, tensors)

    def _restore(self, state: State) -> None:
        place = state.numbers["place"]
        for name in PLACE:
            setattr(self, name, place[name])
        run_folder.restore_optimizer(
            self.optimizer, self.named, place["optimizer"], state.part("optimizer/")
        )
        if self.scheduler is not None:
            self.scheduler.load_state_dict(place["scheduler"])
        device, best, average = (
            self.run.model.like.device,
            state.part("best/"),
            state.part("average/"),
        )
        self.weights = {name: value.to(device, copy=True) for name, value in best.items()} or None
        self.average = {name: average[name].to(device, copy=True) for name in self.average}
        own = self.run.ranks.first  # the sums of all processes, which one takes over
        totals = {key: pair if own else (0.0, 0.0) for key, pair in place["totals"]}
        self.totals.restore(totals, self.run.model.like)

    def _save(self) -> None:
        """Writes a checkpoint, if the run keeps any."""
        if self.run.folder is None:
            return
        state, step = self.state(), self.run.step + self.batch
        self.run.saved = time.monotonic()
        if self.run.ranks.first:
            self.run.listeners.tell(
                CheckpointSaved(self.run.folder.save(self.run.model, state, step), step)
            )
