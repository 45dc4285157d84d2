"""Training from several seeds: a copy of the model from each, one after the other."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec

from mvkit.core.noise import whole_seed
from mvkit.core.safe_file import write_whole
from mvkit.errors import RequestError, check_option, check_whole_number
from mvkit.models.checkpoint import save
from mvkit.models.copies import fresh_copy, take_over
from mvkit.models.ensemble import Ensemble
from mvkit.models.multimodal import MultimodalModel, check_model
from mvkit.training.distributed import ProcessGroup, lost_processes_named
from mvkit.training.events import Listener
from mvkit.training.history import History
from mvkit.training.stacked import fit_stacked
from mvkit.training.stacked_stage import NotStackable

Arguments = ParamSpec("Arguments")


def takes_seeds(fit: Callable[Arguments, History]) -> Callable[Arguments, History]:
    """Gives `fit`, which trains one model, its option `seeds`: a copy of the model from each.

    Without `seeds` the function is called as it is. Either way the processes of a run say so where
    they lose one another.
    """
    fit_copies: Callable[..., History] = functools.partial(_fit_copies, fit)

    @functools.wraps(fit)
    def fit_all(*arguments: Arguments.args, **options: Arguments.kwargs) -> History:
        with lost_processes_named():
            if options.get("seeds") is None:
                _check_alone(options.get("stacked", "auto"))
                return fit(*arguments, **options)
            return fit_copies(*arguments, **options)

    return fit_all


def _check_alone(stacked: object) -> None:
    """Raises RequestError for a run from one seed that is to be trained beside others."""
    check_option("fit: stacked", stacked, "auto", True, False)
    if stacked is True:
        raise RequestError(
            "fit: stacked=True, and nothing to stack; expected several seeds; give seeds=, or "
            "leave stacked out"
        )


def _fit_copies(
    fit: Callable[..., History],
    model: MultimodalModel,
    data: object,
    *,
    seeds: int | Iterable[int],
    seed: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: str = "auto",
    listeners: Iterable[Listener] = (),
    stacked: bool | Literal["auto"] = "auto",
    **options: Any,
) -> History:
    """Trains a copy of a model from each of several seeds; the model gets the best weights.

    Args:
        fit: what trains one model.
        model: the model.
        data: what it is trained on.
        seeds: see `mvkit.fit`, as the rest.
        seed: refused.
        checkpoint: the folder of all copies' runs.
        resume: how each copy's run is resumed; of those that were not begun `must` asks nothing.
        listeners: told of the events of all runs.
        stacked: whether all copies are trained in one step.
        options: other options of `fit`.

    Returns:
        The rows of all copies, with a column `seed`, their notes and verdicts, and the copies.

    Raises:
        RequestError: seeds that cannot be, `seed` beside them, a model that has no fresh copy, or
            `stacked` copies that cannot be trained in one step.
    """
    check_model(model, "fit")
    numbers = seeds_of(seeds)
    if seed is not None:
        raise RequestError(
            f"fit: seed={seed!r} beside seeds={list(numbers)}; expected one of them; leave seed "
            "out"
        )
    folder = None if checkpoint is None else _folder(Path(checkpoint))
    options["listeners"] = tuple(listeners)
    notes: list[str] = []
    asked = inspect.signature(fit).bind(model, data, **options)
    asked.apply_defaults()
    every = {**asked.kwargs, "checkpoint": checkpoint, "resume": resume}
    copies, histories = _in_one_step(model, data, numbers, stacked, notes, every)
    for number in numbers[len(copies) :]:
        copy = fresh_copy(model, number)
        place = None if folder is None else folder / f"seed-{number}"
        run = fit(copy, data, seed=number, checkpoint=place, resume=resume, **options)
        resume = "auto" if resume == "must" else resume  # the last run may be the first few copies
        copies.append(copy)
        histories.append(run)
    losses = [final_loss(run) for run in histories]
    model.to(copies[0].like.device)
    take_over(model, copies[losses.index(min(losses))])
    model.eval()
    history = _together(numbers, histories, Ensemble(copies, numbers))
    history.notes[:0] = notes
    if folder is not None and ProcessGroup.current().first:
        _write(folder, model, history)
    return history


def _in_one_step(
    model: MultimodalModel,
    data: object,
    seeds: Sequence[int],
    stacked: bool | Literal["auto"],
    notes: list[str],
    options: Mapping[str, Any],
) -> tuple[list[MultimodalModel], list[History]]:
    """The copies and their histories if they can be trained in one step, else none and a note.

    Raises:
        RequestError: they cannot, and `stacked=True` asks for it.
    """
    check_option("fit: stacked", stacked, "auto", True, False)
    if stacked is False or len(seeds) < 2:
        return [], []
    try:
        runs = fit_stacked(model, data, seeds, options)
    except NotStackable as reason:
        if stacked is True:
            raise RequestError(
                f"fit: stacked=True: the copies cannot be trained in one step: {reason}; expected "
                "runs of the same steps; take stacked='auto', which then trains one after another"
            ) from reason
        notes.append(f"the copies were trained one after another: {reason}")
        return [], []
    return [run.model for run in runs], [run.history for run in runs]


def _folder(path: Path) -> Path:
    """The folder of all copies' runs; raises RequestError if it is that of one run."""
    if (path / "checkpoints").is_dir():
        raise RequestError(
            f"fit: {path} is the folder of a run from one seed; expected another, in which each "
            "of several seeds gets a folder of its own"
        )
    return path


def seeds_of(seeds: int | Iterable[int]) -> tuple[int, ...]:
    """The seeds that are asked for: 0 to n - 1, or those listed.

    Raises:
        RequestError: none, one twice, or what is no seed.
    """
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        return tuple(range(check_whole_number("fit: seeds", seeds, 1)))
    numbers = tuple(whole_seed(seed) for seed in seeds)
    if not numbers or len({*numbers}) < len(numbers):
        raise RequestError(
            f"fit: seeds={list(numbers)}; expected different whole numbers, one at least"
        )
    return numbers


def final_loss(history: History) -> float:
    """What the weights that a run kept came to in its last stage; infinity if nobody knows.

    With validation, the lowest validation loss, whose weights are kept; else the last loss.
    """
    last = max((row.get("stage", 0) for row in history.rows), default=0)
    rows = [row for row in history.rows if row.get("stage", 0) == last]
    validated = [row["valid/loss"] for row in rows if "valid/loss" in row]
    losses = validated or [row["loss"] for row in rows[-1:]]
    return min((loss for loss in losses if math.isfinite(loss)), default=math.inf)


def _together(seeds: tuple[int, ...], histories: list[History], ensemble: Ensemble) -> History:
    """One history of all copies."""
    whole = History(ensemble=ensemble)
    for seed, history in zip(seeds, histories, strict=True):
        for row in history.rows:
            whole.rows.append({"seed": seed, **row})
        whole.notes.extend(f"seed {seed}: {note}" for note in history.notes)
        whole.verdict.extend(f"seed {seed}: {sentence}" for sentence in history.verdict)
    return whole


def _write(folder: Path, model: MultimodalModel, history: History) -> None:
    """Writes the model, the ensemble and the whole history beside the copies' own folders."""
    save(model, folder / "model.safetensors")
    if history.ensemble is not None:
        save(history.ensemble, folder / "ensemble.safetensors")
    write_whole(folder / "history.jsonl", history.to_jsonl().encode())
    write_whole(folder / "history.csv", history.to_csv().encode())
