"""What happens to a run before its first step, and after its last."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mvkit.data.device_batches import lacked_by_some
from mvkit.data.holdout import hold_out
from mvkit.data.pipeline import Pipeline, as_pipeline
from mvkit.errors import RequestError, check_number, check_option, check_whole_number
from mvkit.models.multimodal import MultimodalModel, check_model
from mvkit.parts.priors import as_prior
from mvkit.training.checks import adopt_objectives, check_plan
from mvkit.training.distributed import ProcessGroup
from mvkit.training.events import Listener, Listeners
from mvkit.training.nonfinite import OnNonFinite
from mvkit.training.options import Compile, DataOn, Options, Precision, Resume
from mvkit.training.placing import stages_of_run
from mvkit.training.run import Run
from mvkit.training.run_folder import Folder
from mvkit.training.stages import Stage, StagesLike, with_patience
from mvkit.training.starts import far_from_training, look_at_first_rows, weighed_rows
from mvkit.training.verdict import judge

if TYPE_CHECKING:
    from tqdm import tqdm


def prepared(
    model: MultimodalModel,
    data: object,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    validation: object,
    patience: int | None,
    stages: StagesLike,
    seed: int | None,
    device: str | torch.device,
    progress: bool | None,
    checkpoint: str | os.PathLike[str] | None,
    resume: Resume,
    keep: int,
    save_every: float,
    on_nonfinite: OnNonFinite,
    precision: Precision,
    compile: Compile,
    data_on: DataOn,
    workers: int,
    listeners: Iterable[Listener],
) -> Run:
    """A run that is ready for its first step: data are checked, and what they place is placed.

    Arguments and errors as of `mvkit.fit`, whose defaults are not repeated here.
    """
    check_model(model, "fit")
    first = 0 if seed is None else seed
    options = _checked(Options(batch_size, lr, first, on_nonfinite, precision, save_every))
    batch_size, seed = options.batch_size, options.seed
    epochs = check_whole_number("fit: epochs", epochs, 1)
    keep = check_whole_number("fit: keep", keep, 1)
    _check_precision(model, precision)
    check_option("fit: resume", resume, "auto", "must", "never")
    group = ProcessGroup.current()
    _check_steps(compile, data_on, group)
    model.to(group.device(device))
    plan = _plan(model, stages, epochs, patience, checkpoint)
    if isinstance(validation, float):
        whole = as_pipeline(data, model.schema, batch_size=batch_size, seed=seed, workers=workers)
        data, validation = hold_out(whole, validation, seed)
    batches = functools.partial(_batches, model, options, group, workers, data_on)
    loader = batches(data)
    valid = None if validation is None else batches(validation, shuffle=False)
    adopt_objectives(plan, model, options.seed)
    check_plan(plan, model, loader, lr, validated=valid is not None)
    folder = None if checkpoint is None else Folder(checkpoint, keep)
    events = Listeners(listeners) if group.first else Listeners((), {})
    bar = _bar(plan, progress if group.first else False)
    run = Run(model, plan, loader, valid, options, group, folder, events, bar)
    _note_steps(run, compile, data_on)
    run.look_at_data()
    run.weigh_rows()
    run.compare_processes()
    group.synchronise(model)
    run.look_at_weights()
    as_prior(model.prior).initialise(lambda: _codes(model, data), seed)
    run.warn(look_at_first_rows(model, loader, run.history.notes))
    run.warn(far_from_training(model, valid))
    return run


def finish(run: Run) -> None:
    """Leaves the model in evaluation mode, and writes into the history what the run came to."""
    run.model.eval()
    judge(run.model, run.loader if run.valid is None else run.valid, run.history)


def _plan(
    model: MultimodalModel,
    stages: StagesLike,
    epochs: int,
    patience: int | None,
    checkpoint: str | os.PathLike[str] | None,
) -> list[Stage]:
    """The stages of a run, which end early by `patience` where they say nothing themselves."""
    if patience is not None:
        check_whole_number("fit: patience", patience, 1)
    return with_patience(stages_of_run(stages, model, epochs, checkpoint), patience)


def _checked(options: Options) -> Options:
    """The options of a run with numbers of Python, if they can be."""
    check_option("fit: on_nonfinite", options.on_nonfinite, "stop", "skip")
    return Options(
        check_whole_number("fit: batch_size", options.batch_size, 1),
        check_number("fit: lr", options.lr),
        check_whole_number("fit: seed", options.seed),
        options.on_nonfinite,
        options.precision,
        check_number("fit: save_every", options.save_every),
    )


def _batches(
    model: MultimodalModel,
    options: Options,
    group: ProcessGroup,
    workers: int,
    data_on: DataOn,
    data: object,
    *,
    shuffle: bool = True,
) -> Pipeline:
    """Batches of whatever `fit` takes, as this process sees them."""
    pipeline = as_pipeline(
        data,
        model.schema,
        device=model.like.device,
        rank=group.rank,
        ranks=group.count,
        batch_size=options.batch_size,
        seed=options.seed,
        workers=workers,
        shuffle=shuffle,
    )
    return pipeline if data_on == "host" else pipeline.stored_on_device()


def _check_steps(compile: Compile, data_on: DataOn, group: ProcessGroup) -> None:
    check_option("fit: compile", compile, False, True, "step")
    check_option("fit: data_on", data_on, "host", "device")
    if compile == "step" and group.count > 1:
        raise RequestError(
            "fit: compile='step' and several processes, which average gradients within the step; "
            "expected one process; take compile=True with several"
        )


def _note_steps(run: Run, compile: Compile, data_on: DataOn) -> None:
    """Notes in a run how its steps are computed, and on what batches."""
    run.compile = compile
    run.data_on = data_on
    if compile == "step":
        run.may_lack = lacked_by_some(run.loader.rows, run.model.names)


def _check_precision(model: MultimodalModel, precision: str) -> None:
    check_option("fit: precision", precision, "float32", "bf16")
    if precision == "bf16" and model.like.dtype == torch.float64:
        raise RequestError(
            "fit: precision='bf16' and a model in float64, whose networks stay so; convert it by "
            "model.float(), or leave precision out"
        )


def _codes(model: MultimodalModel, data: object) -> Tensor:
    """Encoded rows (b, d) of whatever `fit` takes."""
    batches = as_pipeline(data, model.schema, shuffle=False)
    return torch.cat([model.encode(weighed_rows(batch)) for batch in batches])


def _bar(plan: list[Stage], progress: bool | None) -> tqdm[None]:
    """A progress bar over all epochs; `progress` None: shown on a terminal only."""
    from tqdm.auto import tqdm

    if progress is None:
        progress = sys.stderr.isatty()
    epochs = sum(stage.epochs for stage in plan)
    return tqdm(total=epochs, unit="epoch", disable=not progress)
