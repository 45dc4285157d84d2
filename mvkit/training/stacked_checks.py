"""What copies that are trained in one step must be, and whether their first step is their own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import cast

import attrs
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mvkit.core.batch import Batch
from mvkit.core.loss import Loss
from mvkit.data.pipeline import Pipeline
from mvkit.models.added_levels import PREFIX
from mvkit.training.distributed import ProcessGroup
from mvkit.training.events import event_hooks
from mvkit.training.optimizers import SGD, Adam, AdamW
from mvkit.training.run import Run
from mvkit.training.stacked_batches import StackedBatch, bytes_of, stacked_batches
from mvkit.training.stacked_stage import NotStackable, StackedStage
from mvkit.training.stages import Stage

MOST_BYTES = 2**31  # of rows that each copy has its own, or of the weights of all copies


@attrs.frozen
class Tolerance:
    """How far the first step of stacked copies may be from their own, relatively.

    Args:
        loss: of losses.
        gradient: of gradients.
    """

    loss: float
    gradient: float


TOLERANCES = {torch.float64: Tolerance(1e-9, 1e-7), torch.float32: Tolerance(1e-4, 1e-3)}


def check_options(options: Mapping[str, object]) -> None:
    """Raises NotStackable for options of `fit`, all given, that ask for one run after another."""
    unusual = {
        "checkpoint": "each copy keeps a folder of its own (checkpoint=)",
        "listeners": "listeners are told of one run after another (listeners=)",
        "compile": "what is compiled is that of one copy (compile=)",
        "patience": "each copy ends by itself (patience=)",
    }
    for name, reason in unusual.items():
        if options[name]:
            raise NotStackable(reason)
    precision = options["precision"]
    if precision != "float32":
        raise NotStackable(f"networks compute in low precision (precision={precision!r})")
    if ProcessGroup.current().count > 1:
        raise NotStackable("several processes share the rows")
    hooks = event_hooks()
    if hooks:
        raise NotStackable(f"packages listen to the events of each run ({', '.join(hooks)})")


def check_runs(runs: Sequence[Run], copies: int) -> None:
    """Raises NotStackable for runs whose data or stages cannot be stepped through together.

    Args:
        runs: of the copies, or the first of them.
        copies: how many there will be.
    """
    first = runs[0]
    weights = sum(p.numel() * p.element_size() for p in first.model.parameters())
    if copies * weights > MOST_BYTES:
        raise NotStackable("the weights of all copies together take too much memory")
    if first.model.like.dtype not in TOLERANCES:
        raise NotStackable(f"the model is in {first.model.like.dtype}")
    if first.model.missingness is not None:
        raise NotStackable("the model draws what rows lack, more in batches with gaps")
    for part in ("loader", "valid"):
        loaders = [getattr(run, part) for run in runs]
        if loaders[0] is not None:
            _check_data(loaders, "validation data" if part == "valid" else "data")
    for index, stage in enumerate(first.plan):
        reason = _stage_obstacle(stage)
        if reason:
            raise NotStackable(f"stage {index}: {reason}")


def _check_data(loaders: Sequence[Pipeline], what: str) -> None:
    rows = [loader.rows for loader in loaders]
    batches = [batch for batch in rows if isinstance(batch, Batch)]
    if len(batches) < len(rows):
        raise NotStackable(f"the {what} are read batch by batch, not held in memory")
    if loaders[0].transform is not None or loaders[0].group is not None:
        raise NotStackable(f"the {what} are transformed or grouped batch by batch")
    if len({len(batch) for batch in batches}) > 1:
        raise NotStackable(f"the {what} of the copies have different numbers of rows")
    distinct = {id(batch): batch for batch in batches}
    if len(distinct) > 1 and sum(map(bytes_of, distinct.values())) > MOST_BYTES:
        raise NotStackable(f"the {what} of all copies together take too much memory")


def _stage_obstacle(stage: Stage) -> str:
    """Why a stage of several copies cannot be one; empty if it can."""
    if stage.opponent is not None:
        return "it trains against an opponent"
    if stage.patience is not None:
        return "each copy ends by its own patience"
    if stage.accumulate > 1:
        return "its steps are made of several batches"
    if type(stage.optimizer) not in (Adam, AdamW, SGD):
        return f"its optimizer {stage.optimizer!r} may look at more than one number at a time"
    if any(glob.startswith(PREFIX) for glob in stage.trainable):
        return "it trains single levels of a covariate"
    schedule = stage.lr_schedule
    name = schedule.get("name") if isinstance(schedule, Mapping) else schedule
    if name == ReduceLROnPlateau.__name__:
        return "its learning rate follows the loss of each copy"
    return ""


def check_first_step(stage: StackedStage) -> None:
    """Raises NotStackable unless losses and gradients of a first step are those of each copy.

    Of any part it shows whether what it computes for one copy is computed for all at once. Nothing
    is moved.
    """
    runs = stage.runs
    objective = stage.objective(1)
    loaders = [run.loader for run in runs]
    batch = next(stacked_batches(runs, loaders, len(runs[0].history)))
    for noise in stage.noises:
        noise.begin(0, 0)
    common = [b for name, b in stage.model.named_buffers() if name not in stage.buffers]
    versions = [buffer._version for buffer in common]
    before = {name: buffer.clone() for name, buffer in stage.buffers.items()}
    with warnings.catch_warnings():
        # said once by torch of tensors of several copies, which it copies
        warnings.filterwarnings("ignore", "torch.searchsorted", UserWarning)
        losses = stage.gradients(batch, objective).loss.detach()
    if versions != [buffer._version for buffer in common]:
        raise NotStackable("modules of the model change what no file keeps of them")
    for copy, run in enumerate(runs):
        own = _own_loss(stage, copy, batch)
        _compare_loss(run, losses[copy], own)
        _compare_gradients(run, _at(stage.gradients_by_name(), copy))
        _compare_buffers(run, _at(stage.buffers, copy))
        _put_back(run, _at(before, copy))
    for name, buffer in stage.buffers.items():
        buffer.copy_(before[name])
    stage.optimizer.zero_grad()


def _at(values: Mapping[str, Tensor | None], copy: int) -> dict[str, Tensor | None]:
    """What a copy has of stacked values."""
    return {name: None if value is None else value[copy] for name, value in values.items()}


def _put_back(run: Run, buffers: Mapping[str, Tensor | None]) -> None:
    """Leaves a model without gradients, with the buffers that it had."""
    run.model.zero_grad()
    for name, buffer in run.model.named_buffers():
        value = buffers.get(name)
        if value is not None:
            buffer.copy_(value)


def _own_loss(stage: StackedStage, copy: int, batch: StackedBatch) -> Tensor:
    """The loss of a copy's first batch as it computes it alone, which leaves its gradients."""
    run = stage.runs[copy]
    with stage.noises[copy].at(0, 0) as generator:
        loss: Loss = run.model(batch.of(copy), objective=stage.objective(1), generator=generator)
    if loss.loss.requires_grad:
        loss.loss.backward()
    return loss.loss.detach()


def _compare_loss(run: Run, stacked: Tensor, own: Tensor) -> None:
    """Raises NotStackable unless the loss of a copy is its own to rounding."""
    if not bool(torch.isfinite(own)):
        raise NotStackable(f"the first loss of seed {run.options.seed} is not finite")
    allowed = TOLERANCES[own.dtype].loss * (1 + own.abs())
    if not bool((stacked - own).abs() <= allowed):
        raise NotStackable(
            f"the first loss of seed {run.options.seed} is {float(stacked):.9g} beside others, "
            f"and {float(own):.9g} alone"
        )


def _compare_gradients(run: Run, stacked: Mapping[str, Tensor | None]) -> None:
    """Raises NotStackable unless the gradients of a copy are its own to rounding."""
    expected = {name: p.grad for name, p in run.model.named_parameters() if name in stacked}
    sizes = [gradient.norm() for gradient in expected.values() if gradient is not None]
    whole = torch.stack(sizes).norm() if sizes else torch.zeros(())
    for name, gradient in stacked.items():
        alone = expected[name]
        if alone is None and gradient is None:
            continue
        alike = alone is not None and gradient is not None
        if alone is not None and gradient is not None:
            allowed = TOLERANCES[alone.dtype].gradient * (alone.norm() + 0.01 * whole)
            alike = bool((gradient - alone).norm() <= allowed)
        if not alike:
            raise NotStackable(
                f"the first gradient of {name} of seed {run.options.seed} is another beside other "
                "copies than alone"
            )


def _compare_buffers(run: Run, stacked: Mapping[str, Tensor | None]) -> None:
    """Raises NotStackable unless the buffers of a copy are its own to rounding."""
    own = dict(run.model.named_buffers())
    for name, value in stacked.items():
        buffer = own[name]
        exact = value is None or not buffer.is_floating_point()
        rtol = 0.0 if exact else TOLERANCES[run.model.like.dtype].loss
        close = torch.isclose(cast(Tensor, value), buffer, rtol=rtol, atol=rtol, equal_nan=True)
        if not bool(close.all()):
            raise NotStackable(
                f"{name} of seed {run.options.seed} changes otherwise beside other copies than "
                "alone"
            )
