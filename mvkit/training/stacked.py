"""Training of several copies of a model in one step, each with the orders and noise of its seed.

The parameters of the copies are stacked, (c, ...), and `torch.vmap` evaluates the loss of all: a
matrix product of a network becomes a batch of products. Optimizers of torch act number by number,
so that one over the stacked parameters is one for each copy. What cannot be done so is trained one
after another; `check_first_step` compares the first step of every stage with each copy's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from mvkit.core.batch import Batch
from mvkit.core.noise import put_back_at_end
from mvkit.data.pipeline import Pipeline, as_pipeline
from mvkit.models.copies import fresh_copy
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.penalties import penalties_found_once
from mvkit.models.sampler_requests import look_again
from mvkit.training.placing import place_prior
from mvkit.training.preparing import finish, prepared
from mvkit.training.refining import note_refined
from mvkit.training.run import Run
from mvkit.training.stacked_checks import check_first_step, check_options, check_runs
from mvkit.training.stacked_stage import NotStackable, StackedStage

OF_COPIES = ("seed", "seeds", "stacked")  # options of `fit` that no single copy has


@torch.inference_mode(False)
@torch.enable_grad()
def fit_stacked(
    model: MultimodalModel, data: object, seeds: Sequence[int], options: Mapping[str, Any]
) -> list[Run]:
    """Trains a fresh copy of a model from each of several seeds, all in one step.

    Args:
        model: the model.
        data: what it is trained on.
        seeds: of the copies.
        options: of `mvkit.fit`, all of them.

    Returns:
        The finished run of each copy.

    Raises:
        NotStackable: what cannot be trained so.
    """
    check_options(options)
    known = {key: value for key, value in options.items() if key not in OF_COPIES}
    copies = [fresh_copy(model, seed) for seed in seeds]
    data = _checked_once(copies[0], data)
    validation = known["validation"]
    if validation is not None and not isinstance(validation, float):
        known["validation"] = _checked_once(copies[0], validation)
    runs = [prepared(copies[0], data, seed=seeds[0], **known)]
    check_runs(runs, len(seeds))
    known["progress"] = False  # one bar for all
    for copy, seed in zip(copies[1:], seeds[1:], strict=True):
        runs.append(prepared(copy, data, seed=seed, **known))
    check_runs(runs, len(seeds))
    _train(runs)
    for run in runs:
        finish(run)
    return runs


def _checked_once(model: MultimodalModel, data: object) -> Pipeline | Batch:
    """Data as the rows that all copies share, checked; raises NotStackable unless in memory."""
    pipeline = as_pipeline(data, model.schema)
    if not isinstance(pipeline.rows, Batch):
        raise NotStackable("data are read batch by batch, not held in memory")
    return pipeline if isinstance(data, Pipeline) else pipeline.rows


def _train(runs: Sequence[Run]) -> None:
    """Trains all stages; raises NotStackable where one cannot be trained so."""
    models = [run.model for run in runs]
    device = models[0].like.device
    with runs[0].bar, put_back_at_end(device), penalties_found_once(models[0]):
        for run in runs:
            run.model.zero_grad()
        for index in range(1, len(runs[0].plan)):  # the first is checked when it begins
            with _stage(runs, index) as stage:
                check_first_step(stage)
        for index in range(len(runs[0].plan)):
            for run in runs:
                note_refined(run.model, run.plan[index])
                place_prior(run, index, None)
            with _stage(runs, index) as stage:
                check_first_step(stage)
                while not stage.over():
                    stage.train_epoch()
            stage.take_over()
            for run in runs:
                note_refined(run.model, run.plan[index])
        for model in models:
            look_again(model)


@contextlib.contextmanager
def _stage(runs: Sequence[Run], index: int) -> Iterator[StackedStage]:
    """A stage of all copies, whose models train inside what it trains."""
    with contextlib.ExitStack() as models:
        for run in runs:
            run.model.train()
            models.enter_context(run.plan[index].training(run.model))
        yield StackedStage(runs, index)
