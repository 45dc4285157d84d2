"""fit: a run is a list of stages; each has a fresh optimizer and a best epoch (see `mvkit.training.loop`)."""

from __future__ import annotations

import contextlib
import math
import numbers
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from mvkit.core.experts import low_precision
from mvkit.data.pipeline import Pipeline, as_pipeline
from mvkit.errors import RequestError
from mvkit.models.multimodal import MultimodalModel, check_model
from mvkit.parts.priors import Prior
from mvkit.training.distributed import ProcessGroup
from mvkit.training.events import Listener, Listeners, RunFinished, RunStarted
from mvkit.training.history import History
from mvkit.training.loop import StageRun
from mvkit.training.run import Options, Run
from mvkit.training.run_folder import Folder
from mvkit.training.stages import Stage, as_stages

_NETWORK = re.compile(r"(^|\.)(encoders\.[^.]+|decoders\.[^.]+\.network)$")


PRECISIONS = {"float32": None, "bf16": torch.bfloat16}


def fit(
    model: MultimodalModel,
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
    checkpoint: str | os.PathLike[str] | None = None,
    resume: str = "auto",
    keep: int = 3,
    save_every: float = 300.0,
    on_nonfinite: str = "stop",
    precision: str = "float32",
    compile: bool = False,
    workers: int = 0,
    listeners: Iterable[Listener] = (),
) -> History:
    """Trains a model, stage by stage; leaves it in evaluation mode.

    Started by `torchrun`, every process takes its share of each batch, and all end with the same weights.

    Args:
        model: what to train; moved to `device`.
        data: a batch, a mapping of arrays, a dataset, a `Pipeline`, or any iterable of batches (once an epoch).
        epochs: in all; the schedule shares them out.
        batch_size: rows a step, of all processes together.
        lr: learning rate, where the stage's optimizer has none of its own.
        validation: data as above; the best weights of each stage (lowest loss with ramps at their end) are then kept.
        stages: a list of stages, or a schedule; None: the model's own schedule.
        seed: of the order of rows and of all noise; not of the initial weights.
        device: `auto` (an accelerator if there is one) or a torch device.
        progress: show a bar; None: on a terminal only.
        checkpoint: folder of the run (see `mvkit.training.run_folder`); None: nothing is written.
        resume: `auto`: go on from the newest good checkpoint in the folder, if there is one; `must`: refuse to begin
            anew; `never`: refuse a folder that has one.
        keep: newest checkpoints kept.
        save_every: seconds after which a checkpoint is written inside an epoch too; one is written at its end always.
        on_nonfinite: a loss or gradient that is no number is left out; `stop` then ends the run with a report, `skip`
            counts it.
        precision: `bf16`: networks compute in bfloat16 where autocast does; log-densities stay as they are.
        compile: compile encoders and decoders by `torch.compile`.
        workers: threads that fetch rows of data that do not lie in memory.
        listeners: callables that are told each `mvkit.training.events.Event`.

    Returns:
        The history, a row an epoch; of the whole run, if it went on.

    Raises:
        DataError: no rows, a row with nothing observed, values that a likelihood cannot take.
        NonFiniteError: a loss or gradient is no number: stage, epoch, batch, terms and rows.
        SpecError: a stage that names no parameters.
        RequestError: options that cannot be, or others than those that the run in the folder was begun with.
        OSError: the folder cannot be written; no checkpoint is claimed then.
    """
    check_model(model, "fit")
    _check_options(batch_size, lr, seed, epochs, on_nonfinite, precision, resume, keep, save_every)
    options = Options(
        int(batch_size), float(lr), int(seed), on_nonfinite, precision, float(save_every)
    )
    ranks = ProcessGroup.current()
    model.to(ranks.device(device))
    ranks.synchronise(model)
    if isinstance(model.prior, Prior):
        model.prior.initialise(lambda: _codes(model, data), options.seed)
    plan = as_stages(stages, model, epochs)
    _check_stages(plan, validation)
    loader = _loader(model, data, options, ranks, workers, shuffle=True)
    valid = (
        None
        if validation is None
        else _loader(model, validation, options, ranks, workers, shuffle=False)
    )
    folder = None if checkpoint is None else Folder(checkpoint, keep)
    told = Listeners(listeners) if ranks.first else Listeners.nobody()
    with contextlib.ExitStack() as inside:
        if folder is not None and ranks.first:
            inside.enter_context(folder.alone())
        bar = inside.enter_context(
            _bar(sum(stage.epochs for stage in plan), progress if ranks.first else False)
        )
        run = Run(model, plan, loader, valid, options, ranks, folder, told, bar)
        inside.enter_context(torch.random.fork_rng(devices=_accelerators(model)))
        inside.enter_context(low_precision(PRECISIONS[precision]))
        inside.enter_context(_compiled(model, compile))
        _run_stages(run, resume)
    model.eval()
    return run.history


def _run_stages(run: Run, resume: str) -> None:
    """All stages that are left."""
    state = run.resumed(resume)
    first = 0
    if state is not None:
        first, run.step = state.numbers["stage"], state.numbers["step"]
        run.history.rows.extend(dict(row) for row in state.numbers["history"])
        run.model.load_state_dict(state.part("model/"))
        run.bar.update(len(run.history))
    path = None if run.folder is None else run.folder.path
    done = run.step + (state.numbers["place"].get("batch", 0) if state is not None else 0)
    options = run.begun_with()
    run.listeners.tell(RunStarted(path, options.pop("model"), options, done))
    try:
        for index in range(first, len(run.plan)):
            StageRun(run, index, run.plan[index]).through(state if index == first else None)
        if first < len(run.plan):
            run.finish()
    except BaseException as error:
        run.listeners.tell(RunFinished(run.history, f"{type(error).__name__}: {error}"))
        raise
    run.listeners.tell(RunFinished(run.history))


def _accelerators(model: MultimodalModel) -> list[torch.device]:
    device = model.like.device
    return [device] if device.type == "cuda" else []


@contextlib.contextmanager
def _compiled(model: MultimodalModel, wanted: bool) -> Iterator[None]:
    """Encoders and decoders compiled, inside."""
    networks = [
        m
        for n, m in model.named_modules()
        if wanted and n.rpartition(".")[0].endswith(("encoders", "decoders"))
    ]
    for network in networks:
        network.compile(dynamic=True)  # as many rows as a batch observes
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None


def _check_stages(plan: list[Stage], validation: Any) -> None:
    for index, stage in enumerate(plan):
        if stage.patience is not None and validation is None:
            raise RequestError(
                f"fit: stage {index} has patience={stage.patience}, but nothing to judge by; give validation="
            )


def _check_options(
    batch_size: Any,
    lr: Any,
    seed: Any,
    epochs: Any,
    on_nonfinite: Any,
    precision: Any,
    resume: Any,
    keep: Any,
    save_every: Any,
) -> None:
    """Raises RequestError for options of `fit` that cannot be."""
    whole = {
        "batch_size": (batch_size, 1),
        "epochs": (epochs, 1),
        "seed": (seed, None),
        "keep": (keep, 1),
    }
    for name, (value, low) in whole.items():
        fine = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not fine or (low is not None and value < low):
            raise RequestError(
                f"fit: {name}={value!r}; expected a whole number{f' of at least {low}' if low else ''}"
            )
    for name, value in {"lr": lr, "save_every": save_every}.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, numbers.Real)
            or not 0 <= float(value) < math.inf
        ):
            raise RequestError(f"fit: {name}={value!r}; expected a number of at least 0")
    choices = {
        "on_nonfinite": (on_nonfinite, ("stop", "skip")),
        "precision": (precision, tuple(PRECISIONS)),
        "resume": (resume, ("auto", "must", "never")),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise RequestError(f"fit: {name}={value!r}; expected {' or '.join(map(repr, known))}")


def _codes(model: MultimodalModel, data: Any) -> Tensor:
    """Encoded rows (b, d) of whatever `fit` takes."""
    return torch.cat(
        [model.encode(batch) for batch in as_pipeline(data, model.schema, shuffle=False)]
    )


def _loader(
    model: MultimodalModel,
    data: Any,
    options: Options,
    ranks: ProcessGroup,
    workers: int,
    *,
    shuffle: bool,
) -> Pipeline:
    """Batches on the model's device, of which this process takes its share."""
    return as_pipeline(
        data,
        model.schema,
        batch_size=options.batch_size,
        shuffle=shuffle,
        seed=options.seed,
        device=model.like.device,
        workers=workers,
        rank=ranks.rank,
        ranks=ranks.count,
    )


def _bar(total: int, progress: bool | None) -> Any:
    from tqdm.auto import tqdm

    hidden = not sys.stderr.isatty() if progress is None else not progress
    return tqdm(total=total, unit="epoch", disable=hidden)
