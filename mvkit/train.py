"""fit: the training loop, in one place. A run is a list of stages; each has a fresh optimizer and a best epoch."""

from __future__ import annotations

import math
import numbers
import sys
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from mvkit.data.pipeline import Pipeline, as_pipeline
from mvkit.errors import DataError, RequestError, SpecError
from mvkit.estimates import evaluation
from mvkit.losses import Loss
from mvkit.objectives import Objective
from mvkit.priors import Prior
from mvkit.stages import Stage, as_stages, trainable

if TYPE_CHECKING:
    from mvkit.generative import Generative


@attrs.frozen(eq=False)
class History:
    """What happened, a row an epoch: stage, epoch, metrics, `valid/…` metrics.

    Example:
        >>> History([{"stage": 0, "epoch": 1, "loss": 2.0}])["loss"]
        [2.0]
    """

    rows: list[dict[str, float]] = attrs.field(factory=list)

    def __getitem__(self, key: str) -> list[float]:
        return [row.get(key, math.nan) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        lines = [", ".join(f"{key} {value:.4g}" for key, value in row.items() if "/" not in key) for row in self.rows]
        return "\n".join([f"History({len(self)} epochs)", *lines[-5:]])


def fit(
    model: Generative,
    data: Any,
    *,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 1e-3,
    validation: Any = None,
    stages: Any = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> History:
    """Trains a model, stage by stage; leaves it in evaluation mode.

    Args:
        model: what to train; moved to `device`.
        data: a batch, a mapping of arrays, a dataset in memory, in shards or of items (`mvkit.Pipeline`), a stream of
            items, a `Pipeline`, or any other iterable of batches (once an epoch).
        epochs: in all; the schedule shares them out.
        batch_size: rows a step.
        lr: learning rate, where the stage's optimizer has none of its own.
        validation: data as above; the best weights of each stage (lowest loss with ramps at their end) are then kept.
        stages: a list of stages, or a schedule; None: the model's own schedule.
        seed: of the order of rows and of all noise; not of the initial weights.
        device: `auto` (an accelerator if there is one) or a torch device.
        progress: show a bar; None: on a terminal only.

    Returns:
        The history, a row an epoch.

    Raises:
        DataError: no rows, a row with nothing observed, values that a likelihood cannot take.
        SpecError: a stage that names no parameters.
    """
    _check_options(batch_size, lr, seed, epochs)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    if isinstance(model.prior, Prior):
        model.prior.start(lambda: _codes(model, data), seed)
    plan = as_stages(stages, model, epochs)
    batch_size, seed = int(batch_size), int(seed)
    loader = _loader(model, data, batch_size, seed, shuffle=True)
    valid = None if validation is None else _loader(model, validation, batch_size, seed, shuffle=False)
    history = History()
    with _bar(sum(stage.epochs for stage in plan), progress) as bar:
        for index, stage in enumerate(plan):
            Run(model, stage, index, loader, valid, seed, lr, history, bar).stage_through()
    model.eval()
    return history


@attrs.define(eq=False)
class Run:
    """One stage on its way."""

    model: Generative
    stage: Stage
    index: int
    loader: Pipeline
    valid: Any
    seed: int
    lr: float
    history: History
    bar: Any
    best: float = math.inf
    weights: dict[str, Tensor] | None = None

    def stage_through(self) -> None:
        """All epochs of the stage; afterwards the model holds its best or last weights."""
        objective = self.stage.objective or self.model.spec.objective
        self.model.train()
        with trainable(self.model, self.stage.trainable) as parameters:
            if not parameters:
                raise SpecError(
                    f"stage {self.index} trains {self.stage.trainable}, which has no parameters", "trainable"
                )
            optimizer = self.stage.optimizer.optimizer(parameters, self.lr)
            for epoch in range(1, self.stage.epochs + 1):
                row: dict[str, float] = {"stage": self.index, "epoch": epoch}
                row |= self._epoch(self.stage.at(objective, epoch), epoch, optimizer)
                if self.valid is not None:
                    row |= self._validate(self.stage.at(objective, None))
                self.history.rows.append(row)
                shown = {
                    k.replace("valid/", "valid_"): v for k, v in row.items() if k.endswith("bound") or k == "valid/loss"
                }
                self.bar.set_postfix(shown)
                self.bar.update()
        if self.weights is not None and self.stage.start_from == "best":
            self.model.load_state_dict(self.weights)

    def _epoch(self, objective: Objective, epoch: int, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        generator = _generator(self.model, self.seed, self.index, epoch)
        self.loader.set_epoch(len(self.history))
        totals = Totals()
        for batch in self.loader:
            optimizer.zero_grad(set_to_none=True)
            found = self.model(batch, objective=objective, generator=generator)
            if found.loss.requires_grad:  # not if no row of the batch counts
                found.loss.backward()
                optimizer.step()
            totals.add(found, len(batch))
        return self._finite(totals.means(), epoch)

    def _finite(self, means: dict[str, float], epoch: int) -> dict[str, float]:
        """The means, if the loss among them is a number."""
        if not math.isfinite(means["loss"]):
            bad = [key for key, value in means.items() if not math.isfinite(value)]
            raise DataError(
                f"fit: stage {self.index}, epoch {epoch}: not finite: {', '.join(bad)}; expected numbers; scale the "
                "data, or lower the learning rate"
            )
        return means

    def _validate(self, objective: Objective) -> dict[str, float]:
        """Means over the validation data, the same noise each time; notes the best weights."""
        generator = _generator(self.model, self.seed, self.index, 0)
        totals = Totals()
        with evaluation(self.model), torch.no_grad():
            for batch in self.valid:
                totals.add(self.model(batch, objective=objective, generator=generator), len(batch))
        means = self._finite(totals.means(), len(self.history) + 1)
        if means["loss"] < self.best:
            self.best = means["loss"]
            self.weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        return {f"valid/{key}": value for key, value in means.items()}


class Totals:
    """Means of metrics over the rows behind them, without waiting for the device before the end."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def add(self, found: Loss, rows: int) -> None:
        """What a batch of so many rows came to."""
        for key, value in found.metrics.items():
            count = found.counts.get(key, torch.full_like(value, rows)).to(value.dtype)
            self.sums[key] = self.sums[key] + value * count if key in self.sums else value * count
            self.counts[key] = self.counts[key] + count if key in self.counts else count

    def means(self) -> dict[str, float]:
        """What was added, divided by the rows behind it."""
        if not self.sums:
            raise DataError(
                "fit: the loader gave no batch; expected one at least an epoch; check that it is not used up"
            )
        values = [self.sums[key].double() / self.counts[key].double() for key in self.sums]
        return dict(zip(self.sums, torch.stack(values).tolist(), strict=True))


def _check_options(batch_size: Any, lr: Any, seed: Any, epochs: Any) -> None:
    """Raises RequestError for options of `fit` that cannot be."""
    whole = {"batch_size": (batch_size, 1), "epochs": (epochs, 1), "seed": (seed, None)}
    for name, (value, low) in whole.items():
        fine = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not fine or (low is not None and value < low):
            raise RequestError(f"fit: {name}={value!r}; expected a whole number{f' of at least {low}' if low else ''}")
    if isinstance(lr, bool) or not isinstance(lr, numbers.Real) or not 0 <= float(lr) < math.inf:
        raise RequestError(f"fit: lr={lr!r}; expected a number of at least 0")


def _codes(model: Generative, data: Any) -> Tensor:
    """Encoded rows (b, d) of whatever `fit` takes."""
    return torch.cat([model.encode(batch) for batch in as_pipeline(data, model.layout, shuffle=False)])


def _generator(model: Generative, seed: int, stage: int, epoch: int) -> torch.Generator:
    """Noise that is a function of seed, stage and epoch."""
    generator = torch.Generator(model.like.device)
    return generator.manual_seed(((seed * 1_000_003 + stage) * 1_000_003 + epoch) % 2**63)


def _loader(model: Generative, data: Any, batch_size: int, seed: int, *, shuffle: bool) -> Pipeline:
    """Batches on the model's device."""
    device = model.like.device
    return as_pipeline(data, model.layout, batch_size=batch_size, shuffle=shuffle, seed=seed, device=device)


def _bar(total: int, progress: bool | None) -> Any:
    from tqdm.auto import tqdm

    hidden = not sys.stderr.isatty() if progress is None else not progress
    return tqdm(total=total, unit="epoch", disable=hidden)
