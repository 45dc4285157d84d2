"""The steps of a stage's opponent, between those of the stage."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mvkit.core.all_rows import connected, shared_rows
from mvkit.core.batch import Batch
from mvkit.core.loss import Loss
from mvkit.training.checks import Gradients
from mvkit.training.freezing import idle_modules
from mvkit.training.history import Row, Totals
from mvkit.training.nonfinite import Guard, locate, nonfinite_gradients
from mvkit.training.opponent import Opponent
from mvkit.training.optimizers import OptimizerSpec, learning_rates, optimizer_of
from mvkit.training.run import Run
from mvkit.training.run_folder import Json, optimizer_state, restore_optimizer
from mvkit.training.step_noise import StepNoise

Stop = Callable[[str, int], None]  # ends the run: what is not finite, and in which batch


class OpponentRun:
    """The state of a stage's opponent during training; made before the stage freezes it.

    Args:
        run: the run.
        index: the number of the stage.

    Attributes:
        parameters: those of the opponent, by name.
        totals, skipped: metrics of this epoch so far; steps skipped in it.
    """

    def __init__(self, run: Run, index: int) -> None:
        self.run = run
        stage = run.plan[index]
        self.spec = cast(Opponent, stage.opponent)
        self.accumulate = stage.accumulate
        self.parameters = self.spec.parameters(run.model)
        optimizer = cast(OptimizerSpec, self.spec.optimizer)
        self.optimizer = optimizer_of(optimizer, self.parameters, run.options.lr)
        mode = run.options.on_nonfinite
        self.guard: Guard[None] = Guard(run.model, self.optimizer, mode, at_once=True)
        device = run.model.like.device
        self.noise = StepNoise(run.options.seed, index, run.group.rank, device)
        self.gathered = run.group.gathered_rows(run.model, self.spec.objective)
        self.gradients = Gradients()
        self.asleep: list[nn.Module] | None = None  # its modules while the stage steps
        self.totals = Totals()
        self.skipped = 0

    def before(
        self, batches: Iterable[Batch], epoch: int, place: int, stop: Stop
    ) -> Iterator[Batch]:
        """The same batches; before those of each step of the stage, the opponent steps on them.

        Args:
            batches: of an epoch.
            epoch: its number.
            place: the number of the first batch.
            stop: ends the run at a step that is not finite.
        """
        batches = iter(batches)
        while coming := list(itertools.islice(batches, self.accumulate)):
            for step in range(self.spec.steps):
                with self._thawed():
                    self._step(coming, (epoch, place, step), stop)
            place += len(coming)
            yield from coming

    @contextlib.contextmanager
    def _thawed(self) -> Iterator[None]:
        """Inside, the opponent's parameters have gradients, and its modules are in training."""
        model = self.run.model
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        if self.asleep is None:
            trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
            idle = idle_modules(model, trained)
            self.asleep = [m for m in model.modules() if not m.training and m not in idle]
        for module in self.asleep:
            module.training = True
        try:
            yield
        finally:
            for parameter in self.parameters.values():
                parameter.requires_grad_(False)
            for module in self.asleep:
                module.training = False

    def _step(self, batches: Sequence[Batch], at: tuple[int, int, int], stop: Stop) -> None:
        """An optimizer step on the rows of some batches, as if they were one."""
        epoch, place, step = at
        parameters = [*self.parameters.values()]
        gradients: list[Tensor | None] = [None] * len(parameters)
        total = self.run.model.like.new_zeros(())
        losses = []
        self.guard.snapshot()
        for i, batch in enumerate(batches):
            with self._all_rows():
                result = self._loss(batch, epoch, place + i, step)
                loss = connected(result.loss) * len(batch)
            losses.append(result)
            total = total + loss.detach()
            parts: Sequence[Tensor | None] = []
            if loss.requires_grad:
                parts = torch.autograd.grad(loss, parameters, allow_unused=True)
                gradients = [*map(_sum, gradients, parts)]
            reached = any(part is not None for part in parts)
            self.gradients.note(reached, result.counts)
        (rows,) = self.run.group.sums(sum(map(len, batches)))
        total, gradients = self._averaged(total, gradients, rows)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        present = [gradient for gradient in gradients if gradient is not None]
        bad, bad_steps = self.guard.step(total, present, None)
        if bad_steps and self.run.options.on_nonfinite == "stop":
            self._report(batches, at, stop)
        self.skipped += len(bad_steps)
        self.optimizer.zero_grad()
        for batch, result in zip(batches, losses, strict=True):
            self.totals.add(result.metrics, result.counts, len(batch), skip=bad)

    def _all_rows(self) -> contextlib.AbstractContextManager[None]:
        """Inside, objectives that couple rows see those of all processes, which all take part."""
        return contextlib.nullcontext() if self.gathered is None else shared_rows(self.gathered)

    def _loss(self, batch: Batch, *place: int) -> Loss:
        """The opponent's loss of a batch, with the noise of its epoch, place and step."""
        with self.noise.at(*place) as generator:
            loss: Loss = self.run.model(batch, objective=self.spec.objective, generator=generator)
        return loss

    def _averaged(
        self, loss: Tensor, gradients: Sequence[Tensor | None], rows: float
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The loss () and gradients of the mean over the rows of all processes, from sums over
        this one's; a parameter that no process uses has None.
        """
        used = [float(gradient is not None) for gradient in gradients]
        if self.run.group.count > 1:
            used = self.run.group.sums(*used)
            loss, *gradients = self._pooled(loss, gradients)
        means: list[Tensor | None] = []
        for gradient, count in zip(gradients, used, strict=True):
            means.append(gradient / rows if gradient is not None and count else None)
        return loss / rows, means

    def _pooled(self, loss: Tensor, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """The sums of the loss () and of gradients over all processes, whichever they have."""
        parts = [loss]
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parts.append(torch.zeros_like(parameter) if gradient is None else gradient)
        flat = torch.cat([part.flatten() for part in parts])
        sums = self.run.group.added(flat).split([part.numel() for part in parts])
        return [total.reshape(part.shape) for total, part in zip(sums, parts, strict=True)]

    def _report(self, batches: Sequence[Batch], at: tuple[int, int, int], stop: Stop) -> None:
        """Ends the run with what is not finite about a step, and in which of its batches."""
        epoch, place, step = at
        located = []
        for i, batch in enumerate(batches):

            def evaluate(rows: Batch, i: int = i) -> Loss:
                return self._loss(rows, epoch, place + i, step)

            located.append(locate(batch, self.run.rows_of(place + i), evaluate))
        what = ", ".join(filter(None, located)) or nonfinite_gradients(self.parameters)
        stop(f"of the opponent: {what or 'the loss of another process'}", place + len(batches))

    def check_gradients(self, where: str) -> None:
        """Raises RequestError if nothing was trained in an epoch with rows that count."""
        self.gradients.check(self.spec.objective, f"{where}, opponent")

    def row(self) -> Row:
        """The metrics of the epoch, and what a new one begins with."""
        means = self.totals.means(self.run.group)
        row = {f"opponent/{key}": value for key, value in means.items()}
        row |= {f"opponent/{key}": rate for key, rate in learning_rates(self.optimizer).items()}
        if self.skipped:
            row["opponent/skipped"] = self.skipped
        self.totals = Totals()
        self.skipped = 0
        return row

    def state(self) -> tuple[Json, dict[str, Tensor]]:
        """Its state for a checkpoint: plain numbers, and tensors."""
        optimizer, tensors = optimizer_state(self.optimizer, self.parameters)
        sums = self.run.group.pooled(self.totals.pairs())
        place = {"optimizer": optimizer, "totals": list(sums.items()), "skipped": self.skipped}
        return place, {f"opponent/{name}": value for name, value in tensors.items()}

    def restore(self, place: Json, tensors: dict[str, Tensor]) -> None:
        """Puts back what `state` returned; the tensors' names without their prefix."""
        restore_optimizer(self.optimizer, self.parameters, place["optimizer"], tensors)
        self.skipped = place["skipped"]
        self.totals.restore(self.run.group.first_has(place["totals"]), self.run.model.like)


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """The sum of two gradients, of which either may be none."""
    if total is None or part is None:
        return part if total is None else total
    return total + part
