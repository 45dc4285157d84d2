"""fit: trains a model stage by stage; each stage has a fresh optimizer and a best epoch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import torch

from mvkit.core.experts import low_precision
from mvkit.core.noise import put_back_at_end
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.penalties import penalties_found_once
from mvkit.models.sampler_requests import look_again
from mvkit.training.copies import takes_seeds
from mvkit.training.events import Listener, RunFinished
from mvkit.training.history import History
from mvkit.training.loop import train_stage
from mvkit.training.nonfinite import OnNonFinite
from mvkit.training.options import Compile, DataOn, Precision, Resume
from mvkit.training.placing import note_placed
from mvkit.training.preparing import finish, prepared
from mvkit.training.refining import note_refined
from mvkit.training.run import Run
from mvkit.training.stages import StagesLike

if TYPE_CHECKING:
    pass


@takes_seeds
@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    model: MultimodalModel,
    data: object,
    *,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 1e-3,
    validation: object = None,
    patience: int | None = None,
    stages: StagesLike = None,
    seed: int | None = None,
    seeds: int | Iterable[int] | None = None,
    stacked: bool | Literal["auto"] = "auto",
    device: str | torch.device = "auto",
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: Resume = "auto",
    keep: int = 3,
    save_every: float = 300.0,
    on_nonfinite: OnNonFinite = "stop",
    precision: Precision = "float32",
    compile: Compile = False,
    data_on: DataOn = "host",
    workers: int = 0,
    listeners: Iterable[Listener] = (),
) -> History:
    """Trains a model, stage by stage; leaves it in evaluation mode.

    Started by `torchrun`, every process takes its share of each batch, and all end with the same
    weights.

    Args:
        model: what to train; moved to `device`.
        data: a batch, a mapping of arrays, a dataset, a `Pipeline`, or any iterable of batches
            (iterated once per epoch).
        epochs: in all; the schedule shares them out.
        batch_size: rows per step, of all processes together.
        lr: learning rate, where the stage's optimizer has none of its own.
        validation: data as above, or the share of the rows that is held out, such as 0.1 (by their
            ids, or their positions; not of streams); the best weights of each stage (lowest loss
            with ramps at their end) are then kept.
        patience: epochs without a better validation loss after which a stage ends, where the stage
            says nothing itself; None: it does not end early.
        stages: a list of stages, or a schedule; None: the model's own schedule.
        seed: of the order of rows and of all noise; of initial weights only those that the
            objectives of stages add to the model. None: 0.
        seeds: train a copy of the model from each of several seeds, 0 to seeds - 1 or those
            listed: copy s starts from the specs of the model with `seed=s`, and runs as
            `fit(seed=s)`. The history has a column `seed` and all copies in `.ensemble`; the model
            gets the weights of the copy with the best validation loss (without validation, the
            lowest loss at its end). A run's folder has one for each copy.
        stacked: with `seeds`, train all copies in one step, where matrix products of the copies
            become one batch of products: the same numbers to rounding. `auto`: where that is
            possible, else one after another, which `History.notes` says; True: refuse what cannot
            be; False: one after another.
        device: `auto` (an accelerator if there is one) or a torch device.
        progress: show a bar; None: on a terminal only.
        checkpoint: folder of the run (see `mvkit.training.run_folder`); None: nothing is written.
            A run resumes with the same model, stages, batch size, learning rate, seed, precision
            and data only; `mvkit.training.fingerprint` says what it sees of data, and what not.
            Its last stage may have more epochs; device, workers, processes, listeners, `compile`,
            `data_on` and `save_every` may differ, which `History.notes` says. Weights come from
            the folder; those that a model was given after its seed had drawn some are compared.
        resume: `auto`: resume from the newest good checkpoint in the folder, if there is one;
            `must`: refuse to begin anew; `never`: refuse a folder that has one.
        keep: newest checkpoints kept.
        save_every: seconds after which a checkpoint is written inside an epoch too; one is always
            written at its end.
        on_nonfinite: steps with a non-finite loss or gradient are skipped; `stop` then ends the
            run with a report, `skip` counts them.
        precision: `bf16`: networks compute in bfloat16 where autocast does; log-densities stay as
            they are.
        compile: compile encoders and decoders by `torch.compile`; or `"step"`: the whole step,
            forward and backward, as one compiled region, on CUDA as one CUDA graph. Batches are
            then dense (see `Batch.dense`): losses are the same to rounding. While a ramp moves an
            objective, its steps are run as they are.
        data_on: where rows are stored: on the `host`, or, if they are in memory, on the `device`
            too, where batches are picked without waiting; batches of rows with gaps are dense.
        workers: threads that fetch rows of data that are not in memory.
        listeners: callables that are called with each `mvkit.training.events.Event`; they may
            raise `mvkit.training.events.StopTraining` to end the run in good order.

    Returns:
        The history, one row per epoch; of the whole run, if it was resumed.

    Raises:
        DataError: no rows, a row with nothing observed, values that a likelihood cannot take.
        RankError: another process of the run failed, or did not answer within a minute
            (MVKIT_RANKS_TIMEOUT, in seconds).
        NonFiniteError: a non-finite loss or gradient: stage, epoch, batch, terms and rows.
        SpecError: a stage that names no parameters.
        RequestError: invalid options, or others than those that the run in the folder was begun
            with.
        OSError: the folder cannot be written; no checkpoint is claimed then.
        KeyboardInterrupt: Ctrl-C; with a folder, after the step was finished and saved, and with
            a message that says how to resume. A second one stops at once. So it is with SIGTERM,
            which then ends the process as ever, unless the user handles it.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, aggregator="mopoe", seed=0)
        >>> rows = {"a": torch.randn(60, 3), "b": torch.randn(60, 2)}
        >>> history = mvkit.fit(model, rows, epochs=2, validation=0.2, seed=0, progress=False)
        >>> history["epoch"]
        [1, 2]
    """
    run = prepared(
        model,
        data,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        validation=validation,
        patience=patience,
        stages=stages,
        seed=seed,
        device=device,
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
        keep=keep,
        save_every=save_every,
        on_nonfinite=on_nonfinite,
        precision=precision,
        compile=compile,
        data_on=data_on,
        workers=workers,
        listeners=listeners,
    )
    with run.interruption.fatal_in_the_end():
        _train(run, resume)
    finish(run)
    return run.history


def _train(run: Run, resume: Resume) -> None:
    """Trains all stages that are left."""
    device = run.model.like.device
    dtype = torch.bfloat16 if run.options.precision == "bf16" else None
    lock = contextlib.nullcontext() if run.writable is None else run.writable.alone()
    compiled = _compiled(run.model, run.compile is True)
    penalties = penalties_found_once(run.model)
    with lock, run.bar, put_back_at_end(device), low_precision(dtype), compiled, penalties:
        state = run.resume(resume)
        first = 0 if state is None else state.stage
        note_placed(run.model, run.plan[:first])
        run.model.zero_grad()
        run.tell_start(state)
        run.pooled(0)
        keeps_folder = run.folder is not None
        watched = run.interruption.watched() if keeps_folder else contextlib.nullcontext()
        try:
            with watched:
                for index in range(first, len(run.plan)):
                    note_refined(run.model, run.plan[index])
                    train_stage(run, index, state)
                    note_refined(run.model, run.plan[index])
                    state = None
                    if run.stopped:
                        break
            if first < len(run.plan):
                run.finish()
        except BaseException as error:
            run.listeners.tell(RunFinished(run.history, f"{type(error).__name__}: {error}"))
            raise
        finally:
            run.remember_weights()
            look_again(run.model)
        run.listeners.tell(RunFinished(run.history))


@contextlib.contextmanager
def _compiled(model: MultimodalModel, wanted: bool) -> Iterator[None]:
    """Inside, encoders and decoders are compiled, if that is wanted."""
    parents = ("encoders", "decoders")
    modules = model.named_modules() if wanted else ()
    networks = [m for name, m in modules if name.rpartition(".")[0].endswith(parents)]
    for network in networks:
        network.compile(dynamic=True)  # as many rows as a batch observes
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None
