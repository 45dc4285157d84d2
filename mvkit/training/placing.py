"""Placing a prior: what a stage does to the prior before its first step.

Axes: s samples, b rows, d latent.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.data.pipeline import Pipeline
from mvkit.data.sources import Loaded, Stream
from mvkit.errors import RequestError, SpecError, within
from mvkit.models.multimodal import MultimodalModel
from mvkit.parts.priors import as_prior
from mvkit.training.run import Run
from mvkit.training.run_folder import Folder, State
from mvkit.training.stages import Stage, StagesLike, as_stages

ROWS = 10_000  # whose posteriors place a prior, at most
DRAWS = 8  # of each of them


def check_placing(stage: Stage, index: int, model: MultimodalModel, data: Pipeline) -> None:
    """Raises an error for a stage that places a prior that cannot be placed.

    Args:
        stage: the stage.
        index: its number.
        model: the model to train.
        data: rows to train on.

    Raises:
        SpecError: a prior that has nothing to place.
        RequestError: data that can be read only once.
    """
    if stage.place is None:
        return
    if not as_prior(model.prior).places:
        with within(f"stages.{index}"):
            raise SpecError(
                f"prior {model.prior_name!r} has nothing to place; expected a mixture of "
                "components, such as prior='mog'; leave place out",
                "place",
            )
    if stage.place == "prior" and _read_once(data):
        raise RequestError(
            f"fit: stage {index} places the prior by a pass over the training rows, and these "
            "data can be read only once; expected rows in memory, shards, or an iterable that "
            "begins anew at each pass; or leave place out"
        )


def _read_once(data: Pipeline) -> bool:
    """Whether a pass over the data uses them up."""
    rows = data.rows
    if isinstance(rows, Loaded):
        return isinstance(rows.batches, Iterator)
    return isinstance(rows, Stream) and isinstance(rows.items, Iterator)


def place_prior(run: Run, index: int, state: State | None) -> None:
    """What a stage does to the prior before its first step: nothing, unless it has `place`.

    Every process does the same, with rows of all.

    Args:
        run: the run.
        index: the number of the stage.
        state: where the stage is resumed; None: it begins.
    """
    stage, model = run.plan[index], run.model
    if stage.place is None:
        return
    model.placed = stage.place == "prior"
    if state is not None:
        return
    prior = as_prior(model.prior)
    if stage.place == "standard":
        prior.become_standard()
        return
    seed = noise.seed_of(run.options.seed, index)
    generator = noise.seeded(seed, model.like.device)

    def draws(rows: Batch) -> Tensor:
        return model.posterior_given(rows, model.names, "error").rsample(DRAWS, generator)

    codes, drawn, contexts, weights = [], [], [], []
    for batch in _batches(run.loader):
        codes.append(model.encode(batch))
        drawn.append(model.in_blocks(draws, batch, dim=1))
        contexts.append(model.prior_context(batch.covariates))
        weights.append(batch.row_weight)
    prior.place(
        torch.cat(codes),
        torch.cat(drawn, dim=1),
        context=_joined(contexts),
        weight=_joined(weights),
        seed=seed,
    )
    run.group.synchronise(model)


def note_placed(model: MultimodalModel, finished: Sequence[Stage]) -> None:
    """Notes in a model that is resumed whether stages before have placed its prior."""
    for stage in finished:
        if stage.place is not None:
            model.placed = stage.place == "prior"


def stages_of_run(
    stages: StagesLike,
    model: MultimodalModel,
    epochs: int,
    checkpoint: str | os.PathLike[str] | None,
) -> list[Stage]:
    """What `fit(stages=…)` means: a run that is resumed has the stages that it was begun with,
    also where it has placed the prior of this very model since.

    Args:
        stages: see `fit`.
        model: the model to train.
        epochs: in all.
        checkpoint: the folder of the run; None: none.
    """
    begun = checkpoint is not None and (Path(checkpoint) / "checkpoints").is_dir()
    if not (model.placed and begun and Folder(cast(str, checkpoint), 1).begun_to_place()):
        return as_stages(stages, model, epochs)
    model.placed = False
    try:
        return as_stages(stages, model, epochs)
    finally:
        model.placed = True


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """Values of the rows of all batches; None if they have none."""
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


def _batches(data: Pipeline) -> Iterator[Batch]:
    """Batches of the training rows, of all processes and in their order: evenly spaced ones of
    those in memory, the first ones of others, `ROWS` in all.
    """
    whole = copy.copy(data)
    whole.rank, whole.ranks = 0, 1
    whole.shuffle = False
    whole.group = None
    rows = whole.rows
    if isinstance(rows, Batch) and len(rows) > ROWS:
        index = torch.linspace(0, len(rows) - 1, ROWS, dtype=torch.float64).round().long()
        whole = whole.with_rows(rows.take(index))
    whole.load_state_dict({"epoch": 0, "batch": 0})
    seen = 0
    for batch in whole:
        yield batch
        seen += len(batch)
        if seen >= ROWS:
            return
